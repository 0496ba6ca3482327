"""Draw a segmentation as a picture: the mid-sagittal and two lateral slices, each as image beside overlay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..anatomy import Structure
from ..segmentation import Segmentation
from ..volume import SagittalStack, Volume, on_grid
from .atomic import check_writable, write_beside
from .endings import PICTURES
from .pages import (
    BODY_LETTERS,
    DISC_LETTERS,
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

TALL, WIDE = 700, 720
"""Largest height and width of a mid-sagittal panel, pixels."""
NARROW = 170
"""Pixels; a narrower panel gets a margin on either side, so that the letters at its borders lie beside the spine."""
FILL = 0.38
"""Opacity of the overlay's colours."""
PEDICLE_MM = 14.0
"""Assumed distance of the pedicles from the mid-sagittal plane if the labels do not show them."""


@dataclass(frozen=True)
class _View:
    """One slice to show: its number from the patient's right, its title, and whether it is lateral."""

    number: int
    title: str
    lateral: bool


def write_preview(volume: Volume, segmentation: Segmentation, path: str | Path) -> None:
    """Draw a volume and its segmentation into a PNG file, superior up and anterior to the left for any axis order.

    The mid-sagittal slice is the one through the middle of the canal and the discs; the lateral ones are those that
    show most of the pedicles and joints on either side. Neither file name nor patient is written into the picture.

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
        InputError: INPUT_GEOMETRY where volume and segmentation do not lie on one grid.
    """
    path = Path(path)
    ending = check_writable(path, PICTURES)
    volume = on_grid(volume, segmentation.geometry, "its segmentation")
    picture = draw_preview(volume, segmentation)
    with write_beside(path, ending) as temporary:
        picture.save(temporary, compress_level=PNG_LEVEL)


def draw_preview(volume: Volume, segmentation: Segmentation) -> Image.Image:
    """The picture of `write_preview`, RGB; volume and segmentation lie on one grid."""
    stack = SagittalStack.of(volume)
    labels = segmentation.stack()
    views = _views(labels, segmentation)
    window = grey_window(stack.slices[[view.number for view in views]])
    rows, columns = (count * size for count, size in zip(stack.slices.shape[1:], stack.pixel, strict=True))
    scale = min(TALL / rows, WIDE / columns)
    legend = _legend(segmentation, max(round(rows * scale), 240))
    middle = _pair(stack, labels, views[0], segmentation, window, scale)
    top = beside([middle, legend], 2 * GAP)
    wide = max(top.width, 600)
    parts = [heading("SAUNet spine segmentation", "Not for diagnostic use", wide), top]
    if len(views) > 1:
        room = (top.width - 2 * GAP * (len(views) - 2)) / (len(views) - 1) - GAP
        small = min(scale, room / (2 * columns))
        pairs = [_pair(stack, labels, view, segmentation, window, small) for view in views[1:]]
        parts.append(beside(pairs, 2 * GAP))
    parts.append(_footer(segmentation, wide))
    return page(parts)


# --- which slices ---------------------------------------------------------------------------------


def _views(labels: SagittalStack, segmentation: Segmentation) -> list[_View]:
    """The mid-sagittal slice and, where the stack has them, a lateral one on the right and one on the left."""
    slices, spacing = labels.slices, labels.slice_spacing
    middle = _middle(slices, segmentation)
    canal = _of_kind(slices, segmentation, ("canal",)).any(axis=0)
    vertebrae = _of_kind(slices, segmentation, ("vertebra",))
    bridged = (vertebrae & canal).sum(axis=(1, 2))  # pedicles and joints lie beside the canal
    title = f"Mid-sagittal, slice {middle + 1} of {len(slices)} from the right" if len(slices) > 1 else "The only slice"
    views = [_View(middle, title, False)]
    for side, numbers in (("right", range(middle)), ("left", range(middle + 1, len(slices)))):
        if not numbers:
            continue
        best = max(numbers, key=lambda number: bridged[number])
        if not bridged[best]:
            sign = -1 if side == "right" else 1
            best = int(np.clip(middle + sign * round(PEDICLE_MM / spacing), numbers[0], numbers[-1]))
        away = abs(best - middle) * spacing
        views.append(_View(best, f"{side.capitalize()}, slice {best + 1}, {away:.1f} mm from mid-sagittal", True))
    return views


def _middle(slices: np.ndarray, segmentation: Segmentation) -> int:
    """The median slice of canal and discs, else of the vertebrae, else the middle of the stack."""
    central, outer = (
        _of_kind(slices, segmentation, kinds).sum(axis=(1, 2)) for kinds in (("canal", "disc"), ("vertebra", "sacrum"))
    )
    return middle_slice(central if central.any() else outer)


def _of_kind(slices: np.ndarray, segmentation: Segmentation, kinds: tuple[str, ...]) -> np.ndarray:
    values = [value for value, structure in segmentation.known.items() if structure.kind in kinds]
    return np.isin(slices, values)


