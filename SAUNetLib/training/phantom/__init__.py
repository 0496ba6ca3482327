"""A procedural lumbar spine MRI with its exact label map and its true measures, from a seed."""

from .build import Phantom, make_phantom
from .options import PhantomOptions
from .truth import BodyTruth, DiscTruth, Truth

__all__ = ["BodyTruth", "DiscTruth", "Phantom", "PhantomOptions", "Truth", "make_phantom"]
