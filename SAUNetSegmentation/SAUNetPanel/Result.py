"""A result in the scene: its provenance, whether it was edited by hand, its label map."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from SAUNetLib.anatomy import LEVEL_TAG, PARTIAL_TAG, Encoding, encodings

from .Cards import PanelError

ATTRIBUTE = "SAUNet."
INPUT_ROLE = "SAUNet.Input"
LABELMAP = "Binary labelmap"
ABOUT = ("software", "model", "model_sha256", "device", "options", "time", "anchor", "encoding", "warnings")
"""What the tags of a segment say of the result; a segment cannot be asked for the names of its tags."""
PLACE_MM = 1e-3
"""A result that moved by less is where it was."""


def isResult(node: Any) -> bool:
    """Whether the panel made this segmentation."""
    return node is not None and bool(node.GetAttribute(ATTRIBUTE + "fingerprint"))


def isEdited(node: Any) -> bool:
    """Whether a result was changed since the engine made it: its place, its voxels, its segments or what they mean."""
    if not isResult(node):
        return False
    if node.GetAttribute(ATTRIBUTE + "fingerprint") != fingerprint(node.GetSegmentation()):
        return True
    volume, transform = node.GetNodeReference(INPUT_ROLE), node.GetTransformNodeID()
    return bool(transform) and volume is not None and transform != volume.GetTransformNodeID()


def recognise(node: Any) -> None:
    """Make a result of what was loaded from a segmentation file, which keeps of one the segments and their tags only.

    Its input is not known, nor whether a hand changed it before it was saved: it counts as edited.
    """
    segments = [] if isResult(node) else segmentsOf(node.GetSegmentation())
    for _segmentId, segment in segments:
        about = {name: _tag(segment, ATTRIBUTE + name) for name in ABOUT}
        if _tag(segment, LEVEL_TAG) and not about["encoding"]:  # a file of the engine's own does not say it in its tags
            about["encoding"] = "parts" if _hasParts(segments) else "levels"
        if about["encoding"]:
            with slicer.util.NodeModify(node):
                for name, value in (about | {"fingerprint": "not known"}).items():
                    node.SetAttribute(ATTRIBUTE + name, value or None)
            return


def _hasParts(segments: list[tuple[str, Any]]) -> bool:
    parts, whole = (encodings()[name].structures for name in ("parts", "levels"))
    names = {structure.name for structure in parts.values()} - {structure.name for structure in whole.values()}
    return any(segment.GetName() in names for _segmentId, segment in segments)


def provenance(node: Any) -> dict[str, str]:
    """What the result says of itself: model, model_sha256, device, options, software, time, encoding, warnings.

    The segments have the word: the editor's Undo brings back those of an earlier run, but not the node's attributes.
    """
    names = node.GetAttributeNames()
    own = [name for name in names if name.startswith(ATTRIBUTE) and name != ATTRIBUTE + "fingerprint"]
    segments = (segment for _segmentId, segment in segmentsOf(node.GetSegmentation()))
    telling = next((segment for segment in segments if _tag(segment, ATTRIBUTE + "encoding")), None)
    about = {name: node.GetAttribute(name) for name in own}
    if telling is not None:
        about = {name: _tag(telling, name) if name != ATTRIBUTE + "frame" else about[name] for name in own}
    return {name.removeprefix(ATTRIBUTE): value for name, value in about.items() if value}


def warningsOf(node: Any) -> list[dict[str, str]]:
    """The engine's warnings as they are stored with a result; none where a file holds something else there."""
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

    The encoding's by the segment's name; for another name the one that the engine gave it, and failing that a free one
    above 100. No value is given twice.
    """
    encoding = encodingOf(node)
    by_name = {structure.name: structure.value for structure in encoding.structures.values()}
    by_id = {segmentIdOf(value, encoding.name): value for value in encoding.structures}
    segments = [(segmentId, segment.GetName()) for segmentId, segment in segmentsOf(node.GetSegmentation())]
    values: dict[str, int] = {}
    for wanted in ({segmentId: by_name.get(name) for segmentId, name in segments}, by_id):
        for segmentId, _name in segments:
            value = wanted.get(segmentId)
            if value and segmentId not in values and value not in values.values():
                values[segmentId] = value
    for segmentId, _name in segments:
        if segmentId not in values:
            values[segmentId] = max([100, *values.values()]) + 1
    return values


def labelMapHeader(node: Any, labels: np.ndarray) -> Any:
    """What the header of a label map file says of a result: the engine's `label_maps.Header`.

    Args:
        node: the segmentation.
        labels: its `mergedLabels`.
    """
    from SAUNetLib.formats.label_maps import Header  # brings SimpleITK, for which Slicer must not wait when it starts
    from SAUNetLib.segmentation import Notice

    about = provenance(node)
    values, segments = labelValues(node), dict(segmentsOf(node.GetSegmentation()))
    present = {
        values[segmentId]: segment for segmentId, segment in segments.items() if (labels == values[segmentId]).any()
    }
    return Header(
        encodingOf(node).name,
        {key: value for key, value in about.items() if key not in ("encoding", "warnings")},
        [Notice(str(warning.get("code", "")), str(warning["text"])) for warning in warningsOf(node)],
        [value for value, segment in present.items() if _tag(segment, PARTIAL_TAG)],
        {value: segment.GetName() for value, segment in present.items()},
    )


def mergedLabels(node: Any) -> tuple[np.ndarray, np.ndarray, str | None]:
    """All segments in one label map on the input's grid; where the input is gone, on the grid that it had.

    A segment on another grid, under another transform or finer than the input is resampled to the nearest voxel.

    Returns:
        uint8 or uint16 (k, j, i); its matrix to RAS, (4, 4), without parent transforms; ID of the parent transform.
    """
    grid, transform, parent = _exportGrid(node)
    if not node.GetSegmentation().ContainsRepresentation(LABELMAP):
        node.CreateBinaryLabelmapRepresentation()
    whole, values = grid.GetExtent(), labelValues(node)
    shape = [whole[2 * axis + 1] - whole[2 * axis] + 1 for axis in (2, 1, 0)]
    labels = np.zeros(shape, np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
    layers: dict[int, tuple[Any, Any]] = {}
    for segmentId, segment in segmentsOf(node.GetSegmentation()):
        layer = segment.GetRepresentation(LABELMAP)
        if layer is None or 0 in layer.GetDimensions():
            continue
        if id(layer) not in layers:  # segments share layers; the layer is kept, so that its number stays its own
            layers[id(layer)] = layer, _onGrid(layer, grid, transform)
        _layer, image = layers[id(layer)]
        voxels, extent = voxelsOf(image), image.GetExtent()
        low = [max(extent[2 * axis], whole[2 * axis]) for axis in (2, 1, 0)]
        high = [min(extent[2 * axis + 1], whole[2 * axis + 1]) for axis in (2, 1, 0)]
        if any(a > b for a, b in zip(low, high, strict=True)):
            continue
        target, source = (
            tuple(slice(a - o, b - o + 1) for a, b, o in zip(low, high, origin, strict=True))
            for origin in ((whole[4], whole[2], whole[0]), (extent[4], extent[2], extent[0]))
        )
        labels[target][voxels[source] == segment.GetLabelValue()] = values[segmentId]
    result = _imageToWorld(grid)
    result[:3, 3] += result[:3, :3] @ np.array(whole[::2])
    return labels, result, parent


def _exportGrid(node: Any) -> tuple[Any, Any, str | None]:
    """The grid of a label map of the result, the transform to it (None: none), and its parent transform's ID."""
    grid, volume = slicer.vtkOrientedImageData(), node.GetNodeReference(INPUT_ROLE)
    if volume is None or volume.GetImageData() is None:
        text = node.GetSegmentation().GetConversionParameter(
            slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
        )
        slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, grid, False)
        return grid, None, node.GetTransformNodeID()
    grid.SetExtent(volume.GetImageData().GetExtent())
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    grid.SetImageToWorldMatrix(matrix)
    if node.GetTransformNodeID() == volume.GetTransformNodeID():
        return grid, None, volume.GetTransformNodeID()
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        node.GetParentTransformNode(), volume.GetParentTransformNode(), transform
    )
    return grid, transform, volume.GetTransformNodeID()


