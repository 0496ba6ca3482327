"""SAUNetLib: spine MRI segmentation with SAU-Net, without Slicer. Its public names, imported when they are first used.

>>> from SAUNetLib import Engine, load_model, read_volume, segment
>>> segmentation = segment(read_volume("spine.nii.gz"), Engine(load_model()))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine
    from .errors import SAUNetError
    from .formats.segmentations import read_segmentation, write_segmentation, write_table
    from .formats.volumes import read_volume
    from .model import load_model
    from .pipeline import segment, segment_file
    from .segmentation import Segmentation
    from .volume import Volume

__version__ = "0.2.0"
__all__ = [
    "Engine", "SAUNetError", "Segmentation", "Volume", "load_model", "read_segmentation", "read_volume", "segment",
    "segment_file", "write_segmentation", "write_table",
]  # fmt: skip
_MODULES = {
    "Engine": "engine",
    "SAUNetError": "errors",
    "Segmentation": "segmentation",
    "Volume": "volume",
    "load_model": "model",
    "read_segmentation": "formats.segmentations",
    "read_volume": "formats.volumes",
    "segment": "pipeline",
    "segment_file": "pipeline",
    "write_segmentation": "formats.segmentations",
    "write_table": "formats.segmentations",
}
"""Where the public names are. Most of these modules load PyTorch or SimpleITK, which the panel and the command's help
must not wait for."""


if not TYPE_CHECKING:  # type checkers would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
