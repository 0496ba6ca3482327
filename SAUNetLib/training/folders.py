"""A folder of labelled cases: pairs of files, the meaning of their label values, and the structures drawn."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import cc3d
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..anatomy import BACKGROUND, CLASS_NAMES, remapped
from ..errors import InputError, UsageError
from ..formats.atomic import ending_of, write_beside
from ..formats.endings import IMAGES, SEGMENTS
from ..formats.label_maps import is_scaled, stated_encoding
from ..formats.label_values import UNKNOWN, EncodingName, Reading, as_labels, read_as, recognise
from ..formats.segmentations import read_truth
from ..formats.slicer_segments import OVERLAP, lists_segments
from ..formats.volumes import read_image
from ..notices import Notice
from ..segmentation import count_labels
from ..volume import SagittalStack, Volume, check_content, check_volume, on_grid

ANY_OF = 240
"""A training label of 240 + bits means any of the classes whose bits are set; with all four set it is `UNKNOWN`."""
SPECK_MM3 = 40.0
"""Smaller labelled components count as annotation errors (SPIDER's saturated scans have hundreds)."""
LABEL_MAPS = (*IMAGES, SEGMENTS)
INFO = "dataset.json"
DRAWN = {name: value for value, name in enumerate(CLASS_NAMES) if value != BACKGROUND}

Settings = TypeVar("Settings", bound=BaseModel)


class DatasetInfo(BaseModel):
    """The settings in a folder's ``dataset.json``; defaults without the file.

    Attributes:
        encoding: of the label maps, see `read_as`; default: as their headers state, else recognised by their values.
        draws: the structures that were drawn. If one was not, background only means "none of the drawn ones".
        patient_before: a case's name up to this text is its patient's; default: the whole name or, in SPIDER's
            layout, the part before the first ``_``. All images of a patient are trained on, or none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoding: EncodingName | None = None
    draws: tuple[Literal["vertebra", "disc", "canal"], ...] = Field(("vertebra", "disc", "canal"), min_length=1)
    patient_before: str | None = Field(None, min_length=1)

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that were drawn."""
        return tuple(sorted({DRAWN[name] for name in self.draws}))

    @property
    def background(self) -> int:
        """Label of an unlabelled pixel: `BACKGROUND`, or `ANY_OF` with background and the structures not drawn."""
        missing = set(DRAWN.values()) - set(self.classes)
        return ANY_OF + 1 + sum(2**value for value in missing) if missing else BACKGROUND


@dataclass(frozen=True)
class CaseFiles:
    """The two files of a case; `patient` is shared by the images of one patient."""

    name: str
    image: Path
    labels: Path
    patient: str


@dataclass(frozen=True)
class LabelMap:
    """A label map as in its file.

    Attributes:
        volume: its values, uint8.
        stated: the encoding that its header states, or empty.
        named: whether it was read by the names of its segments: it then holds classes, whatever the folder's encoding.
            The numbers that Slicer gives such segments mean nothing: 1 may be the canal.
        notices: about its segments.
    """

    volume: Volume
    stated: str = ""
    named: bool = False
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class LabelledImage:
    """A labelled image.

    Attributes:
        volume: the image.
        labels: (k, j, i) uint8 classes, `UNKNOWN` where not known, and in specks.
        drawn: the same with specks as drawn.
        encoding: of the label map; None where it is empty or read by the names of its segments.
    """

    volume: Volume
    labels: np.ndarray
    drawn: np.ndarray
    encoding: EncodingName | None


def reading_of(values: Collection[int], info: DatasetInfo, name: str, stated: str = "") -> Reading | None:
    """The interpretation of a label map's values; None if no structure occurs and the folder states no encoding.

    Args:
        values: that occur in it.
        info: of its folder, which takes precedence over the header.
        name: of the case.
        stated: the encoding that its header states.

    Raises:
        InputError: INPUT_LABELS, no encoding has these values, or two have them and mean different things.
    """
    present = set(values) - {BACKGROUND, UNKNOWN}
    if info.encoding:
        return read_as(info.encoding, present)
    if not present:
        return None
    try:
        first, *others = recognise(present, f"the label map of {name}", stated)
    except InputError as error:
        more = "Label unknown voxels as 255"
        if present <= read_as("spider", present).values.keys():
            more = f'If they are SPIDER\'s, state this in {INFO}: {{"encoding": "spider"}}'
        raise InputError(error.code, error.cause, f"{error.remedy} {more}") from error
    for other in others if first.name not in ("classes", stated) else ():
        if any(first.classes[value] != other.classes[value] for value in present):
            raise InputError(
                "INPUT_LABELS",
                f"the label map of {name} matches both encodings {first.name} and {other.name}, which differ",
                f'State which one applies in the folder\'s {INFO}: {{"encoding": "{other.name}"}}',
            )
    return first


def check_one_encoding(found: Iterable[EncodingName | None], folder: Path) -> None:
    """Reject a folder whose label maps seem to use several encodings: one must have been misinterpreted.

    Raises:
        InputError: INPUT_LABELS.
    """
    kinds = {"levels" if kind in ("parts", "totalspineseg") else kind for kind in found if kind}
    if len(kinds) > 1:
        raise InputError(
            "INPUT_LABELS",
            f"the label maps in {folder.name} seem to use several encodings: {', '.join(sorted(kinds))}",
            f"State which one applies in {INFO}, or use one folder per encoding",
        )


def read_settings(kind: type[Settings], path: Path) -> Settings:
    """A pydantic model from a JSON file.

    Raises:
        UsageError: USAGE, it cannot be read or is invalid (the first error is named).
    """
    try:
        return kind.model_validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise UsageError("USAGE", f"{path.name} cannot be read", "Check the path and its permissions") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
        if first["type"] == "extra_forbidden":
            said = "is not a setting"
        raise UsageError("USAGE", " ".join([f"{path.name}:", where, said]), "Correct the configuration") from error


def write_settings(settings: BaseModel, path: Path) -> None:
    """A pydantic model as a JSON file, whole or not at all.

    Raises:
        UsageError: OUTPUT_WRITE.
    """
    with write_beside(path, ".json") as temporary:
        temporary.write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_info(folder: Path) -> DatasetInfo:
    """The settings in a folder's ``dataset.json``, or the defaults.

    Raises:
        UsageError: USAGE.
    """
    path = folder / INFO
    if not os.path.lexists(path):
        return DatasetInfo()
    if not path.is_file():  # a broken link or a folder: by default, structures not drawn would become background
        raise UsageError("USAGE", f"{path} is not a file", "Replace it with a file, or remove it")
    return read_settings(DatasetInfo, path)


def list_files(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Images and label maps of a folder by the case's name, with or without a partner.

    Pairs are ``NAME_image`` and ``NAME_labels`` or, as in SPIDER, ``images/NAME`` and ``masks/NAME``. NIfTI, NRRD and
    MetaImage may be mixed, and a label map may be a 3D Slicer segmentation.

    Raises:
        InputError: INPUT_NOT_FOUND.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - does not raise for an invalid path
        raise InputError("INPUT_NOT_FOUND", f"{folder} is not a folder", "Give the folder of the training data")
    try:
        if _spider_layout(folder):
            return _named(folder / "images", "", IMAGES), _named(folder / "masks", "", LABEL_MAPS)
        return _named(folder, "_image", IMAGES), _named(folder, "_labels", LABEL_MAPS)
    except OSError as failure:
        raise InputError(
            "INPUT_UNREADABLE", f"{folder} cannot be read ({failure.strerror})", "Check the permissions of the folder"
        ) from failure


def _spider_layout(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _named(folder: Path, tail: str, endings: Sequence[str]) -> dict[str, list[Path]]:
    """Files whose names end in a tail and one of the endings, by the part before the tail."""
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = ending_of(path, endings)
        stem = path.name[: len(path.name) - len(ending)]
        if ending and not stem.startswith(".") and stem.endswith(tail) and stem != tail:
            paths.setdefault(stem.removesuffix(tail), []).append(path)
    return paths


def pair_files(
    folder: Path, images: dict[str, list[Path]], labels: dict[str, list[Path]], info: DatasetInfo
) -> dict[str, CaseFiles]:
    """The pairs among the files that `list_files` found in a folder, by name.

    Raises:
        InputError: INPUT_EMPTY.
    """
    before = info.patient_before or ("_" if _spider_layout(folder) else None)
    cases = {
        name: CaseFiles(name, images[name][0], labels[name][0], name.partition(before)[0] if before else name)
        for name in sorted(images.keys() & labels.keys())
    }
    if not cases:
        raise InputError(
            "INPUT_EMPTY",
            f"{folder} holds no pair NAME_image.nii.gz and NAME_labels.nii.gz",
            "Export image and label map of every case under these names, or as images/NAME.mha and masks/NAME.mha",
        )
    return cases


def find_cases(folder: Path) -> dict[str, CaseFiles]:
    """The pairs of a folder; refused if an image or a label map has no partner, or several.

    Raises:
        InputError: INPUT_NOT_FOUND, INPUT_EMPTY or INPUT_SERIES.
        UsageError: as `read_info`.
    """
    images, labels = list_files(folder)
    cases = pair_files(folder, images, labels, read_info(folder))
    lonely = sorted(images.keys() ^ labels.keys())
    if lonely:
        raise InputError(
            "INPUT_NOT_FOUND",
            f"{folder} contains only the {'image' if lonely[0] in images else 'label map'} of {lonely[0]}",
            f"Add the missing file or remove the case; `saunet dataset check {folder}` lists all such cases",
        )
    for paths in (*images.values(), *labels.values()):
        if len(paths) > 1:  # a corrected label map beside the old one
            both = " and ".join(path.name for path in paths)
            raise InputError("INPUT_SERIES", f"{both} in {folder} are the same case", "Remove all but one")
    return cases


def case_names(folder: Path) -> list[str]:
    """Names of the cases of a folder, see `find_cases`."""
    return list(find_cases(folder))


def read_labelled(files: CaseFiles, info: DatasetInfo) -> LabelledImage:
    """Image and classes of one case.

    Raises:
        InputError: a file cannot be used, INPUT_GEOMETRY or INPUT_LABELS.
    """
    volume = Volume.from_sitk(read_image(files.image), files.name)
    check_volume(volume)
    check_content(volume)
    read = read_label_map(files)
    read = replace(read, volume=on_grid(read.volume, volume.geometry, "its image"))
    classes, encoding = as_classes(read, info, files.name)
    labels, _ = without_specks(classes, volume.geometry.voxel_volume)
    check_not_empty(labels, files.name)
    return LabelledImage(volume, labels, classes, encoding)


def image_hash(volume: Volume) -> str:
    """SHA-256 of an image's sagittal slices, which identifies it whatever its file name or storage order.

    Hashed are their shape and values as little-endian float32: programs change the type and reorder axes (`on_grid`).
    """
    slices = SagittalStack.of(volume).slices
    image = hashlib.sha256(repr(slices.shape).encode())
    with np.errstate(over="ignore"):  # values that large are refused elsewhere
        for pixels in slices:
            image.update(np.ascontiguousarray(pixels, "<f4").data)
    return image.hexdigest()


def read_label_map(files: CaseFiles) -> LabelMap:
    """The label map of a case; voxels in two of its segments are `UNKNOWN`.

    Raises:
        InputError: as `read_image`; INPUT_LABELS for an image, or for segments without a meaning here.
    """
    image, name = read_image(files.labels), f"the label map of {files.name}"
    if lists_segments(image):
        read, left_out = read_truth(files.labels, strict=True)
        labels = np.where(left_out, np.uint8(UNKNOWN), read.as_classes().labels)
        notices = tuple(notice for notice in read.warnings if notice.code == OVERLAP)
        return LabelMap(Volume(labels, read.geometry, name), named=True, notices=notices)
    volume = Volume.from_sitk(image, name)
    labels = as_labels(volume.voxels, name, is_scaled(image))
    return LabelMap(replace(volume, voxels=labels), stated_encoding(image))


def as_classes(label_map: LabelMap, info: DatasetInfo, name: str) -> tuple[np.ndarray, EncodingName | None]:
    """A label map as classes (k, j, i) uint8, 255 where not known, and its encoding, stated or recognised.

    Args:
        label_map: of the case.
        info: of its folder.
        name: of the case.

    Raises:
        InputError: INPUT_LABELS for values without a meaning, or a structure that the folder's `draws` does not list.
    """
    labels = label_map.volume.voxels
    values = list(count_labels(labels))
    reading = read_as("classes", values) if label_map.named else reading_of(values, info, name, label_map.stated)
    table = {UNKNOWN: UNKNOWN, **(reading.classes if reading else {})}
    unknown = [value for value in values if value not in table]
    if unknown:
        raise InputError(
            "INPUT_LABELS",
            f"the labels of {name} contain values that the encoding {info.encoding} does not define: {unknown}",
            f"Correct the labels, or the encoding in {INFO}",
        )
    present = {table[value] for value in values} - {BACKGROUND, UNKNOWN}
    if not present <= set(info.classes):
        names = [title for title, value in DRAWN.items() if value in present - set(info.classes)]
        raise InputError(
            "INPUT_LABELS",
            f"{name} has {' and '.join(names)} drawn, which {INFO} does not list",
            "Add it under draws if every case has it drawn, or erase it",
        )
    return remapped(labels, table), reading.name if reading and not label_map.named else None


def without_specks(labels: np.ndarray, voxel_volume: float) -> tuple[np.ndarray, int]:
    """Class labels with components below `SPECK_MM3` set to `UNKNOWN`, and the number of these.

    They are unknown since the true label may be the background or the surrounding structure. A lone slice is left as it
    is: a small piece may be all that it shows of a structure.

    Args:
        labels: (k, j, i) uint8 classes, `UNKNOWN` where not known; not changed.
        voxel_volume: mm3.
    """
    if min(labels.shape) == 1:
        return labels, 0
    components = cc3d.connected_components(labels, connectivity=26)
    small = np.bincount(components.ravel()) < SPECK_MM3 / voxel_volume
    small[0] = False
    specks = small[components] & (labels != UNKNOWN)
    return np.where(specks, np.uint8(UNKNOWN), labels), len(np.unique(components[specks]))


def check_not_empty(labels: np.ndarray, name: str) -> None:
    """Reject a volume in which no class is drawn; a lone slice may lie beside the spine.

    Args:
        labels: (k, j, i) as from `without_specks`.
        name: of the case.

    Raises:
        InputError: INPUT_LABELS.
    """
    if min(labels.shape) > 1 and not np.isin(labels, list(DRAWN.values())).any():
        raise InputError(
            "INPUT_LABELS",
            f"no vertebra, disc or canal is drawn in the label map of {name}, or only specks",
            "Draw what it shows, or remove the case",
        )


def never_drawn(info: DatasetInfo, found: Collection[str]) -> tuple[list[str], str]:
    """Structures listed as drawn that occur in no case: they would be taught as background.

    Args:
        info: of the folder.
        found: names of the structures that occur in its cases.

    Returns:
        The structures, and what to do about them.
    """
    listed = ", ".join(f'"{name}"' for name in info.draws if name in found)
    remedy = (
        f'If it was not drawn, state this in {INFO}: {{"draws": [{listed}]}}' if listed else "Draw what the images show"
    )
    return [name for name in info.draws if name not in found], remedy


def patients_of(names: Collection[str], cases: Mapping[str, Sequence[str]]) -> set[str]:
    """The patients of some cases: all images of a patient show the same anatomy.

    Args:
        names: the cases.
        cases: all of them by patient, see `patients`.
    """
    return {patient for patient, own in cases.items() if set(own) & set(names)}


def patients(folder: Path) -> dict[str, Sequence[str]]:
    """Names of the cases of each patient of a folder."""
    result: dict[str, list[str]] = {}
    for name, files in find_cases(folder).items():
        result.setdefault(files.patient, []).append(name)
    return dict(result)
