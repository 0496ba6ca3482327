"""Write measurements as CSV or JSON, with units in the column names."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ..formats.atomic import check_writable, write_beside
from ..formats.endings import MEASUREMENTS
from .results import QUANTITIES, Measurements

COLUMNS = ("value", "name", "level", "kind", *QUANTITIES, "quality", "note")


def write_measurements(measurements: Measurements, path: str | Path) -> None:
    """Write measurements in the format that the path's ending names; only a whole file replaces an existing one.

    ``.csv``: a line per structure, a column per measure with its unit in the name, empty where there is no figure;
    ``quality`` lists the measures with flags (``slip_mm: estimated; volume_mm3: partial``), the others are good;
    ``note`` names the warnings.
    ``.json``: `Measurements.summary`.

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
    """
    path = Path(path)
    ending = check_writable(path, MEASUREMENTS)
    with write_beside(path, ending) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        if ending == ".json":
            json.dump(measurements.summary(), file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
        else:
            _write_csv(measurements, file)


def _write_csv(measurements: Measurements, file: TextIO) -> None:
    writer = csv.DictWriter(file, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(table_rows(measurements.summary()))


def table_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table, by `COLUMNS`, from a `Measurements.summary`, also one read from its file.

    Raises:
        KeyError, TypeError, AttributeError: it is not such a summary.
    """
    note = "; ".join((summary["note"], *(notice["code"] for notice in summary["warnings"])))
    rows = []
    for row in summary["structures"]:
        about = {"value": row["value"] or "", "name": row["name"], "level": row["level"], "kind": row["kind"]}
        quality = "; ".join(f"{name}: {' '.join(flags)}" for name, flags in row["quality"].items())
        rows.append({**about, **row["measures"], "quality": quality, "note": note})  # None is written as an empty cell
    return rows or [{"name": "no structure was found", "note": note}]
