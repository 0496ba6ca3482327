"""Checks of what an image shows, beyond those that refuse it (`volume.check_volume`)."""

from .padding import clear_padding, values_beside
from .slices import about_slices

__all__ = ["about_slices", "clear_padding", "values_beside"]
