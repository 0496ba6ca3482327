"""Run the targets: replay the saved corpus, or fuzz on from it under coverage guidance.

    python -m fuzz replay                     every saved input through its target
    python -m fuzz run [TARGET...] [-- -runs=N -max_total_time=S ...]   atheris; further options are libFuzzer's
    python -m fuzz seeds                      write the seeds (the small valid and nearly valid inputs) again

What a run finds interesting goes to a temporary folder; a finding is written as crash-* to the working folder: move it,
cut down by hand, to corpus/TARGET/, where it stays as a test.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing")]


def saved(target: str) -> list[Path]:
    """The saved inputs of a target."""
    return sorted(path for path in (CORPUS / target).glob("*") if path.is_file())


def replay() -> int:
    """Every saved input through its target; a line for each that fails."""
    from fuzz.targets import TARGETS

    failed = number = 0
    for name, target in TARGETS.items():
        for path in saved(name):
            number += 1
            with tempfile.TemporaryDirectory(prefix="saunet-fuzz-") as folder, contextlib.chdir(folder):
                try:
                    target(path.read_bytes(), Path(folder))
                except Exception as error:
                    failed += 1
                    print(f"{name}/{path.name}: {type(error).__name__}: {error}")
    print(f"{number} inputs, {failed} findings")
    return int(failed > 0)


def run(work: Path, names: list[str], options: list[str]) -> None:
    """Fuzz the targets together in a temporary folder: an input's first byte says which one takes the rest.

    libFuzzer ends the process, so that nothing after it runs.
    """
    import atheris

    with atheris.instrument_imports(include=["SAUNetLib", "SAUNetPanel", "nrrd", "slicerio"]):
        from fuzz.targets import TARGETS, load_panel

        load_panel()
        if not names or "config" in names:
            import SAUNetLib.training.run  # noqa: F401  (else it would not be instrumented)
    chosen = [TARGETS[name] for name in names or TARGETS]
    logging.disable()

    os.chdir(work)
    inputs, place = work / "inputs", work / "place"
    inputs.mkdir()
    for index, name in enumerate(names or TARGETS):
        for number, path in enumerate(saved(name)):
            (inputs / f"{index:02d}-{number:03d}").write_bytes(bytes([index]) + path.read_bytes())

    def one(data: bytes) -> None:
        if data:
            place.mkdir(exist_ok=True)
            chosen[data[0] % len(chosen)](data[1:], place)

    artifacts = f"-artifact_prefix={Path(sys.argv[0]).resolve().parent}/"
    words = f"-dict={Path(__file__).with_name('words.dict')}"
    defaults = ["-rss_limit_mb=2048", "-timeout=30", "-max_len=16384", "-len_control=0", words, artifacts]
    atheris.Setup([sys.argv[0], str(inputs), *defaults, *options], one)
    atheris.Fuzz()


def main() -> int:
    """The command."""
    mine = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("replay", "run", "seeds"))
    parser.add_argument("target", nargs="*")
    options = parser.parse_args(mine)
    if options.command == "replay":
        return replay()
    if options.command == "seeds":
        from fuzz.seeds import write_seeds

        write_seeds(CORPUS)
        return 0
    with tempfile.TemporaryDirectory(prefix="saunet-fuzz-") as work:
        # In a child, because the peak memory that libFuzzer limits begins with that of whoever started this process.
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        run(Path(work), options.target, sys.argv[len(mine) + 2 :])
    return 0


if __name__ == "__main__":
    sys.exit(main())
