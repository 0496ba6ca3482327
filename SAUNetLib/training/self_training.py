"""Labels for pictures that have none, or vertebrae alone: a teacher's confident pixels, for a student to learn from.

``python -m SAUNetLib.training.self_training MODEL PICTURES OUT`` makes a data folder for `saunet train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..anatomy import CANAL, DISC, VERTEBRA
from ..command import needs_extra, run_command, tool
from ..engine import network_input, resample
from ..errors import InputError, UsageError, check_memory
from ..formats.label_values import UNKNOWN
from ..formats.volumes import write_volume
from ..model import Model, load_model
from ..volume import Geometry, Intensity, Volume

FIELD_MM = 280.0
"""Pictures have no pixel size: their longer side is assumed to be a usual lumbar field of view."""
CHANGES = ((1.0, 1.0), (0.85, 1.0), (1.18, 1.0), (1.0, 0.7), (1.0, 1.4))
"""Test-time changes: zoom and gamma."""
CONFIDENT = 0.9
"""Least probability of the best class for a teacher's label to be used."""
LATERAL = 0.03
"""A drawn slice with a smaller share of vertebra than this lies lateral to bodies and canal."""
LEAST_SHARE = 0.7
"""Least share of a picture's foreground that must be confident: below it the teacher is guessing."""
SAGITTAL = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
"""Columns: LPS directions of a picture's axes (to posterior, to inferior) and of its slice axis (to left)."""


def single_slice(path: Path) -> Volume:
    """A greyscale picture as a volume of one sagittal slice, longer side 280 mm.

    Raises:
        InputError: INPUT_UNREADABLE.
        OutOfMemoryError: MEMORY.
    """
    try:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as failure:
        check_memory(failure)
        raise InputError(
            "INPUT_UNREADABLE", f"{path.name} is not a readable picture", "Replace it, or remove it"
        ) from failure
    if pixels.ndim == 3:  # JPEG files may hold grey as three equal colours
        pixels = pixels[..., 0]
    size = FIELD_MM / max(pixels.shape)
    geometry = Geometry((pixels.shape[1], pixels.shape[0], 1), (size, size, 4.0), (0.0, 0.0, 0.0), SAGITTAL)
    return Volume(pixels[None], geometry, path.stem)


@torch.inference_mode()
def probabilities(model: Model, pixels: np.ndarray, pixel_mm: float) -> Tensor:
    """Class probabilities (classes, H, W) of a slice (H, W), averaged over test-time changes of size and brightness."""
    unit = Intensity.of(pixels[None]).unit(pixels[None])
    total = torch.zeros(len(model.card.classes), *pixels.shape)
    for zoom, gamma in CHANGES:
        changed = unit**gamma
        rows, columns = (max(16, round(count * pixel_mm * zoom / model.card.pixel_mm)) for count in pixels.shape)
        stride = model.network.encoder.stride
        image = network_input(changed, Intensity.of(changed), (rows, columns), stride)
        scores = model.network(image[None])[0, ..., :rows, :columns]
        total += resample(scores, (pixels.shape[0], pixels.shape[1]))[0].softmax(0)
    return total / len(CHANGES)


def pseudo_labels(model: Model, volume: Volume) -> np.ndarray | None:
    """Classes (1, H, W) of a slice, 255 where the teacher is unsure; None if it is unsure of too much."""
    mean = probabilities(model, volume.voxels[0], volume.geometry.spacing[0])
    sure, labels = mean.max(0)
    labels = labels.to(torch.uint8)
    foreground = labels > 0
    confident = sure >= CONFIDENT
    present = [int(((labels == value) & confident).sum()) for value in (VERTEBRA, DISC, CANAL)]
    if min(present) == 0 or (confident & foreground).sum() < LEAST_SHARE * foreground.sum():
        return None
    return torch.where(confident, labels, UNKNOWN).numpy()[None]


def complete_labels(model: Model, volume: Volume, vertebra: np.ndarray) -> np.ndarray:
    """Classes (1, H, W) of a slice whose vertebrae are drawn (H, W) bool: the rest by the teacher, 255 if unsure.

    The drawing is trusted, also where it has no vertebra. Beside the canal, a teacher that never saw such slices finds
    discs where there are none: there its discs and canal are left unknown.
    """
    others = probabilities(model, volume.voxels[0], volume.geometry.spacing[0]).clone()
    others[VERTEBRA] = 0
    sure, labels = (others / others.sum(0)).max(0)
    labels = torch.where(sure >= CONFIDENT, labels.to(torch.uint8), UNKNOWN)
    if vertebra.mean() < LATERAL:
        labels[labels > 0] = UNKNOWN
    labels[torch.from_numpy(vertebra)] = VERTEBRA
    return labels.numpy()[None]


