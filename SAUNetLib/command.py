"""Common parts of all commands: options, signals, streams, and errors as one line with an exit status."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import CancelledError, SAUNetError, UsageError, unforeseen
from .process import complete_streams, prepare_process, signals_to
from .resources import resource

BUG = "This is a bug: please report it with the output of --debug"


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports usage errors like all other errors and rejects abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError("USAGE", message, f"See {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reject unknown arguments here: the parent parser would refer to its own help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def tool(run: Callable[[argparse.Namespace], None], description: str | None) -> Parser:
    """The parser of a command that is run by ``python -m`` instead of `saunet`, for `run_command`."""
    parser = Parser(description=description)
    parser.add_argument("--debug", action="store_true", help="print a traceback on failure")
    parser.set_defaults(run=run)
    return parser


@contextlib.contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Report packages that cannot be imported in the block as missing an extra of SAUNet.

    Raises:
        UsageError: NOT_INSTALLED, a package is missing; the remedy is the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:  # other ImportErrors come from installed packages
        pins = resource().with_name("constraints.txt")
        # The installed saunet satisfies its own name: pip adds the extra's packages and does not look it up.
        where, package = (
            ("Run", f'"{pins}" "saunet[{extra}]"')
            if pins.parent == Path(__file__).resolve().parent
            else ("In SAUNet's folder run", f'constraints.txt -e ".[{extra}]"')
        )
        remedy = f'{where}: "{sys.executable}" -m pip install -c {package}'
        raise UsageError("NOT_INSTALLED", f"{what} needs the package {error.name}", remedy) from error


def run_command(parser: Parser, arguments: Sequence[str] | None = None) -> int:
    """Run the function that the parser sets as ``run``, in a process that ends afterwards (`interrupt_once`).

    Returns:
        The exit status: 0 done, 2 usage, 3 input, 4 model, 5 memory, 6 cancelled, 1 a bug.
    """
    complete_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in arguments, "--json" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A Windows console's encoding may lack characters of a path: no reason to fail when all is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    prepare_process()
    try:
        _refuse_empty(arguments)
        options = parser.parse_args(arguments)
        require_current_folder()
        # A scheduler's termination signal or a closed terminal cancels like Ctrl-C, with everything cleaned up.
        with signals_to(interrupt_once, *cancelling()):
            status = int(options.run(options) or 0)
            sys.stdout.flush()
            return status
    except SAUNetError as error:
        return _fail(error, debug, as_json)
    except KeyboardInterrupt:
        return _fail(CancelledError(), debug, as_json)
    except Exception as error:
        if _nobody_reads(error):  # the reader closed the pipe (| head): nothing is left to report
            sys.stdout = None
            return 0
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO) and error.filename is None:
            # SAUNet's own files raise a SAUNetError: this is most likely stdout, redirected to a full disk.
            cause, remedy = (
                f"standard output or a file cannot be written ({error.strerror})",
                "Check the free disk space",
            )
            return _fail(UsageError("OUTPUT_WRITE", cause, remedy), debug, as_json)
        return _fail(unforeseen(error, BUG), debug, as_json)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Reject arguments such as "" and --model=, which would mean the default or the current folder."""
    for argument in arguments:
        if not argument or re.fullmatch(r"--[\w-]+=", argument):
            what = f"{argument[:-1]} has no value" if argument else "an argument is empty"
            raise UsageError("USAGE", what, "Give it a value; perhaps a shell variable is not set")


def require_current_folder() -> None:
    """Refuse to work in a folder that has been removed: PyTorch's oneMKL would end the process there.

    Raises:
        UsageError: USAGE.
    """
    try:
        Path.cwd()
    except OSError as failure:
        cause = f"the current folder cannot be used ({failure.strerror})"
        raise UsageError("USAGE", cause, "Change to a folder that exists, and start again") from failure


def _nobody_reads(error: Exception) -> bool:
    """Whether an error means a closed pipe: Windows reports that as an invalid argument, and again on flushing."""
    if isinstance(error, BrokenPipeError):
        return True
    if sys.platform != "win32" or not isinstance(error, OSError) or error.errno != errno.EINVAL:
        return False
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        return True
    return False


def _fail(error: SAUNetError, debug: bool, as_json: bool) -> int:
    if isinstance(error, CancelledError):  # raised where a signal is handled elsewhere, as in training
        _ignore_signals()
    with contextlib.suppress(OSError):
        if debug:
            traceback.print_exc()
        print(error, file=sys.stderr, flush=True)
    try:
        if as_json:
            print(json.dumps({"error": error.as_dict()}))  # ASCII: stdout may have any encoding
        sys.stdout.flush()
    except OSError:
        sys.stdout = None  # else the interpreter flushes it again at exit, and complains
    return error.exit_status


def cancelling() -> tuple[signal.Signals, ...]:
    """The signals that cancel a command, without those that are already ignored, as under `nohup`.

    SIGHUP means that the terminal was closed. On Windows SIGBREAK is Ctrl-Break, and the only request to end that one
    process can send to another: SIGTERM kills it at once.
    """
    if sys.platform == "win32":
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
    else:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)


def interrupt_once(*_: object) -> NoReturn:
    """Cancel, and ignore these signals from then on: they would disturb the cleanup or the exit status."""
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in cancelling():
            signal.signal(number, signal.SIG_IGN)
