"""A result in the scene: its provenance, whether it was edited by hand, and its label map."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SAUNetLib.anatomy import (
    ABOUT_TAG,
    ENCODING_TAG,
    LEVEL_TAG,
    PARTIAL_TAG,
    Encoding,
    Structure,
    coded_structure,
    encodings,
    is_made_here,
    named_after_term,
    named_structure,
    segment_id,
)

from .Cards import PanelError, inPanelWords

ATTRIBUTE = ABOUT_TAG
FRAME_VALUE = ATTRIBUTE + "frame_value"
"""Attribute of a result for its `Frame.value`, beside the one for the frame's number."""
INPUT_ROLE = "SAUNet.Input"
LABELMAP = "Binary labelmap"
NOT_KNOWN = "not known"
"""Stands in for the fingerprint of a result that was loaded from a file."""
ABOUT = ("software", "model", "model_sha256", "device", "options", "time", "anchor", "relabelled", "encoding",
         "warnings")  # fmt: skip
"""The tags in which segments record a result's provenance; a segment cannot be asked for the names of its tags."""
PLACE_MM = 1e-3
"""A result that moved by less counts as unmoved."""
FREE_FROM = 200
"""Label values from this one on belong to no structure in any encoding."""
LOST = 0.01
"""If at least this fraction of a result lies outside the image and so is not in its label map, the user is told."""
LONGEST_NAME = 28
"""Most characters of a name in a line of the panel."""
STATUS_TAG = "Segmentation.Status"
REVIEWED = ("completed", "flagged")
"""Slicer's tag for the status in its segment list, and its values that a reviewer sets; Slicer itself sets
``inprogress`` as soon as a segment is painted."""


def isResult(node: Any) -> bool:
    """Whether the panel made this segmentation."""
    return node is not None and bool(node.GetAttribute(ATTRIBUTE + "fingerprint"))


def isEdited(node: Any) -> bool:
    """Whether a result was changed since the engine made it: its position, voxels, segments or their meaning."""
    if not isResult(node):
        return False
    if node.GetAttribute(ATTRIBUTE + "fingerprint") != fingerprint(node.GetSegmentation()):
        return True
    volume, transform = node.GetNodeReference(INPUT_ROLE), node.GetTransformNodeID()
    return bool(transform) and volume is not None and transform != volume.GetTransformNodeID() and _wasMoved(node)


def _wasMoved(node: Any) -> bool:
    """Whether a result under another transform than its input was moved: not if only the volume was hardened."""
    grid, transform, _parent = _exportGrid(node)
    resample, made, linear = slicer.vtkOrientedImageDataResample, _formerGrid(node), vtk.vtkTransform()
    if transform is None or not resample.IsTransformLinear(transform, linear):  # None: another frame is shown
        return True
    resample.TransformOrientedImage(made, linear)
    return not resample.DoGeometriesMatch(made, grid)


def recognise(node: Any) -> None:
    """Turn a loaded segmentation file back into a result, from the segment tags that the file keeps.

    Its input is unknown, and so is whether it was edited before it was saved: it counts as edited. A segmentation made
    by the user, which comes from no file, becomes a result if most of its segments are structures copied into it.
    """
    if isResult(node):
        return
    segments = list(segmentsOf(node.GetSegmentation()))
    made = [one for _segmentId, one in segments if _tag(one, ENCODING_TAG) or _tag(one, LEVEL_TAG)]
    if not made or (node.GetStorageNode() is None and 2 * len(made) <= len(segments)):
        return
    about = {name: _tag(made[0], ATTRIBUTE + name) for name in ABOUT} | {"fingerprint": NOT_KNOWN}
    if not about["encoding"]:  # files of earlier engines do not state it
        about["encoding"] = "parts" if _hasParts(segments) else "levels"
    with slicer.util.NodeModify(node):
        for name, value in about.items():
            node.SetAttribute(ATTRIBUTE + name, value or None)


def _hasParts(segments: list[tuple[str, Any]]) -> bool:
    parts, whole = (encodings()[name].structures for name in ("parts", "levels"))
    names = {structure.name for structure in parts.values()} - {structure.name for structure in whole.values()}
    return any(segment.GetName() in names for _segmentId, segment in segments)


