"""Exchange between the scene and the engine: volumes, segmentations, exports."""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from SAUNetLib.anatomy import (
    CATEGORY,
    CONFIDENCE_TAG,
    ENCODING_TAG,
    LEVEL_TAG,
    PARTIAL_TAG,
    REGIONS,
    TERMINOLOGY,
    WARNINGS_TAG,
    Structure,
    encodings,
    segment_id,
    tag_text,
)
from SAUNetLib.errors import OutOfMemoryError, UsageError, is_out_of_memory
from SAUNetLib.formats.atomic import check_writable, write_beside, write_together
from SAUNetLib.formats.endings import SEGMENTS, VOLUMES

from .Cards import PanelError
from .Result import (
    ATTRIBUTE,
    FRAME_VALUE,
    INPUT_ROLE,
    LABELMAP,
    NO_FRAME,
    Frame,
    Merged,
    codeOf,
    encodingOf,
    fingerprintOf,
    isEdited,
    isResult,
    labelMapHeader,
    labelValues,
    meanings,
    merge,
    ownFrame,
    recognise,
    repeatedTerm,
    segmentsOf,
    shownFrame,
    toInput,
    transformBetween,
    voxelsOf,
)

SURFACE = "Closed surface"
_SHOWN = ("Visibility", "Visibility3D", "Visibility2DFill", "Visibility2DOutline", "Opacity3D", "Opacity2DFill",
          "Opacity2DOutline")  # fmt: skip
"""The properties that a display node stores for each segment."""
_NRRD_TYPES = {"int8": "signed char", "uint8": "unsigned char", "int16": "short", "uint16": "unsigned short",
               "int32": "int", "uint32": "unsigned int", "int64": "long long", "uint64": "unsigned long long",
               "float32": "float", "float64": "double"}  # fmt: skip


