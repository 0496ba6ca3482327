"""The MRML side of the panel on Slicer's own libraries: what goes out, what comes back, what was edited by hand."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import builders
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from harness.fixtures import (  # noqa: F401
    PROVENANCE,
    ROOT,
    WARNING,
    add_transform,
    add_volume,
    paint,
    scene,
    segments,
    truth,
)
from harness.terminology import terminology
from SAUNetPanel import Result, SceneNodes
from SAUNetPanel.Cards import PanelError

from SAUNetLib.anatomy import TERMINOLOGY, classes, encodings, named_structure, segment_id, structures
from SAUNetLib.formats.segmentations import read_segmentation, write_segmentation
from SAUNetLib.formats.volumes import read_volume
from SAUNetLib.notices import Notice
from SAUNetLib.relabel import relabel_file


@pytest.fixture
def nodes(scene):  # noqa: F811
    return SceneNodes.SceneNodes(scene)


def imported(nodes, volume=None, replace=None, **rest):
    volume = volume or add_volume()
    result = truth(**rest)
    return nodes.importResult(volume, result.labels, result.summary(), True, replace)


# -- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order, flips", builders.axis_orders()[::5])
@pytest.mark.parametrize("oblique", [0.0, 17.0])
def test_volume_arrives_at_the_engine_as_it_lies_in_the_scene(nodes, tmp_path, order, flips, oblique):
    grid = builders.geometry(order, flips, oblique, size=(12, 16, 5))
    nodes.writeVolume(add_volume(grid), tmp_path / "v.nrrd")
    arrived = read_volume(tmp_path / "v.nrrd")
    assert arrived.geometry.same_grid(grid)
    assert np.array_equal(arrived.voxels, builders.volume(grid).voxels)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_voxels_keep_their_type(nodes, tmp_path, dtype):
    grid = builders.geometry(size=(8, 9, 1))
    nodes.writeVolume(add_volume(grid, dtype=dtype), tmp_path / "v.nrrd")
    voxels, _ = nrrd.read(str(tmp_path / "v.nrrd"))
    assert voxels.dtype == np.dtype(dtype) and np.array_equal(voxels.T, builders.volume(grid, dtype=dtype).voxels)


def test_nothing_of_the_patient_is_written(nodes, tmp_path):
    volume = add_volume(name="DOE^JANE 1970")
    volume.SetAttribute("DICOM.PatientName", "DOE^JANE")
    volume.SetDescription("DOE")
    nodes.writeVolume(volume, tmp_path / "v.nrrd")
    header = (tmp_path / "v.nrrd").read_bytes().split(b"\n\n")[0]
    assert b"DOE" not in header and b"JANE" not in header and header.startswith(b"NRRD0004")


@pytest.mark.parametrize("kind, code", [("vtkMRMLLabelMapVolumeNode", "VOLUME_KIND"),
                                        ("vtkMRMLVectorVolumeNode", "VOLUME_KIND"),
                                        ("vtkMRMLModelNode", "VOLUME_KIND")])  # fmt: skip
def test_other_nodes_are_refused(nodes, kind, code):
    node = slicer.mrmlScene.AddNewNodeByClass(kind)
    if node.IsA("vtkMRMLVolumeNode"):
        image = vtk.vtkImageData()
        image.SetDimensions(4, 4, 4)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3 if "Vector" in kind else 1)
        node.SetAndObserveImageData(image)
    with pytest.raises(PanelError) as raised:
        nodes.check(node)
    assert raised.value.code == code


def test_no_volume_empty_volume_and_removed_volume_are_refused(nodes):
    volume = add_volume()
    nodes.check(volume)
    slicer.mrmlScene.RemoveNode(volume)
    bare = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    bare.SetAndObserveImageData(image)
    for node, code in (
        (None, "NO_VOLUME"),
        (volume, "NO_VOLUME"),
        (slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"), "VOLUME_EMPTY"),
        (bare, "VOLUME_EMPTY"),
    ):
        with pytest.raises(PanelError) as raised:
            nodes.check(node)
        assert raised.value.code == code


@pytest.mark.parametrize("spoil", [
    lambda volume: volume.SetSpacing(0, 1, 1),
    lambda volume: volume.SetSpacing(-1, 1, 1),
    lambda volume: volume.SetSpacing(float("nan"), 1, 1),
    lambda volume: volume.SetOrigin(float("inf"), 0, 0),
    lambda volume: volume.SetIJKToRASDirections(1, 1, 0, 0, 0, 0, 0, 0, 1),
])  # fmt: skip
def test_impossible_geometry_is_refused_before_the_engine_calls_it_sheared(nodes, spoil):
    volume = add_volume()
    spoil(volume)
    with pytest.raises(PanelError) as raised:
        nodes.check(volume)
    assert raised.value.code == "INPUT_SPACING"


def test_likely_volume_is_the_active_one_and_never_a_label_map(nodes):
    assert nodes.likelyVolume() is None
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    first, second = add_volume(name="first"), add_volume(name="second")
    assert nodes.likelyVolume() is first
    selection = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSelectionNode")
    selection.SetActiveVolumeID(second.GetID())
    assert nodes.likelyVolume() is second
    second.SetHideFromEditors(True)
    assert nodes.likelyVolume() is first


def test_volume_that_vtk_has_cropped_and_its_result_lie_where_they_are_shown(nodes, tmp_path):
    """The extent of what vtkExtractVOI gives does not begin at 0, and IJK counts from there."""
    whole = add_volume()
    labels = truth().labels
    crop = vtk.vtkExtractVOI()
    crop.SetInputData(whole.GetImageData())
    extent = [part + move for part, move in zip(whole.GetImageData().GetExtent(), (3, 0, 5, 0, 1, 0), strict=True)]
    crop.SetVOI(extent)
    crop.Update()
    volume = add_volume(name="cropped")
    volume.SetAndObserveImageData(crop.GetOutput())
    part = np.s_[1:, 5:, 3:]
    nodes.writeVolume(volume, tmp_path / "v.nrrd")
    written, grid = read_volume(tmp_path / "v.nrrd"), builders.geometry()
    assert np.array_equal(written.voxels, builders.volume(grid).voxels[part])
    assert np.allclose(written.geometry.points(np.zeros((1, 3))), grid.points(np.array([[3, 5, 1]])))
    image = sitk.GetImageFromArray(labels[part])
    image.CopyInformation(written.to_sitk())
    sitk.WriteImage(image, str(tmp_path / "l.nrrd"))
    read = nodes.readLabels(tmp_path / "l.nrrd", volume)
    node = nodes.importResult(volume, read, truth().summary(), True)
    assert segments(node)[0].GetRepresentation(Result.LABELMAP).GetExtent() == tuple(extent)
    merged = Result.merge(node)
    assert np.array_equal(merged.labels, labels[part])
    assert np.allclose(merged.matrix[:3, 3], (SceneNodes.voxelsToRas(whole) @ [3, 5, 1, 1])[:3])
    exported, _merged = nodes.exportLabelMapNode(node)
    assert np.allclose(SceneNodes.voxelsToRas(exported), SceneNodes.voxelsToRas(volume))


def test_non_linear_transform_is_refused_until_it_is_hardened(nodes, tmp_path):
    volume = add_volume()
    add_transform(volume, linear=False)
    with pytest.raises(PanelError) as raised:
        nodes.writeVolume(volume, tmp_path / "v.nrrd")
    assert raised.value.code == "TRANSFORM_NONLINEAR" and not (tmp_path / "v.nrrd").exists()
    assert volume.HardenTransform()
    nodes.check(volume)


def test_sheared_volume_is_refused_by_the_engine_and_not_straightened_in_silence(nodes, tmp_path):
    volume = add_volume()
    matrix = SceneNodes.voxelsToRas(volume)
    matrix[:3, 0] += 0.2 * matrix[:3, 1]
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    nodes.writeVolume(volume, tmp_path / "v.nrrd")
    _, header = nrrd.read(str(tmp_path / "v.nrrd"))
    lps = np.diag([-1, -1, 1]) @ matrix[:3, :3]
    assert np.allclose(np.array(header["space directions"]).T, lps, atol=1e-12)


def test_frame_of_a_sequence_says_so(nodes):
    volume = add_volume(name="cine")
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine sequence")
    for frame in range(3):
        sequence.SetDataNodeAtValue(volume, str(frame))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    proxy = browser.GetProxyNode(sequence)
    browser.SetSelectedItemNumber(2)
    assert Result.shownFrame(proxy) == (3, "2") and SceneNodes.frameName(proxy, 3).endswith("(frame 3)")
    plain = add_volume(name="plain")
    assert Result.shownFrame(plain) == (0, "") and SceneNodes.frameName(plain, 0) == "plain"


# -- back ------------------------------------------------------------------------------------------------------------


def test_segments_have_name_colour_code_and_order(nodes):
    node = imported(nodes)
    known = {structure.name: structure for structure in structures().values()}
    names = [segment.GetName() for segment in segments(node)]
    assert names == [row["name"] for row in truth().summary()["structures"]] and names[1] == "T12 vertebra"
    for segment in segments(node):
        structure = known[segment.GetName()]
        assert np.allclose(segment.GetColor(), np.array(structure.colour) / 255)
        kind = segment.GetTerminology().split("~")[2]
        assert kind == f"SCT^{structure.code}^{structure.meaning}"
        assert segment.GetTerminology().split("~")[0] == TERMINOLOGY
    tag = vtk.mutable("")
    assert segments(node)[-1].GetTag("SAUNet.Partial", tag) and str(tag) == "1"


def test_confidence_is_written_as_the_engine_writes_it(nodes):
    summary = truth().summary()
    for row, value in zip(summary["structures"], (0.0, 0.9, None), strict=False):
        row["confidence"] = value
    node = nodes.importResult(add_volume(), truth().labels, summary, True)
    found = []
    for segment in segments(node)[:3]:
        tag = vtk.mutable("")
        found.append(str(tag) if segment.GetTag("SAUNet.Confidence", tag) else None)
    assert found == ["0.00", "0.90", None]


def test_voxels_and_reference_geometry_are_the_engine_s(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    merged = Result.merge(node)
    labels, matrix = merged.labels, merged.matrix
    assert np.array_equal(labels, truth().labels)
    assert np.allclose(matrix, SceneNodes.voxelsToRas(volume))
    one = slicer.util.arrayFromSegmentBinaryLabelmap(node, "SAUNet_41", volume)
    assert np.array_equal(one != 0, truth().labels == 41)
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_three_classes_have_their_own_names(nodes):
    from builders import to_classes

    result = truth(encoding=encodings()["levels"])
    labels = to_classes(result.labels)
    rows = [{"value": value, "partial": False} for value in (3, 1, 2)]
    node = nodes.importResult(add_volume(), labels, {"structures": rows, "provenance": PROVENANCE}, False)
    assert [segment.GetName() for segment in segments(node)] == [classes()[value].name for value in (3, 1, 2)]
    assert np.array_equal(Result.merge(node).labels, labels)


def test_result_lies_under_the_input_s_transform_and_in_its_folder(nodes):
    volume = add_volume()
    transform = add_transform(volume)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    node = imported(nodes, volume)
    assert node.GetParentTransformNode() is transform
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    merged = Result.merge(node)
    labels, matrix = merged.labels, merged.matrix
    assert np.array_equal(labels, truth().labels) and np.allclose(matrix, SceneNodes.voxelsToRas(volume))
    exported, _merged = nodes.exportLabelMapNode(node)
    assert exported.GetParentTransformNode() is transform
    assert np.array_equal(slicer.util.arrayFromVolume(exported), truth().labels)
    assert np.allclose(SceneNodes.voxelsToRas(exported), SceneNodes.voxelsToRas(volume))


def test_provenance_and_warnings_stay_with_the_node(nodes):
    node = imported(nodes)
    about = Result.provenance(node)
    assert {key: about[key] for key in PROVENANCE} == PROVENANCE
    assert Result.warningsOf(node)[0]["code"] == "LEVELS_ASSUMED"
    assert Result.isResult(node) and not Result.isResult(None)


def test_attributes_survive_the_scene_s_file(nodes):
    node = imported(nodes)
    about, warnings = Result.provenance(node), Result.warningsOf(node)
    scene = slicer.mrmlScene  # noqa: F811
    scene.SetSaveToXMLString(1)
    scene.Commit()
    text = scene.GetSceneXMLString()
    scene.Clear()
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(text)
    scene.Import()
    (loaded,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert Result.provenance(loaded) == about and Result.warningsOf(loaded) == warnings != []


def test_result_on_another_grid_is_refused(nodes, tmp_path, monkeypatch):
    volume = add_volume()
    result = truth()
    image = sitk.GetImageFromArray(result.labels)
    sitk.WriteImage(image, str(tmp_path / "l.nrrd"))
    with pytest.raises(PanelError) as raised:
        nodes.readLabels(tmp_path / "l.nrrd", volume)
    assert raised.value.code == "RESULT_GEOMETRY"
    (tmp_path / "l.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(PanelError) as raised:
        nodes.readLabels(tmp_path / "l.nrrd", volume)
    assert raised.value.code == "RESULT_UNREADABLE"
    said = RuntimeError("Exception thrown in SimpleITK ImageFileReader_Execute: Failed to allocate memory for image.")

    def full(path):
        raise said

    monkeypatch.setattr(sitk, "ReadImage", full)
    with pytest.raises(PanelError) as raised:
        nodes.readLabels(tmp_path / "l.nrrd", volume)
    assert raised.value.code == "MEMORY"


def test_replacing_keeps_the_node_and_leaves_no_old_segment(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    other = truth()
    labels = np.where(other.labels == 41, other.labels, 0).astype(np.uint8)
    summary = {"structures": [{"value": 41, "partial": False}], "provenance": PROVENANCE, "warnings": []}
    again = nodes.importResult(volume, labels, summary, True, node)
    assert again is node and [segment.GetName() for segment in segments(node)] == ["L1 vertebra"]
    assert Result.warningsOf(node) == [] and nodes.previousResult(volume) is node
    assert nodes.previousResult(add_volume(name="other")) is None


def test_the_latest_of_a_volume_s_results_is_the_one_before(nodes):
    volume = add_volume()
    _first, second = imported(nodes, volume), imported(nodes, volume)
    assert nodes.previousResult(volume) is second


def test_replaced_result_stays_where_the_user_put_it(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "mine")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), folder)
    imported(nodes, volume, node)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == folder


def test_replacing_keeps_how_the_user_shows_the_structures(nodes):
    """Colours and eyes are not edits, so no question is asked before they go: they stay."""
    volume = add_volume()
    node = imported(nodes, volume)
    display, segmentation = node.GetDisplayNode(), node.GetSegmentation()
    recoloured, hidden, renamed, *_others = [segmentId for segmentId, _segment in Result.segmentsOf(segmentation)]
    segmentation.GetSegment(recoloured).SetColor(0.1, 0.2, 0.3)
    display.SetSegmentVisibility(hidden, False)
    display.SetSegmentOpacity2DFill(recoloured, 0.25)
    display.SetSegmentVisibility3D(recoloured, False)
    standard = segmentation.GetSegment(renamed).GetColor()
    segmentation.GetSegment(renamed).SetName("mine")
    segmentation.GetSegment(renamed).SetColor(1, 1, 1)

    imported(nodes, volume, node)
    assert segmentation.GetSegment(recoloured).GetColor() == (0.1, 0.2, 0.3)
    assert segmentation.GetSegment(renamed).GetColor() == standard  # that was of something else
    assert not display.GetSegmentVisibility(hidden) and display.GetSegmentVisibility(recoloured)
    assert display.GetSegmentOpacity2DFill(recoloured) == 0.25 and not display.GetSegmentVisibility3D(recoloured)
    assert display.GetSegmentOpacity2DFill(renamed) == 1.0 and display.GetSegmentVisibility3D(renamed)


def test_replacing_keeps_surfaces_that_are_shown(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    imported(nodes, volume, node)
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface"), "none were asked for"
    node.CreateClosedSurfaceRepresentation()
    imported(nodes, volume, node)
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")


@pytest.mark.parametrize("levels", [True, False])
def test_lists_of_segments_show_what_replaced_a_result(nodes, levels):
    from builders import to_classes

    volume = add_volume()
    node = imported(nodes, volume)
    table = slicer.qMRMLSegmentsTableView()
    table.setSegmentationNode(node)
    changed = segments(node)[1].GetName()
    segments(node)[1].SetColor(1, 0, 1)
    node.GetDisplayNode().SetSegmentVisibility(node.GetSegmentation().GetNthSegmentID(1), False)
    labels, known = (truth().labels, structures()) if levels else (to_classes(truth().labels), classes())
    values = [int(value) for value in np.unique(labels)[:0:-1]]  # in another order, too
    nodes.importResult(volume, labels, {"structures": [{"value": value} for value in values]}, levels, node)
    rows = list(table._native._model.rows())
    wanted = [known[value] for value in values]
    assert [name for name, _color, _shown in rows] == [structure.name for structure in wanted]
    colours = [(255, 0, 255) if structure.name == changed else structure.colour for structure in wanted]
    assert [color for _name, color, _shown in rows] == [tuple(colour) for colour in colours]
    assert all(node.GetDisplayNode().GetSegmentVisibility(one) is shown is (name != changed)
               for one, (name, _color, shown) in zip(table._native._model.ids(), rows, strict=True))  # fmt: skip
    for segment, structure, colour in zip(segments(node), wanted, colours, strict=True):
        assert segment.GetName() == structure.name and f"SCT^{structure.code}^" in segment.GetTerminology()
        assert np.allclose(segment.GetColor(), np.array(colour) / 255)
    assert not Result.isEdited(node)
    table.setSegmentationNode(None)


# -- loaded from a file ----------------------------------------------------------------------------------------------


def loaded(path):
    """A segmentation as File > Add Data brings it."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", path.name)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return node