def provenance(node: Any) -> dict[str, str]:
    """The result's own record: model, model_sha256, device, options, software, time, encoding, warnings.

    The segments' tags take precedence: the editor's Undo restores an earlier run's segments, not the node's attributes.
    """
    names = node.GetAttributeNames()
    hidden = ATTRIBUTE + "fingerprint", FRAME_VALUE
    own = [name for name in names if name.startswith(ATTRIBUTE) and name not in hidden]
    segments = (segment for _segmentId, segment in segmentsOf(node.GetSegmentation()))
    telling = next((segment for segment in segments if _tag(segment, ATTRIBUTE + "encoding")), None)
    about = {name: node.GetAttribute(name) for name in own}
    if telling is not None:
        about = {name: _tag(telling, name) if name != ATTRIBUTE + "frame" else about[name] for name in own}
    return {name.removeprefix(ATTRIBUTE): value for name, value in about.items() if value}


def warningsOf(node: Any) -> list[dict[str, str]]:
    """The engine's warnings stored with a result; none if a file holds something else there."""
    try:
        warnings = json.loads(provenance(node).get("warnings", "[]"))
    except ValueError:
        return []
    if not isinstance(warnings, list):
        return []
    return [warning for warning in warnings if isinstance(warning, dict) and "text" in warning]


def encodingOf(node: Any) -> Encoding:
    """What the label values of a result mean."""
    return encodings().get(provenance(node).get("encoding", ""), encodings()["levels"])


def labelValues(node: Any) -> dict[str, int]:
    """Label value of every segment for export.

    It is found in the encoding by the segment's name, else by the code that it was given, as when the engine reads a
    segmentation file; if several structures have that code, it is the value that the engine gave. Failing that, it is
    one from `FREE_FROM` on. No value comes twice.
    """
    encoding = encodingOf(node)
    known = encoding.structures
    made = {segment_id(value, encoding.name): structure for value, structure in known.items()}
    segments = list(segmentsOf(node.GetSegmentation()))
    # A user who assigned another code meant something else.
    by_id = {
        segmentId: made[segmentId]
        for segmentId, segment in segments
        if segmentId in made and codeOf(segment) in ("", made[segmentId].code)
    }
    values: dict[str, int] = {}
    for meant in (
        {segmentId: named_structure(segment.GetName(), known) for segmentId, segment in segments},
        {segmentId: coded_structure(givenCode(segmentId, segment), known) for segmentId, segment in segments},
        by_id,
    ):
        for segmentId, _segment in segments:
            structure = meant.get(segmentId)
            if structure and segmentId not in values and structure.value not in values.values():
                values[segmentId] = structure.value
    for segmentId, _segment in segments:
        if segmentId not in values:
            values[segmentId] = max([FREE_FROM - 1, *values.values()]) + 1
    return values


def codeOf(segment: Any) -> str:
    """The code of a segment's type, whatever its terminology; empty where it has none."""
    return _typeOf(segment)[0]


def _typeOf(segment: Any) -> tuple[str, str]:
    """Code and meaning of a segment's type."""
    parts = (segment.GetTerminology() or "").split("~")
    _scheme, code, meaning, *_rest = *(parts[2].split("^") if len(parts) > 2 else ()), "", "", ""
    return code, meaning


def givenCode(segmentId: str, segment: Any) -> str:
    """Same as `codeOf`, but empty if nobody chose that code: the editor's Add repeats the last segment's."""
    code, meaning = _typeOf(segment)
    given = is_made_here(segmentId, bool(_tag(segment, ENCODING_TAG))) or named_after_term(segment.GetName(), meaning)
    return code if given else ""


def repeatedTerm(segmentId: str, segment: Any, known: Mapping[int, Structure]) -> Structure | None:
    """The structure (or one of several) whose code a segment has, maybe without anyone's choice; see `givenCode`."""
    if givenCode(segmentId, segment):
        return None
    return next((structure for structure in known.values() if structure.code == codeOf(segment)), None)


