"""Parts of the pictures that SAUNet draws: slices as grey pixels, headings, notes, and a page of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..notices import Notice

GAP, MARGIN = 10, 26
"""Pixels between the parts of a page, and around them."""
PAPER, INK, FAINT = (17, 20, 24), (236, 239, 242), (150, 158, 167)
PNG_LEVEL = 3
"""Compression level: takes less than half the time of the default level, for about the same file size."""
BODY_LETTERS, DISC_LETTERS = 18, 13
"""Font sizes of the levels' names on bodies and on discs."""


def middle_slice(areas: np.ndarray) -> int:
    """The median slice of a structure, given its area in each slice (S,); the middle slice if it is absent."""
    return int(np.searchsorted(np.cumsum(areas), areas.sum() / 2)) if areas.any() else len(areas) // 2


def grey_window(slices: np.ndarray) -> tuple[float, float]:
    """The grey values shown as black and white: percentiles of the pixels that are not background."""
    seen = slices[slices > slices.min()]
    low, high = (float(value) for value in np.percentile(seen if seen.size else slices, (1, 99)))
    return low, max(high, low + 1e-6)


def grey_levels(slices: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Pixels of any shape and type as uint8, 0 to 255 over the window."""
    low, high = window
    return (np.clip((slices.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def write_directions(panel: Image.Image, labels: np.ndarray | None = None) -> None:
    """Write the letters S, I, A and P at the borders of a sagittal slice.

    A letter is left out where `labels`, on the panel's pixels, has a structure, whose name may be there.
    """
    draw = ImageDraw.Draw(panel)
    width, height = panel.size
    for letter, place, anchor in (
        ("S", (width / 2, 5), "mt"),
        ("I", (width / 2, height - 5), "mb"),
        ("A", (6, height / 2), "lm"),
        ("P", (width - 6, height / 2), "rm"),
    ):
        left, top, right, bottom = map(round, draw.textbbox(place, letter, text_font(16), anchor))
        if labels is not None and labels[max(0, top) : bottom + 1, max(0, left) : right + 1].any():
            continue
        draw.text(place, letter, (255, 214, 102), text_font(16), anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def in_front(mask: np.ndarray, canal: np.ndarray) -> np.ndarray:
    """The pixels (N, 2) of a structure's mask (H, W) in front of the canal's, without stray ones: body, not arch.

    Body and arch may be one connected component. If no canal is visible, they are the front half of the largest
    component, which lies in the body in any case.
    """
    rows = np.flatnonzero(canal.any(axis=1))
    if len(rows):
        border = np.interp(np.arange(len(mask)), rows, canal[rows].argmax(axis=1))
        return np.argwhere(_largest_piece(mask & (np.arange(mask.shape[1]) < border[:, None])))
    place = np.argwhere(_largest_piece(mask))
    return place[place[:, 1] < np.median(place[:, 1])] if len(place) else place


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    pieces = cc3d.connected_components(mask, connectivity=4)
    sizes = np.bincount(pieces.ravel(), minlength=2)
    return np.asarray(pieces == sizes[1:].argmax() + 1)


def write_level(
    draw: ImageDraw.ImageDraw, level: str, place: np.ndarray, size: int = BODY_LETTERS, away: float = 0.0
) -> None:
    """Write a level's name in the middle of a structure, if it is high enough for the letters.

    Args:
        draw: of the picture.
        level: the name.
        place: (N, 2), rows and columns in the picture of points that fill the structure evenly.
        size: font size.
        away: least distance from the upper and lower border, pixels.
    """
    if not len(place) or np.ptp(place[:, 0]) < size - 4:  # about the height of a capital letter
        return
    row, column = place.mean(axis=0)
    font = text_font(size)
    aside = font.getlength(level) / 2 + 2
    width, height = draw.im.size
    column, row = float(np.clip(column, aside, width - aside)), float(np.clip(row, away, height - away))
    draw.text((column, row), level, INK, font, "mm", stroke_width=2, stroke_fill=(0, 0, 0))


def heading(title: str, note: str, width: int) -> Image.Image:
    """The page's title on the left, and on the right, in red, what must not be overlooked."""
    result = Image.new("RGB", (width, 40), PAPER)
    draw = ImageDraw.Draw(result)
    draw.text((0, 14), title, INK, text_font(24), "lm")
    draw.text((width, 14), note, (255, 138, 128), text_font(18), "rm")
    return result


def footer(first: str, notices: Sequence[Notice], width: int) -> Image.Image:
    """A sentence and the notices below it, wrapped to the width."""
    font = text_font(15)
    lines = wrapped(first, font, width)
    for notice in notices:
        lines += wrapped(f"Note: {notice.text}", font, width)
    result = Image.new("RGB", (width, 4 + 21 * len(lines)), PAPER)
    draw = ImageDraw.Draw(result)
    for number, text in enumerate(lines):
        draw.text((0, 4 + 21 * number), text, FAINT, font)
    return result


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines of at most ``width`` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def beside(images: list[Image.Image], gap: int) -> Image.Image:
    """Pictures in a row, aligned at the top."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    result = Image.new("RGB", (width, max(image.height for image in images)), PAPER)
    left = 0
    for image in images:
        result.paste(image, (left, 0))
        left += image.width + gap
    return result


def page(parts: list[Image.Image]) -> Image.Image:
    """Pictures below each other, with a margin."""
    width = max(part.width for part in parts)
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    result = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for part in parts:
        result.paste(part, (MARGIN, top))
        top += part.height + GAP
    return result


def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font: nothing to install."""
    return ImageFont.load_default(size)  # type: ignore[return-value]
