"""Runs a console program to its end, without a window of its own on Windows."""

import subprocess


def output(arguments: list[str], seconds: float = 5.0) -> str:
    """What the program prints; empty where it cannot be started, fails, or takes longer than it may."""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",  # on Windows in the code page of the console
            timeout=seconds,
            check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
