"""Draw the landmarks of measurements on the mid-sagittal slice, beside a table of the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import uniform_filter1d

from ..formats.atomic import check_writable, write_beside
from ..formats.endings import PICTURES
from ..formats.pages import (
    FAINT,
    GAP,
    INK,
    PAPER,
    PNG_LEVEL,
    beside,
    footer,
    grey_levels,
    grey_window,
    heading,
    in_front,
    middle_slice,
    page,
    text_font,
    write_directions,
    write_level,
)
from ..segmentation import Segmentation
from ..volume import Volume, on_grid
from .results import DISCLAIMER, Markup, Measure, Measurements, StructureMeasures
from .space import LabelSpace

TALL, WIDE = 1100, 760
_MARGIN_MM = 12.0
_LETTER = 36
"""Pixels at the upper and lower border that the direction letters take."""
_DASH = 5
"""Length of a dash in picture pixels."""
_COLOURS = {"endplate": (255, 221, 87), "disc": (92, 200, 255), "canal": (255, 128, 190)}
_CURVES = {"lordosis_deg": "Lordosis", "coronal_angle_deg": "Coronal angle"}
_EXPLAINED = {
    "endplate": "corners and middles of bodies and of S1's endplate (broken where estimated)",
    "disc": "disc heights",
    "canal": "canal, front to back",
}


def write_picture(volume: Volume, segmentation: Segmentation, measurements: Measurements, path: str | Path) -> None:
    """Draw measurements into a PNG file. Neither file name nor patient is written into the picture.

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
        InputError: INPUT_GEOMETRY where volume and segmentation do not lie on one grid.
    """
    path = Path(path)
    ending = check_writable(path, PICTURES)
    picture = draw_picture(volume, segmentation, measurements)
    with write_beside(path, ending) as temporary:
        picture.save(temporary, compress_level=PNG_LEVEL)


def draw_picture(volume: Volume, segmentation: Segmentation, measurements: Measurements) -> Image.Image:
    """The picture of `write_picture`, RGB: the slice with its landmarks, and the main figures.

    In a scoliotic spine no plane shows every body's middle: each row of the picture comes from the slice in which the
    spine lies at that height, so that the picture follows the spine from side to side.

    Raises:
        InputError: as `write_picture`.
    """
    volume = on_grid(volume, segmentation.geometry, "its segmentation")
    space = LabelSpace.of(segmentation.labels, segmentation.geometry)
    panel = _panel(space, space.stack.slices_of(volume.voxels), measurements)
    figures = _figures(measurements, panel.height)
    top = beside([panel, figures], 2 * GAP)
    return page([heading("SAUNet spine measurements", DISCLAIMER, top.width), top, _footer(measurements, top.width)])


def _panel(space: LabelSpace, image: np.ndarray, measurements: Measurements) -> Image.Image:
    rows = np.arange(image.shape[1])
    numbers = _slices(space, measurements.markups)
    columns = slice(*_columns(space))
    grey, labels = image[numbers, rows][:, columns], space.labels[numbers, rows][:, columns]
    mm = space.spacing[1:] * np.array(grey.shape)
    scale = float(min(TALL / mm[0], WIDE / mm[1]))
    size = (max(1, round(mm[1] * scale)), max(1, round(mm[0] * scale)))
    picture = Image.fromarray(grey_levels(grey, grey_window(grey)))
    picture = picture.resize(size, Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(picture)
    factor = space.spacing[1:] * scale
    shift = np.array([0.0, columns.start])
    for markup in measurements.markups:
        local = space.from_patient(markup.points)[:, 1:] / space.spacing[1:]
        _draw(draw, markup, (local + 0.5 - shift) * factor)
    _write_levels(draw, measurements, labels, factor)
    write_directions(picture)
    return picture


def _slices(space: LabelSpace, markups: tuple[Markup, ...]) -> np.ndarray:
    """The slice (H,) that each row is taken from: the one through the landmarks at that height."""
    count, rows = space.labels.shape[:2]
    points = [space.from_patient(markup.points).mean(axis=0) for markup in markups if markup.kind in ("disc", "canal")]
    if not points:
        return np.full(rows, middle_slice((space.labels > 0).sum(axis=(1, 2))))
    known = np.array(sorted(points, key=lambda point: float(point[1])))
    place = np.interp(np.arange(rows) * space.spacing[1], known[:, 1], known[:, 0]) / space.spacing[0]
    smooth = uniform_filter1d(place, max(3, round(20 / space.spacing[1]) | 1), mode="nearest")
    return np.clip(np.round(smooth), 0, count - 1).astype(int)


def _columns(space: LabelSpace) -> tuple[int, int]:
    """First column to show and the one after the last: the segmented ones with a margin; all where nothing is."""
    seen = np.flatnonzero((space.labels > 0).any(axis=(0, 1)))
    last = space.labels.shape[2]
    if len(seen) == 0:
        return 0, last
    margin = round(_MARGIN_MM / space.spacing[2])
    return max(0, int(seen[0]) - margin), min(last, int(seen[-1]) + margin + 1)


def _draw(draw: ImageDraw.ImageDraw, markup: Markup, points: np.ndarray) -> None:
    """Draw a markup; points (N, 2) are row and column in the picture."""
    colour = _COLOURS[markup.kind]
    places = [(float(column), float(row)) for row, column in points]
    for line in _dashes(places) if markup.estimated else [places]:
        draw.line(line, colour, 1)
    if markup.kind != "disc":
        for x, y in places:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour, width=1)


def _dashes(places: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """The dashes of a broken line through places in the picture."""
    for start, end in pairwise(np.array(places)):
        steps = np.linspace(start, end, 2 * max(1, round(float(np.linalg.norm(end - start)) / (2 * _DASH))) + 1)
        for first, last in zip(steps[:-1:2], steps[1::2], strict=True):
            yield [(float(x), float(y)) for x, y in (first, last)]


def _write_levels(
    draw: ImageDraw.ImageDraw, measurements: Measurements, labels: np.ndarray, factor: np.ndarray
) -> None:
    """Write each vertebra's level on its body; a pixel of the labels (H, W) is `factor` (2,) picture pixels large."""
    canal = np.isin(labels, [row.value for row in measurements.rows if row.kind == "canal"])
    for vertebra in (row for row in measurements.rows if row.kind == "vertebra"):
        place = in_front(labels == vertebra.value, canal) * factor
        write_level(draw, vertebra.level, place, away=_LETTER)


