"""The modules of the panel: Widget, Logic, EngineProcess, SceneNodes, Dependencies and what they share."""

import sys
from pathlib import Path


def engineFolder(start: "str | Path" = __file__) -> Path:
    """The folder that holds SAUNetLib.

    Slicer puts only the module's own folder on the path. In an installed extension and in a build tree SAUNetLib lies
    in that folder; in a checkout, used through "additional module paths", it lies one folder above.

    Raises:
        ImportError: SAUNetLib is in neither place.
    """
    module = Path(start).resolve().parent.parent
    for folder in (module, module.parent):
        if (folder / "SAUNetLib" / "worker.py").is_file():
            return folder
    raise ImportError(f"SAUNetLib is neither in {module} nor beside it")


if str(engineFolder()) not in sys.path:
    sys.path.append(str(engineFolder()))
