"""The lists of files in the two CMakeLists.txt. Run as a program, it updates them; a test compares them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SAUNetSegmentation"


def wanted() -> dict[tuple[Path, str], list[str]]:
    """What the lists should hold: (file, list's name) -> entries."""
    engine = ["Resources/anatomy.csv", "Resources/SegmentationCategoryTypeModifier-SAUNet.term.json"]
    engine += _files(ROOT, "Resources/models", (".json", ".safetensors"))
    return {
        (ROOT / "CMakeLists.txt", "ENGINE_SCRIPTS"): _files(ROOT, "SAUNetLib", (".py",)),
        (ROOT / "CMakeLists.txt", "ENGINE_RESOURCES"): engine,
        (MODULE / "CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"): [
            "${MODULE_NAME}.py",
            *_files(MODULE, "SAUNetPanel", (".py",)),
        ],
        (MODULE / "CMakeLists.txt", "MODULE_PYTHON_RESOURCES"): _files(
            MODULE, "Resources", (".png", ".svg", ".txt", ".ui")
        ),
    }


def found(path: Path, name: str) -> list[str]:
    """The entries of a list in a CMakeLists.txt."""
    match = re.search(rf"set\({name}\n(.*?)\n  \)", path.read_text(encoding="utf-8"), re.DOTALL)
    return match[1].split() if match else []


def _files(base: Path, folder: str, endings: tuple[str, ...]) -> list[str]:
    paths = (path for path in (base / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(base).as_posix() for path in paths if path.name.endswith(endings))


def main() -> None:
    """Update the lists."""
    for (path, name), entries in wanted().items():
        text = path.read_text(encoding="utf-8")
        lines = "\n".join(f"  {entry}" for entry in entries)
        text = re.sub(rf"(set\({name}\n).*?(\n  \))", lambda m, lines=lines: m[1] + lines + m[2], text, flags=re.DOTALL)
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