def _figures(measurements: Measurements, height: int) -> Image.Image:
    """The main figures as a table of at least this height."""
    font, small = text_font(15), text_font(13)
    starts, line = (0, 88, 232, 320, 392, 462, 536), 25
    levels = [row for row in measurements.rows if row.kind in ("vertebra", "disc")]
    curves = [(row, *angle) for row in measurements.rows if row.kind == "spine" for angle in row.measures.items()]
    needed = 26 + line * len(levels) + 22 * len(curves) + 19 * len(_EXPLAINED) + 24
    result = Image.new("RGB", (594, max(height, needed)), PAPER)
    draw = ImageDraw.Draw(result)
    heads = ("Level", "Heights, mm", "Loss, index", "Angle, °", "Slip, mm", "Canal, mm", "Signal")
    for start, text in zip(starts, heads, strict=True):
        draw.text((start, 4), text, FAINT, small)
    top = 26
    for row in levels:
        indent = 12 if row.kind == "disc" else 0
        colour = INK if row.kind == "vertebra" else _COLOURS["disc"]
        for start, text in zip(starts, (row.level, *_cells(row)), strict=True):
            draw.text((start + (indent if start == 0 else 0), top), text, colour, font)
        top += line
    for row, name, angle in curves:
        draw.text((0, top + 8), f"{_CURVES[name]} {row.level}: {_curve(angle)}", INK, font)
        top += 22
    for kind, text in _EXPLAINED.items():
        draw.line((0, top + 24, 22, top + 24), _COLOURS[kind], 2)
        draw.text((30, top + 16), text, FAINT, small)
        top += 19
    return result


def _cells(row: StructureMeasures) -> tuple[str, ...]:
    """Heights, loss or index, angle, slip, canal and signal as text; a star marks a figure with a flag."""

    def shown(name: str, form: str) -> str:
        measure = row.measures.get(name)
        if measure is None:
            return ""
        return "-" if measure.value is None else f"{_number(measure.value, form)}{'*' if measure.flags else ''}"

    heights = [shown(f"height_{place}_mm", ".1f") for place in ("anterior", "middle", "posterior")]
    star = "*" if any(height.endswith("*") for height in heights) else ""
    joined = " / ".join(height.rstrip("*") for height in heights) + star
    if heights == ["-"] * 3 or heights == [""] * 3:
        joined = heights[0]
    if row.kind == "disc":
        middle = shown("disc_height_index", ".2f")
        angle = shown("segmental_angle_deg", ".0f")
    else:
        grade = row.measures.get("genant_grade")
        loss = shown("height_loss_percent", ".1f")  # one decimal, lest rounding cross a band's limit
        if loss.strip("-"):
            band = f", {grade.value:.0f}" if grade is not None and grade.value is not None else ""
            loss = f"{loss.rstrip('*')} %{band}{'*' if loss.endswith('*') else ''}"
        middle = loss
        angle = shown("wedge_angle_deg", ".0f")
    return joined, middle, angle, shown("slip_mm", ".1f"), shown("canal_ap_mm", ".1f"), shown("signal_ratio", ".2f")


def _curve(angle: Measure) -> str:
    """An angle of the spine as text; a star marks one with a flag."""
    return "not measured" if angle.value is None else f"{_number(angle.value, '.0f')}°{'*' if angle.flags else ''}"


def _number(value: float, form: str) -> str:
    """A value in a format, without -0."""
    text = f"{value:{form}}"
    return text if text.strip("-0.") else text.removeprefix("-")


def _footer(measurements: Measurements, width: int) -> Image.Image:
    first = (
        "Loss: height lost relative to the neighbouring bodies, with Genant's band; index: disc height index. "
        "- not measured. * interpret with care, see the table's column quality. Each row of the picture is of the "
        "slice through the canal's middle there."
    )
    return footer(first, measurements.warnings, width)
