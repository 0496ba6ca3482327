"""Write measurements as CSV or JSON, with units in the column names."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TextIO

from ..formats.atomic import check_writable, write_beside
from ..formats.endings import MEASUREMENTS
from .results import DISCLAIMER, QUANTITIES, Measurements, StructureMeasures, rounded

COLUMNS = ("value", "name", "level", "kind", *QUANTITIES, "quality", "note")


def write_measurements(measurements: Measurements, path: str | Path) -> None:
    """Write measurements in the format that the path's ending names; only a whole file replaces an existing one.

    ``.csv``: a line per structure, a column per measure with its unit in the name, empty where there is no figure;
    ``quality`` lists the measures with a flag (``slip_mm: estimated; volume_mm3: partial``), the others are good;
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
    note = "; ".join((DISCLAIMER, *(notice.code for notice in measurements.warnings)))
    if not measurements.rows:
        writer.writerow({"name": "no structure was found", "note": note})
    for row in measurements.rows:
        figures = {name: rounded(measure.value) for name, measure in row.measures.items()}  # None is written as nothing
        about = {"value": row.value or "", "name": row.name, "level": row.level, "kind": row.kind}
        writer.writerow({**about, **figures, "quality": _quality(row), "note": note})


def _quality(row: StructureMeasures) -> str:
    return "; ".join(f"{name}: {' '.join(measure.flags)}" for name, measure in row.measures.items() if measure.flags)
