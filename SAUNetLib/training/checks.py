"""`saunet dataset check`: report all problems of a folder of labelled images at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import BACKGROUND
from ..console import table_console
from ..errors import SAUNetError, printable
from ..formats.volumes import read_image
from ..segmentation import count_labels
from ..volume import FARTHEST_MM, Geometry, SagittalStack, Volume, check_content, check_geometry, check_volume, on_grid
from .folders import (
    DRAWN,
    INFO,
    UNKNOWN,
    CaseFiles,
    DatasetInfo,
    EncodingName,
    as_classes,
    check_not_empty,
    check_one_encoding,
    image_hash,
    list_files,
    never_drawn,
    pair_files,
    read_info,
    read_label_map,
    without_specks,
)

USUAL_PIXEL_MM = (0.2, 1.6)
USUAL_SLICES_MM = (0.5, FARTHEST_MM)
"""Usual ranges in sagittal images of the spine; outside, a header is wrong more often than the image is unusual."""
MOSTLY_UNKNOWN = 0.9
"""Fraction of voxels labelled 255 above which a case was hardly meant for training."""
NARROWEST_MM = 30.0
"""Labelled slices that cover less than this are remarked on: vertebral bodies are wider."""


@dataclass(frozen=True)
class Finding:
    """A finding: an error code, or a code of its own for a note, and a text."""

    code: str
    text: str


@dataclass
class CaseReport:
    """The findings in one case.

    Attributes:
        name: of the case.
        slices: number of sagittal slices; None where the image cannot be used.
        spacing: mm between slices, rows and columns.
        encoding: of the labels.
        volumes_ml: volume of each class present, without specks.
        unknown: share of voxels labelled 255.
        problems: why training would refuse the case or be misled by it.
        notes: what is odd but may be intended.
    """

    name: str
    slices: int | None = None
    spacing: tuple[float, float, float] | None = None
    encoding: EncodingName | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    unknown: float = 0.0
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)


@dataclass
class DatasetReport:
    """The findings in a folder: for each case, and for the folder as a whole."""

    folder: Path
    draws: tuple[str, ...]
    cases: list[CaseReport]
    problems: list[Finding]
    notes: list[Finding]

    @property
    def usable(self) -> bool:
        """Whether there is no problem."""
        return not self.problems and not any(case.problems for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"usable": self.usable, **asdict(self), "folder": str(self.folder)}

    def print(self) -> None:
        """Print table and findings on stdout."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, header_style="bold")
        table.add_column("Case", no_wrap=True)
        table.add_column("", no_wrap=True)
        for title in ("Slices", "Voxel mm", "Labels", "Vert. ml", "Disc ml", "Canal ml", "255"):
            table.add_column(title, justify="right", no_wrap=True)
        for case in self.cases:
            table.add_row(
                escape(printable(case.name)),
                "problem" if case.problems else "note" if case.notes else "",
                "-" if case.slices is None else str(case.slices),
                "-" if case.spacing is None else "{:.3g} x {:.3g} x {:.3g}".format(*case.spacing),
                case.encoding or "-",
                *(f"{case.volumes_ml[name]:.1f}" if name in case.volumes_ml else "-" for name in DRAWN),
                f"{case.unknown:.0%}",
            )
        console = table_console()
        if self.cases:
            console.print(table)
        for title, colour in (("problem", "red"), ("note", "yellow")):
            places = [(self.folder.resolve().name, getattr(self, f"{title}s"))]
            places += [(case.name, getattr(case, f"{title}s")) for case in self.cases]
            for name, findings in places:
                for finding in findings:
                    console.print(f"[{colour}]{title} {finding.code}:[/] ", end="")
                    console.print(printable(f"{name}: {finding.text}"), markup=False)
        number = sum(bool(case.problems) for case in self.cases)
        count = f"{len(self.cases)} case" + "s" * (len(self.cases) != 1)
        drawn = f"; drawn: {', '.join(self.draws)}" if self.cases else ""
        ready = "ready" if self.usable else "not ready"
        console.print(f"{count}, {number} with problems{drawn}: {ready} to train on.")


