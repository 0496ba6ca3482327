"""The two commands of the README on a fresh computer: ``python3 run.py segment [IMAGE]`` and ``python3 run.py test``.

Both create the virtual environment .venv with the pinned packages if it is missing. Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import signal
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LONG_PATH = 73
"""Most characters of .venv's path on Windows: PyTorch's files add up to 186, and Windows allows 259 by default."""
NEWEST = {"segment": (3, 14), "test": (3, 13)}
"""The newest Python for which all of a command's pinned packages are built."""


def install(extra: str) -> None:
    """Create the environment and install SAUNet, with or without an extra, unless these pins are installed already."""
    pins = (ROOT / "constraints.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    stamp, wanted = ENVIRONMENT / "installed.txt", hashlib.sha256(pins).hexdigest()
    done = stamp.read_text(errors="replace").splitlines() if stamp.exists() and PYTHON.exists() else []
    if done[:1] == [wanted] and (not extra or extra in done[1:]):
        return
    if not PYTHON.exists():
        print(f"Making the virtual environment {ENVIRONMENT.name} ...", flush=True)
        # Recreate it if its Python no longer exists: dead links to that would remain.
        venv.create(ENVIRONMENT, clear=ENVIRONMENT.is_dir(), symlinks=os.name != "nt")
    if subprocess.run([str(PYTHON), "-m", "pip", "--version"], cwd=ROOT, capture_output=True).returncode:
        # Also into an environment that was left incomplete.
        ensure = [str(PYTHON), "-m", "ensurepip", "--default-pip"]
        subprocess.run(ensure, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    print("Installing the pinned packages; this takes a few minutes the first time ...", flush=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    # torch first and alone: a bare requirement of another package would take a larger build.
    # On Windows, Python before 3.13 cannot read what an editable install writes for a folder with non-ASCII letters.
    editable = ["-e"] if str(ROOT).isascii() else []
    for package in (["torch"], [*editable, f".[{extra}]" if extra else "."]):
        subprocess.run([*pip, *package], cwd=ROOT, check=True)
    kept = done[1:] if done[:1] == [wanted] else []
    stamp.write_text("\n".join([wanted, *kept, extra]))


def saunet(*arguments: str) -> int:
    """Run the command `saunet` of the environment; returns its exit status."""
    command = [str(PYTHON), "-m", "SAUNetLib", *arguments]
    # A numpy.py in the user's current folder must not be imported.
    status = run(command, cwd=Path.cwd(), env={**_environment(), "PYTHONSAFEPATH": "1"})
    if status != -9:  # SIGKILL; most often for lack of memory
        return status
    print(f"error MEMORY: the system ended saunet {arguments[0]}, most often for lack of memory. "
          "Close other programs, or crop the volume to the spine.", file=sys.stderr)  # fmt: skip
    return 5


def run(command: list[str], cwd: Path, env: dict[str, str]) -> int:
    """Run a command; returns its exit status. Ctrl-C reaches the command too, which then reports its own end."""
    with subprocess.Popen(command, cwd=cwd, env=env) as process:
        # These reach only this process; do not forward those that it is to ignore, as under nohup.
        names = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        forwarded = [number for number in names if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, lambda one, _: process.send_signal(one)) for number in forwarded}
        try:
            while True:
                with contextlib.suppress(KeyboardInterrupt):
                    return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def segment(arguments: list[str]) -> int:
    """Segment the image given, or else a phantom, into the folder output."""
    if "" in arguments:  # an unset variable: as a path it would be the current folder
        print("error USAGE: an argument is empty. Give the path of an image.", file=sys.stderr)
        return 2
    try:
        output = Path.cwd() / "output"
        output.mkdir(exist_ok=True)
    except OSError as failure:
        print(f"error OUTPUT_WRITE: the folder output cannot be made here ({failure.strerror}). "
              "Run it in another folder.", file=sys.stderr)  # fmt: skip
        return 2
    install("")
    if not arguments:
        arguments = [str(output / "phantom.nii.gz")]
        if status := saunet("phantom", arguments[0]):
            return status
    name = Path(os.path.abspath(arguments[0])).name  # noqa: PTH100 - keep a link's own name
    stem = re.sub(r"\.(nii(\.gz)?|nrrd|nhdr|mha|mhd|dcm)$", "", name, flags=re.IGNORECASE)
    results = {
        "--output": output / f"{stem}_spine.seg.nrrd",
        "--table": output / f"{stem}_spine.csv",
        "--preview": output / f"{stem}_spine.png",
    }
    return saunet("segment", arguments[0], *(str(part) for pair in results.items() for part in pair), *arguments[1:])


def test(arguments: list[str]) -> int:
    """Run the tests."""
    install("dev")
    # Threads that wait for work in a loop would take the other test's core.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**_environment(), **waiting, "QT_QPA_PLATFORM": "offscreen"}
    # Two files at once: most tests keep one core busy, and what the tests of a file share is made once.
    # No restart: after a crash, the run would wait for ever for the new process to finish the old one's file.
    two = ["-n", "2", "--dist", "loadfile", "--max-worker-restart=0"]
    command = [str(PYTHON), "-m", "pytest", *two, *(arguments or ["Testing"])]
    return run(command, cwd=ROOT, env=environment)


def why_not_installed() -> str:
    """What a user can do about packages that could not be installed."""
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return "PyTorch is no longer made for Macs with Intel processors; on another Mac, use a Python for arm64."
    if sys.platform == "win32" and len(str(ENVIRONMENT)) > LONG_PATH:
        letters = len(str(ENVIRONMENT))
        return f"The path of {ENVIRONMENT} may be too long for Windows ({letters} letters): move the folder."
    return "Check the connection and the space on the disk; on Debian and Ubuntu, install python3-venv."


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - nothing else has looked at it yet
        sys.exit(f"error SETUP: this is Python {sys.version.split()[0]}. Run it with Python 3.11, 3.12 or 3.13.")
    commands = {"segment": segment, "test": test}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        asked = sys.argv[1:2] in (["-h"], ["--help"])
        print("usage: python3 run.py segment [IMAGE [options of `saunet segment`]] | test [options of pytest]",
              file=sys.stdout if asked else sys.stderr)  # fmt: skip
        sys.exit(0 if asked else 2)
    if sys.version_info[:2] > NEWEST[sys.argv[1]]:
        sys.exit(f"error SETUP: for Python {sys.version.split()[0]} some of the pinned packages are not made. "
                 "Run it with Python 3.11, 3.12 or 3.13.")  # fmt: skip
    try:
        sys.exit(commands[sys.argv[1]](sys.argv[2:]))
    except subprocess.CalledProcessError as failure:
        sys.exit(
            f"error SETUP: {failure.cmd[0]} ended with {failure.returncode} while packages were installed. "
            f"{why_not_installed()}"
        )
    except (OSError, ValueError) as failure:
        sys.exit(
            f"error SETUP: {ENVIRONMENT} cannot be made or used ({failure}). "
            "Check its permissions and the space on the disk; if you may, remove it and run this again."
        )
    except KeyboardInterrupt:
        print("error CANCELLED: cancelled before all packages were installed. Run it again.", file=sys.stderr)
        sys.exit(6)