def meanings(node: Any) -> dict[str, Structure]:
    """By segment ID, the structure as which a segment is exported; segments without a known meaning are left out."""
    known = encodingOf(node).structures
    return {segmentId: known[value] for segmentId, value in labelValues(node).items() if value in known}


def exportNotes(node: Any, merged: "Merged | None") -> list[str]:
    """Notes for the user about an export: of the label map `merged`, or (None) of a segmentation.

    They list names that differ from the structure written, and two segments that mean the same; for a segmentation,
    terms that were not written; for a label map, segments without a meaning, voxels that two segments share, and parts
    outside the image.
    """
    notes = []
    known, values, meant = encodingOf(node).structures, labelValues(node), meanings(node)
    segments = dict(segmentsOf(node.GetSegmentation()))
    names = {segmentId: elided(segment.GetName()) for segmentId, segment in segments.items()}
    for segmentId, segment in segments.items():
        named = named_structure(segment.GetName(), known)
        structure = named or coded_structure(givenCode(segmentId, segment), known)
        if segmentId in meant:
            if named != meant[segmentId]:
                text = _("{name} was exported as {structure}, although its name does not say so.")
                notes.append(text.format(name=names[segmentId], structure=meant[segmentId].name))
        elif structure is not None:
            text = _("{name} and another segment both mean {structure}: name one of them after a different structure.")
            notes.append(text.format(name=names[segmentId], structure=structure.name))
        elif merged is None and (repeated := repeatedTerm(segmentId, segment, known)) is not None:
            text = _("{name} was exported as tissue. If it is a structure, name it accordingly, such as {structure}.")
            notes.append(text.format(name=names[segmentId], structure=repeated.name))
        if segmentId not in meant and merged is not None:
            text = _("{name} has the label value {value}, which has no meaning elsewhere.")
            notes.append(text.format(name=names[segmentId], value=values[segmentId]))
    if merged is None:
        return notes
    for (below, above), count in merged.covered.items():
        text = _("Voxels of {below} that overlap {above} and went to it: {count}. A .seg.nrrd file keeps both.")
        notes.append(text.format(count=count, below=names[below], above=names[above]))
    for segmentId in merged.gone:
        text = _("The label map contains no voxels of {name}; a .seg.nrrd file keeps them.")
        notes.append(text.format(name=names[segmentId]))
    lost = _lost(node)
    if lost >= LOST:
        text = _(
            "{percent} % of the result lie outside the image and were left out; a .seg.nrrd file keeps everything."
        )
        notes.append(text.format(percent=max(1, round(100 * lost))))
    return notes


def notices(node: Any, chosen: Any) -> list[str]:
    """What the user should know about a result: what its levels are based on, the engine's warnings, and what it was
    made from if that is not the chosen volume or not the frame shown."""
    warnings = [inPanelWords(warning["text"]) for warning in warningsOf(node)]
    anchor = provenance(node).get("anchor", "").rstrip(".")
    texts = [_("Levels: {reason}.").format(reason=anchor)] if anchor and anchor not in " ".join(warnings) else []
    volume = node.GetNodeReference(INPUT_ROLE)
    own, shown = ownFrame(node), shownFrame(volume).number if volume is not None else 0
    if own < 0:
        warnings.insert(0, _("Made from a frame that the sequence no longer has."))
    elif volume is not None and own not in (0, shown):
        text = _("Made from frame {own} of a sequence; the volume may show another one.")
        if shown:
            text = _("Made from frame {own}; frame {shown} is shown.")
        warnings.insert(0, text.format(own=own, shown=shown))
    if None not in (volume, chosen) and volume is not chosen:
        text = _("Made from {name}, not from the volume chosen above.")
        warnings.insert(0, text.format(name=elided(volume.GetName() or "")))
    return [*texts, *(f"\u26a0 {warning}" for warning in warnings)]