class SceneNodes:
    """The panel's access to the MRML scene.

    Args:
        scene: the MRML scene.
    """

    def __init__(self, scene: Any) -> None:
        self.scene = scene

    def check(self, volumeNode: Any) -> None:
        """Reject a volume that must not be sent to the engine as it is.

        Raises:
            PanelError: NO_VOLUME, VOLUME_KIND, VOLUME_EMPTY, INPUT_SPACING, TRANSFORM_NONLINEAR or TRANSFORM_FRAME.
        """
        if volumeNode is None or volumeNode.GetScene() is None:
            raise PanelError("NO_VOLUME")
        if not volumeNode.IsA("vtkMRMLScalarVolumeNode") or volumeNode.IsA("vtkMRMLLabelMapVolumeNode"):
            raise PanelError("VOLUME_KIND")
        image = volumeNode.GetImageData()
        if image is None or 0 in image.GetDimensions() or image.GetPointData().GetScalars() is None:
            raise PanelError("VOLUME_EMPTY")
        if image.GetNumberOfScalarComponents() != 1:
            raise PanelError("VOLUME_KIND")
        matrix = voxelsToRas(volumeNode)
        usable = np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix[:3, :3]) == 3
        if not (usable and min(volumeNode.GetSpacing()) > 0):
            raise PanelError("INPUT_SPACING", _("The volume's voxel size, position or axes are impossible."))
        transform = volumeNode.GetParentTransformNode()
        if transform is not None and not transform.IsTransformToWorldLinear():
            # Hardening a frame does not last: the sequence restores the original.
            raise PanelError("TRANSFORM_FRAME" if shownFrame(volumeNode).number else "TRANSFORM_NONLINEAR")

    def likelyVolume(self) -> Any:
        """The greyscale volume that the user most likely means: the active one in the views, else the first."""
        nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode", self.scene)
        plain = [
            node for node in nodes if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetHideFromEditors()
        ]
        selection = self.scene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        active = selection.GetActiveVolumeID() if selection is not None else None
        return next((node for node in plain if node.GetID() == active), plain[0] if plain else None)

    def writeVolume(self, volumeNode: Any, path: Path) -> None:
        """Write voxels and geometry as uncompressed NRRD, without names, other nodes or patient data.

        The geometry is the volume's own, without its parent transforms; the result is put under the same ones.
        """
        self.check(volumeNode)
        voxels = np.ascontiguousarray(slicer.util.arrayFromVolume(volumeNode))
        matrix = voxelsToRas(volumeNode)
        steps = [_vector(-matrix[0, axis], -matrix[1, axis], matrix[2, axis]) for axis in range(3)]
        header = [
            "NRRD0004",
            f"type: {_NRRD_TYPES[voxels.dtype.name]}",
            "dimension: 3",
            "space: left-posterior-superior",
            f"sizes: {' '.join(str(count) for count in reversed(voxels.shape))}",
            f"space directions: {' '.join(steps)}",
            "kinds: domain domain domain",
            "endian: little",
            "encoding: raw",
            f"space origin: {_vector(-matrix[0, 3], -matrix[1, 3], matrix[2, 3])}",
        ]
        with open(path, "wb") as file:
            file.write(("\n".join(header) + "\n\n").encode("ascii"))
            voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).tofile(file)

    def readLabels(self, path: Path, volumeNode: Any) -> np.ndarray:
        """Read the label map that the engine wrote: uint8 (k, j, i) on the volume's grid.

        Raises:
            PanelError: MEMORY, RESULT_UNREADABLE, or RESULT_GEOMETRY if it is not on the volume's grid.
        """
        import SimpleITK as sitk

        from SAUNetLib.volume import LPS_TO_RAS, Volume

        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise PanelError("MEMORY" if is_out_of_memory(error) else "RESULT_UNREADABLE") from error
        result = Volume.from_sitk(image)
        matrix, expected = LPS_TO_RAS @ result.geometry.matrix, voxelsToRas(volumeNode)
        size = volumeNode.GetImageData().GetDimensions()
        corners = np.array([[i, j, k, 1] for i in (0, size[0]) for j in (0, size[1]) for k in (0, size[2])]).T
        tolerance = 1e-2 * min(volumeNode.GetSpacing())
        if result.geometry.size != tuple(size) or np.abs((matrix - expected) @ corners).max() > tolerance:
            raise PanelError("RESULT_GEOMETRY")
        return result.voxels.astype(np.uint8)

    def importResult(
        self,
        volumeNode: Any,
        labels: np.ndarray,
        summary: dict[str, Any],
        levels: bool,
        replace: Any = None,
        frame: Frame = NO_FRAME,
        aboutToReplace: Callable[[Any], Any] = lambda node: None,
    ) -> Any:
        """Add a result to the scene.

        Args:
            volumeNode: the input; the result gets its parent transform, its place in the hierarchy and its grid.
            labels: uint8 (k, j, i).
            summary: the engine's result event: structures from top to bottom, provenance, warnings.
            levels: whether the encoding is ``levels``; otherwise ``classes``.
            replace: segmentation node whose content the result replaces; otherwise a new node is made.
            frame: `shownFrame` of the volume when it was sent to the engine; another one may be shown by now.
            aboutToReplace: called with that node before its content is removed, after all steps that may fail.

        Returns:
            The segmentation node.
        """
        segments = _makeSegments(volumeNode, labels, summary, levels)
        unedited = fingerprintOf(segments)  # may run out of memory: nothing has been changed yet
        node = replace
        if node is None:
            name = _("{volume} spine").format(volume=frameName(volumeNode, frame.number))
            node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", self.scene.GenerateUniqueName(name))
            self._placeBeside(node, volumeNode)
        else:
            self.layOver(node, volumeNode)
            aboutToReplace(node)
        with slicer.util.NodeModify(node):
            # The transform first: the reference geometry is stated in the segmentation's own coordinates.
            node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
            node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
            surfaces, looks = node.GetSegmentation().ContainsRepresentation(SURFACE), _looks(node)
            node.GetSegmentation().RemoveAllSegments()
            node.GetSegmentation().SetSourceRepresentationName(LABELMAP)
            for segmentId, segment in segments:
                node.GetSegmentation().AddSegment(segment, segmentId)
            if surfaces:  # they are, or were, shown in 3D
                node.CreateClosedSurfaceRepresentation()
            node.SetNodeReferenceID(INPUT_ROLE, volumeNode.GetID())
            _describe(node, _about(summary, levels), frame, unedited)
            node.CreateDefaultDisplayNodes()
            _restoreLooks(node, looks)
            # Rebuild segment lists. Merged events name no segment, so a list would keep the row of a segment whose ID
            # still exists, and at the next change write it into the new one (qMRMLSegmentsModel::onItemChanged).
            node.InvokeCustomModifiedEvent(slicer.vtkMRMLSegmentationNode.SegmentationChangedEvent)
        return node

    def layOver(self, node: Any, volumeNode: Any) -> None:
        """Put a segmentation under a volume's transform without moving it.

        The editor's Undo restores segments, but not the transform that they were under.
        """
        if node.GetTransformNodeID() != volumeNode.GetTransformNodeID():
            node.ApplyTransform(transformBetween(node, volumeNode))
            node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())

    def _placeBeside(self, node: Any, volumeNode: Any) -> None:
        """Move a node into the subject hierarchy folder that holds the input."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        source = hierarchy.GetItemByDataNode(volumeNode) if hierarchy else 0
        item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
        if source and item:
            hierarchy.SetItemParent(item, hierarchy.GetItemParent(source))

    @contextmanager
    def viewsKept(self) -> Iterator[None]:
        """Keep what the slice views show, whatever is done inside the block."""
        layers = ("BackgroundVolumeID", "ForegroundVolumeID", "LabelVolumeID")
        views = [
            (view, view.StartModify(), [getattr(view, f"Get{layer}")() for layer in layers])
            for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", self.scene)
        ]
        try:
            yield
        finally:
            for view, modifying, shown in views:
                for layer, volume in zip(layers, shown, strict=True):
                    getattr(view, f"Set{layer}")(volume)
                view.EndModify(modifying)

    def recognise(self) -> None:
        """Turn segmentations that were loaded from a result file back into results; give clones an input."""
        nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", self.scene)
        for node in nodes:
            recognise(node)
        for node in nodes:
            if isResult(node) and node.GetNodeReference(INPUT_ROLE) is None:
                self._attach(node, nodes)

    def _attach(self, node: Any, others: list[Any]) -> None:
        """Give a cloned result its original's input: Slicer copies neither references nor transforms."""
        names = [ATTRIBUTE + name for name in ("fingerprint", "time", "model_sha256")]
        roles = INPUT_ROLE, node.GetReferenceImageGeometryReferenceRole()
        grid = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
        for other in others:
            same = all(node.GetAttribute(name) == other.GetAttribute(name) for name in names)
            if same and other.GetNodeReference(INPUT_ROLE) is not None:
                for role in roles:
                    node.SetNodeReferenceID(role, other.GetNodeReferenceID(role))
                grids = {one.GetSegmentation().GetConversionParameter(grid) for one in (node, other)}
                if node.GetTransformNodeID() is None and len(grids) == 1:  # not hardened
                    node.SetAndObserveTransformNodeID(other.GetTransformNodeID())
                return

    def previousResult(self, volumeNode: Any) -> Any:
        """The latest segmentation made from a volume (of a sequence, from the displayed frame), or None.

        An edited one comes first: its clone may be a copy from before the edit.
        """
        nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", self.scene)
        made = [node for node in nodes if self.isResultOf(node, volumeNode)]
        if len(made) < 2:  # checking for edits takes time
            return made[0] if made else None
        return max(reversed(made), key=isEdited)  # max takes the first of equals, here the latest

    def isResultOf(self, node: Any, volumeNode: Any) -> bool:
        """Whether the panel made this segmentation from a volume (of a sequence, from the displayed frame)."""
        if volumeNode is None or not isResult(node) or node.GetNodeReference(INPUT_ROLE) is not volumeNode:
            return False
        return ownFrame(node) == shownFrame(volumeNode).number

    def exportLabelMapNode(self, node: Any) -> tuple[Any, Merged]:
        """Create a label map node on the input's grid with the segments' names and colours; also returns its content.

        Slicer's own export merges segments of the same name, and leaves the colours beside the node unused.
        """
        merged = merge(node)
        name, values, written = node.GetName(), labelValues(node), _terms(node)
        colors = self.scene.AddNewNodeByClass("vtkMRMLColorTableNode", _("{name} colors").format(name=name))
        colors.SetTypeToUser()
        colors.SetNumberOfColors(max(values.values(), default=0) + 1)
        colors.SetColor(0, "Background", 0, 0, 0, 0)
        for segmentId, value in values.items():
            segment = node.GetSegmentation().GetSegment(segmentId)
            colors.SetColor(value, segment.GetName(), *segment.GetColor(), 1)
            colors.SetTerminologyFromString(value, written[segmentId])
        labelMap = self.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", _("{name} label map").format(name=name))
        slicer.util.updateVolumeFromArray(labelMap, merged.labels)
        labelMap.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(merged.matrix))
        labelMap.SetAndObserveTransformNodeID(merged.parent)
        labelMap.CreateDefaultDisplayNodes()
        labelMap.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
        self._placeBeside(labelMap, node)
        return labelMap, merged

    def exportLabelMap(self, node: Any, path: Path) -> Merged:
        """Write a label map (.nii.gz, .nii, .nrrd, .mha) on the input's grid; its header is the engine's own.

        Returns:
            What was written.

        Raises:
            PanelError: OUTPUT_FORMAT or EXPORT_FAILED.
        """
        from SAUNetLib.formats.label_maps import write_label_map
        from SAUNetLib.volume import LPS_TO_RAS, Geometry, to_sitk

        merged = merge(node)
        geometry = Geometry.of_matrix(merged.labels.shape[::-1], LPS_TO_RAS @ merged.matrix)
        image = to_sitk(merged.labels, geometry)
        with _writeBeside(path, VOLUMES) as (part, ending):
            write_label_map(image, labelMapHeader(node, merged), part, ending)
        return merged

    def exportSegmentation(self, node: Any, path: Path) -> None:
        """Write `_asShown` as a .seg.nrrd file with names, colours, codes and provenance (as segment tags).

        Raises:
            PanelError: OUTPUT_FORMAT or EXPORT_FAILED.
        """
        shown = _asShown(node, LABELMAP)
        storage = slicer.vtkMRMLSegmentationStorageNode()
        with _writeBeside(path, (SEGMENTS,)) as (part, _ending):
            storage.SetFileName(str(part))
            if not storage.WriteData(shown):
                raise PanelError("EXPORT_FAILED")

    def exportSurfaces(self, node: Any, folder: Path, mayReplace: Callable[[list[str]], bool]) -> list[Path]:
        """Write one STL file (binary, LPS, mm, without the input's parent transforms) per segment that is not empty.

        Slicer's own export cannot write a segment with a slash in its name, which every disc has.

        Args:
            node: the segmentation.
            folder: where to write.
            mayReplace: called with the names of files that already exist: another patient's volume may well have the
                same name.

        Returns:
            The files, which appear together or not at all; none if existing ones may not be replaced.

        Raises:
            PanelError: EXPORT_FAILED or EXPORT_EMPTY.
        """
        surfaces: dict[Path, Any] = {}
        shown = _asShown(node, SURFACE)
        for segmentId, segment in segmentsOf(shown.GetSegmentation()):
            surface = vtk.vtkPolyData()
            logic = slicer.vtkSlicerSegmentationsModuleLogic
            if (
                logic.GetSegmentClosedSurfaceRepresentation(shown, segmentId, surface, False)
                and surface.GetNumberOfCells()
            ):
                name = f"{fileName(node.GetName())}_{fileName(segment.GetName())}"
                path, number = folder / f"{name}.stl", 1
                # Names of two segments may be equal, or differ only in case, which some systems ignore.
                while path.name.casefold() in {other.name.casefold() for other in surfaces}:
                    number += 1
                    path = folder / f"{name}_{number}.stl"
                surfaces[path] = surface
        if not surfaces:
            raise PanelError("EXPORT_EMPTY")
        there = [path.name for path in surfaces if path.exists()]
        if there and not mayReplace(there):
            return []
        try:
            with write_together():
                for path, surface in surfaces.items():
                    with _writeBeside(path, (".stl",)) as (part, _ending):
                        _writeSurface(surface, part)
        except UsageError as error:
            raise PanelError("EXPORT_FAILED") from error
        return list(surfaces)