@pytest.mark.parametrize("levels", [True, False])
def test_saved_segmentation_that_is_loaded_is_a_result_again(nodes, tmp_path, levels):
    from builders import to_classes

    volume, labels, summary = add_volume(), truth().labels, truth().summary()
    if not levels:
        labels = to_classes(labels)
        summary = summary | {"structures": [{"value": value} for value in (3, 1, 2)]}
    node = nodes.importResult(volume, labels, summary, levels)
    nodes.exportSegmentation(node, tmp_path / "r.seg.nrrd")
    again = loaded(tmp_path / "r.seg.nrrd")
    assert not Result.isResult(again)
    nodes.recognise()
    assert Result.provenance(again) == Result.provenance(node) and Result.warningsOf(again) == Result.warningsOf(node)
    assert Result.isEdited(again) and not Result.isEdited(node), "nobody knows what happened before it was saved"
    assert not nodes.isResultOf(again, volume) and not nodes.isResultOf(again, None)
    assert nodes.previousResult(volume) is node
    nodes.exportLabelMap(again, tmp_path / "l.nrrd")
    assert np.array_equal(values_in(tmp_path / "l.nrrd"), labels)
    assert nodes.exportSurfaces(again, tmp_path, never)
    assert np.array_equal(slicer.util.arrayFromVolume(nodes.exportLabelMapNode(again)[0]), labels)


