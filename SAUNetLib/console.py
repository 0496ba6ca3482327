"""Tables on stdout and in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNLIMITED = 1000
"""Width in columns for a file or a pipe, where rich would cut tables at 80."""


def table_console() -> Console:
    """A console as wide as the terminal, or as `UNLIMITED` if stdout is not a terminal."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `run_command`; rich would end the process with status 1."""
            raise BrokenPipeError

    return PipeConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else UNLIMITED)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
