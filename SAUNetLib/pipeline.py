"""The pipeline: segment a volume in memory, or an image file into result files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from . import __version__
from .anatomy import encodings
from .engine import Engine, Report, silent
from .errors import UsageError
from .formats.atomic import write_together
from .formats.endings import MEASUREMENTS, PICTURES, SEGMENTATIONS, TABLES
from .formats.places import check_outputs
from .formats.segmentations import write_segmentation, write_table
from .formats.volumes import Series, read_volume
from .image_checks import about_slices, clear_padding, values_beside
from .levels import Levels, check_lowest, name_structures
from .notices import About, Notice
from .segmentation import Segmentation
from .volume import SagittalStack, Volume, check_content, check_volume

_TRACE_MM3 = 2000.0
"""A smaller unnamed volume is not reported. In 170 crops of five T2 SPACE scans it was the sacrum's top five times,
0.8 to 1.5 ml, whose omission gained 0.003 to 0.008 Dice; once it was a vertebra, 5.5 ml, which cost 0.016."""


def segment(
    volume: Volume,
    engine: Engine,
    *,
    levels: bool = True,
    lowest: str | None = None,
    report: Report = silent,
) -> Segmentation:
    """Segment a spine MRI.

    Args:
        volume: sagittal stack or isotropic volume, any axis order.
        engine: a model on a device.
        levels: one label per structure (`anatomy.structures`); otherwise the three classes (`anatomy.classes`).
        lowest: level of the lowest complete vertebra; None leaves it to `name_structures`.
        report: called with the stage (``prepare``, ``segment``, ``levels``) and fraction; raise CancelledError in it to
            cancel.

    Returns:
        The result on exactly the volume's grid.

    Raises:
        InputError: as `check_volume` and `check_content`.
        UsageError: USAGE, `lowest` is not a vertebra, or is stated for three classes; DEVICE, as `Engine.classes`.
        OutOfMemoryError: MEMORY.
        CancelledError: CANCELLED, from `report`.
    """
    started = datetime.now(UTC)
    report("prepare", 0.0)
    if lowest is not None and not levels:
        raise UsageError("USAGE", "three classes have no levels to name", "Leave out --classes or --lowest")
    lowest = check_lowest(lowest)
    check_volume(volume)
    check_content(volume)
    stack = SagittalStack.of(volume)
    classes, notices = engine.classes(stack, report)
    report("levels", 0.0)
    field = stack.field()  # the box of acquired data: a structure that reaches padding counts as cut
    image, found = stack.cropped(field), classes[field]
    outside_ml, outside = clear_padding(found, image.slices, (image.slice_spacing, *image.pixel))
    notices += about_slices(image.slices, image.slice_spacing, outside_ml)
    named = name_structures(image.with_slices(found), lowest, image.slices)
    classes[:] = 0
    classes[field] = named.labels
    segmentation = Segmentation(
        stack.restore(classes),
        volume.geometry,
        encodings()["levels"],
        _provenance(engine, levels, lowest, started) | ({"anchor": named.anchor} if levels and named.anchor else {}),
        (*notices, *named.notices) if levels else (*notices, *_about_classes(named)),
        named.partial | values_beside(named.labels, outside),
        named.confidence,
    )
    report("levels", 1.0)
    return segmentation if levels else segmentation.as_classes()


def _about_classes(named: Levels) -> Iterator[Notice]:
    """Notices for three classes: none about names, but one about what the hidden naming step left out."""
    yield from (notice for notice in named.notices if not notice.is_about(About.LEVELS))
    if named.unnamed_mm3 > _TRACE_MM3:
        text = (
            f"{named.unnamed_mm3 / 1000:.1f} ml that look like vertebra or disc got no label: they were taken for the "
            "sacrum or lie beyond the ends of the spine. Check the lowest and the highest vertebra."
        )
        yield Notice("LEFT_OUT", text)


def _provenance(engine: Engine, levels: bool, lowest: str | None, started: datetime) -> dict[str, str]:
    card = engine.model.card
    return {
        "software": f"SAUNet {__version__}",
        "model": f"{card.name} {card.version}",
        "model_sha256": card.sha256,
        "device": f"{engine.device.type} {str(engine.dtype).removeprefix('torch.')}",
        "options": f"levels={levels} lowest={lowest or 'auto'}",
        "time": started.isoformat(timespec="seconds"),
    }


def segment_file(
    image: str | Path | Series,
    output: str | Path,
    engine: Engine,
    *,
    series: str | None = None,
    levels: bool = True,
    lowest: str | None = None,
    parts: bool = False,
    table: str | Path | None = None,
    measurements: str | Path | None = None,
    preview: str | Path | None = None,
    report: Report = silent,
) -> Segmentation:
    """Segment an image file and write the results: all files, each complete, or none. The input is not changed.

    Args:
        image: see `read_volume`, as is ``series``.
        output: label map or segmentation, see `write_segmentation`.
        engine, levels, lowest, report: see `segment`; with two more stages, ``read`` and ``write``.
        parts: label vertebral bodies and posterior elements separately.
        table: CSV of the structures.
        measurements: CSV or JSON of what `measurements.measure` finds; needs levels.
        preview: PNG.

    Raises:
        InputError: as `read_volume` and `segment`.
        UsageError: as these; USAGE, parts or measurements of three classes, or two results at one path; OUTPUT_FORMAT
            or OUTPUT_WRITE, before the computation if possible.
        OutOfMemoryError: MEMORY.
        CancelledError: CANCELLED, by `report`.
    """
    if not levels and (parts or measurements is not None):
        raise UsageError("USAGE", "parts and measurements are not available for three classes", "Leave out --classes")
    outputs = (output, SEGMENTATIONS), (table, TABLES), (measurements, MEASUREMENTS), (preview, PICTURES)
    check_outputs(outputs, [] if isinstance(image, Series) else [image])
    report("read", 0.0)
    volume = read_volume(image, series)
    segmentation = segment(volume, engine, levels=levels, lowest=lowest, report=report)
    if isinstance(image, Series) or volume.name != Path(image).name:  # a file may be named after the patient
        provenance = {**segmentation.provenance, "series": volume.name.partition(" (")[0]}
        segmentation = replace(segmentation, provenance=provenance, series=volume.name)
    report("write", 0.0)
    # Imported only where needed: the worker starts without Pillow and the measurements.
    measured = None
    if parts or measurements is not None:
        from .measurements import measure, split_parts, write_measurements

        measured = measure(segmentation, volume) if measurements is not None else None
        segmentation = split_parts(segmentation) if parts else segmentation
    with write_together():
        write_segmentation(segmentation, output)
        if measured is not None and measurements is not None:
            write_measurements(measured, measurements)
        if table is not None:
            write_table(segmentation, table)
        if preview is not None:
            from .formats.previews import write_preview

            write_preview(volume, segmentation, preview)
        report("write", 1.0)
    return segmentation
