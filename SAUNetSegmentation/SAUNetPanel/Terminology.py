"""The terms of Resources/SegmentationCategoryTypeModifier-SAUNet.term.json, made from the anatomy's table.

Run as a program, it writes the file.
"""

import json
from pathlib import Path
from typing import Any

from SAUNetLib.anatomy import classes, structures
from SAUNetLib.resources import resource

NAME = "SegmentationCategoryTypeModifier-SAUNet.term.json"


def terminology() -> dict[str, Any]:
    """A terminology context in dcmqi's format: one category, one type per code, no modifiers."""
    types: dict[str, dict[str, Any]] = {}
    for structure in [*structures().values(), *classes().values()]:
        types.setdefault(structure.code, {
            "CodingSchemeDesignator": "SCT",
            "CodeValue": structure.code,
            "CodeMeaning": structure.meaning,
            "recommendedDisplayRGBValue": list(structure.colour),
            "3dSlicerLabel": structure.name,
        })  # fmt: skip
    return {
        "SegmentationCategoryTypeContextName": "Segmentation category and type - SAUNet",
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/segment-context-schema.json#",
        "SegmentationCodes": {
            "Category": [
                {
                    "CodingSchemeDesignator": "SCT",
                    "CodeValue": "123037004",
                    "CodeMeaning": "Anatomical Structure",
                    "showAnatomy": False,
                    "Type": list(types.values()),
                }
            ]
        },
    }


def main() -> None:
    """Write the file."""
    path = Path(resource(NAME))
    path.write_text(json.dumps(terminology(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
