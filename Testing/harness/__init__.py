"""A strict stand-in for Slicer's Qt layer, on PySide6 and the real MRML scene; see README.md."""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from .application import errors, install, process_events

__all__ = ["errors", "install", "process_events"]