def test_segmentation_that_the_engine_wrote_is_a_result_and_a_foreign_one_is_none(nodes, tmp_path):
    write_segmentation(truth(), tmp_path / "r.seg.nrrd")
    node = loaded(tmp_path / "r.seg.nrrd")
    foreign = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    foreign.GetSegmentation().AddEmptySegment("SAUNet_41", "L1 vertebra")
    nodes.recognise()
    assert Result.isResult(node) and Result.provenance(node)["encoding"] == "levels"
    assert not Result.isResult(foreign) and list(foreign.GetAttributeNames()) == []


def test_a_segmentation_of_one_s_own_with_a_structure_that_was_copied_is_no_result(nodes):
    """Its exports told of a model that had not made it."""
    made = imported(nodes).GetSegmentation()
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "lesions")
    own.GetSegmentation().AddEmptySegment("lesion", "Lesion 1")
    own.GetSegmentation().CopySegmentFromSegmentation(made, "SAUNet_41")
    nodes.recognise()
    assert not Result.isResult(own) and list(own.GetAttributeNames()) == []
    own.GetSegmentation().CopySegmentFromSegmentation(made, "SAUNet_42")
    nodes.recognise()
    assert Result.isResult(own), "most of it was made here"
    for identity in ("SAUNet_41", "SAUNet_42"):
        own.GetSegmentation().RemoveSegment(identity)
        nodes.recognise()
    assert Result.isResult(own), "Undo may bring them back"


def test_a_result_from_a_file_may_have_any_number_of_segments_of_one_s_own(nodes):
    made = imported(nodes).GetSegmentation()
    loaded = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "corrected")
    loaded.AddDefaultStorageNode()
    loaded.GetSegmentation().CopySegmentFromSegmentation(made, "SAUNet_41")
    for number in range(3):
        loaded.GetSegmentation().AddEmptySegment(f"own{number}", f"Lesion {number}")
    nodes.recognise()
    assert Result.isResult(loaded) and Result.isEdited(loaded)


@pytest.mark.parametrize("text", ["no JSON", "{}", '["text"]', "7"])
def test_warnings_that_no_panel_wrote_are_left_out(nodes, text):
    node = imported(nodes)
    for segment in segments(node):
        segment.SetTag("SAUNet.warnings", text)
    assert Result.warningsOf(node) == []


# -- edited by hand --------------------------------------------------------------------------------------------------


def test_painting_renaming_removing_and_reordering_count_as_edited(nodes):
    changes = (
        paint,
        lambda node: segments(node)[0].SetName("canal"),
        lambda node: node.GetSegmentation().RemoveSegment("SAUNet_41"),
        lambda node: node.GetSegmentation().SetSegmentIndex("SAUNet_41", 0),
        lambda node: node.GetSegmentation().AddEmptySegment("mine", "mine"),
    )
    volume = add_volume()
    for change in changes:
        node = imported(nodes, volume)
        assert not Result.isEdited(node)
        change(node)
        assert Result.isEdited(node)


def test_moving_a_result_counts_as_edited(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    transform = add_transform(node)
    assert Result.isEdited(node), "a transform of its own"
    volume.SetAndObserveTransformNodeID(transform.GetID())
    assert not Result.isEdited(node), "moved together with its input"
    assert node.HardenTransform()
    assert Result.isEdited(node)


def test_hardening_the_volume_alone_does_not_count_as_editing_its_result(nodes):
    volume = add_volume()
    transform = add_transform(volume)
    node = imported(nodes, volume)
    assert volume.HardenTransform() and volume.GetTransformNodeID() is None
    assert node.GetTransformNodeID() == transform.GetID() and not Result.isEdited(node)
    add_transform(volume, linear=False)
    assert Result.isEdited(node)
    volume.SetAndObserveTransformNodeID(None)
    volume.SetOrigin(1, 2, 3)
    assert Result.isEdited(node)


def test_another_meaning_counts_as_edited(nodes):
    node = imported(nodes)
    segments(node)[1].SetTerminology(segments(node)[3].GetTerminology())
    assert Result.isEdited(node)


def test_looking_at_a_result_is_not_editing_it(nodes):
    node = imported(nodes)
    node.CreateClosedSurfaceRepresentation()
    node.GetDisplayNode().SetSegmentVisibility("SAUNet_41", False)
    node.GetDisplayNode().SetOpacity(0.3)
    segments(node)[0].SetColor(1, 0, 1)
    assert not Result.isEdited(node)


def test_saving_and_loading_the_scene_is_not_editing(nodes, tmp_path):
    node = imported(nodes)
    node.SetName("result")
    nodes.exportSegmentation(node, tmp_path / "result.seg.nrrd")
    loaded = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "result.seg.nrrd"))
    assert storage.ReadData(loaded)
    assert Result.fingerprint(loaded.GetSegmentation()) == Result.fingerprint(node.GetSegmentation())
    paint(loaded)
    assert Result.fingerprint(loaded.GetSegmentation()) != Result.fingerprint(node.GetSegmentation())


def test_voxels_of_another_type_are_not_edited(nodes):
    """Slicer keeps a layer in 16 bits once one of its segments has a value above 255."""
    segmentation = imported(nodes).GetSegmentation()
    before = Result.fingerprint(segmentation)
    layer = segmentation.GetNthSegment(0).GetRepresentation(Result.LABELMAP)
    slicer.vtkOrientedImageDataResample.CastImageForValue(layer, 1000)
    assert Result.voxelsOf(layer).dtype != np.uint8 and Result.fingerprint(segmentation) == before