def _asShown(node: Any, representation: str) -> Any:
    """A copy of a result for export, outside the scene: aligned with its input, with codes that match its names.

    Slicer writes the source representation, whatever the file's name, and ignores transforms.
    """
    copy = slicer.vtkMRMLSegmentationNode()
    copy.SetName(node.GetName())
    segmentation = copy.GetSegmentation()
    segmentation.DeepCopy(node.GetSegmentation())
    if segmentation.GetSourceRepresentationName() != LABELMAP:
        if not segmentation.CreateRepresentation(LABELMAP):
            raise PanelError("EXPORT_FAILED")
        segmentation.SetSourceRepresentationName(LABELMAP)
    if representation == LABELMAP:
        segmentation.RemoveRepresentation(SURFACE)
    transform = toInput(node)
    if transform is not None:
        copy.ApplyTransform(transform)
    if representation == SURFACE and segmentation.GetNumberOfSegments():
        segmentation.CreateRepresentation(SURFACE)
    for segmentId, term in _terms(node).items():
        segmentation.GetSegment(segmentId).SetTerminology(term)
    for segmentId, structure in meanings(node).items():
        if structure.level:
            segmentation.GetSegment(segmentId).SetTag(LEVEL_TAG, structure.level)
    return copy


def _terms(node: Any) -> dict[str, str]:
    """By segment ID, the serialised terms for export; their codes are those of the structures written.

    A segment added by hand gets Slicer's term for any tissue in place of a structure's, which the editor's Add
    repeats, and in place of none, as the engine cannot read a file without.
    """
    meant, known = meanings(node), encodingOf(node).structures
    terms = {}
    for segmentId, segment in segmentsOf(node.GetSegmentation()):
        code, structure = codeOf(segment), meant.get(segmentId)
        terms[segmentId] = segment.GetTerminology() or ""
        if structure is not None and code != structure.code:
            terms[segmentId] = terminologyEntry(structure)
        elif structure is None and (not code or repeatedTerm(segmentId, segment, known) is not None):
            terms[segmentId] = slicer.vtkSegment().GetTerminology()
    return terms


