"""Measures against phantoms' true values: `python -m SAUNetLib.evaluation.phantom_measures`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from ..command import run_command, tool
from ..errors import UsageError
from ..measurements import Measurements, measure
from ..measurements.vertebrae import HEIGHTS
from ..segmentation import Segmentation
from ..training.phantom import Phantom, PhantomOptions, make_phantom
from ..volume import Volume, to_sitk

PIXEL = 0.7
DISCS = ("L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")
TURNS = ((15, (0, 0, 1)), (12, (0, 1, 0)), (20, (1, 0, 0)), (12, (1, 1, 1)))
"""Angles in degrees and axes by which the slices are turned relative to the patient."""


def sick_phantom(number: int) -> Phantom:
    """A patient with a wedge fracture, a slip, worn discs and a narrow canal, random within their clinical ranges.

    Even numbers have 1 mm slices, odd ones 4 mm slices 4.4 mm apart.
    """
    rng = np.random.default_rng(number)
    thin = number % 2 == 0
    return make_phantom(
        PhantomOptions(
            seed=100 + number,
            slices=40 if thin else 11,
            slice_thickness=1.0 if thin else 4.0,
            gap=0.0 if thin else 0.4,
            pixel=PIXEL,
            field_of_view=(260.0, 210.0),
            lordosis=float(rng.uniform(20, 70)),
            scoliosis=float(rng.uniform(-20, 20)),
            disc_height_loss={disc: float(rng.uniform(0, 0.6)) for disc in DISCS},
            wedge={f"L{rng.integers(1, 6)}": float(rng.uniform(5, 20))},
            slip={DISCS[rng.integers(1, 5)]: float(rng.uniform(-5, 10))},
            canal_diameter={disc: float(rng.uniform(5, 16)) for disc in DISCS[1:4]},
        )
    )


def turned(phantom: Phantom, degrees: float, axis: Sequence[float]) -> Segmentation:
    """The same patient in 4.4 mm slices turned about an axis."""
    grid = phantom.volume.geometry
    rotation = Rotation.from_rotvec(degrees * np.asarray(axis, float) / np.linalg.norm(axis), degrees=True)
    direction = rotation.as_matrix() @ np.asarray(grid.direction)
    spacing = np.array((PIXEL, PIXEL, 4.4))
    count = np.ceil(np.array(grid.size) * np.array(grid.spacing) / spacing).astype(int)
    origin = grid.points((np.array(grid.size) - 1) / 2) - (direction * spacing) @ ((count - 1) / 2)
    image = sitk.Resample(
        to_sitk(phantom.labels, grid), count.tolist(), sitk.Transform(), sitk.sitkNearestNeighbor, origin.tolist(),
        spacing.tolist(), direction.ravel().tolist(), 0, sitk.sitkUInt8,
    )  # fmt: skip
    volume = Volume.from_sitk(image)
    return Segmentation(volume.voxels, volume.geometry)


def errors(phantom: Phantom, found: Measurements) -> Iterator[tuple[str, float]]:
    """Name of the measure and measured minus true value, for every lumbar structure that was measured."""
    truth = phantom.truth
    pairs: list[tuple[str, str, str, float]] = []
    for level, body in truth.bodies.items():
        heights = zip(HEIGHTS, (body.anterior, body.middle, body.posterior), strict=True)
        pairs += [("body", level, name, value) for name, value in heights]
        pairs += [("body", level, "depth_mm", body.depth), ("body", level, "wedge_angle_deg", body.wedge)]
    for level, disc in truth.discs.items():
        heights = zip(HEIGHTS, (disc.anterior, disc.middle, disc.posterior), strict=True)
        pairs += [("disc", level, name, value) for name, value in heights]
        pairs += [("disc", level, "slip_mm", disc.slip), ("disc", level, "segmental_angle_deg", disc.angle)]
    pairs += [("", level, "canal_ap_mm", value) for level, value in truth.canal.items()]
    pairs += [("", "L1-S1", "lordosis_deg", truth.lordosis)]
    for kind, level, name, value in pairs:
        figure = found.value(level, name)
        if figure is not None and level[0] == "L":
            yield f"{kind} {name}".strip(), figure - value
    for row in found.rows:
        coronal = row.measures.get("coronal_angle_deg")
        if coronal is not None and coronal.value is not None:
            yield "coronal_angle_deg", coronal.value - abs(truth.scoliosis)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print median error, bias and 90th percentile for thin, thick and turned slices."""
    parser = tool(_print_errors, __doc__)
    parser.add_argument("--count", type=int, default=8, help="number of phantoms (default 8)")
    return run_command(parser, arguments)


def _print_errors(options: argparse.Namespace) -> None:
    if options.count < 1:
        raise UsageError("USAGE", f"--count is {options.count}", "Give at least 1")
    table: dict[str, dict[str, list[float]]] = {"1 mm slices": {}, "4 mm slices": {}, "4 mm slices, turned": {}}
    for number in range(options.count):
        phantom = sick_phantom(number)
        straight = measure(Segmentation(phantom.labels, phantom.volume.geometry))
        results = [("4 mm slices" if number % 2 else "1 mm slices", straight)]
        if number % 2 == 0:
            results += [("4 mm slices, turned", measure(turned(phantom, *turn))) for turn in TURNS]
        for where, found in results:
            for name, error in errors(phantom, found):
                table[where].setdefault(name, []).append(error)
    for where, columns in table.items():
        print(f"\n{where:30}{'n':>5}{'median error':>14}{'bias':>8}{'90 %':>8}")
        for name, values in columns.items():
            print(_line(name, values))


def _line(name: str, values: Sequence[float]) -> str:
    """Number, median of the absolute errors, mean of the signed ones, 90th percentile of the absolute ones."""
    off = np.abs(values)
    return f"{name:30}{len(off):5}{np.median(off):14.2f}{np.mean(values):+8.2f}{np.percentile(off, 90):8.2f}"


if __name__ == "__main__":
    sys.exit(main())