# --- panels ---------------------------------------------------------------------------------------


def _pair(
    stack: SagittalStack,
    labels: SagittalStack,
    view: _View,
    segmentation: Segmentation,
    window: tuple[float, float],
    scale: float,
) -> Image.Image:
    """A slice as image beside overlay, with its title below; `scale` is screen pixels per mm."""
    height, width = (
        max(1, round(count * size * scale)) for count, size in zip(stack.slices.shape[1:], stack.pixel, strict=True)
    )
    image = Image.fromarray(grey_levels(stack.slices[view.number], window))
    image = image.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    margin = max(0, NARROW - width + 1) // 2
    image = ImageOps.expand(image, (margin, 0), PAPER)
    shown = np.pad(_enlarged(labels.slices[view.number], width, height), ((0, 0), (margin, margin)))
    overlay = _overlay(np.asarray(image), shown, segmentation)
    if not view.lateral:
        _write_levels(overlay, shown, segmentation)
    write_directions(image)
    write_directions(overlay, shown)
    pair = beside([image, overlay], GAP)
    font = text_font(16)
    width = max(pair.width, int(font.getlength(view.title)) + 1)  # a very narrow field of view
    result = Image.new("RGB", (width, pair.height + 30), PAPER)
    result.paste(pair)
    ImageDraw.Draw(result).text((0, pair.height + 7), view.title, INK, font)
    return result


def _enlarged(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Labels at screen size with smooth borders: each structure is interpolated, the strongest one wins."""
    best = np.full((height, width), 127, np.uint8)
    result = np.zeros((height, width), np.uint8)
    for value in np.unique(labels[labels > 0]):
        mask = Image.fromarray(np.where(labels == value, 255, 0).astype(np.uint8))
        strength = np.asarray(mask.resize((width, height), Image.Resampling.BILINEAR))
        result[strength > best] = value
        best = np.maximum(best, strength)
    return result


def _overlay(image: np.ndarray, labels: np.ndarray, segmentation: Segmentation) -> Image.Image:
    """The image under translucent colours, with an opaque outline inside each structure's border."""
    colours = np.zeros((256, 3), np.float32)
    for value, structure in segmentation.known.items():
        colours[value] = structure.colour
    tinted = image.astype(np.float32)
    opacity = np.where(labels > 0, FILL, 0.0)
    opacity[_border(labels)] = 1.0
    opacity = opacity[..., np.newaxis].astype(np.float32)
    return Image.fromarray((tinted * (1 - opacity) + colours[labels] * opacity).astype(np.uint8))


def _border(labels: np.ndarray) -> np.ndarray:
    """Pixels of a structure that touch another label or the background."""
    padded = np.pad(labels, 1, mode="edge")
    rows, columns = labels.shape
    border = np.zeros(labels.shape, bool)
    for down in range(3):
        for right in range(3):
            border |= padded[down : down + rows, right : right + columns] != labels
    return border & (labels > 0)


def _write_levels(panel: Image.Image, labels: np.ndarray, segmentation: Segmentation) -> None:
    """Write the name of its level on each vertebral body and disc that has room for it."""
    draw = ImageDraw.Draw(panel)
    canal = _of_kind(labels, segmentation, ("canal",))
    for value in np.unique(labels[labels > 0]):
        structure = segmentation.known[int(value)]
        if structure.level:
            size = DISC_LETTERS if structure.kind == "disc" else BODY_LETTERS
            write_level(draw, structure.level, in_front(labels == value, canal), size)


# --- the page -------------------------------------------------------------------------------------


def _legend(segmentation: Segmentation, height: int) -> Image.Image:
    """The structures present with their colours, in as many columns as the height requires."""
    line, font = 25, text_font(16)
    structures = [row.structure for row in segmentation.table()]
    if not structures:
        result = Image.new("RGB", (230, height), PAPER)
        ImageDraw.Draw(result).text((0, 2), "No structure was found", INK, font)
        return result
    deep = max(1, height // line)
    columns = [structures[start : start + deep] for start in range(0, len(structures), deep)]
    return beside([_legend_column(column, line, height, font) for column in columns], GAP)


def _legend_column(column: list[Structure], line: int, height: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    width = 28 + int(max(font.getlength(structure.name) for structure in column)) + 6
    result = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(result)
    for number, structure in enumerate(column):
        top = number * line
        draw.rounded_rectangle((0, top + 3, 17, top + 20), 4, structure.colour)
        draw.text((28, top + 12), structure.name, INK, font, "lm")
    return result


def _footer(segmentation: Segmentation, width: int) -> Image.Image:
    """Model, voxel size, and what the user should know, wrapped to the width."""
    model = segmentation.provenance.get("model", "")
    x, y, z = segmentation.geometry.spacing
    first = f"{f'Model {model}. ' if model else ''}Voxels of {x:.3g} x {y:.3g} x {z:.3g} mm."
    return footer(first, segmentation.warnings, width)
