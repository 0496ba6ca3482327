"""What a radiologist measures on a spine MRI, from the label map of its structures. For research, not for diagnosis."""

from .measure import measure, names_out_of_order
from .parts import merge_parts, split_parts
from .picture import write_picture
from .results import DISCLAIMER, FLAGS, QUANTITIES, Markup, Measure, Measurements, StructureMeasures
from .tables import write_measurements

__all__ = [
    "DISCLAIMER",
    "FLAGS",
    "QUANTITIES",
    "Markup",
    "Measure",
    "Measurements",
    "StructureMeasures",
    "measure",
    "merge_parts",
    "names_out_of_order",
    "split_parts",
    "write_measurements",
    "write_picture",
]