def test_history_brings_a_replaced_result_back(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    before = Result.fingerprint(node.GetSegmentation())
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(node.GetSegmentation())
    history.SaveState()
    summary = {"structures": [{"value": 41, "partial": False}], "provenance": PROVENANCE}
    nodes.importResult(volume, np.where(truth().labels == 41, 41, 0).astype(np.uint8), summary, True, node)
    assert Result.fingerprint(node.GetSegmentation()) != before
    history.RestorePreviousState()
    assert Result.fingerprint(node.GetSegmentation()) == before


def test_undoing_a_run_of_another_kind_brings_its_encoding_back(nodes, tmp_path):
    from builders import to_classes

    volume = add_volume()
    node = imported(nodes, volume)
    about, warnings = Result.provenance(node), Result.warningsOf(node)
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(node.GetSegmentation())
    history.SaveState()
    rows = [{"value": value, "partial": False} for value in (3, 1, 2)]
    summary = {"structures": rows, "provenance": {**PROVENANCE, "model": "another 2.0"}, "warnings": []}
    nodes.importResult(volume, to_classes(truth().labels), summary, False, node)
    assert Result.provenance(node)["encoding"] == "classes" and Result.warningsOf(node) == []
    history.RestorePreviousState()
    assert Result.provenance(node) == about and Result.warningsOf(node) == warnings != []
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    read = read_segmentation(tmp_path / "l.nrrd")
    assert np.array_equal(read.labels, truth().labels) and read.provenance["model"] == PROVENANCE["model"]


# -- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("oblique", [0.0, 25.0])
def test_label_map_file_is_the_engine_s(nodes, tmp_path, ending, oblique):
    grid = builders.geometry((2, 0, 1), (True, False, True), oblique)
    volume = add_volume(grid)
    result = truth(grid)
    node = nodes.importResult(volume, result.labels, result.summary(), True)
    nodes.exportLabelMap(node, tmp_path / f"l{ending}")
    read = read_segmentation(tmp_path / f"l{ending}")
    assert np.array_equal(read.labels, result.labels)
    corners = np.array([[0, 0, 0], [n - 1 for n in grid.size]])
    assert np.allclose(read.geometry.points(corners), grid.points(corners), atol=1e-3)
    if ending == ".nii.gz":
        assert PROVENANCE["model"] in sitk.ReadImage(str(tmp_path / f"l{ending}")).GetMetaData("descrip")
    else:
        assert read.provenance["model"] == PROVENANCE["model"] and "warnings" not in read.provenance
    assert [notice.code for notice in read.warnings] == ["LEVELS_ASSUMED"], "names are not surer than they were"
    assert [path.name for path in tmp_path.glob("*l*.*")] == [f"l{ending}"]


def said_in(path):
    image = sitk.ReadImage(str(path))
    return {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("levels", [True, False])
def test_label_map_file_says_what_the_engine_s_own_says(nodes, tmp_path, ending, levels):
    """Header fields, and the same spelling in ASCII."""
    result = truth(
        provenance=PROVENANCE | {"model": "Königs \u2013 L4\u2019s 5 \u00b5m", "anchor": "the sacrum\nis in view"},
        warnings=(WARNING, Notice("OTHER", "Wirbelsäule \u2014 100 \u00b5m.")),
        partial=frozenset({44, 21}),
    )
    if not levels:
        labels = builders.to_classes(result.labels)
        result = replace(result, labels=labels, encoding=encodings()["classes"], partial=frozenset())
    node = nodes.importResult(add_volume(), result.labels, result.summary(), levels)
    nodes.exportLabelMap(node, tmp_path / f"panel{ending}")
    write_segmentation(replace(result, partial=result.partial - {21}), tmp_path / f"engine{ending}")  # 21 is not there
    wanted, said = said_in(tmp_path / f"engine{ending}"), said_in(tmp_path / f"panel{ending}")
    assert said == wanted and "Konigs - L4's 5 um" in str(said)
    if not ending.startswith(".nii"):
        assert said["SAUNet_warning_OTHER"] == "Wirbelsaule - 100 um."
        assert (said.get("SAUNet_partial"), said.get("SAUNet_label_41")) == (
            ("44", "L1 vertebra") if levels else (None,) * 2
        )
    panel, engine = (read_segmentation(tmp_path / f"{name}{ending}") for name in ("panel", "engine"))
    assert np.array_equal(panel.labels, engine.labels) and panel.geometry.same_grid(engine.geometry)
    assert (panel.encoding, panel.provenance, panel.warnings, panel.partial) == (
        engine.encoding, engine.provenance, engine.warnings, engine.partial
    )  # fmt: skip


def test_header_of_a_label_map_follows_what_was_corrected(nodes, tmp_path):
    node = imported(nodes)
    segmentation = node.GetSegmentation()
    segmentation.GetSegment("SAUNet_44").SetName("L5 vertebra")  # the one that is cut
    segmentation.GetSegment("SAUNet_43").SetName("Tumor \u2013 größer")
    segmentation.RemoveSegment("SAUNet_41")
    logic, empty = slicer.vtkSlicerSegmentationsModuleLogic, slicer.vtkOrientedImageData()
    empty.DeepCopy(segments(node)[0].GetRepresentation(Result.LABELMAP))
    empty.GetPointData().GetScalars().Fill(0)
    assert logic.SetBinaryLabelmapToSegment(empty, node, "SAUNet_42", logic.MODE_REPLACE, empty.GetExtent())
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    said = said_in(tmp_path / "l.nrrd")
    assert "SAUNet_label_42" not in said
    assert said["SAUNet_partial"] == "45" and said["SAUNet_label_45"] == "L5 vertebra"
    assert said["SAUNet_label_43"] == "Tumor - gro?er" and not {"SAUNet_label_41", "SAUNet_label_44"} & said.keys()


NOT_SLICER_S = ("nrrd", "slicerio", "cc3d", "safetensors", "torch", "pydantic", "rich", "surface_distance")
"""Packages of the engine that Slicer does not bring."""


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_label_map_is_exported_before_the_engine_s_packages_are_installed(nodes, tmp_path, monkeypatch, ending):
    node = imported(nodes)
    with monkeypatch.context() as bare:
        for name in NOT_SLICER_S:
            bare.setitem(sys.modules, name, None)
        nodes.exportLabelMap(node, tmp_path / f"l{ending}")
    assert np.array_equal(read_segmentation(tmp_path / f"l{ending}").labels, truth().labels)


def test_what_writes_a_label_map_needs_slicer_s_packages_only():
    code = f"import sys; sys.modules.update(dict.fromkeys({NOT_SLICER_S})); import SAUNetLib.formats.label_maps"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def test_painted_segments_go_into_the_label_map(nodes, tmp_path):
    node = imported(nodes)
    paint(node, 0)
    empty = node.GetSegmentation().AddEmptySegment("mine", "mine")
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "l.nrrd")))
    expected = truth().labels.copy()
    expected[0, 0, 0] = 2
    assert np.array_equal(labels, expected)
    assert Result.labelValues(node)[empty] == 200


