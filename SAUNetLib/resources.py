"""The location of Resources/: inside the installed package, or at the top of a checkout or of the extension."""

from __future__ import annotations

from pathlib import Path


def resource(*parts: str) -> Path:
    """Path of a file or folder in Resources/; it need not exist."""
    here = Path(__file__).resolve().parent
    inside = here / "Resources"
    return (inside if inside.is_dir() else here.parent / "Resources").joinpath(*parts)