def check_dataset(folder: Path) -> DatasetReport:
    """Check every file of a folder that `saunet train` would read; nothing is changed.

    Raises:
        InputError: INPUT_NOT_FOUND, there is no such folder.
    """
    images, labels = list_files(folder)
    report = DatasetReport(folder, tuple(DRAWN), [], [], [])
    info = DatasetInfo()
    with _noted(report.problems):
        info = read_info(folder)
    report.draws = info.draws
    report.problems += _without_partner(images, labels)
    seen: dict[str, str] = {}
    with _noted(report.problems):
        pairs = pair_files(folder, images, labels, info)
        report.cases += [_check_case(files, info, seen) for files in pairs.values()]
        report.notes += _about_patients(pairs.values())
    with _noted(report.problems):
        check_one_encoding((case.encoding for case in report.cases), folder)
    report.problems += _never_drawn(report, info)
    return report


@contextmanager
def _noted(problems: list[Finding]) -> Iterator[None]:
    """Turn a failure inside the block into a problem in the list."""
    try:
        yield
    except SAUNetError as error:
        problems.append(Finding(error.code, f"{error.cause} {error.remedy}"))


def _without_partner(images: dict[str, list[Path]], labels: dict[str, list[Path]]) -> Iterator[Finding]:
    for paths_by_name, counterparts, missing in ((images, labels, "label map"), (labels, images, "image")):
        for name, paths in paths_by_name.items():
            if name not in counterparts:
                yield Finding("INPUT_NOT_FOUND", f"{paths[0].name} has no {missing} beside it.")
            if len(paths) > 1:
                names = ", ".join(path.name for path in paths)
                yield Finding("INPUT_SERIES", f"{names} are the same case: remove all but one.")


def _about_patients(pairs: Collection[CaseFiles]) -> Iterator[Finding]:
    if len({files.patient for files in pairs}) == 1:
        text = (
            "a single patient leaves none for validation: name this folder after another one (saunet train OTHER DIR), "
            "or add a patient."
        )
        yield Finding("PATIENTS", text)
    begun = Counter(files.name.partition("_")[0] for files in pairs)
    apart = all(files.patient == files.name for files in pairs)
    if apart and 1 < len(begun) < len(pairs):  # not where all begin alike, as in case_1, case_2
        alike = next(name for name, count in begun.items() if count > 1)
        first, second = [files.name for files in pairs if files.name.partition("_")[0] == alike][:2]
        yield Finding(
            "PATIENTS",
            f"{first} and {second} count as two patients. If they are the same patient, whose images must not be used "
            f'for both training and validation, state this in {INFO}: {{"patient_before": "_"}}',
        )


def _never_drawn(report: DatasetReport, info: DatasetInfo) -> Iterator[Finding]:
    """Report structures that no case has: they may never have been drawn."""
    read = [case for case in report.cases if case.volumes_ml]
    missing, remedy = never_drawn(info, {name for case in read for name in case.volumes_ml})
    for name in missing if read else ():
        yield Finding("INPUT_LABELS", f"no case has a {name}. {remedy}.")


def _check_case(files: CaseFiles, info: DatasetInfo, seen: dict[str, str]) -> CaseReport:
    """Check one case; ``seen`` holds the hashes of earlier images."""
    case = CaseReport(files.name)
    volume = read = None
    with _noted(case.problems):
        volume = Volume.from_sitk(read_image(files.image), files.name)
        _check_image(volume, case, seen)
    with _noted(case.problems):
        read = read_label_map(files)
    if volume is not None and read is not None:
        with _noted(case.problems):
            read = replace(read, volume=on_grid(read.volume, volume.geometry, "its image"))
    if read is not None:
        truth = read.volume
        case.notes += [Finding(notice.code, notice.text) for notice in read.notices]
        with _noted(case.problems):
            classes, case.encoding = as_classes(read, info, files.name)
            _check_labels(classes, truth.geometry.voxel_volume, info, case)
            if case.slices is not None:
                case.notes += _undrawn_slices(SagittalStack.of(replace(truth, voxels=classes)))
    return case