def write_pseudo_labels(model: Model, pictures: Path, folder: Path, leave_out: Sequence[str] = ()) -> tuple[int, int]:
    """Write the pairs of a data folder; returns how many pictures were kept and how many there were.

    The folder's ``dataset.json`` tells patients apart by the names, so that none is trained on who is a validation
    patient of another folder.

    Args:
        model: the teacher.
        pictures: NAME.jpg, .jpeg or .png, or pairs ``NAME_image.png`` and ``NAME_vertebra.png`` (drawn by hand).
        folder: to write to; it must hold no pairs, since those of other pictures would be trained on as well.
        leave_out: patients or scans, the part of a name before its first underscore.

    Raises:
        InputError: INPUT_NOT_FOUND, there is no such folder, it has nothing of a name in `leave_out`, or a drawing has
            no picture; INPUT_EMPTY, it holds no pictures; INPUT_UNREADABLE or INPUT_GEOMETRY, a picture or a drawing
            cannot be used.
        UsageError: NOT_INSTALLED, the extra ``train`` is missing; USAGE, `folder` holds pairs.
    """
    with needs_extra("self-training", "train"):
        from .folders import INFO, DatasetInfo, write_settings
    try:
        paths = [path for path in sorted(pictures.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    except OSError as failure:
        raise InputError(
            "INPUT_NOT_FOUND", f"{pictures} cannot be read ({failure.strerror})", "Give the folder of the pictures"
        ) from failure
    missing = sorted(set(leave_out) - {path.stem.split("_")[0] for path in paths})
    if missing:
        raise InputError(
            "INPUT_NOT_FOUND", f"{pictures} has no picture of {', '.join(missing)}", "Correct the names to leave out"
        )
    if not paths:
        raise InputError("INPUT_EMPTY", f"{pictures} holds no pictures", "Give a folder with .jpg or .png files")
    if any(folder.glob("*_image.*")):
        raise UsageError("USAGE", f"{folder} already holds a data set", "Give another folder, or remove it first")
    drawings = {path.stem.replace("_vertebra", ""): path for path in paths if "_vertebra" in path.stem}
    paths = [path for path in paths if "_vertebra" not in path.stem]
    if lonely := drawings.keys() - {path.stem.replace("_image", "") for path in paths}:
        cause = f"{drawings[min(lonely)].name} is drawn on a picture that is not beside it"
        raise InputError("INPUT_NOT_FOUND", cause, "Add the picture, or remove the drawing")
    paths = [path for path in paths if path.stem.split("_")[0] not in leave_out]
    read = []  # before the teacher begins: it is slow, and a folder that it has begun to fill is refused
    for path in paths:
        volume, drawing = single_slice(path), drawings.get(path.stem.replace("_image", ""))
        read.append((path.stem.removesuffix("_image"), volume, _drawn(drawing, volume) if drawing else None))
    kept = 0
    for name, volume, drawn in read:
        labels = pseudo_labels(model, volume) if drawn is None else complete_labels(model, volume, drawn)
        if labels is not None:
            if not (folder / INFO).exists():  # first: a run that ends early leaves usable pairs
                write_settings(DatasetInfo(patient_before="_"), folder / INFO)
            write_volume(volume, folder / f"{name}_image.nii.gz")
            write_volume(Volume(labels, volume.geometry), folder / f"{name}_labels.nii.gz")
            kept += 1
    return kept, len(paths)


def _drawn(path: Path, volume: Volume) -> np.ndarray:
    """The vertebrae (H, W) bool drawn on a picture."""
    drawing = single_slice(path)
    if drawing.geometry.size != volume.geometry.size:
        cause = f"{path.name} does not have as many rows and columns as the picture it was drawn on"
        raise InputError("INPUT_GEOMETRY", cause, "Draw on the picture itself, or remove the drawing")
    return np.asarray(drawing.voxels[0] > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see the module's docstring."""
    parser = tool(_write, __doc__)
    parser.add_argument("model", help="teacher model: name or file")
    parser.add_argument("pictures", type=Path, help="folder of greyscale sagittal slices, .jpg or .png")
    parser.add_argument("folder", type=Path, help="data folder to write")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="patients or scans to leave out")
    return run_command(parser, arguments)


def _write(options: argparse.Namespace) -> None:
    kept, number = write_pseudo_labels(load_model(options.model), options.pictures, options.folder, options.leave_out)
    print(f"{kept} of {number} pictures kept")


if __name__ == "__main__":
    sys.exit(main())