def elided(name: str) -> str:
    """A name shortened to fit into a line of the panel."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def labelMapHeader(node: Any, merged: "Merged") -> Any:
    """The header of a label map file for a result: the engine's `label_maps.Header`."""
    from SAUNetLib.formats.label_maps import Header  # imports SimpleITK, which would slow Slicer's start
    from SAUNetLib.notices import Notice

    about = provenance(node)
    values, segments = labelValues(node), dict(segmentsOf(node.GetSegmentation()))
    present = {
        values[segmentId]: segment for segmentId, segment in segments.items() if values[segmentId] in merged.present
    }
    return Header(
        encodingOf(node).name,
        {key: value for key, value in about.items() if key not in ("encoding", "warnings")},
        [Notice(str(warning.get("code", "")), str(warning["text"])) for warning in warningsOf(node)],
        [value for value, segment in present.items() if _tag(segment, PARTIAL_TAG)],
        {value: segment.GetName() for value, segment in present.items()},
    )


@dataclass(frozen=True)
class Merged:
    """A result as a label map.

    Attributes:
        labels: uint8 or uint16 (k, j, i).
        matrix: (4, 4), from voxels to RAS, without parent transforms.
        parent: ID of the parent transform, or None.
        covered: by the IDs of two segments, how many voxels of the first went to the second.
        present: the label values that occur in it, also 0.
        gone: IDs of segments that contain voxels, but none in the label map.
    """

    labels: np.ndarray
    matrix: np.ndarray
    parent: str | None
    covered: dict[tuple[str, str], int]
    present: set[int]
    gone: list[str]


