"""Vertebrae in two parts, vertebral body and posterior elements, as one structure again."""

from __future__ import annotations

from dataclasses import replace

from .anatomy import PARTS_OFFSET, encodings, remapped
from .segmentation import Segmentation


def merge_parts(segmentation: Segmentation) -> Segmentation:
    """The same with each vertebra as one structure again."""
    if not segmentation.has_parts:
        return segmentation
    whole = {
        value: value - PARTS_OFFSET if value - PARTS_OFFSET in segmentation.known else value
        for value in segmentation.known
    }
    partial = frozenset(whole[value] for value in segmentation.partial)
    labels = remapped(segmentation.labels, whole)
    return replace(segmentation, labels=labels, encoding=encodings()["levels"], partial=partial)