def values_in(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_segment_from_another_grid_goes_to_its_place_in_the_label_map(nodes, tmp_path):
    """As *Copy segment* brings it from another segmentation: coarser voxels, another origin and order of axes."""
    node = imported(nodes)
    grid = builders.geometry()
    center = np.asarray(grid.points(np.array(grid.size) / 2.0)) * (-1, -1, 1)
    cube = slicer.vtkOrientedImageData()
    cube.SetExtent(0, 3, 0, 3, 0, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = 3.0 * np.eye(3)[::-1]
    matrix[:3, 3] = center - 4.5
    cube.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(matrix))
    cube.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    cube.GetPointData().GetScalars().Fill(1)
    segment = slicer.vtkSegment()
    segment.SetName("cyst")
    segment.AddRepresentation("Binary labelmap", cube)
    assert node.GetSegmentation().AddSegment(segment, "cyst")
    volume = node.GetNodeReference(Result.INPUT_ROLE)
    expected = slicer.util.arrayFromSegmentBinaryLabelmap(node, "cyst", volume) != 0
    assert expected.sum() > 20
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    found = values_in(tmp_path / "l.nrrd")
    assert np.array_equal(found == 200, expected)
    assert np.array_equal(found[~expected], truth().labels[~expected])
    assert np.array_equal(slicer.util.arrayFromVolume(nodes.exportLabelMapNode(node)[0]), found)


@pytest.mark.parametrize("which", ["input", "result", "both"])
def test_label_map_fits_an_input_whose_transform_was_hardened(nodes, tmp_path, which):
    volume = add_volume()
    transform = add_transform(volume)
    node = imported(nodes, volume)
    moved = {"input": [volume], "result": [node], "both": [volume, node]}[which]
    for one in moved:
        assert one.GetParentTransformNode() is transform and one.HardenTransform()
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    assert np.array_equal(values_in(tmp_path / "l.nrrd"), truth().labels)
    image = sitk.ReadImage(str(tmp_path / "l.nrrd"))
    assert np.allclose(np.array(image.GetOrigin()) * (-1, -1, 1), SceneNodes.voxelsToRas(volume)[:3, 3], atol=1e-4)
    exported, _merged = nodes.exportLabelMapNode(node)
    assert exported.GetTransformNodeID() == volume.GetTransformNodeID()
    assert np.allclose(SceneNodes.voxelsToRas(exported), SceneNodes.voxelsToRas(volume))


def test_label_map_has_the_input_s_voxels_where_the_segmentation_has_finer_ones(nodes, tmp_path):
    volume = add_volume()
    node = imported(nodes, volume)
    segmentation = node.GetSegmentation()
    fine = slicer.vtkOrientedImageData()
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(segmentation.GetConversionParameter(name), fine, False)
    slicer.vtkCalculateOversamplingFactor.ApplyOversamplingOnImageGeometry(fine, 2)
    segmentation.SetConversionParameter(name, slicer.vtkSegmentationConverter.SerializeImageGeometry(fine))
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    assert np.array_equal(values_in(tmp_path / "l.nrrd"), truth().labels)


def test_label_map_of_a_result_whose_input_was_removed(nodes, tmp_path):
    volume = add_volume()
    node = imported(nodes, volume)
    slicer.mrmlScene.RemoveNode(volume)
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    assert np.array_equal(values_in(tmp_path / "l.nrrd"), truth().labels)
    assert np.array_equal(slicer.util.arrayFromVolume(nodes.exportLabelMapNode(node)[0]), truth().labels)


def test_a_saved_segmentation_tells_the_engine_what_it_told_slicer(nodes, tmp_path):
    node = imported(nodes)
    nodes.exportSegmentation(node, tmp_path / "r.seg.nrrd")
    read = read_segmentation(tmp_path / "r.seg.nrrd")
    assert [notice.code for notice in read.warnings] == ["LEVELS_ASSUMED"] and read.warnings[0].text


def test_a_file_with_parts_keeps_its_values(nodes, tmp_path):
    from SAUNetLib.formats.segmentations import write_segmentation
    from SAUNetLib.measurements import split_parts

    parts = split_parts(truth())
    assert any(row.structure.value > 120 for row in parts.table()), "posterior elements"
    write_segmentation(parts, tmp_path / "p.seg.nrrd")
    node = loaded(tmp_path / "p.seg.nrrd")
    Result.recognise(node)
    nodes.exportLabelMap(node, tmp_path / "o.nii.gz")
    read = read_segmentation(tmp_path / "o.nii.gz")
    assert read.encoding is parts.encoding and np.array_equal(read.labels, parts.labels)


def test_a_vertebral_body_alone_tells_that_vertebrae_are_in_parts(nodes, tmp_path):
    """In files of an earlier version, of which the tags did not say it."""
    from SAUNetLib.measurements import split_parts

    parts = split_parts(truth())
    body = next(row.structure.value for row in parts.table() if row.structure.name.endswith("vertebral body"))
    write_segmentation(replace(parts, labels=np.where(parts.labels == body, parts.labels, 0)), tmp_path / "p.seg.nrrd")
    node = loaded(tmp_path / "p.seg.nrrd")
    (segment,) = segments(node)
    segment.RemoveTag("SAUNet.encoding")
    Result.recognise(node)
    assert Result.encodingOf(node).name == "parts"


def test_segments_keep_their_values_under_other_names_and_no_two_get_the_same(nodes):
    node = imported(nodes)
    first, second = segments(node)[1], segments(node)[3]
    identity = node.GetSegmentation().GetSegmentIdBySegment
    old = Result.labelValues(node)
    first.SetName("T12 (checked)")
    assert Result.labelValues(node) == old
    first.SetName(second.GetName())
    values = Result.labelValues(node)
    assert len(set(values.values())) == len(values) and values[identity(first)] == old[identity(second)]
    labels = slicer.util.arrayFromVolume(nodes.exportLabelMapNode(node)[0])
    both = np.isin(truth().labels, [old[identity(first)], old[identity(second)]])
    assert len(np.unique(labels[both])) == 2


def rename(node, names):
    for segment in segments(node):
        segment.SetName(names.get(segment.GetName(), segment.GetName()))


@pytest.mark.parametrize("form", ["{level}", "{level} {kind}", "{level} {KIND} ", "{LEVEL}-style"])
def test_all_files_of_a_result_mean_what_its_names_say(nodes, tmp_path, form):
    """Vertebrae and discs renamed by hand, one level down: the label map kept the engine's own names."""
    node = imported(nodes)
    plain = {row.level: row for row in structures().values() if row.level}
    steps = {"T12": "L1", "L1": "L2", "L2": "L3", "L3": "L4", "L4": "L5", "T12/L1": "L1/L2", "L1/L2": "L2/L3",
             "L2/L3": "L3/L4", "L3/L4": "L4/L5"}  # fmt: skip

    def typed(level):
        name, kind = plain[level].name, plain[level].kind
        written = level.replace("/", "-") if form == "{LEVEL}-style" else level
        return name and form.format(level=level, kind=kind, KIND=kind.upper(), LEVEL=written).removesuffix("-style")

    rename(node, {plain[old].name: typed(new) for old, new in steps.items()})
    down = {plain[old].value: plain[new].value for old, new in steps.items()}
    wanted = np.vectorize(lambda value: down.get(value, value))(truth().labels)
    assert len(np.unique(wanted)) == 11
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    nodes.exportSegmentation(node, tmp_path / "l.seg.nrrd")
    for name in ("l.nrrd", "l.seg.nrrd"):
        assert np.array_equal(read_segmentation(tmp_path / name).labels, wanted), name
    assert Result.exportNotes(node, Result.merge(node)) == []
    again = loaded(tmp_path / "l.seg.nrrd")  # whatever goes by codes or tags gets the same
    for segment in segments(again):
        meant = named_structure(segment.GetName(), structures())
        assert Result.codeOf(segment) == meant.code and Result._tag(segment, "SAUNet.Level") == meant.level
    assert "66794005" in Result.codeOf(segments(node)[3]), "the node in the scene is left alone"


def test_a_code_that_was_chosen_means_the_same_in_every_file(nodes, tmp_path):
    node = imported(nodes)
    entry = SceneNodes.terminologyEntry
    for segment in segments(node):
        if segment.GetName() == "L4 vertebra":
            segment.SetName("the lowest")
            segment.SetTerminology(entry(structures()[45]))
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    nodes.exportSegmentation(node, tmp_path / "l.seg.nrrd")
    wanted = np.where(truth().labels == 44, 45, truth().labels)
    for name in ("l.nrrd", "l.seg.nrrd"):
        assert np.array_equal(read_segmentation(tmp_path / name).labels, wanted), name


def test_a_name_that_does_not_say_what_was_written_is_told(nodes):
    node = imported(nodes)
    rename(node, {"L4 vertebra": "L5 (corrected)", "L3 vertebra": "L3, fractured", "L3/L4 disc": "Bandscheibe L4/L5"})
    disc, vertebra, lowest = sorted(Result.exportNotes(node, None))
    assert disc == "Bandscheibe L4/L5 was exported as L3/L4 disc, although its name does not say so."
    assert vertebra.startswith("L3, fractured was exported as L3 vertebra")
    assert lowest.startswith("L5 (corrected) was exported as L4 vertebra")


@pytest.mark.parametrize(
    ("name", "level"),
    [("Th12", "T12"), ("D12 vertebra", "T12"), ("LWK 5", "L5"), ("L 5", "L5"), ("L4/5 disc", "L4/L5"),
     ("L4-5", "L4/L5"), ("Th12/L1", "T12/L1"), ("BWK12/LWK1 disk", "T12/L1"), ("s1", "S1"),
     ("L5 tumour", ""), ("Lesion T2", ""), ("L4/5 vertebra", ""), ("X5", ""), ("L", "")],
)  # fmt: skip
def test_usual_spellings_of_a_level_are_understood(name, level):
    found = named_structure(name, structures())
    assert (found.level if found else "") == level


@pytest.mark.parametrize("name, code", [("First sacral vertebra", "362037000"), ("Tumour", "108369006")])
def test_a_foreign_code_under_a_foreign_name_is_kept(nodes, tmp_path, name, code):
    """Somebody said that it is something else: it was written as L4, and its code replaced."""
    node = imported(nodes)
    (segment,) = [one for one in segments(node) if one.GetName() == "L4 vertebra"]
    segment.SetName(name)
    segment.SetTerminology(f"Mine~SCT^49755003^Morphologically Abnormal Structure~SCT^{code}^Something~^^~~^^~^^")
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    assert 44 not in values_in(tmp_path / "l.nrrd") and 200 in values_in(tmp_path / "l.nrrd")
    nodes.exportSegmentation(node, tmp_path / "l.seg.nrrd")
    assert code in (tmp_path / "l.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()
    (note,) = Result.exportNotes(node, Result.merge(node))
    assert note == f"{name} has the label value 200, which has no meaning elsewhere."


def test_a_segment_of_one_s_own_is_no_structure_in_any_encoding(nodes, tmp_path):
    """Beside bodies and arches it was L6's posterior elements."""
    from SAUNetLib.measurements import split_parts

    write_segmentation(split_parts(truth()), tmp_path / "p.seg.nrrd")
    node = loaded(tmp_path / "p.seg.nrrd")
    Result.recognise(node)
    node.GetSegmentation().AddEmptySegment("haematoma", "haematoma")
    value = Result.labelValues(node)["haematoma"]
    assert all(value not in encoding.structures for encoding in encodings().values())
    assert "haematoma" not in Result.meanings(node)


def add_in_editor(node, name, voxels):
    """A segment as the editor's own Add makes it: with the term of the last one; and what was drawn in it."""
    editor, logic = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"), slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.SetSegmentEditorNode(editor)
    logic.SetSegmentationNode(node)
    last = segments(node)[-1]
    identity = logic.AddEmptySegment("")
    segment = node.GetSegmentation().GetSegment(identity)
    assert segment.GetTerminology() == last.GetTerminology()
    segment.SetName(name)
    image = slicer.vtkOrientedImageData()
    image.DeepCopy(segments(node)[0].GetRepresentation(Result.LABELMAP))
    Result.voxelsOf(image)[:] = voxels
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic
    assert segmentations.SetBinaryLabelmapToSegment(image, node, identity, 0, image.GetExtent())
    logic.SetSegmentEditorNode(None)
    return identity, segment


@pytest.mark.parametrize("there", [True, False])
def test_what_the_editor_adds_is_no_structure(nodes, tmp_path, there):
    """It was exported as the vertebra whose term the editor's Add repeats, or told to mean the same."""
    node = imported(nodes)
    free = np.zeros(truth().labels.shape, np.uint8)
    free[0, :2, :3] = truth().labels[0, :2, :3] == 0
    assert free.any()
    add_in_editor(node, "Tumour", free)
    if not there:
        node.GetSegmentation().RemoveSegment("SAUNet_44")
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    assert np.array_equal(values_in(tmp_path / "l.nrrd") == 200, free)
    assert np.array_equal(values_in(tmp_path / "l.nrrd") == 44, (truth().labels == 44) & there)
    (note,) = Result.exportNotes(node, None)
    assert note == "Tumour was exported as tissue. If it is a structure, name it accordingly, such as L4 vertebra."
    (note,) = Result.exportNotes(node, Result.merge(node))
    assert note == "Tumour has the label value 200, which has no meaning elsewhere."
    colors = nodes.exportLabelMapNode(node)[0].GetDisplayNode().GetColorNode()
    tissue = slicer.vtkSegment().GetTerminology()
    assert "^Tissue~" in tissue and "^Tissue~" in colors.GetTerminologyAsString(200)
    nodes.exportSegmentation(node, tmp_path / "e.seg.nrrd")
    assert segments(loaded(tmp_path / "e.seg.nrrd"))[-1].GetTerminology() == tissue
    storage = slicer.vtkMRMLSegmentationStorageNode()  # File > Save
    storage.SetFileName(str(tmp_path / "s.seg.nrrd"))
    assert storage.WriteData(node)
    for name in ("e.seg.nrrd", "s.seg.nrrd"):
        found = read_segmentation(tmp_path / name)
        assert np.array_equal(found.labels == 44, (truth().labels == 44) & there)
        (left_out,) = [notice.text for notice in found.warnings if notice.code == "SEGMENTS_LEFT_OUT"]
        assert "left out: Tumour (" in left_out


@pytest.mark.parametrize(
    ("term", "called", "note"),
    [("L3 vertebra", "L3 links", "L3 links was exported as tissue. If it is a structure, name it accordingly, "
      "such as L3 vertebra"),
     ("L6 vertebra", "lower", "lower was exported as tissue. If it is a structure, name it accordingly, "
      "such as T13 vertebra"),
     ("L3 vertebra", "L4", "L4 and another segment both mean L4 vertebra")],
)  # fmt: skip
def test_a_chosen_term_that_is_not_written_is_told(nodes, tmp_path, term, called, note):
    """Slicer keeps a name that was typed before; such a term went without a word."""
    node = imported(nodes)
    node.GetSegmentation().RemoveSegment("SAUNet_43")
    node.GetSegmentation().AddEmptySegment("mine", called)
    segment = segments(node)[-1]
    segment.SetTerminology(SceneNodes.terminologyEntry(named_structure(term, structures())))
    (told,) = Result.exportNotes(node, None)
    assert told.startswith(note)
    nodes.exportSegmentation(node, tmp_path / "e.seg.nrrd")
    assert segments(loaded(tmp_path / "e.seg.nrrd"))[-1].GetTerminology() == slicer.vtkSegment().GetTerminology()


@pytest.mark.parametrize(("levels", "called", "value"), [(True, "Vertebral canal", 2), (False, "Vertebra", 1)])
def test_what_is_named_after_its_chosen_term_is_that_structure(nodes, tmp_path, levels, called, value):
    """Slicer names it after the term's label, else its meaning; those of canal and classes are no structures' names."""
    from builders import to_classes

    summary, labels = truth().summary(), truth().labels
    if not levels:
        labels = to_classes(labels)
        summary["structures"] = [{"value": value} for value in classes()]
    node = nodes.importResult(add_volume(), labels, summary, levels)
    known = Result.encodingOf(node).structures
    assert named_structure(called, known) is None
    identity, segment = add_in_editor(node, called, labels == value)
    segment.SetTerminology(SceneNodes.terminologyEntry(known[value]))
    node.GetSegmentation().RemoveSegment(segment_id(value, Result.encodingOf(node).name))
    assert Result.labelValues(node)[identity] == value
    nodes.exportSegmentation(node, tmp_path / "e.seg.nrrd")
    assert np.array_equal(read_segmentation(tmp_path / "e.seg.nrrd").labels, labels)


def test_a_segment_without_a_term_makes_no_file_unreadable(nodes, tmp_path):
    node = imported(nodes)
    node.GetSegmentation().AddEmptySegment("mine", "L5 vertebra")
    node.GetSegmentation().AddEmptySegment("other", "haematoma")
    for segment in segments(node)[-2:]:
        segment.SetTerminology("")
    nodes.exportSegmentation(node, tmp_path / "e.seg.nrrd")
    found = read_segmentation(tmp_path / "e.seg.nrrd")
    assert found.labels.any() and "SEGMENTS_LEFT_OUT" not in [notice.code for notice in found.warnings]


def test_two_segments_that_mean_the_same_are_told(nodes):
    node = imported(nodes)
    rename(node, {"L1 vertebra": "L2 vertebra", "L2 vertebra": "L3 vertebra"})  # stopped half-way
    (note,) = Result.exportNotes(node, None)
    assert note == (
        "L3 vertebra and another segment both mean L3 vertebra: name one of them after a different structure."
    )
    assert len(Result.exportNotes(node, Result.merge(node))) == 2
    segments(node)[7].SetName("L4 vertebra")
    segments(node)[9].SetName("L5 vertebra")
    assert Result.exportNotes(node, Result.merge(node)) == []


def test_a_name_that_another_segment_has_is_not_what_was_written(nodes):
    node = imported(nodes)
    rename(node, {"L4 vertebra": "L3 vertebra"})
    (note,) = Result.exportNotes(node, None)
    assert note == "L3 vertebra was exported as L4 vertebra, although its name does not say so."


def test_a_small_structure_that_is_wholly_lost_is_named(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    extra = slicer.vtkOrientedImageData()
    extra.DeepCopy(segments(node)[0].GetRepresentation(Result.LABELMAP))
    voxels = Result.voxelsOf(extra)
    voxels[:] = 0
    voxels[0, 0, :3] = 1
    extra.SetOrigin(900, 900, 900)
    segment = slicer.vtkSegment()
    segment.SetName("L5 vertebra")
    segment.AddRepresentation(Result.LABELMAP, extra)
    segment.SetLabelValue(1)
    node.GetSegmentation().AddSegment(segment, "mine")
    (note,) = Result.exportNotes(node, Result.merge(node))
    assert note.startswith("The label map contains no voxels of L5 vertebra")


def test_voxels_that_two_segments_share_are_told(nodes, tmp_path):
    node = imported(nodes)
    extra = slicer.vtkSegment()
    extra.SetName("Metastasis")
    mask = (truth().labels == 43).astype(np.uint8)
    image = slicer.vtkOrientedImageData()
    image.DeepCopy(segments(node)[0].GetRepresentation(Result.LABELMAP))
    Result.voxelsOf(image)[:] = mask
    extra.AddRepresentation(Result.LABELMAP, image)
    extra.SetLabelValue(1)
    node.GetSegmentation().AddSegment(extra, "M")
    count = int(mask.sum())
    assert Result.exportNotes(node, None) == []
    unknown, shared, gone = Result.exportNotes(node, Result.merge(node))
    assert unknown.startswith("Metastasis has the label value 200") and gone.startswith(
        "The label map contains no voxels of L3 vertebra"
    )
    assert shared.startswith(f"Voxels of L3 vertebra that overlap Metastasis and went to it: {count}.")
    assert (Result.merge(node).labels == Result.labelValues(node)["M"]).sum() == count


def test_a_result_outside_of_its_image_is_told(nodes):
    volume = add_volume()
    node = imported(nodes, volume)
    assert Result.exportNotes(node, Result.merge(node)) == []
    voxels = slicer.util.arrayFromVolume(volume)
    slicer.util.updateVolumeFromArray(volume, np.ascontiguousarray(voxels[:, : voxels.shape[1] // 2]))  # cropped
    *gone, note = Result.exportNotes(node, Result.merge(node))
    labels = truth().labels
    left = set(np.unique(labels[:, : labels.shape[1] // 2]))
    assert len(gone) == len(set(np.unique(labels)) - left) > 0
    assert all(one.startswith("The label map contains no voxels of ") for one in gone)
    lost = 1 - (labels[:, : labels.shape[1] // 2] > 0).sum() / (labels > 0).sum()
    assert note.startswith(f"{round(100 * lost)} % of the result lie outside the image")


def test_that_nothing_lies_outside_is_seen_without_a_list_of_points(nodes, monkeypatch):
    """Of a large volume that list takes seconds, and gigabytes."""
    node = imported(nodes)
    monkeypatch.setattr(Result.np, "argwhere", None)
    assert Result.exportNotes(node, Result.merge(node)) == []


@pytest.mark.parametrize("linear", [True, False])
def test_all_files_of_a_result_that_was_moved_agree(nodes, tmp_path, linear):
    volume = add_volume()
    node = imported(nodes, volume)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    moving = vtk.vtkTransform()
    moving.Translate(0, 6, 6)
    if linear:
        transform.SetAndObserveTransformToParent(moving)
    else:
        points = [vtk.vtkPoints(), vtk.vtkPoints()]
        for place in ((0, 0, 0), (100, 0, 0), (0, 100, 0), (0, 0, 100), (50, 50, -90)):
            points[0].InsertNextPoint(place)
            points[1].InsertNextPoint(moving.TransformPoint(place))
        spline = vtk.vtkThinPlateSplineTransform()
        spline.SetBasisToR()
        spline.SetSourceLandmarks(points[0])
        spline.SetTargetLandmarks(points[1])
        transform.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(transform.GetID())
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    nodes.exportSegmentation(node, tmp_path / "l.seg.nrrd")
    label_map, file = (read_segmentation(tmp_path / name) for name in ("l.nrrd", "l.seg.nrrd"))
    assert not np.array_equal(label_map.labels, truth().labels), "it was moved"
    surfaces = {path.name: path for path in nodes.exportSurfaces(node, tmp_path, never)}
    for value in (41, 43):
        points = [one.geometry.points(np.argwhere(one.labels == value)[:, ::-1]) for one in (label_map, file)]
        middles = [(one.min(axis=0) + one.max(axis=0)) / 2 for one in points]
        assert np.abs(points[0].mean(axis=0) - points[1].mean(axis=0)).max() < 1.0
        reader = vtk.vtkSTLReader()
        reader.SetFileName(str(surfaces[f"T2 sag spine_{structures()[value].name}.stl"]))
        reader.Update()
        assert np.abs(np.array(reader.GetOutput().GetCenter()) - middles[1]).max() < 3.0
    assert node.GetTransformNodeID() == transform.GetID() and volume.GetTransformNodeID() is None


def test_segmentation_file_holds_voxels_whatever_the_source_is(nodes, tmp_path):
    node = imported(nodes)
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName(SceneNodes.SURFACE)
    nodes.exportSegmentation(node, tmp_path / "r.seg.nrrd")
    assert (tmp_path / "r.seg.nrrd").read_bytes().startswith(b"NRRD")
    assert {path.name for path in tmp_path.iterdir()} <= {"r.seg.nrrd", "temporary"}
    found = read_segmentation(tmp_path / "r.seg.nrrd")
    assert set(np.unique(found.labels)) == set(np.unique(truth().labels))
    assert node.GetSegmentation().GetSourceRepresentationName() == SceneNodes.SURFACE


def test_a_result_that_a_transform_shrinks_is_not_said_to_be_cut(nodes):
    node = imported(nodes)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    shrinking = vtk.vtkTransform()
    shrinking.Scale(0.8, 0.8, 0.8)
    transform.SetAndObserveTransformToParent(shrinking)
    node.SetAndObserveTransformNodeID(transform.GetID())
    count = (Result.merge(node).labels > 0).sum()
    assert 0.4 < count / (truth().labels > 0).sum() < 0.6
    assert not any("%" in note for note in Result.exportNotes(node, Result.merge(node)))


@pytest.mark.parametrize("frame", [Result.Frame(1, ""), Result.Frame(2, "0")], ids=["by number", "by value"])
def test_another_frame_s_place_is_not_taken_for_the_result_s(nodes, tmp_path, frame):
    """Frames may lie differently: an export while another one is shown cut the result."""
    volume = add_volume()
    node = nodes.importResult(volume, truth().labels, truth().summary(), True, frame=frame)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode")
    browser.AddSynchronizedSequenceNode(sequence)
    for number in range(2):
        sequence.SetDataNodeAtValue(volume, str(number))
    browser.AddProxyNode(volume, sequence, False)
    browser.SetSelectedItemNumber(1)
    assert Result.shownFrame(volume).number == 2 and Result.ownFrame(node) == 1
    volume.SetOrigin(500, 500, 500)
    nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    assert np.array_equal(values_in(tmp_path / "l.nrrd"), truth().labels)
    assert Result.exportNotes(node, Result.merge(node)) == []


def test_a_file_of_the_engine_says_in_slicer_what_it_says_to_the_engine(nodes, tmp_path):
    """Slicer keeps the tags of the segments only: the doubt about the names was lost on the way."""
    made = truth()
    doubtful = replace(made, warnings=(Notice("LEVELS_DOUBTFUL", 'Caf\u00e9 | two\nlines "so" a\\b.'),))
    write_segmentation(doubtful, tmp_path / "r.seg.nrrd")
    node = loaded(tmp_path / "r.seg.nrrd")
    Result.recognise(node)
    assert [one["code"] for one in Result.warningsOf(node)] == ["LEVELS_DOUBTFUL"]
    about = Result.provenance(node)
    assert {key: about[key] for key in doubtful.provenance if key in about} == dict(doubtful.provenance)
    nodes.exportSegmentation(node, tmp_path / "again.seg.nrrd")
    nodes.exportLabelMap(node, tmp_path / "again.nrrd")
    for name in ("again.seg.nrrd", "again.nrrd"):
        read = read_segmentation(tmp_path / name)
        assert [notice.code for notice in read.warnings] == ["LEVELS_DOUBTFUL"]
        assert read.provenance == doubtful.provenance, name


@pytest.mark.parametrize("only", [(1, 2, 3), (3,)])
def test_three_classes_from_the_command_are_a_result(nodes, tmp_path, only):
    from builders import to_classes

    plain = truth()
    labels = np.where(np.isin(to_classes(plain.labels), only), to_classes(plain.labels), 0).astype(np.uint8)
    made = replace(plain, labels=labels, encoding=encodings()["classes"], partial=frozenset(), confidence={})
    write_segmentation(made, tmp_path / "c.seg.nrrd")
    node = loaded(tmp_path / "c.seg.nrrd")
    Result.recognise(node)
    assert Result.isResult(node) and Result.encodingOf(node).name == "classes"
    assert {identity for identity, _ in Result.segmentsOf(node.GetSegmentation())} == {
        f"SAUNet_class_{value}" for value in only
    }
    nodes.exportLabelMap(node, tmp_path / "c.nrrd")
    assert np.array_equal(read_segmentation(tmp_path / "c.nrrd").labels, labels)


@pytest.mark.parametrize("status, edited", [("completed", True), ("flagged", True), ("inprogress", False)])
def test_what_was_reviewed_counts_as_edited(nodes, status, edited):
    node = imported(nodes)
    segments(node)[3].SetTag(Result.STATUS_TAG, status)
    assert Result.isEdited(node) is edited


@pytest.mark.parametrize("level, in_place", [("L3", False), ("L3", True), ("L2", True)])
def test_relabelling_keeps_what_was_set_in_slicer(nodes, tmp_path, level, in_place):
    """Status, a colour of one's own and others' tags move with the structure; our tags are the new name's."""
    path = tmp_path / "r.seg.nrrd"
    node = imported(nodes)
    logic, before = slicer.vtkSlicerSegmentationsModuleLogic, segments(node)
    for segment, status in zip(before, (3, 1, 2, 0), strict=False):
        logic.SetSegmentStatus(segment, status)
    before[2].SetColor(1.0, 0.0, 0.2)
    before[1].SetTag("Reviewer.Note", 'see "c:\\x": 2nd\nline')
    before[3].SetTag("Reviewer.Note", "Pr\u00fcfen \uff5c ja")
    nodes.exportSegmentation(node, path)
    saved = segments(loaded(path))
    relabel_file(path, {"L2": level}, output := path if in_place else tmp_path / "o.seg.nrrd")
    after = segments(loaded(output))
    assert len(after) == len(saved) > 4 and (after[1].GetName() != saved[1].GetName()) == (level != "L2")
    for number, (old, new) in enumerate(zip(saved, after, strict=True)):
        assert logic.GetSegmentStatus(new) == logic.GetSegmentStatus(old) == ((3, 1, 2)[number] if number < 3 else 0)
        standard = np.divide(named_structure(new.GetName(), structures()).colour, 255)
        assert np.allclose(new.GetColor(), old.GetColor() if number == 2 else standard, atol=1e-5)
        note = Result._tag(old, "Reviewer.Note")
        assert Result._tag(new, "Reviewer.Note") == note and bool(note) == (number in (1, 3))
        assert Result._tag(new, "SAUNet.Level") == getattr(named_structure(new.GetName(), structures()), "level", "")


def test_a_name_that_ends_for_another_format_is_refused_as_such(nodes, tmp_path):
    node = imported(nodes)
    for write, name in ((nodes.exportLabelMap, "case.seg.nrrd"), (nodes.exportSegmentation, "case.nrrd")):
        with pytest.raises(PanelError) as raised:
            write(node, tmp_path / name)
        assert raised.value.code == "OUTPUT_FORMAT" and not (tmp_path / name).exists()


def test_segmentation_file_is_read_by_the_engine(nodes, tmp_path):
    node = imported(nodes)
    nodes.exportSegmentation(node, tmp_path / "r.seg.nrrd")
    assert np.array_equal(read_segmentation(tmp_path / "r.seg.nrrd").labels, truth().labels)
    header = (tmp_path / "r.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()
    assert PROVENANCE["model_sha256"] in header and "SCT^66794005^First lumbar vertebra" in header


@pytest.mark.parametrize("moved", [False, True])
def test_surfaces_are_one_file_per_segment(nodes, tmp_path, moved):
    volume = add_volume()
    if moved:  # the file holds the volume's own coordinates, as the label map's file does
        add_transform(volume)
    files = nodes.exportSurfaces(imported(nodes, volume), tmp_path, never)
    assert len(files) == 10 and files[2].name == "T2 sag spine_T12-L1 disc.stl"
    reader = vtk.vtkSTLReader()
    reader.SetFileName(str(files[3]))
    reader.Update()
    inside = builders.points(builders.geometry())[truth().labels == 41]  # LPS, as the file
    assert np.allclose(reader.GetOutput().GetCenter(), (inside.min(0) + inside.max(0)) / 2, atol=1.5)


def test_what_slicer_crops_to_the_segments_lies_on_the_image_again(nodes, tmp_path):
    node = imported(nodes)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetCropToMinimumExtent(True)
    storage.SetFileName(str(tmp_path / "cropped.seg.nrrd"))
    assert storage.WriteData(node)
    import nrrd

    whole = truth()
    assert nrrd.read_header(str(tmp_path / "cropped.seg.nrrd"))["sizes"].tolist() != list(whole.geometry.size)
    read = read_segmentation(tmp_path / "cropped.seg.nrrd")
    assert np.array_equal(read.labels, whole.labels) and read.geometry.same_grid(whole.geometry)


def never(names):
    raise AssertionError(f"nothing is there to replace: {names}")


@pytest.mark.parametrize("agreed", [True, False])
def test_surfaces_of_another_patient_are_not_replaced_unasked(nodes, tmp_path, agreed):
    node, asked = imported(nodes), []
    (tmp_path / "T2 sag spine_T12-L1 disc.stl").write_text("another patient's")
    files = nodes.exportSurfaces(node, tmp_path, lambda names: asked.extend(names) or agreed)
    assert asked == ["T2 sag spine_T12-L1 disc.stl"] and len(files) == (10 if agreed else 0)
    assert len(list(tmp_path.glob("*.stl"))) == (10 if agreed else 1)
    assert (tmp_path / "T2 sag spine_T12-L1 disc.stl").read_bytes().startswith(b"another") is not agreed


@pytest.mark.parametrize("fails", ["writing", "moving"])
def test_surfaces_are_all_there_or_none(nodes, tmp_path, monkeypatch, fails):
    node, folder = imported(nodes), tmp_path / "surfaces"
    folder.mkdir()
    (folder / "T2 sag spine_T12-L1 disc.stl").write_text("the one before")
    count = iter(range(100))
    plain = SceneNodes._writeSurface if fails == "writing" else Path.replace

    def failing(*arguments):
        if next(count) == 5:
            raise OSError("full")
        return plain(*arguments)

    owner, name = (SceneNodes, "_writeSurface") if fails == "writing" else (Path, "replace")
    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(PanelError) as raised:
        nodes.exportSurfaces(node, folder, lambda names: True)
    monkeypatch.undo()
    assert raised.value.code == "EXPORT_FAILED"
    assert [(one.name, one.read_text()) for one in folder.iterdir()] == [
        ("T2 sag spine_T12-L1 disc.stl", "the one before")
    ]


def test_surfaces_of_two_segments_with_one_name_are_two_files(nodes, tmp_path):
    node = imported(nodes)
    for segment, name in zip(segments(node), ("a/b", "a/b", "A/B"), strict=False):  # to Windows the same
        segment.SetName(name)
    names = {path.name for path in nodes.exportSurfaces(node, tmp_path, never)}
    assert {f"T2 sag spine_{name}.stl" for name in ("a-b", "a-b_2", "A-B_3")} <= names and len(names) == 10
    assert names == {path.name for path in tmp_path.glob("*.stl")}


def test_label_map_node_has_values_and_colours(nodes, monkeypatch):
    node = imported(nodes)
    monkeypatch.setattr(SceneNodes, "_", lambda text: f"<{text}>")
    labels, _merged = nodes.exportLabelMapNode(node)
    assert labels.GetName() == f"<{node.GetName()} label map>"
    assert np.array_equal(slicer.util.arrayFromVolume(labels), truth().labels)
    tables = slicer.util.getNodesByClass("vtkMRMLColorTableNode")
    assert [table for table in tables if table.GetName() == f"<{node.GetName()} colors>"] == [
        labels.GetDisplayNode().GetColorNode()
    ]
    table, color = labels.GetDisplayNode().GetColorNode(), [0.0] * 4
    assert table.GetNumberOfColors() == truth().labels.max() + 1
    for value in np.unique(truth().labels)[1:].tolist():
        table.GetColor(value, color)
        assert np.allclose(color[:3], np.array(structures()[value].colour) / 255, atol=0.01)
        assert table.GetColorName(value) == structures()[value].name


def test_failed_export_leaves_the_old_file(nodes, tmp_path):
    node = imported(nodes)
    (tmp_path / "folder").mkdir()
    with pytest.raises(PanelError) as raised:
        nodes.exportLabelMap(node, tmp_path / "nowhere" / "l.nrrd")
    assert raised.value.code == "EXPORT_FAILED"
    (tmp_path / "l.xyz").write_text("old")
    with pytest.raises(PanelError):
        nodes.exportLabelMap(node, tmp_path / "l.xyz")
    assert (tmp_path / "l.xyz").read_text() == "old" and sorted(path.name for path in tmp_path.glob("*l.*")) == [
        "l.xyz"
    ]


def exports(nodes, folder):
    """Every kind of file: what writes it, and its name."""
    return (
        (nodes.exportLabelMap, folder / "l.nii.gz"),
        (nodes.exportLabelMap, folder / "l.nrrd"),
        (nodes.exportSegmentation, folder / "l.seg.nrrd"),
        (lambda node, path: nodes.exportSurfaces(node, path.parent, lambda names: True),
         folder / "T2 sag spine_L1 vertebra.stl"),
    )  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="links and rights of Unix")
def test_export_follows_a_link_and_leaves_who_may_read_the_file(nodes, tmp_path):
    node, far = imported(nodes), tmp_path / "far"
    far.mkdir()
    for export, path in exports(nodes, tmp_path):
        target = far / path.name
        target.write_bytes(b"old")
        target.chmod(0o600)
        path.symlink_to(target)
        export(node, path)
        assert path.is_symlink() and target.stat().st_size > 100 and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not [path.name for path in (*tmp_path.iterdir(), *far.iterdir()) if path.name.startswith(".")]


def test_full_disk_leaves_the_old_file(nodes, tmp_path):
    """The system stops every file at 600 bytes; not every library tells of it."""
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(1).choice(np.array([0, *structures()], np.uint8), (12, 20, 24))
    grid = builders.geometry(size=(24, 20, 12))
    result = truth(grid)
    result = replace(result, labels=noise, partial=frozenset())
    node = nodes.importResult(add_volume(grid), noise, result.summary(), True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for export, path in exports(nodes, tmp_path):
        path.write_bytes(b"the old file")
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
        try:
            with pytest.raises(PanelError) as raised:
                export(node, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert raised.value.code == "EXPORT_FAILED" and path.read_bytes() == b"the old file", path.name
        assert [one.name for one in tmp_path.glob(".*")] == [], path.name


def test_an_export_for_which_itk_has_no_memory_says_so(nodes, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("itkImportImageContainer.hxx:179:\nFailed to allocate memory for image.")

    node = imported(nodes)
    (tmp_path / "l.nrrd").write_text("old")
    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(PanelError) as raised:
        nodes.exportLabelMap(node, tmp_path / "l.nrrd")
    assert raised.value.code == "EXPORT_MEMORY" and [path.name for path in tmp_path.glob("*l.nrrd")] == ["l.nrrd"]
    assert (tmp_path / "l.nrrd").read_text() == "old"


# -- terminology, folders --------------------------------------------------------------------------------------------


def test_slicer_finds_every_term(nodes):
    logic = slicer.modules.terminologies.logic()
    path = ROOT / "Resources" / "SegmentationCategoryTypeModifier-SAUNet.term.json"
    SceneNodes.loadTerminology(logic, path)
    assert logic.IsTerminologyContextLoaded(SceneNodes.TERMINOLOGY) and SceneNodes.TERMINOLOGY == TERMINOLOGY
    for structure in structures().values():
        entry = slicer.vtkSlicerTerminologyEntry()
        assert logic.DeserializeTerminologyEntry(SceneNodes.terminologyEntry(structure), entry)
        assert entry.GetTypeObject().GetCodeValue() == structure.code
        assert logic.DeserializeTerminologyEntry(SceneNodes.terminologyEntry(structure), entry)
    assert logic.GetNumberOfTypesInTerminologyCategory(TERMINOLOGY, entry.GetCategoryObject()) == len(
        {structure.code for structure in [*structures().values(), *classes().values()]}
    )


def test_a_term_that_several_structures_share_names_none_of_them():
    """Slicer names a segment after the term that is chosen for it."""
    (category,) = terminology()["SegmentationCodes"]["Category"]
    labels = {one["CodeMeaning"]: one["3dSlicerLabel"] for one in category["Type"]}
    assert labels["Vertebra"] == "Vertebra" and labels["Intervertebral disc"] == "Intervertebral disc"
    assert labels["Fifth lumbar vertebra"] == "L5 vertebra"


def test_terminology_file_is_made_from_the_anatomy():
    path = ROOT / "Resources" / "SegmentationCategoryTypeModifier-SAUNet.term.json"
    assert json.loads(path.read_text(encoding="utf-8")) == terminology()