def loadTerminology(logic: Any, path: Path) -> None:
    """Load the terms into Slicer, so that the terminology selector can show them."""
    if path.is_file() and not logic.IsTerminologyContextLoaded(TERMINOLOGY):
        logic.LoadTerminologyFromFile(str(path))


def frameName(volumeNode: Any, frame: int) -> str:
    """The volume's name, with the frame number if it belongs to a sequence."""
    name = volumeNode.GetName() or _("Volume")
    return _("{name} (frame {frame})").format(name=name, frame=frame) if frame else name


def voxelsToRas(volumeNode: Any) -> np.ndarray:
    """Matrix (4, 4) from a volume's array to RAS, without its parent transforms.

    It equals IJK to RAS if the image's extent begins at 0, which it does not after cropping by VTK.
    """
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    result = slicer.util.arrayFromVTKMatrix(matrix)
    result[:3, 3] += result[:3, :3] @ volumeNode.GetImageData().GetExtent()[::2]
    return result


def checksum(volumeNode: Any) -> int:
    """CRC-32 of a volume's voxels."""
    return zlib.crc32(np.ascontiguousarray(slicer.util.arrayFromVolume(volumeNode)))


def _makeSegments(volumeNode: Any, labels: np.ndarray, summary: dict[str, Any], levels: bool) -> list[tuple[str, Any]]:
    """One segment per structure; all share one image, which keeps the engine's voxels and values unchanged."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(volumeNode.GetImageData().GetExtent())
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    image.SetImageToWorldMatrix(matrix)
    voxelsOf(image)[:] = labels
    about = _about(summary, levels)
    known = encodings()[about[ENCODING_TAG]].structures
    return [_makeSegment(known[row["value"]], image, row, about) for row in summary["structures"]]


def _about(summary: dict[str, Any], levels: bool) -> dict[str, str]:
    """Tags of every segment and attributes of the node: provenance, encoding and warnings."""
    about = {ATTRIBUTE + key: str(value) for key, value in summary.get("provenance", {}).items()}
    about[ENCODING_TAG] = "levels" if levels else "classes"
    about[WARNINGS_TAG] = json.dumps(summary.get("warnings", []), ensure_ascii=True)
    return about


def _makeSegment(structure: Structure, image: Any, row: dict[str, Any], about: dict[str, str]) -> tuple[str, Any]:
    segment = slicer.vtkSegment()
    segment.SetName(structure.name)
    segment.SetColor(*(part / 255 for part in structure.colour))
    segment.SetLabelValue(structure.value)
    segment.AddRepresentation(LABELMAP, image)
    segment.SetTerminology(terminologyEntry(structure))
    own = {
        LEVEL_TAG: structure.level,
        PARTIAL_TAG: "1" if row.get("partial") else "",
        CONFIDENCE_TAG: "" if row.get("confidence") is None else f"{row['confidence']:.2f}",
    }
    for key, value in (about | own).items():
        if value:
            segment.SetTag(key, tag_text(value))
    return segment_id(structure.value, about[ENCODING_TAG]), segment


def terminologyEntry(structure: Structure) -> str:
    """The serialised terminology entry that Slicer stores with a segment."""
    kind = f"SCT^{structure.code}^{structure.meaning}"
    return f"{TERMINOLOGY}~{'^'.join(CATEGORY)}~{kind}~^^~{REGIONS}~^^~^^"


def _looks(node: Any) -> dict[tuple[str, str], tuple[Any, ...]]:
    """By ID and name, the colour and the `_SHOWN` properties of a node's segments."""
    display = node.GetDisplayNode()
    if display is None:
        return {}
    return {
        (segmentId, segment.GetName()): (
            segment.GetColor(),
            *(getattr(display, f"GetSegment{name}")(segmentId) for name in _SHOWN),
        )
        for segmentId, segment in segmentsOf(node.GetSegmentation())
    }


