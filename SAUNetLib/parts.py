"""The encoding of vertebrae in two parts: vertebral body and posterior elements."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from .anatomy import Structure, structures
from .segmentation import Segmentation

PARTS_OFFSET = 100
"""A vertebra's posterior elements have its label value plus this; its body keeps the value."""


@cache
def part_structures() -> dict[int, Structure]:
    """All structures of a label map whose vertebrae are in two parts, by label value."""
    known: dict[int, Structure] = {}
    for value, one in structures().items():
        if one.kind != "vertebra":
            known[value] = one
            continue
        darker = (round(0.72 * one.colour[0]), round(0.72 * one.colour[1]), round(0.72 * one.colour[2]))
        known[value] = replace(one, name=f"{one.level} vertebral body", code="3572006", meaning="Vertebral body")
        known[value + PARTS_OFFSET] = replace(
            one, value=value + PARTS_OFFSET, name=f"{one.level} posterior elements", code="51282000",
            meaning="Vertebra", colour=darker,
        )  # fmt: skip
    return known


def has_parts(segmentation: Segmentation) -> bool:
    """Whether bodies and posterior elements are separate structures."""
    return segmentation.known == part_structures()


def merge_parts(segmentation: Segmentation) -> Segmentation:
    """The same with each vertebra as one structure again."""
    if not has_parts(segmentation):
        return segmentation
    lookup = np.arange(256, dtype=np.uint8)
    rear = [value for value in segmentation.known if value - PARTS_OFFSET in segmentation.known]
    lookup[rear] = np.array(rear) - PARTS_OFFSET
    partial = frozenset(int(lookup[value]) for value in segmentation.partial)
    return replace(segmentation, labels=lookup[segmentation.labels], known=structures(), partial=partial)
