"""An experiment on other scanners' bodies: ``python -m SAUNetLib.evaluation.fine_tuning DATA PATIENT... --output DIR``.

Makes a folder for `saunet train --from` of patients whose vertebral bodies alone are drawn, and only some of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from ..anatomy import BACKGROUND, VERTEBRA
from ..command import run_command, tool
from ..engine import Engine
from ..formats.label_values import UNKNOWN
from ..formats.volumes import read_volume, write_volume
from ..model import load_model
from ..pipeline import segment
from ..volume import Volume
from .validation import read_bodies

BORDER_MM = 3.0
"""Predicted vertebra this close to a drawn body is part of that body, whose border the reader chose differently."""
DOUBT_MM = 10.0
"""Predicted background this close to a vertebra that is not drawn is not trusted."""


def body_labels(volume: Volume, bodies: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Classes (k, j, i) uint8 to train on, 255 where not known.

    A drawn body is vertebra. Discs, canal and background are as predicted, but vertebra (bodies or arches) that is
    predicted and not drawn, and background near it, are unknown: the model's own borders would teach nothing new, and
    what it misses there would be taught as background.

    Args:
        volume: the image.
        bodies: (k, j, i), above 0 in the drawn bodies.
        classes: (k, j, i), the model's prediction.
    """
    spacing = tuple(reversed(volume.geometry.spacing))
    drawn = bodies > 0
    undrawn = (classes == VERTEBRA) & (distance_transform_edt(~drawn, spacing) > BORDER_MM)
    # There is no distance to an empty mask: SciPy would return that to a corner.
    doubtful = undrawn.any() & (distance_transform_edt(~undrawn, spacing) <= DOUBT_MM)
    labels = np.where(doubtful & (classes == BACKGROUND) | (classes == VERTEBRA), UNKNOWN, classes)
    return np.where(drawn, VERTEBRA, labels).astype(np.uint8)


def write_folder(engine: Engine, data: Path, patients: Sequence[str], output: Path) -> None:
    """Write the pairs of ``external_bodies`` patients (such as ``VB3_01``) as a folder to train on."""
    for patient in patients:
        volume = read_volume(data / f"{patient}_image.nii.gz")
        bodies = read_bodies(data / f"{patient}_bodies.nii.gz")
        labels = body_labels(volume, bodies, segment(volume, engine, levels=False).labels)
        write_volume(volume, output / f"{patient}_image.nii.gz")
        write_volume(Volume(labels, volume.geometry), output / f"{patient}_labels.nii.gz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see the module's docstring."""
    parser = tool(_write, __doc__)
    parser.add_argument("data", type=Path, help="folder external_bodies")
    parser.add_argument("patients", nargs="+", metavar="PATIENT", help="such as VB3_01")
    parser.add_argument("--model", help="model whose labels are used where nothing is drawn")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    return run_command(parser, arguments)


def _write(options: argparse.Namespace) -> None:
    write_folder(Engine(load_model(options.model)), options.data, options.patients, options.output)


if __name__ == "__main__":
    sys.exit(main())