def _restoreLooks(node: Any, looks: dict[tuple[str, str], tuple[Any, ...]]) -> None:
    """Give structures that were there before their former look, which is the user's choice, not the run's."""
    display = node.GetDisplayNode()
    for segmentId, segment in segmentsOf(node.GetSegmentation()):
        if (segmentId, segment.GetName()) in looks:
            colour, *shown = looks[segmentId, segment.GetName()]
            segment.SetColor(*colour)
            for name, value in zip(_SHOWN, shown, strict=True):
                getattr(display, f"SetSegment{name}")(segmentId, value)


def _describe(node: Any, about: dict[str, str], frame: Frame, unedited: str) -> None:
    """Store provenance and warnings as node attributes, which are saved with the scene."""
    for name in node.GetAttributeNames():
        if name.startswith(ATTRIBUTE):
            node.RemoveAttribute(name)
    for name, value in about.items():
        node.SetAttribute(name, value)
    if frame.number:
        node.SetAttribute(ATTRIBUTE + "frame", str(frame.number))
        node.SetAttribute(FRAME_VALUE, frame.value)
    node.SetAttribute(ATTRIBUTE + "fingerprint", unedited)


def _vector(*parts: float) -> str:
    return "(" + ",".join(repr(float(part)) for part in parts) + ")"