def merge(node: Any) -> Merged:
    """Merge all segments into one label map on the input's grid, or on its former grid if the input is gone.

    A segment on another grid, under another transform or finer than the input is resampled to the nearest voxel. A
    voxel of two segments goes to the later one.
    """
    grid, transform, parent = _exportGrid(node)
    if not node.GetSegmentation().ContainsRepresentation(LABELMAP):
        node.CreateBinaryLabelmapRepresentation()
    whole, values = grid.GetExtent(), labelValues(node)
    shape = [whole[2 * axis + 1] - whole[2 * axis] + 1 for axis in (2, 1, 0)]
    labels = np.zeros(shape, np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
    layers: dict[int, tuple[Any, Any]] = {}
    covered: dict[tuple[str, str], int] = {}
    drawn = []
    for segmentId, segment in segmentsOf(node.GetSegmentation()):
        layer = segment.GetRepresentation(LABELMAP)
        if layer is None or 0 in layer.GetDimensions():
            continue
        if id(layer) not in layers:  # segments share layers; keeping a layer keeps its id unique
            layers[id(layer)] = layer, _onGrid(layer, grid, transform)
        _layer, image = layers[id(layer)]
        value = segment.GetLabelValue()
        if (voxelsOf(layer) == value).any():
            drawn.append(segmentId)
        voxels, extent = voxelsOf(image), image.GetExtent()
        low = [max(extent[2 * axis], whole[2 * axis]) for axis in (2, 1, 0)]
        high = [min(extent[2 * axis + 1], whole[2 * axis + 1]) for axis in (2, 1, 0)]
        if any(a > b for a, b in zip(low, high, strict=True)):
            continue
        target, source = (
            tuple(slice(a - o, b - o + 1) for a, b, o in zip(low, high, origin, strict=True))
            for origin in ((whole[4], whole[2], whole[0]), (extent[4], extent[2], extent[0]))
        )
        mask = voxels[source] == value
        for below, count in zip(*np.unique(labels[target][mask], return_counts=True), strict=True):
            if below:
                first = next(other for other, theirs in values.items() if theirs == below)
                covered[first, segmentId] = int(count)
        labels[target][mask] = values[segmentId]
    result = _imageToWorld(grid)
    result[:3, 3] += result[:3, :3] @ np.array(whole[::2])
    present = set(np.unique(labels).tolist())
    return Merged(labels, result, parent, covered, present, [one for one in drawn if values[one] not in present])


def _lost(node: Any) -> float:
    """The fraction of a result, 0 to 1, that lies outside the grid of its label map."""
    grid, transform, _parent = _exportGrid(node)
    whole = np.array(grid.GetExtent())
    drawn = inside = 0.0  # mm3
    layers = {}
    for _segmentId, segment in segmentsOf(node.GetSegmentation()):
        layer = segment.GetRepresentation(LABELMAP)
        if layer is not None and 0 not in layer.GetDimensions():
            layers[id(layer)] = layer
    for layer in layers.values():
        volume = float(np.prod(layer.GetSpacing()))
        if transform is None and _liesWithin(layer, grid):  # almost always; a list of points takes seconds
            count = int(np.count_nonzero(voxelsOf(layer)))
            drawn += volume * count
            inside += volume * count
            continue
        points = np.argwhere(voxelsOf(layer))[:, ::-1] + layer.GetExtent()[::2]
        points = _transformed(points, _imageToWorld(layer))
        if transform is not None:
            source, target = vtk.vtkPoints(), vtk.vtkPoints()
            source.SetData(numpy_to_vtk(np.ascontiguousarray(points)))
            transform.TransformPoints(source, target)
            points = vtk_to_numpy(target.GetData()) if len(points) else points
        points = _transformed(points, np.linalg.inv(_imageToWorld(grid)))
        drawn += volume * len(points)
        inside += volume * int(((points >= whole[::2] - 0.5) & (points <= whole[1::2] + 0.5)).all(axis=1).sum())
    return 1 - inside / drawn if drawn else 0.0


def _liesWithin(layer: Any, grid: Any) -> bool:
    """Whether a layer's voxels coincide with the grid's, and none lies outside it."""
    part, whole = np.array(layer.GetExtent()), np.array(grid.GetExtent())
    within = (part[::2] >= whole[::2]).all() and (part[1::2] <= whole[1::2]).all()
    return bool(within) and slicer.vtkOrientedImageDataResample.DoGeometriesMatch(layer, grid)


def _transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


class Frame(NamedTuple):
    """A frame of a sequence.

    Attributes:
        number: from 1, or 0 for no frame; adding or removing another frame may change it.
        value: its index value in the sequence, which does not change.
    """

    number: int
    value: str


NO_FRAME = Frame(0, "")


def browserOf(volumeNode: Any) -> Any:
    """The browser of the sequence whose frame a volume shows, or None. Hidden browsers are Slicer's scene views."""
    browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode", volumeNode.GetScene())
    return next(
        (one for one in browsers if not one.GetHideFromEditors() and one.GetSequenceNode(volumeNode) is not None), None
    )


def shownFrame(volumeNode: Any) -> Frame:
    """The frame that a volume shows."""
    browser = browserOf(volumeNode)
    selected = browser.GetSelectedItemNumber() if browser is not None else -1
    if selected < 0:
        return NO_FRAME
    return Frame(selected + 1, browser.GetMasterSequenceNode().GetNthIndexValue(selected))


def ownFrame(node: Any) -> int:
    """Current number of the frame from which a result was made; 0 for none, -1 if the sequence no longer has it.

    Without a sequence, or for a result of an earlier version, it is the number at that time.
    """
    value, volume = node.GetAttribute(FRAME_VALUE), node.GetNodeReference(INPUT_ROLE)
    browser = browserOf(volume) if value and volume is not None else None
    if browser is None:
        return int(node.GetAttribute(ATTRIBUTE + "frame") or 0)
    return browser.GetMasterSequenceNode().GetItemNumberFromIndexValue(value) + 1 or -1


def toInput(node: Any) -> Any:
    """The transform from a result to its input if they are under different ones, else None."""
    volume = node.GetNodeReference(INPUT_ROLE)
    if volume is None or node.GetTransformNodeID() == volume.GetTransformNodeID():
        return None
    return transformBetween(node, volume)


def transformBetween(node: Any, volumeNode: Any) -> Any:
    """The transform from a node's own coordinates to a volume's."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        node.GetParentTransformNode(), volumeNode.GetParentTransformNode(), transform
    )
    return transform


def _exportGrid(node: Any) -> tuple[Any, Any, str | None]:
    """The grid of a result's label map, the transform to it or None, and its parent transform's ID."""
    volume = node.GetNodeReference(INPUT_ROLE)
    # A frame other than the one shown may lie elsewhere.
    if volume is None or volume.GetImageData() is None or shownFrame(volume).number != ownFrame(node):
        return _formerGrid(node), None, node.GetTransformNodeID()
    grid = slicer.vtkOrientedImageData()
    grid.SetExtent(volume.GetImageData().GetExtent())
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    grid.SetImageToWorldMatrix(matrix)
    return grid, toInput(node), volume.GetTransformNodeID()


def _formerGrid(node: Any) -> Any:
    """The grid that the input had, in the result's own coordinates."""
    grid = slicer.vtkOrientedImageData()
    text = node.GetSegmentation().GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    )
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, grid, False)
    return grid


