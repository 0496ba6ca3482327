"""The terms of Resources/SegmentationCategoryTypeModifier-SAUNet.term.json, made from the anatomy table.

Run as a program (`python -m harness.terminology` in Testing), it writes the file; a test compares them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from SAUNetLib.anatomy import CATEGORY, TERMINOLOGY, classes, structures
from SAUNetLib.resources import resource

NAME = "SegmentationCategoryTypeModifier-SAUNet.term.json"


def terminology() -> dict[str, Any]:
    """A terminology context in dcmqi's format: one category, one type per code, no modifiers."""
    known = [*classes().values(), *structures().values()]
    scheme, code, meaning = CATEGORY
    bearers = Counter(structure.code for structure in known)
    types: dict[str, dict[str, Any]] = {}
    for structure in known:
        # Choosing a code that has no level of its own, such as T13's, must not name a segment T13. The classes, which
        # have such codes too, come first and give the colour.
        types.setdefault(structure.code, {
            "CodingSchemeDesignator": "SCT",
            "CodeValue": structure.code,
            "CodeMeaning": structure.meaning,
            "recommendedDisplayRGBValue": list(structure.colour),
            "3dSlicerLabel": structure.name if bearers[structure.code] == 1 else structure.meaning,
        })  # fmt: skip
    return {
        "SegmentationCategoryTypeContextName": TERMINOLOGY,
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/segment-context-schema.json#",
        "SegmentationCodes": {
            "Category": [
                {
                    "CodingSchemeDesignator": scheme,
                    "CodeValue": code,
                    "CodeMeaning": meaning,
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