def fileName(name: str) -> str:
    """A name without characters that any system forbids in file names, at most 100 bytes long."""
    allowed = ("-" if character in '<>:"/\\|?*' or ord(character) < 32 else character for character in name)
    return "".join(allowed).encode()[:100].decode(errors="ignore").strip(" .") or "segment"


def _writeSurface(surface: Any, path: Path) -> None:
    flip = vtk.vtkTransform()
    flip.Scale(-1, -1, 1)
    toLps = vtk.vtkTransformPolyDataFilter()
    toLps.SetTransform(flip)
    toLps.SetInputData(surface)
    writer = vtk.vtkSTLWriter()
    writer.SetInputConnection(toLps.GetOutputPort())
    writer.SetFileName(str(path))
    writer.SetFileTypeToBinary()
    writer.SetHeader("SAUNet SPACE=LPS")
    if not writer.Write():
        raise PanelError("EXPORT_FAILED")


@contextmanager
def _writeBeside(path: Path, endings: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """The engine's `write_beside`: a file to write, which replaces the path once it is complete; and its ending.

    The card does not repeat the engine's message, which names the file and so perhaps the patient.

    Raises:
        PanelError: OUTPUT_FORMAT, EXPORT_MEMORY or EXPORT_FAILED; a missing folder is not created: it may be on a
            drive that was removed.
    """
    try:
        if not path.parent.is_dir():
            raise PanelError("EXPORT_FAILED")
        ending = check_writable(path, endings)
        with write_beside(path, ending) as part:
            yield part, ending
    except OutOfMemoryError as error:
        raise PanelError("EXPORT_MEMORY") from error
    except (OSError, UsageError) as error:
        if isinstance(error, UsageError) and error.code == "OUTPUT_FORMAT":
            cause = _("This export writes {endings}.").format(endings=", ".join(endings))
            raise PanelError("OUTPUT_FORMAT", cause) from error
        raise PanelError("EXPORT_FAILED") from error