def _onGrid(image: Any, grid: Any, transform: Any) -> Any:
    """A layer resampled to a grid; the layer itself if it is on that grid."""
    resample = slicer.vtkOrientedImageDataResample
    if transform is None and resample.DoGeometriesMatch(image, grid):
        return image
    result = slicer.vtkOrientedImageData()
    if not resample.ResampleOrientedImageToReferenceOrientedImage(image, grid, result, False, False, transform):
        raise PanelError("EXPORT_FAILED")
    return result


def _imageToWorld(image: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def fingerprint(segmentation: Any) -> str:
    """SHA-256 of everything a user can change: order, names, meanings and status of segments, voxels and position.

    It does not depend on how the voxels are stored: label values, and how far the array reaches beyond the structures,
    differ after a scene was saved and loaded.
    """
    return fingerprintOf(segmentsOf(segmentation))


def fingerprintOf(segments: Iterable[tuple[str, Any]]) -> str:
    """Same as `fingerprint`, for segments with their IDs."""
    digest = hashlib.sha256()
    layers: dict[int, tuple[Any, list[tuple[int, int]]]] = {}
    for number, (segmentId, segment) in enumerate(segments, start=1):
        digest.update(f"{segmentId}\0{segment.GetName()}\0{segment.GetTerminology()}\0".encode())
        status = _tag(segment, STATUS_TAG)
        digest.update(status.encode() if status in REVIEWED else b"")
        image = segment.GetRepresentation(LABELMAP)
        if image is not None and 0 not in image.GetDimensions():
            layers.setdefault(id(image), (image, []))[1].append((segment.GetLabelValue(), number))
    for image, members in layers.values():
        digest.update(_contents(image, members))
    return digest.hexdigest()


def state(node: Any) -> tuple[str, str | None]:
    """Everything in a segmentation node whose change counts as an edit: `fingerprint` and the parent transform."""
    return fingerprint(node.GetSegmentation()), node.GetTransformNodeID()


def _contents(image: Any, members: list[tuple[int, int]]) -> bytes:
    """Position and size of the box around a layer's structures, and the number of each voxel's segment."""
    voxels, extent = voxelsOf(image), image.GetExtent()
    numbers = np.zeros(voxels.shape, np.uint16)
    if voxels.dtype == np.uint8:
        table = np.zeros(256, np.uint16)
        for value, number in members:
            table[value] = number
        numbers = table[voxels]
    else:
        for value, number in members:
            numbers[voxels == value] = number
    first, matrix = [0, 0, 0], _imageToWorld(image)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(numbers.any(axis=others))
        if not len(used):
            return b"empty"
        first[2 - axis] = int(used[0]) + extent[2 * (2 - axis)]
        numbers = numbers.take(np.arange(used[0], used[-1] + 1), axis=axis)
    matrix[:3, 3] += matrix[:3, :3] @ first
    # Files round numbers. The odd offset keeps common spacings away from where `floor` jumps.
    place = np.floor(matrix / PLACE_MM + 0.3217).astype(int).tolist()
    return repr((place, numbers.shape)).encode() + np.ascontiguousarray(numbers).tobytes()


def voxelsOf(image: Any) -> np.ndarray:
    """Voxels (k, j, i) of an image, not copied."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(tuple(reversed(image.GetDimensions())))


def segmentsOf(segmentation: Any) -> Iterable[tuple[str, Any]]:
    for index in range(segmentation.GetNumberOfSegments()):
        segmentId = segmentation.GetNthSegmentID(index)
        yield segmentId, segmentation.GetSegment(segmentId)


def _tag(segment: Any, name: str) -> str:
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""