def _check_image(volume: Volume, case: CaseReport, seen: dict[str, str]) -> None:
    twin = seen.setdefault(image_hash(volume), volume.name)
    if twin != volume.name:
        case.problems.append(
            Finding(
                "INPUT_SERIES",
                f"its image is the same as that of {twin}: it would be counted twice, or leak into the validation.",
            )
        )
    before = len(case.problems)
    with _noted(case.problems):
        check_geometry(volume.geometry, volume.name)
    sound = volume.geometry
    if len(case.problems) > before:  # check the voxels alone: the grid is already reported
        sound = Geometry(volume.geometry.size, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    with _noted(case.problems):
        check_volume(replace(volume, geometry=sound))
        check_content(replace(volume, geometry=sound))
    if len(case.problems) == before:
        stack = SagittalStack.of(volume)
        case.slices, case.spacing = len(stack.slices), (stack.slice_spacing, *stack.pixel)
        case.notes += _odd_spacing(stack)


def _odd_spacing(stack: SagittalStack) -> Iterator[Finding]:
    rows, columns = stack.pixel
    if min(stack.pixel) < USUAL_PIXEL_MM[0] or max(stack.pixel) > USUAL_PIXEL_MM[1]:
        yield Finding("SPACING", f"pixels of {rows:.3g} x {columns:.3g} mm are unusual.")
    if not USUAL_SLICES_MM[0] <= stack.slice_spacing <= USUAL_SLICES_MM[1]:
        yield Finding("SPACING", f"slices {stack.slice_spacing:.3g} mm apart are unusual.")
    if max(stack.pixel) > 1.2 * min(stack.pixel):
        yield Finding("SPACING", f"pixels of {rows:.3g} x {columns:.3g} mm are not square.")
    if stack.slice_spacing == rows == columns == 1:
        yield Finding("SPACING", "voxels of exactly 1 x 1 x 1 mm: make sure that this is the scanner's voxel size.")


def _undrawn_slices(stack: SagittalStack) -> Iterator[Finding]:
    """Report slices that seem to be unlabelled: all of their content would be taught as background."""
    drawn: np.ndarray = np.any(stack.slices, axis=(1, 2))
    shown = np.flatnonzero(drawn)
    if not len(shown):
        return  # already reported
    remedy = "If they were not drawn, label them 255 (unknown): labelled 0, they teach that there is no spine."
    if gaps := int(np.count_nonzero(~drawn[shown[0] : shown[-1]])):
        yield Finding("UNDRAWN", f"{gaps} slices between labelled ones have no label. {remedy}")
    whole, wide = len(drawn) * stack.slice_spacing, len(shown) * stack.slice_spacing
    if wide < NARROWEST_MM < whole:
        yield Finding("UNDRAWN", f"only {len(shown)} of {len(drawn)} slices, {wide:.0f} mm, have a label. {remedy}")


def _check_labels(classes: np.ndarray, voxel_volume: float, info: DatasetInfo, case: CaseReport) -> None:
    kept, specks = without_specks(classes, voxel_volume)
    if specks:
        case.notes.append(Finding("SPECKS", f"{specks} labelled specks will be left out."))
    check_not_empty(kept, case.name)
    counts = count_labels(kept)
    case.volumes_ml = {
        name: round(counts[value] * voxel_volume / 1000, 3) for name, value in DRAWN.items() if value in counts
    }
    case.unknown = float(np.mean(classes == UNKNOWN))
    if not case.volumes_ml:
        case.notes.append(Finding("ABSENT", "no vertebra, disc or canal is drawn in it."))
        return
    missing = [name for name in info.draws if name not in case.volumes_ml]
    if missing:
        them = "it" if len(missing) == 1 else "them"
        text = f"no {' and no '.join(missing)} in it, although the folder counts {them} as drawn."
        case.notes.append(Finding("ABSENT", text))
    if BACKGROUND not in classes:
        text = "none of its voxels is background (0), so nothing in it teaches what is not spine."
        case.notes.append(Finding("UNKNOWN", text))
    elif case.unknown > MOSTLY_UNKNOWN:
        case.notes.append(Finding("UNKNOWN", f"{case.unknown:.0%} of it is labelled 255, unknown."))