def _onGrid(image: Any, grid: Any, transform: Any) -> Any:
    """A layer on a grid; the layer itself where it lies there already."""
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
    """SHA-256 of what a hand can change: segments in their order, names and meanings, their voxels and where they lie.

    It does not depend on how the voxels are stored: label values, and how far the array reaches beyond the structures,
    differ after a scene was saved and loaded.
    """
    digest = hashlib.sha256()
    layers: dict[int, tuple[Any, list[tuple[int, int]]]] = {}
    for number, (segmentId, segment) in enumerate(segmentsOf(segmentation), start=1):
        digest.update(f"{segmentId}\0{segment.GetName()}\0{segment.GetTerminology()}\0".encode())
        image = segment.GetRepresentation(LABELMAP)
        if image is not None and 0 not in image.GetDimensions():
            layers.setdefault(id(image), (image, []))[1].append((segment.GetLabelValue(), number))
    for image, members in layers.values():
        digest.update(_contents(image, members))
    return digest.hexdigest()


def state(node: Any) -> tuple[str, str | None]:
    """Of a segmentation node, all that counts as edited when it is changed: `fingerprint` and the transform above."""
    return fingerprint(node.GetSegmentation()), node.GetTransformNodeID()


def _contents(image: Any, members: list[tuple[int, int]]) -> bytes:
    """The box around a layer's structures, where it lies, and which segment's number each voxel in it has."""
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
    # Files round. The odd share keeps usual spacings away from where the rounding turns.
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


def segmentIdOf(value: int, encoding: str) -> str:
    """No ID means two structures: to lists of segments and to the editor's Undo, what has one ID is one segment."""
    return f"SAUNet_class_{value}" if encoding == "classes" else f"SAUNet_{value}"
