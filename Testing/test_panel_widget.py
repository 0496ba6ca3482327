"""The panel, driven by pressing its buttons: real .ui file, real widget, real scene."""

import dataclasses
import json
import pydoc
import re
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import shiboken6
import slicer
import vtk
from builders import to_classes
from harness import process_events
from harness.fixtures import (  # noqa: F401
    ROOT,
    add_node,
    add_transform,
    add_volume,
    close_panel,
    make_panel,
    paint,
    panel_of,
    scene,
    segments,
    truth,
)
from harness.models import NAME, VISIBLE
from harness.widgets import ctkComboBox, qMRMLSegmentEditorWidget
from PySide6 import QtWidgets
from SAUNetPanel import Cards, Result, SceneNodes
from SAUNetPanel.EngineProcess import EngineProcess, workerCommand
from SAUNetPanel.Logic import Lowest, deviceName, withPackageFault
from SAUNetPanel.Widget import DOUBLE_CLICK_S, WARM_MS, remaining

from SAUNetLib.anatomy import encodings
from SAUNetLib.formats.segmentations import write_segmentation
from SAUNetLib.stages import SHARES, done

STAGES = tuple(SHARES)


def press_and_wait(panel):
    panel.ui.segmentButton.click()
    assert panel.wait()


def press_later(panel):
    """Press the button once more, too late for a double click."""
    panel.widget._started -= DOUBLE_CLICK_S
    panel.ui.segmentButton.click()


def counts():
    return {kind: slicer.mrmlScene.GetNumberOfNodesByClass(kind) for kind in (
        "vtkMRMLSegmentationNode", "vtkMRMLVolumeNode", "vtkMRMLTransformNode", "vtkMRMLModelNode")}  # fmt: skip


# -- one click -------------------------------------------------------------------------------------------------------


def test_one_click_gives_a_named_segmentation(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (node,) = panel.results()
    assert panel.ui.resultSelector.currentNode() is node and node.GetName() == "T2 sag spine"
    assert np.array_equal(Result.merge(node).labels, truth().labels)
    assert panel.ui.statusLabel.text.startswith("Done in ") and " Structures: 10. " in panel.ui.statusLabel.text
    assert panel.ui.editor.segmentationNode() is node and panel.ui.editor.sourceVolumeNode() is volume
    assert panel.ui.segmentsTable.segmentationNode() is node and panel.ui.segmentsTable.segmentCount == 10
    assert "was named L4" in panel.ui.warningsLabel.text and panel.ui.warningsLabel.isVisibleTo(panel.top)


def test_engine_gets_the_choices_and_nothing_of_the_scene(panel_of, tmp_path):  # noqa: F811
    add_volume(name="DOE^JANE")
    panel = panel_of(record=str(tmp_path / "record"))
    panel.ui.deviceComboBox.currentIndex = 2
    panel.ui.outputComboBox.currentIndex = 0
    assert panel.ui.lowestComboBox.itemText(0) == "Automatic"
    panel.ui.lowestComboBox.currentIndex = panel.ui.lowestComboBox.findText("L4")
    press_and_wait(panel)
    record = json.loads((tmp_path / "record").read_text())
    assert record["request"]["device"] == "cpu" and record["request"]["lowest"] == "L4"
    wanted = {"command", "id", "image", "output", "levels", "lowest", "device"}
    assert record["request"].keys() == wanted  # and no entry that the worker would refuse
    assert record["request"]["levels"] is True and record["files"] == ["volume.nrrd"]
    assert b"DOE" not in (tmp_path / "record.nrrd").read_bytes() and "DOE" not in json.dumps(record)


def test_button_says_why_it_is_disabled(panel_of):  # noqa: F811
    panel = panel_of()
    assert not panel.ui.segmentButton.enabled and "Choose a volume" in panel.ui.segmentButton.toolTip
    for widget in (panel.ui.exportButton, panel.ui.show3DButton, panel.ui.editSection):
        assert not widget.enabled and "no result" in widget.toolTip
    volume = add_volume(name="arrived")
    panel.ui.inputSelector.setCurrentNode(volume)
    assert panel.ui.segmentButton.enabled and "volume chosen above" in panel.ui.segmentButton.toolTip


def test_selector_offers_greyscale_volumes_only(panel_of):  # noqa: F811
    panel = panel_of()
    for kind in ("vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode", "vtkMRMLDiffusionTensorVolumeNode"):
        slicer.mrmlScene.AddNewNodeByClass(kind)
    first, second = add_volume(name="series 3"), add_volume(name="series 4")
    offered = [panel.ui.inputSelector.nodeFromIndex(index) for index in range(panel.ui.inputSelector.nodeCount())]
    assert offered == [first, second]


def test_of_two_volumes_of_one_name_the_clicked_one_is_segmented(panel_of):  # noqa: F811
    first, second = add_volume(name="T2"), add_volume(name="T2")
    panel = panel_of()
    box = panel.ui.inputSelector._native._box
    for volume, row in ((second, 2), (first, 1)):
        box.setCurrentIndex(row)
        box.activated.emit(row)
        assert panel.widget._parameters.inputVolume is volume
    results = []
    for row in (1, 2):
        panel.ui.inputSelector.setCurrentNode(first if row == 1 else second)
        box.activated.emit(row)
        press_and_wait(panel)
        results.append(panel.results()[-1])
    box = panel.ui.resultSelector._native._box
    results[0].SetName(results[1].GetName())
    for row, node in ((1, results[0]), (2, results[1])):
        box.setCurrentIndex(row)
        box.activated.emit(row)
        assert panel.widget._parameters.result is node is panel.ui.segmentsTable.segmentationNode()


def test_progress_is_shown_while_running(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of("wait", "segment")
    panel.ui.segmentButton.click()
    assert panel.ui.segmentButton.text == "Cancel" and panel.ui.progressBar.isVisibleTo(panel.top)
    assert not panel.ui.inputSelector.enabled and not panel.ui.deviceComboBox.enabled
    assert "while the engine is working" in panel.ui.deviceComboBox.toolTip
    assert process_events(lambda: panel.ui.statusLabel.text.startswith("Segmenting"))
    assert panel.ui.progressBar.value == round(1000 * done("segment", 0))
    press_later(panel)
    assert panel.wait() and not panel.ui.progressBar.isVisibleTo(panel.top)
    assert panel.ui.deviceComboBox.enabled and panel.ui.deviceComboBox.toolTip.startswith("Where the network runs")


def test_shares_add_up_and_time_left_is_plausible():
    assert sum(SHARES.values()) == pytest.approx(1) and done("write", 1) == pytest.approx(1) and done("?", 1) == 0
    assert remaining(10, 0.05) == "" and remaining(10, 0.5) == "about 10 s left" and "2 min" in remaining(120, 0.5)


# -- cancel and failure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_at_every_stage_leaves_the_scene_as_it_was(panel_of, stage):  # noqa: F811
    add_volume()
    panel = panel_of("wait", stage)
    before = counts()
    panel.ui.segmentButton.click()
    assert process_events(lambda: panel.widget._share >= done(stage, 0) and panel.engine._group > 0)
    press_later(panel)
    assert not panel.ui.segmentButton.enabled and "is stopping" in panel.ui.segmentButton.toolTip
    assert panel.wait() and counts() == before
    assert panel.ui.statusLabel.text.startswith("Cancelled") and panel.ui.cardFrame.isVisibleTo(panel.top) is False
    assert panel.ui.segmentButton.text == "Segment spine" and panel.ui.segmentButton.enabled


@pytest.mark.parametrize("moved", [False, True])
def test_who_cancels_with_the_keyboard_can_start_again_with_it(panel_of, moved):  # noqa: F811
    """Qt gives the focus of a button that is disabled to another widget, or to none."""
    from PySide6 import QtCore, QtTest

    add_volume()
    panel = panel_of("wait", "segment")
    top, button = panel.top._native, panel.ui.segmentButton._native
    top.show()
    top.activateWindow()
    button.setFocus()
    assert process_events(button.hasFocus)
    QtTest.QTest.keyClick(button, QtCore.Qt.Key_Space)
    assert process_events(lambda: panel.widget._share >= done("segment", 0)) and button.hasFocus()
    panel.widget._started -= DOUBLE_CLICK_S
    QtTest.QTest.keyClick(button, QtCore.Qt.Key_Space)
    assert not button.isEnabled() and not button.hasFocus()
    panel.ui.setupSection.collapsed = False
    other = panel.ui.checkButton._native
    if moved:
        other.setFocus()
    assert panel.wait() and button.isEnabled()
    assert QtWidgets.QApplication.focusWidget() is (other if moved else button)


def test_run_that_is_being_cancelled_is_told_so_whatever_changes(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    panel.ui.segmentButton.click()
    press_later(panel)
    panel.ui.resultSelector.setCurrentNode(None)
    assert panel.ui.segmentButton.text == "Cancelling..." and not panel.ui.segmentButton.enabled
    assert "is stopping" in panel.ui.segmentButton.toolTip
    assert panel.wait() and panel.ui.segmentButton.text == "Segment spine"


def test_double_click_starts_once_and_cancels_nothing(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.segmentButton.click()
    panel.ui.segmentButton.click()
    assert panel.wait() and len(panel.results()) == 1 and panel.ui.statusLabel.text.startswith("Done")


@pytest.mark.parametrize("behaviour, stage, code", [
    *(("killed", stage, "ENGINE_KILLED") for stage in STAGES), ("dies", "levels", "ENGINE_DIED"),
    ("memory", "segment", "MEMORY"), ("no file", "write", "RESULT_UNREADABLE")])  # fmt: skip
def test_failure_shows_a_card_and_leaves_scene_and_editor_alone(panel_of, behaviour, stage, code):  # noqa: F811
    add_volume()
    panel = panel_of(behaviour, stage)
    before = counts()
    press_and_wait(panel)
    assert panel.widget._card.code == code and panel.ui.cardFrame.isVisibleTo(panel.top)
    assert panel.ui.cardTitle.text and len(panel.ui.cardText.text) > 40
    assert counts() == before and panel.ui.editor.segmentationNode() is None
    assert panel.ui.segmentButton.enabled
    panel.ui.cardCloseButton.click()
    assert not panel.ui.cardFrame.isVisibleTo(panel.top)


@pytest.mark.parametrize("error, code", [(MemoryError(), "MEMORY"), (ValueError("odd"), "RESULT_UNREADABLE")])
def test_result_that_cannot_come_back_leaves_the_scene_alone(panel_of, monkeypatch, error, code):  # noqa: F811
    add_volume()
    panel = panel_of()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(SceneNodes.SceneNodes, "importResult", fail)
    before = counts()
    press_and_wait(panel)
    assert panel.widget._card.code == code and counts() == before and not panel.logic.running


@pytest.mark.parametrize("replaces", [False, True])
def test_memory_that_ends_at_the_end_of_a_run_changes_nothing(panel_of, monkeypatch, replaces):  # noqa: F811
    """Of a new result a half remained, and what was to be replaced was, although the card says that nothing changed."""
    volume = add_volume()
    panel = panel_of()
    if replaces:
        press_and_wait(panel)
        add_transform(volume)
    before, states = counts(), [Result.state(node) for node in panel.results()]
    made = SceneNodes._makeSegments

    def fail(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:

        def last(*arguments):
            patch.setattr(Result, "_contents", fail)
            return made(*arguments)

        patch.setattr(SceneNodes, "_makeSegments", last)
        press_and_wait(panel)
    assert panel.widget._card.code == "MEMORY" and counts() == before
    assert [Result.state(node) for node in panel.results()] == states
    press_and_wait(panel)
    assert len(panel.results()) == 1 and not Result.isEdited(panel.results()[0])


def test_log_has_the_last_words(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of("dies", "segment")
    press_and_wait(panel)
    assert "ValueError: the last words" in panel.ui.logEdit.plainText
    panel.ui.cardActionButton.click()
    assert panel.ui.logSection.collapsed is False and panel.ui.cardFrame.isVisibleTo(panel.top)


def test_volume_removed_while_the_engine_works(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of("wait", "levels")
    panel.ui.segmentButton.click()
    assert process_events(lambda: panel.widget._share >= done("levels", 0))
    slicer.mrmlScene.RemoveNode(volume)
    panel.logic._onEvent({"event": "result", **truth().summary()})
    assert panel.widget._card.code == "VOLUME_GONE" and panel.results() == []


def test_geometry_changed_while_the_engine_works(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of("", "")
    panel.ui.segmentButton.click()
    volume.SetOrigin(50, 0, 0)
    assert panel.wait() and panel.widget._card.code == "RESULT_GEOMETRY" and panel.results() == []


def test_voxels_changed_while_the_engine_works(panel_of):  # noqa: F811
    """As by a filter whose output is its input; other frames of a sequence have other voxels, too."""
    volume = add_volume()
    panel = panel_of()
    panel.ui.segmentButton.click()
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume)[:, ::-1].copy())
    assert panel.wait() and panel.widget._card.code == "RESULT_GEOMETRY" and panel.results() == []
    assert panel.widget._card.cause == "The volume's voxels were changed during segmentation."


def test_scene_closed_while_the_engine_works(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of("wait", "segment")
    panel.ui.segmentButton.click()
    assert process_events(lambda: panel.widget._share >= done("segment", 0))
    panel.widget.sceneStartClose()
    slicer.mrmlScene.Clear()
    panel.widget.sceneEndClose()
    assert panel.wait() and panel.results() == []
    assert not panel.ui.segmentButton.enabled and panel.ui.segmentButton.text == "Segment spine"


# -- cards -----------------------------------------------------------------------------------------------------------


def engine_codes():
    from SAUNetLib import errors

    kinds = [errors.SAUNetError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return sorted({code for kind in kinds for code in kind.codes})


def test_every_engine_code_has_a_card():
    assert set(engine_codes()) <= Cards.codes()


@pytest.mark.parametrize("code", sorted(Cards.codes()))
def test_card_is_complete_and_its_button_exists(code):
    card = Cards.cardOf({"code": code})
    assert card.title and card.cause.endswith(".") and card.remedy.endswith(".")
    assert card.action == "" or Cards.actions()[card.action]
    assert "--" not in card.title + card.cause + card.remedy  # no command line's words


def test_failure_of_another_volume_s_run_shows_no_card(panel_of):  # noqa: F811
    """Its button would start the engine on, or harden, the volume that was chosen meanwhile."""
    first, _second = add_volume(name="one"), add_volume(name="two")
    panel = panel_of("wait", "load")
    panel.ui.inputSelector.setCurrentNode(first)
    panel.ui.segmentButton.click()
    panel.widget.exit()
    slicer.mrmlScene.RemoveNode(first)
    panel.widget.enter()
    panel.logic._fail(Cards.cardOf({"code": "MEMORY"}))
    assert panel.widget._card is None and "another volume failed: Not enough memory" in panel.ui.statusLabel.text
    panel.engine.close()


def test_every_button_of_a_card_does_something(panel_of):  # noqa: F811
    panel = panel_of()
    remedies = panel.widget._remedies()
    assert remedies.keys() == Cards.actions().keys() and all(map(callable, remedies.values()))
    assert {Cards.cardOf({"code": code}).action for code in Cards.codes()} - {""} <= remedies.keys()


def test_damaged_pytorch_leads_to_the_module_that_removes_it(panel_of, monkeypatch):  # noqa: F811
    panel, shown = panel_of(), []
    monkeypatch.setattr(slicer.util, "selectModule", shown.append)
    panel.widget.showCard(Cards.cardOf({"code": "PYTORCH_BROKEN"}))
    panel.ui.cardActionButton.click()
    assert shown == ["PyTorchUtils"] and panel.widget._card is None


@pytest.mark.parametrize("code, pressed", [
    ("ENGINE_START", lambda panel: not panel.ui.setupSection.collapsed and panel.ui.setupBrowser.plainText),
    ("MODEL_DAMAGED", lambda panel: panel.widget._parameters.model == "" and panel.logic.running),
    ("ENGINE_KILLED", lambda panel: panel.logic.running),
])  # fmt: skip
def test_button_of_a_card_closes_it_and_applies_the_remedy(panel_of, code, pressed):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.widget._parameters.model = "another"
    panel.widget.showCard(Cards.cardOf({"code": code}))
    panel.ui.cardActionButton.click()
    assert panel.widget._card is None and not panel.ui.cardFrame.isVisibleTo(panel.top) and pressed(panel)
    assert panel.wait()


def test_button_choose_a_volume_opens_the_list_and_the_card_stays_until_it_helped(panel_of, monkeypatch):  # noqa: F811
    _first, second = add_volume(name="first"), add_volume(name="second")
    panel, opened = panel_of(), []
    monkeypatch.setattr(ctkComboBox, "showPopup", lambda box: opened.append(box))
    panel.widget.showCard(Cards.cardOf({"code": "INPUT_EMPTY"}))
    panel.ui.cardActionButton.click()
    assert opened == [panel.ui.inputSelector._native._box] and panel.widget._card.code == "INPUT_EMPTY"
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel.widget._card is None


@pytest.mark.parametrize("code", ["ENGINE_START", "ENGINE_DIED"])
def test_section_that_a_card_s_button_opens_is_scrolled_to(panel_of, code):  # noqa: F811
    panel, area = panel_of(), sys.modules["qt"].QScrollArea()
    area.widgetResizable = True
    area.setWidget(panel.top)
    area.resize(370, 150)
    area.show()
    shown = panel.ui.setupBrowser if code == "ENGINE_START" else panel.ui.logEdit

    def seen():
        return not shown._native.visibleRegion().isEmpty()

    panel.widget.showCard(Cards.cardOf({"code": code}))
    slicer.app.processEvents()
    assert not seen()
    panel.ui.cardActionButton.click()
    assert process_events(seen, 5)
    area.takeWidget()


@pytest.mark.parametrize("text, shown", [
    ("volume.nrrd has voxels of 9 mm.", "The volume has voxels of 9 mm."),
    ("every voxel of volume.nrrd has the same value.", "Every voxel of the volume has the same value."),
])  # fmt: skip
def test_card_does_not_name_the_private_file(text, shown):
    assert Cards.cardOf({"code": "INPUT_SPACING", "cause": text}).cause == shown


def test_words_of_another_language_are_put_into_an_english_text_for_controls_only(monkeypatch):
    monkeypatch.setattr(Cards, "_", lambda text: f"<{text}>")
    assert Cards.inPanelWords("volume.nrrd is an axial stack: use --series.") == (
        "the volume is an axial stack: use <Volume>."
    )


def test_advice_for_a_label_map_is_another_than_for_colours():
    event = {"code": "INPUT_PIXEL_TYPE", "cause": "x", "remedy": "Give the image on which it was drawn."}
    assert Cards.cardOf(event).remedy == event["remedy"]
    assert Cards.cardOf(event | {"code": "INPUT_SPACING"}).remedy.startswith("Correct the spacing")


@pytest.mark.parametrize("error, raised", [(MemoryError, None), (RuntimeError, RuntimeError)])
def test_volume_that_cannot_be_written_leaves_nothing_behind(panel_of, monkeypatch, error, raised):  # noqa: F811
    add_volume()
    panel = panel_of()

    def write(nodes, node, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(SceneNodes.SceneNodes, "writeVolume", write)
    if raised:
        with pytest.raises(raised):
            panel.widget.onSegmentClicked()
    else:
        panel.widget.onSegmentClicked()
        assert panel.widget._card.code == "MEMORY"
    assert not panel.logic.running and not any(Path(tempfile.gettempdir()).iterdir())
    assert panel.ui.segmentButton.text == "Segment spine" and panel.ui.segmentButton.enabled
    panel.widget._showProgress()
    assert not panel.widget._clock.active


def test_a_volume_in_which_nothing_is_found_is_said_with_what_to_try(panel_of):  # noqa: F811
    add_volume()
    empty = truth()
    panel = panel_of(result=dataclasses.replace(empty, labels=np.zeros_like(empty.labels), partial=frozenset()))
    press_and_wait(panel)
    assert panel.ui.statusLabel.text.startswith("Nothing was found") and "sagittal" in panel.ui.statusLabel.text


@pytest.mark.parametrize("removed", ["SAUNetSegmentation", "SAUNetSegmentEditor"])
def test_panel_whose_own_node_somebody_has_removed_goes_on(panel_of, removed):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (node,) = panel.results()
    kind = "vtkMRMLScriptedModuleNode" if removed == "SAUNetSegmentation" else "vtkMRMLSegmentEditorNode"
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetSingletonNode(removed, kind))
    panel.widget.sceneNodesChanged()
    assert process_events(lambda: slicer.mrmlScene.GetSingletonNode(removed, kind) is not None, 5)
    parameters = panel.widget._parameters
    assert parameters.parameterNode.GetScene() is not None and parameters.inputVolume.GetName() == "T2 sag"
    assert panel.ui.editor.mrmlSegmentEditorNode().GetScene() is not None
    assert parameters.result is node is panel.ui.editor.segmentationNode()
    panel.ui.lowestComboBox.currentIndex = 3
    assert parameters.lowest is not Lowest.AUTO and panel.ui.segmentButton.enabled


def test_a_panel_that_is_left_holds_no_node(panel_of):  # noqa: F811
    """One that is removed meanwhile would stay in memory."""
    add_volume()
    panel = panel_of()
    for _ in range(2):  # the second run begins while the first one's result is shown
        press_and_wait(panel)
    views = panel.ui.segmentsTable, panel.ui.show3DButton
    for _ in range(2):
        assert all([view.segmentationNode()] == panel.results() for view in views)
        panel.widget.exit()
        assert all(view.segmentationNode() is None for view in views)
        panel.widget.enter()
    panel.widget.exit()
    slicer.mrmlScene.RemoveNode(panel.results()[0])
    panel.widget.sceneNodesChanged()
    for holder in (panel.widget, panel.logic):
        for name, value in vars(holder).items():
            held = value if isinstance(value, (list, tuple)) else [value]
            assert not any(isinstance(one, slicer.vtkMRMLNode) for one in held), name
    assert panel.widget._observers == []


def test_editor_of_a_panel_that_is_gone_follows_no_node(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    assert panel.ui.editor.mrmlSegmentEditorNode() is not None
    panel.results()[0].GetSegmentation().RemoveSegment("SAUNet_41")  # after which lists begin anew a little later
    panel.widget.cleanup()
    assert panel.ui.editor.mrmlSegmentEditorNode() is None and panel.widget._staleLists is None


def test_a_second_panel_leaves_the_views_alone_and_the_first_one_its_editor(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    view = add_view(volume, label)
    panel_of().widget.cleanup()
    assert panel.ui.editor.segmentationNode() is panel.results()[0] and view.GetLabelVolumeID() == label.GetID()


def test_a_segmentation_from_another_thread_is_refused(panel_of):  # noqa: F811
    panel, volume, raised = panel_of(), add_volume(), []

    def segment():
        try:
            panel.logic.segment(volume)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=segment)
    thread.start()
    assert process_events(lambda: not thread.is_alive(), 5)
    assert "main thread" in raised[0] and not panel.logic.running


def test_names_that_look_like_html_are_shown_as_they_are(panel_of):  # noqa: F811
    from SAUNetPanel.Dialogs import Dialogs

    qt, formats = sys.modules["qt"], []
    assert panel_of().ui.statusLabel.textFormat == qt.Qt.PlainText
    in_dialog(lambda box: (formats.append(box.textFormat()), box.reject()))
    assert Dialogs().replaceEdited("<b>T2</b>") == "cancel" and formats == [qt.Qt.PlainText]


@pytest.mark.parametrize("failure, code", [
    ("cc3d", "NOT_INSTALLED"),
    ("torch", "NOT_INSTALLED"),
    ("torchgen", "PYTORCH_BROKEN"),
    ("torch._C", "PYTORCH_BROKEN"),
    ("sympy", "PYTORCH_BROKEN"),
    (ImportError("libtorch_cpu.so: cannot open shared object file"), "PYTORCH_BROKEN"),
    (OSError(28, "No space left on device"), "INTERNAL"),
    ("SAUNetLib.pages", "INTERNAL"),
    (ValueError("x"), "INTERNAL"),
])  # fmt: skip
def test_missing_and_damaged_packages_in_the_engine_are_no_bugs(failure, code):
    from SAUNetLib.errors import unforeseen

    if isinstance(failure, str):
        failure = ModuleNotFoundError(f"No module named {failure!r}", name=failure)
    event = unforeseen(failure, "").as_dict()
    found = withPackageFault(event)
    assert found["code"] == code and (code == "INTERNAL") == (found is event)
    if code == "NOT_INSTALLED":
        assert found["cause"] == f"The package {failure.name} is missing."


@pytest.mark.parametrize("platform, name", [("linux", "cuda"), ("win32", "cuda"), ("darwin", "mps")])
def test_graphics_card_has_the_platform_s_name(monkeypatch, platform, name):
    monkeypatch.setattr("sys.platform", platform)
    assert deviceName("gpu") == name and deviceName("cpu") == "cpu"


def test_nothing_is_said_beside_a_card(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    assert panel.ui.statusLabel.text == "Ready."
    add_transform(volume, linear=False)
    panel.ui.segmentButton.click()  # refused before the engine is asked
    assert panel.widget._card.code == "TRANSFORM_NONLINEAR" and not panel.ui.statusLabel.isVisibleTo(panel.top)
    panel.ui.lowestComboBox.currentIndex = 1
    assert panel.ui.statusLabel.text == "" and panel.ui.cardFrame.isVisibleTo(panel.top)
    panel.ui.cardCloseButton.click()
    assert panel.ui.statusLabel.text == "Ready." and panel.ui.statusLabel.isVisibleTo(panel.top)


def test_unknown_code_still_makes_a_card():
    card = Cards.cardOf({"code": "NEW", "title": "New", "cause": "something new.", "remedy": "Wait."})
    assert (card.title, card.cause, card.remedy) == ("New", "Something new.", "Wait.")


def test_levels_say_what_they_rest_on_in_the_panel_s_words(panel_of):  # noqa: F811
    from SAUNetLib.notices import Notice

    add_volume()
    notice = Notice("LEVELS_UNCERTAIN", "L3 is the most likely name only. State its level (--lowest) if you know it.")
    about = {"model": "tiny 1", "anchor": "the lowest complete vertebra rests on the sacrum"}
    panel = panel_of(result=truth(provenance=about, warnings=(notice,)))
    press_and_wait(panel)
    lines = panel.ui.warningsLabel.text.split("\n")
    assert lines[0] == "Levels: the lowest complete vertebra rests on the sacrum."
    assert "--" not in lines[1] and "Advanced: Lowest vertebra" in lines[1]


def test_cpu_button_starts_again_on_the_processor(panel_of, tmp_path):  # noqa: F811
    add_volume()
    panel = panel_of(record=str(tmp_path / "record"))
    panel.widget.showCard(Cards.cardOf({"code": "DEVICE"}))
    assert panel.ui.cardActionButton.text == "Use the processor"
    panel.ui.cardActionButton.click()
    assert panel.wait() and len(panel.results()) == 1
    assert json.loads((tmp_path / "record").read_text())["request"]["device"] == "cpu"
    assert panel.ui.deviceComboBox.currentIndex == 2


def test_harden_button_hardens_and_starts(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    add_transform(volume, linear=False)
    panel.ui.segmentButton.click()
    assert panel.widget._card.code == "TRANSFORM_NONLINEAR" and not panel.engine.alive
    panel.ui.cardActionButton.click()
    assert volume.GetParentTransformNode() is None
    assert panel.wait()


def test_card_goes_with_the_volume_that_it_is_about(panel_of):  # noqa: F811
    bent, other = add_volume(name="bent"), add_volume(name="other")
    add_transform(bent, linear=False)
    add_transform(other)
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(bent)
    for leave in (False, True):
        panel.ui.segmentButton.click()
        assert panel.widget._card.code == "TRANSFORM_NONLINEAR"
        if leave:  # and the volume is removed meanwhile
            panel.widget.exit()
            slicer.mrmlScene.RemoveNode(bent)
            panel.widget.enter()
        else:
            panel.ui.inputSelector.setCurrentNode(other)
        assert panel.widget._card is None and panel.ui.statusLabel.text == "Ready."
        panel.ui.cardActionButton.click()
        assert panel.widget._parameters.inputVolume is other and other.GetParentTransformNode() is not None
        if not leave:
            panel.ui.inputSelector.setCurrentNode(bent)


def test_linear_transform_is_carried_over(panel_of):  # noqa: F811
    volume = add_volume()
    transform = add_transform(volume)
    panel = panel_of()
    press_and_wait(panel)
    assert panel.results()[0].GetParentTransformNode() is transform


@pytest.mark.parametrize("line", [
    "/home/jane/x.nrrd", "at ~/data/x.nrrd", "file:///home/jane/x.nrrd", "PATH=/usr/bin:/home/jane/bin",
    "'/tmp/jane doe/x'", "C:\\Users\\Jane Doe\\x.nrrd", "C:\\\\Users\\\\jane\\\\x.nrrd", "c:/Users/jane/x",
    "\\\\server\\jane\\x.nrrd",
    "\\\\\\\\server\\\\jane", "C:\\Users\\H\\OneDrive - Clinic North\\Jane Doe\\x.py",
    "D:\\Patients\\Doe, Jane\\x.nrrd",
    "in c:\\users\\jane mary doe\\lib (2.1)", repr("C:\\Users\\Jane Mary Doe\\Temp\\data-1"),
    "'\\\\server\\MRI (new)\\Jane\\x.nrrd'",
    "D:\\Patients\\Doe Jane.nii.gz", "[/home/jane/x]", "Errno 2: '/home/jane/x.nrrd'"])  # fmt: skip
def test_no_form_of_a_path_is_in_the_report(scene, line):  # noqa: F811
    from SAUNetPanel.Report import reportText

    others = "3 / 4 of 1 GB/s, https://download.pytorch.org/whl"
    text = reportText(None, [f"{others} before {line} after", f"{line} after"], [], {}).split("\n\n")[1]
    for private in ("jane", "Jane", "Doe", "server", "x.nrrd", "data", "North", "lib"):
        assert private not in text
    assert text.startswith(f"{others} before ") and text.count(" after") == 2


def test_nothing_is_left_of_a_name_that_begins_with_another():
    from SAUNetPanel.Report import withoutNames

    assert withoutNames("made from DOE JANE 1960", ["DOE", "DOE JANE 1960"]) == "made from [name]"


def test_report_has_no_name_that_the_scene_had_once(panel_of):  # noqa: F811
    """Renamed or removed since, or of two characters."""
    volume = add_volume(name="SMITH_JOHN")
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    node.SetName("\u674e\u660e")
    panel.widget.addLog("of SMITH_JOHN and \u674e\u660e, a and b")
    slicer.mrmlScene.RemoveNode(volume)
    node.SetName("other")
    panel.widget.onCopyReport()
    text = slicer.app.clipboard().text()
    assert "SMITH" not in text and "\u674e" not in text and "of [name] and [name], a and b" in text


def test_report_has_no_name_that_the_panel_shortened_and_none_of_a_segment(panel_of, tmp_path):  # noqa: F811
    add_volume(name="first")
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    node.GetSegmentation().GetNthSegment(1).SetName("Mustermann, lesion")
    panel.dialogs.path = tmp_path / "x.nii.gz"
    panel.widget._exports.onExportLabelMap()
    panel.widget.onCopyReport()
    text = slicer.app.clipboard().text()
    assert "\n[name] was exported as T12 vertebra" in text and "Mustermann" not in text
    panel.ui.inputSelector.setCurrentNode(add_volume(name="MUSTERMANN_ERIKA_19640812_T2_TSE_sagittal"))
    panel.ui.resultSelector.setCurrentNode(node)
    panel.ui.segmentButton.click()
    paint(node)  # it stays the one that is shown
    assert panel.wait() and "It is MUSTERMANN_ERIKA" in panel.ui.statusLabel.text
    panel.widget.onCopyReport()
    text = slicer.app.clipboard().text()
    assert "It is [name] under Result." in text and "MUSTERMANN" not in text


def test_report_has_no_path_and_no_patient(panel_of):  # noqa: F811
    add_volume(name="DOE^JANE")
    panel = panel_of("dies", "segment")
    press_and_wait(panel)
    panel.widget.addLog(
        'File "/home/jane/My Documents/x.py", line 3: DOE^JANE, C:\\Users\\jane\\volume.nrrd and \\\\server\\x'
    )
    panel.ui.cardCopyButton.click()
    text = slicer.app.clipboard().text()
    assert "ENGINE_DIED" in text and "Slicer 5.12" in text and "ValueError: the last words" in text
    for private in ("DOE", "/home", "jane", "Users", "server", "x.py"):
        assert private not in text


# -- results ---------------------------------------------------------------------------------------------------------


def test_second_run_replaces_what_nobody_edited_and_undo_brings_it_back(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    node.GetSegmentation().RemoveSegment("SAUNet_41")
    node.SetAttribute("SAUNet.fingerprint", Result.fingerprint(node.GetSegmentation()))
    press_and_wait(panel)
    assert panel.results() == [node] and len(segments(node)) == 10 and panel.dialogs.asked == []
    panel.ui.editor.undo()
    assert len(segments(node)) == 9


def test_undo_works_after_another_module_was_open(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (node,) = panel.results()
    panel.ui.editor.saveStateForUndo()  # as an effect does before it changes something
    paint(node)
    panel.widget.exit()
    panel.widget.enter()
    assert Result.isEdited(node)
    panel.ui.editor.undo()
    assert not Result.isEdited(node)


def test_undo_brings_back_what_was_replaced_while_another_result_or_module_was_open(panel_of):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    for volume in (first, second):
        panel.ui.inputSelector.setCurrentNode(volume)
        press_and_wait(panel)
    mine, other = panel.results()
    mine.GetSegmentation().RemoveSegment("SAUNet_41")
    mine.SetAttribute("SAUNet.fingerprint", Result.fingerprint(mine.GetSegmentation()))
    panel.ui.inputSelector.setCurrentNode(first)
    panel.ui.resultSelector.setCurrentNode(other)
    panel.ui.segmentButton.click()
    panel.widget.exit()
    assert panel.wait() and panel.results() == [mine, other] and len(segments(mine)) == 10
    panel.widget.enter()
    assert panel.ui.resultSelector.currentNode() is mine
    panel.ui.editor.undo()
    assert len(segments(mine)) == 9


def add_cine():
    """The browser of a sequence of three frames, and the volume that shows one of them."""
    volume = add_volume(name="cine")
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine sequence")
    for frame in range(3):
        slicer.util.arrayFromVolume(volume)[0, 0, 0] = frame
        sequence.SetDataNodeAtValue(volume, str(frame))
    slicer.mrmlScene.RemoveNode(volume)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    proxy = browser.GetProxyNode(sequence)
    show_frame(browser, 0)
    return browser, proxy


def show_frame(browser, number):
    browser.SetSelectedItemNumber(number)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)


def test_another_frame_of_a_sequence_has_a_result_of_its_own(panel_of):  # noqa: F811
    browser, proxy = add_cine()
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(proxy)
    for frame in (0, 2, 2):
        browser.SetSelectedItemNumber(frame)
        press_and_wait(panel)
    assert [node.GetName() for node in panel.results()] == [
        f"{proxy.GetName()} (frame {frame}) spine" for frame in (1, 3)
    ]


def test_result_of_another_frame_than_the_one_shown_says_so(panel_of):  # noqa: F811
    browser, proxy = add_cine()
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(proxy)
    press_and_wait(panel)
    said = "\u26a0 Made from frame 1; frame 3 is shown."
    assert "Made from" not in panel.ui.warningsLabel.text
    show_frame(browser, 2)
    assert process_events(lambda: said in panel.ui.warningsLabel.text.split("\n"), 5)
    assert panel.ui.resultSelector.currentNode() is panel.results()[0]
    show_frame(browser, 0)
    assert process_events(lambda: "Made from" not in panel.ui.warningsLabel.text, 5)
    show_frame(browser, 2)
    slicer.mrmlScene.RemoveNode(browser)
    panel.widget.sceneNodesChanged()
    said = "\u26a0 Made from frame 1 of a sequence; the volume may show another one."
    assert process_events(lambda: said in panel.ui.warningsLabel.text.split("\n"), 5)
    assert panel.widget._watched == (panel.results()[0], None)


def test_a_result_stays_its_frames_when_others_come_or_go(panel_of):  # noqa: F811
    """It was that of the frame which got its number: a corrected result was offered for replacement, with no note."""
    browser, proxy = add_cine()
    sequence, panel = browser.GetMasterSequenceNode(), panel_of()

    def says(text):
        return process_events(lambda: f"\u26a0 Made from {text}." in panel.ui.warningsLabel.text.split("\n"), 5)

    panel.ui.inputSelector.setCurrentNode(proxy)
    show_frame(browser, 1)
    press_and_wait(panel)
    (node,) = panel.results()
    paint(node)
    sequence.RemoveDataNodeAtValue("0")
    assert says("frame 1; frame 2 is shown")
    press_and_wait(panel)
    assert panel.dialogs.asked == [] and len(panel.results()) == 2 and Result.isEdited(node)
    panel.ui.resultSelector.setCurrentNode(node)
    show_frame(browser, 0)
    assert process_events(lambda: "Made from" not in panel.ui.warningsLabel.text, 5)
    sequence.SetDataNodeAtValue(proxy, "-1")
    assert says("frame 2; frame 1 is shown")
    node.RemoveAttribute(Result.FRAME_VALUE)  # as an earlier version left it
    assert Result.ownFrame(node) == 2
    node.SetAttribute(Result.FRAME_VALUE, "1")
    sequence.RemoveDataNodeAtValue("1")
    assert says("a frame that the sequence no longer has")


def test_frame_that_takes_the_number_of_the_one_that_is_segmented_is_not_taken_for_it(panel_of):  # noqa: F811
    browser, proxy = add_cine()
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(proxy)
    panel.ui.segmentButton.click()
    browser.GetMasterSequenceNode().RemoveDataNodeAtValue("0")
    show_frame(browser, 0)
    assert panel.wait() and panel.widget._card is None, panel.widget._card
    (node,) = panel.results()
    assert not panel.logic.nodes.isResultOf(node, proxy)


@pytest.fixture
def scene_views():
    """Slicer's logic of scene views, with the sequences in which it keeps them."""
    slicer.modules.applicationLogic.SetModuleLogic("Sequences", slicer.modules.sequences.logic())
    logic = slicer.vtkSlicerSceneViewsModuleLogic()
    logic.SetMRMLApplicationLogic(slicer.modules.applicationLogic)
    logic.SetMRMLScene(slicer.mrmlScene)
    yield logic
    logic.SetMRMLScene(None)


def test_a_scene_view_of_a_volume_makes_no_frame_of_it(panel_of, scene_views):  # noqa: F811
    volume, panel = add_volume(), panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    captured = vtk.vtkCollection()
    for one in (volume, node.GetDisplayNode()):
        captured.AddItem(one)
    scene_views.CreateSceneView(captured, "view", "", 0, None)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode").GetSequenceNode(volume) is not None
    panel.ui.opacitySlider.value = 0.4
    press_and_wait(panel)
    assert panel.results() == [node] and panel.logic.nodes.isResultOf(node, volume)
    scene_views.RestoreSceneView(0)
    assert panel.ui.opacitySlider.value == 1 == node.GetDisplayNode().GetOpacity()


def test_frame_under_a_bent_transform_is_to_be_copied_first(panel_of):  # noqa: F811
    _browser, proxy = add_cine()
    bent = add_transform(proxy, linear=False)
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(proxy)
    panel.ui.segmentButton.click()
    assert panel.widget._card.code == "TRANSFORM_FRAME" and not panel.ui.cardActionButton.isVisibleTo(panel.top)
    copy = clone(proxy)
    panel.ui.inputSelector.setCurrentNode(copy)
    press_and_wait(panel)
    assert len(panel.results()) == 1
    copy.SetAndObserveTransformNodeID(bent.GetID())
    panel.ui.segmentButton.click()
    assert panel.widget._card.action == "harden"


@pytest.mark.parametrize("answer, nodes, replaced", [("cancel", 1, False), ("keep", 2, False), ("replace", 1, True)])
def test_edited_result_is_replaced_only_if_the_user_says_so(panel_of, answer, nodes, replaced):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    paint(node)
    panel.dialogs.answer = answer
    panel.ui.segmentButton.click()
    assert panel.wait() and panel.dialogs.asked == [node.GetName()]
    assert len(panel.results()) == nodes and Result.isEdited(node) is not replaced


def test_result_belongs_to_the_frame_that_was_segmented_not_to_the_one_shown_later(panel_of):  # noqa: F811
    browser, proxy = add_cine()
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(proxy)
    panel.logic.progressed.connect(lambda stage, share: show_frame(browser, 2))
    press_and_wait(panel)
    (node,) = panel.results()
    assert node.GetName() == f"{proxy.GetName()} (frame 1) spine"
    assert not panel.logic.nodes.isResultOf(node, proxy)
    browser.SetSelectedItemNumber(0)
    assert panel.logic.nodes.isResultOf(node, proxy)


def test_edited_while_the_engine_works_is_kept(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    panel.ui.segmentButton.click()
    paint(node)
    assert panel.wait() and len(panel.results()) == 2 and Result.isEdited(node)


@pytest.mark.parametrize("change", [lambda node: paint(node, 1), add_transform], ids=["painted", "moved"])
def test_changed_after_it_may_be_replaced_is_kept(panel_of, change):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    paint(node)
    panel.dialogs.answer = "replace"
    panel.ui.segmentButton.click()
    change(node)
    made = Result.state(node)
    assert panel.wait() and len(panel.results()) == 2 and Result.state(node) == made


def test_correcting_another_result_goes_on_when_a_run_ends(panel_of):  # noqa: F811
    """The editor forgets its steps when it is shown another segmentation."""
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    editor = panel.ui.editor
    panel.ui.inputSelector.setCurrentNode(second)
    press_and_wait(panel)
    (before,) = panel.results()
    panel.ui.inputSelector.setCurrentNode(first)
    press_and_wait(panel)
    mine = panel.results()[1]
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel.ui.resultSelector.currentNode() is before
    panel.ui.segmentButton.click()
    panel.ui.resultSelector.setCurrentNode(mine)
    editor.saveStateForUndo()
    paint(mine)
    assert panel.wait() and panel.results() == [before, mine]
    assert editor.segmentationNode() is mine and panel.ui.resultSelector.currentNode() is mine
    assert panel.ui.statusLabel.text.endswith(f"It is {before.GetName()} under Result.")
    editor.undo()
    assert not Result.isEdited(mine)


@pytest.mark.parametrize("case", ["another volume", "keep", "replace"])
def test_correcting_the_result_that_was_shown_goes_on_when_a_run_ends(panel_of, case):  # noqa: F811
    _first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    editor = panel.ui.editor
    press_and_wait(panel)
    (mine,) = panel.results()
    if case == "another volume":
        panel.ui.inputSelector.setCurrentNode(second)
        panel.ui.resultSelector.setCurrentNode(mine)
    panel.ui.previousComboBox.currentIndex = int(case == "keep")
    panel.ui.segmentButton.click()
    assert panel.ui.resultSelector.currentNode() is mine
    editor.saveStateForUndo()
    paint(mine)
    assert panel.wait() and len(panel.results()) == 2
    assert editor.segmentationNode() is mine and panel.ui.resultSelector.currentNode() is mine
    where = f"It is {panel.results()[1].GetName()} under Result."
    assert panel.ui.statusLabel.text.endswith(where) and where in panel.ui.logEdit.plainText
    editor.undo()
    assert not Result.isEdited(mine)


def test_another_volume_does_not_keep_the_result_of_the_one_before(panel_of, tmp_path):  # noqa: F811
    """It was corrected and exported as the other patient's, without a word."""
    first, second = add_volume(), add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (mine,) = panel.results()
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel.ui.resultSelector.currentNode() is None and not panel.ui.exportButton.enabled
    assert panel.ui.editor.segmentationNode() is None
    panel.ui.resultSelector.setCurrentNode(mine)
    assert panel.ui.warningsLabel.text.split("\n")[0] == "\u26a0 Made from T2 sag, not from the volume chosen above."
    assert panel.ui.exportButton.enabled and panel.ui.editor.sourceVolumeNode() is first
    panel.ui.inputSelector.setCurrentNode(first)
    assert panel.ui.resultSelector.currentNode() is mine and "chosen above" not in panel.ui.warningsLabel.text


def test_a_removed_result_does_not_give_its_place_to_another_volume_s(panel_of):  # noqa: F811
    """Qt's selectors go on to the neighbour of what is removed."""
    _first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    press_and_wait(panel)
    panel.ui.inputSelector.setCurrentNode(second)
    press_and_wait(panel)
    theirs, mine = panel.results()
    slicer.mrmlScene.RemoveNode(mine)
    slicer.app.processEvents()
    assert panel.ui.resultSelector.currentNode() is None
    copy = clone(theirs)
    panel.widget.sceneNodesChanged()
    for shown in (copy, theirs):  # by hand, also where the one before goes later
        panel.ui.resultSelector.setCurrentNode(shown)
        slicer.app.processEvents()
    slicer.mrmlScene.RemoveNode(copy)
    slicer.app.processEvents()
    assert panel.ui.resultSelector.currentNode() is theirs


def clone(node):
    """As the module Data clones: without references to other nodes, transforms among them."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    cloned = slicer.modules.subjecthierarchy.logic().CloneSubjectHierarchyItem
    return hierarchy.GetItemDataNode(cloned(hierarchy, hierarchy.GetItemByDataNode(node)))


def test_a_clone_does_not_take_the_place_of_what_is_corrected(panel_of):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    press_and_wait(panel)
    (mine,) = panel.results()
    copy = clone(mine)
    panel.widget.sceneNodesChanged()
    slicer.app.processEvents()
    paint(mine)
    for shown in (mine, copy, mine):
        panel.ui.resultSelector.setCurrentNode(shown)
        panel.ui.inputSelector.setCurrentNode(second)
        panel.ui.inputSelector.setCurrentNode(first)
        assert panel.ui.resultSelector.currentNode() is shown
    slicer.mrmlScene.RemoveNode(mine)
    slicer.app.processEvents()
    assert panel.ui.resultSelector.currentNode() is copy


def test_a_clone_belongs_to_the_volume_of_what_it_is_a_clone_of(panel_of):  # noqa: F811
    """It stayed when another patient's volume was chosen, and was exported as that one's."""
    first, second = add_volume(name="first"), add_volume(name="second")
    add_transform(first)
    panel = panel_of()
    press_and_wait(panel)
    (mine,) = panel.results()
    made = Result.merge(mine)
    panel.widget.exit()
    copy = clone(mine)
    panel.widget.sceneNodesChanged()
    slicer.app.processEvents()
    slicer.mrmlScene.RemoveNode(mine)
    panel.widget.enter()
    panel.ui.resultSelector.setCurrentNode(copy)
    merged = Result.merge(copy)
    assert np.array_equal(merged.labels, made.labels) and merged.parent == made.parent == first.GetTransformNodeID()
    assert not Result.isEdited(copy) and copy.GetNodeReference(copy.GetReferenceImageGeometryReferenceRole()) is first
    paint(copy)
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel.ui.resultSelector.currentNode() is None and not panel.ui.exportButton.enabled
    panel.ui.inputSelector.setCurrentNode(first)
    assert panel.ui.resultSelector.currentNode() is copy


@pytest.mark.parametrize("left", [False, True])
def test_a_name_that_is_given_after_segments_came_went_or_moved_is_kept(panel_of, left):  # noqa: F811
    """Another list of segments wrote the old one over it: the panel's, or its editor's, also where that is not seen."""
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (node,) = panel.results()
    segmentation = node.GetSegmentation()
    lists = [slicer.qMRMLSegmentsTableView() for _ in range(1 + left)]  # the module Segment Editor's, and the editor's
    for table in lists:
        table.setSegmentationNode(node)
    panel.widget.exit()
    if not left:
        panel.widget.enter()
    for table in lists if left else (*lists, panel.ui.segmentsTable):
        segmentation.RemoveSegment(segmentation.GetNthSegmentID(1))
        slicer.app.processEvents()
        table._native._model.type(4, "behind what went")
        assert segmentation.GetNthSegment(4).GetName() == "behind what went"
        segmentation.SetSegmentIndex(segmentation.GetNthSegmentID(5), 1)
        slicer.app.processEvents()
        table._native._model.type(3, "behind what moved")
        assert segmentation.GetNthSegment(3).GetName() == "behind what moved"
        twin = slicer.vtkSegment()
        twin.DeepCopy(segmentation.GetNthSegment(1))
        segmentation.AddSegment(twin, segmentation.GenerateUniqueSegmentID("twin"), segmentation.GetNthSegmentID(2))
        slicer.app.processEvents()
        table._native._model.type(5, "behind what came")
        assert segmentation.GetNthSegment(5).GetName() == "behind what came"
        segmentation.RemoveSegment(segmentation.GetNthSegmentID(0))
        slicer.app.processEvents()
        segmentation.GetNthSegment(4).SetColor(0, 1, 0)
        assert segmentation.GetNthSegment(4).GetColor() == (0, 1, 0)
    for table in lists:
        table.setSegmentationNode(None)


@pytest.mark.parametrize("left", [False, True])
def test_a_segment_that_comes_or_goes_ends_no_effect(panel_of, left):  # noqa: F811
    """Segment editors take a list that begins anew for one in which nothing is selected."""
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (node,) = panel.results()
    if left:
        panel.widget.exit()
    editor = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")  # the module Segment Editor's
    chosen = node.GetSegmentation().GetNthSegmentID(3)
    editor.SetSelectedSegmentID(chosen)
    editor.SetActiveEffectName("Paint")
    ended = []

    def end(*event):
        ended.append(event)
        editor.SetSelectedSegmentID(None)
        editor.SetActiveEffectName("")

    node.AddObserver(slicer.vtkMRMLSegmentationNode.SegmentationChangedEvent, end)
    node.GetSegmentation().AddEmptySegment("own", "Lesion")
    assert not ended, "an effect may be at work"
    slicer.app.processEvents()
    assert len(ended) == 1 and (editor.GetSelectedSegmentID(), editor.GetActiveEffectName()) == (chosen, "Paint")


@pytest.mark.parametrize("replaced", [False, True])
def test_the_editors_list_begins_anew_whatever_it_lists_while_the_panel_is_left(panel_of, replaced):  # noqa: F811
    """A run may hand it a result, or its own may be removed, while another module is open."""
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = replaced
    press_and_wait(panel)
    (node,) = panel.results()
    if replaced:
        panel.ui.segmentButton.click()
    else:
        shown, node = node, clone(node)
    panel.widget.exit()
    assert not replaced or panel.wait()
    if not replaced:
        slicer.mrmlScene.RemoveNode(shown)
        panel.widget.sceneNodesChanged()
    slicer.app.processEvents()
    assert panel.ui.editor.segmentationNode() is node
    lists = [slicer.qMRMLSegmentsTableView() for _ in range(2)]  # the module Segment Editor's, and the editor's
    for table in lists:
        table.setSegmentationNode(node)
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetNthSegmentID(1))
    slicer.app.processEvents()
    lists[0]._native._model.type(4, "new name")
    assert node.GetSegmentation().GetNthSegment(4).GetName() == "new name"
    for table in lists:
        table.setSegmentationNode(None)


def test_a_clone_that_was_moved_and_hardened_stays_where_it_is(panel_of):  # noqa: F811
    transform = add_transform(add_volume())
    panel = panel_of()
    press_and_wait(panel)
    (mine,) = panel.results()
    panel.widget.exit()
    copy = clone(mine)
    copy.SetAndObserveTransformNodeID(transform.GetID())
    copy.HardenTransform()
    before, after = np.zeros(6), np.zeros(6)
    copy.GetRASBounds(before)
    panel.widget.enter()
    slicer.app.processEvents()
    copy.GetRASBounds(after)
    assert copy.GetTransformNodeID() is None and np.allclose(before, after)


def test_a_clone_from_before_the_corrections_does_not_take_their_place(panel_of):  # noqa: F811
    """A new panel, as after a scene was opened, knows not which was shown."""
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    press_and_wait(panel)
    (mine,) = panel.results()
    copy = clone(mine)
    paint(mine)
    panel.widget.sceneNodesChanged()
    slicer.app.processEvents()
    panel.ui.inputSelector.setCurrentNode(second)
    panel.widget._shownFor.clear()
    panel.ui.inputSelector.setCurrentNode(first)
    assert panel.ui.resultSelector.currentNode() is mine and copy in panel.results()


@pytest.mark.parametrize("at_start", [False, True])
def test_without_memory_to_compare_results_the_corrected_one_stays(panel_of, monkeypatch, at_start):  # noqa: F811
    def fail(node):
        raise MemoryError

    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (mine,) = panel.results()
    paint(mine)
    panel.dialogs.answer = "keep"
    if at_start:
        monkeypatch.setattr("SAUNetPanel.Widget.state", fail)
    panel.ui.segmentButton.click()
    monkeypatch.setattr("SAUNetPanel.Widget.state", fail)
    assert panel.wait()
    assert panel.ui.resultSelector.currentNode() is mine and len(panel.results()) == 2
    assert panel.ui.segmentButton.text == "Segment spine"


def rename(node):
    node.GetSegmentation().GetNthSegment(3).SetName("L6 vertebra")


@pytest.mark.parametrize("correct", [paint, rename])
def test_what_is_corrected_in_another_module_during_a_run_stays_the_one_shown(panel_of, correct):  # noqa: F811
    """The new result took its place, and was exported without the corrections."""
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (mine,) = panel.results()
    panel.ui.segmentButton.click()
    panel.widget.exit()
    correct(mine)
    assert panel.wait()
    panel.widget.enter()
    assert panel.ui.resultSelector.currentNode() is mine and Result.isEdited(mine)
    assert panel.ui.statusLabel.text.endswith(f"It is {panel.results()[1].GetName()} under Result.")


def add_loaded(panel, folder):
    """A result from a file, which does not say which image it was made from."""
    write_segmentation(truth(), folder / "r.seg.nrrd")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(folder / "r.seg.nrrd"))
    assert storage.ReadData(node)
    panel.widget.sceneNodesChanged()
    slicer.app.processEvents()
    return node


def test_a_result_of_an_unknown_volume_stays_until_the_chosen_one_has_its_own(panel_of, tmp_path):  # noqa: F811
    """It went when its image was loaded or chosen, also from under the brush."""
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    again = add_loaded(panel, tmp_path)
    panel.ui.resultSelector.setCurrentNode(again)
    panel.ui.editor.setActiveEffectByName("Paint")
    first, second = add_volume(name="first"), add_volume(name="second")
    for volume in (first, second):
        panel.ui.inputSelector.setCurrentNode(volume)
        slicer.app.processEvents()
        assert panel.ui.resultSelector.currentNode() is again is panel.ui.editor.segmentationNode()
        assert panel.ui.editor.activeEffect() is not None
    panel.ui.editor.setActiveEffect(None)
    press_and_wait(panel)
    mine = panel.ui.resultSelector.currentNode()
    assert mine.GetName() == "second spine"
    panel.ui.resultSelector.setCurrentNode(again)
    panel.ui.inputSelector.setCurrentNode(first)
    assert panel.ui.resultSelector.currentNode() is again
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel.ui.resultSelector.currentNode() is mine


def test_a_result_of_an_unknown_volume_stays_when_the_one_before_is_removed(panel_of, tmp_path):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (mine,) = panel.results()
    again = add_loaded(panel, tmp_path)
    panel.ui.resultSelector.setCurrentNode(again)
    slicer.mrmlScene.RemoveNode(mine)  # in the same event, as a script does it
    panel.widget.sceneNodesChanged()
    slicer.app.processEvents()
    assert panel.ui.resultSelector.currentNode() is again


def test_an_effect_that_is_used_stays_when_a_run_ends(panel_of):  # noqa: F811
    _first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (mine,) = panel.results()
    panel.ui.inputSelector.setCurrentNode(second)
    panel.ui.resultSelector.setCurrentNode(mine)
    panel.ui.segmentButton.click()
    panel.ui.editor.setActiveEffectByName("Paint")
    assert panel.wait() and panel.ui.editor.segmentationNode() is mine
    assert panel.ui.editor.activeEffect() is not None


def test_looking_at_a_result_during_a_run_is_not_correcting_it(panel_of):  # noqa: F811
    _first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (mine,) = panel.results()
    paint(mine)
    panel.ui.inputSelector.setCurrentNode(second)
    panel.ui.resultSelector.setCurrentNode(mine)
    panel.ui.segmentButton.click()
    panel.ui.show3DButton.click()
    panel.ui.opacitySlider.value = 0.4
    mine.GetDisplayNode().SetSegmentVisibility(mine.GetSegmentation().GetNthSegmentID(0), False)
    slicer.app.processEvents()
    assert panel.wait() and panel.ui.resultSelector.currentNode() is panel.results()[1]
    assert panel.ui.editor.segmentationNode() is panel.results()[1]


def add_view(background, label):
    """A slice view that shows a volume and a label map."""
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    view.SetBackgroundVolumeID(background.GetID())
    view.SetLabelVolumeID(label.GetID())
    return view


def test_views_stay_as_they_are_while_the_section_correct_is_closed(panel_of):  # noqa: F811
    volume, other = add_volume(), add_volume(name="other")
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    view = add_view(other, label)
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(volume)
    press_and_wait(panel)
    (node,) = panel.results()
    node.GetSegmentation().RemoveSegment("SAUNet_41")
    node.SetAttribute("SAUNet.fingerprint", Result.fingerprint(node.GetSegmentation()))
    press_and_wait(panel)
    panel.widget.exit()
    panel.widget.enter()
    assert panel.results() == [node] and len(segments(node)) == 10
    assert (view.GetBackgroundVolumeID(), view.GetLabelVolumeID()) == (other.GetID(), label.GetID())
    panel.ui.editor.undo()
    assert len(segments(node)) == 9, "the run can be undone even so"


def test_opening_the_section_correct_shows_what_is_corrected(panel_of):  # noqa: F811
    volume, other = add_volume(), add_volume(name="other")
    view = add_view(other, slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode"))
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(volume)
    press_and_wait(panel)
    assert panel.ui.editor.segmentationNode() is None
    panel.ui.editSection.collapsed = False
    assert panel.ui.editor.segmentationNode() is panel.results()[0]
    assert (view.GetBackgroundVolumeID(), view.GetLabelVolumeID()) == (volume.GetID(), None)


@pytest.mark.parametrize("replaces", [False, True])
def test_run_that_ends_while_another_module_is_open_leaves_views_and_editor_alone(panel_of, replaces):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    editor = panel.ui.editor
    for volume in (second, first) if replaces else (first,):
        panel.ui.inputSelector.setCurrentNode(volume)
        press_and_wait(panel)
    mine = panel.results()[-1]
    panel.ui.inputSelector.setCurrentNode(second)
    panel.ui.resultSelector.setCurrentNode(mine)
    panel.ui.segmentButton.click()
    editor.saveStateForUndo()
    paint(mine)
    panel.widget.exit()
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    view = add_view(first, label)
    assert panel.wait() and len(panel.results()) == 2
    assert (view.GetBackgroundVolumeID(), view.GetLabelVolumeID()) == (first.GetID(), label.GetID())
    panel.widget.enter()
    assert panel.ui.resultSelector.currentNode() is mine is editor.segmentationNode()
    editor.undo()
    assert not Result.isEdited(mine)


def test_undo_of_a_run_brings_the_earlier_result_back_to_where_it_was_moved(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    add_transform(node)
    before = Result.merge(node).labels
    assert not np.array_equal(before, truth().labels)
    panel.dialogs.answer = "replace"
    press_and_wait(panel)
    assert panel.results() == [node] and np.array_equal(Result.merge(node).labels, truth().labels)
    panel.ui.editor.undo()
    assert np.array_equal(Result.merge(node).labels, before)
    assert node.GetTransformNodeID() == volume.GetTransformNodeID() and Result.isEdited(node)


def test_keep_adds_a_new_one(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.previousComboBox.currentIndex = 1
    press_and_wait(panel)
    press_and_wait(panel)
    assert len(panel.results()) == 2 and panel.dialogs.asked == []


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)])
def test_list_of_segments_follows_a_run_of_the_other_kind_and_its_undoing(panel_of, tmp_path, first, second):  # noqa: F811
    add_volume()
    whole = truth()
    coarse = dataclasses.replace(
        whole, labels=to_classes(whole.labels), encoding=encodings()["classes"], partial=frozenset()
    )
    panel = panel_of()
    table = panel.ui.segmentsTable._native._model
    kinds = {0: whole, 1: coarse}

    def rows():
        return [(name, color) for name, color, _shown in table.rows()]

    def wanted(kind):
        known = [kinds[kind].known[row["value"]] for row in kinds[kind].summary()["structures"]]
        return [(structure.name, tuple(structure.colour)) for structure in known]

    for kind in (first, second):
        panel.engine._environment["SAUNET_FAKE"] = plan_of(kinds[kind], tmp_path)
        panel.engine.close()
        panel.ui.outputComboBox.currentIndex = kind
        press_and_wait(panel)
        assert panel.widget._card is None and rows() == wanted(kind)
    (node,) = panel.results()
    panel.ui.editor.undo()
    assert rows() == wanted(first)
    codes = {structure.name: structure.code for structure in kinds[first].known.values()}
    assert all(f"SCT^{codes[segment.GetName()]}^" in segment.GetTerminology() for segment in segments(node))


def plan_of(result, folder):
    """What the fake worker is told of a result."""
    write_segmentation(result, folder / "kind.nrrd")
    return json.dumps({"labels": str(folder / "kind.nrrd"), "summary": result.summary(), "behaviour": "", "stage": ""})


def test_notices_are_those_of_the_run_that_undo_brings_back(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    before = panel.ui.warningsLabel.text
    panel.widget._onAboutToReplace(node)
    panel.logic.nodes.importResult(volume, truth().labels, truth(warnings=()).summary(), True, node)
    panel.widget._update()
    assert panel.ui.warningsLabel.text == "" != before
    panel.ui.editor.undo()
    assert process_events(lambda: panel.ui.warningsLabel.text == before, 5)


def test_loaded_segmentation_can_be_chosen_looked_at_and_corrected(panel_of, tmp_path):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    (node,) = panel.results()
    panel.logic.nodes.exportSegmentation(node, tmp_path / "r.seg.nrrd")
    assert panel.ui.editor.sourceVolumeNodeSelectorVisible is False
    again = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
    panel.widget.sceneNodesChanged()  # as Slicer tells of it, before the file is read
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "r.seg.nrrd"))
    assert storage.ReadData(again) and panel.ui.resultSelector.nodeCount() == 1
    assert process_events(lambda: panel.ui.resultSelector.nodeCount() == 2)
    panel.ui.resultSelector.setCurrentNode(again)
    assert panel.ui.segmentsTable.segmentationNode() is again is panel.ui.editor.segmentationNode()
    assert "was named L4" in panel.ui.warningsLabel.text and panel.ui.editSection.enabled
    assert panel.ui.editor.sourceVolumeNodeSelectorVisible is True, "the file does not say which image it was"
    press_and_wait(panel)
    assert panel.dialogs.asked == [] and panel.results() == [node, again], "the volume's own result was replaced"
    assert panel.ui.resultSelector.currentNode() is node and panel.ui.editor.sourceVolumeNodeSelectorVisible is False
    slicer.mrmlScene.RemoveNode(node)
    panel.ui.resultSelector.setCurrentNode(again)
    panel.ui.inputSelector.setCurrentNode(None)
    panel.widget.onCardAction()
    panel.widget._start()
    assert panel.widget._card.code == "NO_VOLUME" and panel.dialogs.asked == []


def test_choosing_a_volume_shows_the_result_it_has(panel_of):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    for volume in (first, second):
        panel.ui.inputSelector.setCurrentNode(volume)
        press_and_wait(panel)
    assert panel.ui.resultSelector.currentNode().GetName() == "second spine"
    panel.ui.inputSelector.setCurrentNode(first)
    assert panel.ui.resultSelector.currentNode().GetName() == "first spine"
    panel.ui.resultSelector.setCurrentNode(panel.results()[1])
    assert panel.ui.resultSelector.currentNode().GetName() == "second spine"
    assert panel.ui.inputSelector.currentNode() is first


def test_show_3d_opacity_and_visibility(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    panel.ui.show3DButton.click()
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    panel.ui.opacitySlider.value = 0.4
    assert node.GetDisplayNode().GetOpacity() == pytest.approx(0.4)
    node.GetDisplayNode().SetOpacity(0.333)  # as a scene view does, and the end of some effects
    assert panel.ui.opacitySlider.value == pytest.approx(0.33) and node.GetDisplayNode().GetOpacity() == 0.333


@pytest.fixture
def place():
    """Function: where the slice view Red is."""
    view = slicer.vtkMRMLSliceNode()
    view.SetLayoutName("Red")
    view = slicer.mrmlScene.AddNode(view)
    yield lambda: [view.GetSliceToRAS().GetElement(axis, 3) for axis in range(3)]
    slicer.mrmlScene.RemoveNode(view)  # a singleton, which stays when a scene is closed


def click_cell(panel, row, column):
    from PySide6 import QtCore, QtTest

    table = panel.ui.segmentsTable._native._table
    cell = table.visualRect(table.model().index(row, column)).center()
    QtTest.QTest.mouseClick(table.viewport(), QtCore.Qt.MouseButton.LeftButton, pos=cell)


def test_click_on_a_name_moves_the_slice_views_to_its_structure(panel_of, place):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    panel.top._native.show()
    (node,) = panel.results()
    for row in (1, 4):
        click_cell(panel, row, NAME)
        centre = node.GetSegmentCenterRAS(node.GetSegmentation().GetNthSegmentID(row))
        assert np.allclose(place(), centre)
        click_cell(panel, row + 1, VISIBLE)
        assert np.allclose(place(), centre), "the eye moves no view"


@pytest.mark.parametrize("keep", [False, True])
def test_slice_views_stay_where_the_list_of_segments_begins_anew(panel_of, place, keep):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    for volume in (first, second):
        panel.widget._parameters.inputVolume = volume
        press_and_wait(panel)
    panel.top._native.show()
    panel.ui.previousComboBox.currentIndex = int(keep)

    def leave_and_return():
        panel.widget.exit()
        panel.widget.enter()

    for change in (
        lambda: press_and_wait(panel),
        lambda: panel.ui.inputSelector.setCurrentNode(first),
        leave_and_return,
        lambda: slicer.mrmlScene.RemoveNode(panel.widget._parameters.result),
    ):
        click_cell(panel, 3, NAME)
        slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceNode").JumpSliceByCentering(50, 50, 50)
        change()
        slicer.app.processEvents()
        assert place() == [50, 50, 50]
    assert len(panel.results()) == 1 + keep


def test_exports_from_the_menu(panel_of, tmp_path):  # noqa: F811
    from SAUNetLib.formats.segmentations import read_segmentation

    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    actions = {action.text: action for action in panel.widget._exports.menu.actions()}
    panel.dialogs.path = tmp_path / "l.nii.gz"
    actions["Label map file..."].trigger()
    assert np.array_equal(read_segmentation(tmp_path / "l.nii.gz").labels, truth().labels)
    panel.dialogs.path = tmp_path / "l.seg.nrrd"
    actions["Segmentation file (.seg.nrrd)..."].trigger()
    assert np.array_equal(read_segmentation(tmp_path / "l.seg.nrrd").labels, truth().labels)
    panel.dialogs.path = tmp_path
    actions["STL file per segment..."].trigger()
    assert len(list(tmp_path.glob("*.stl"))) == 10 and "10 STL" in panel.ui.statusLabel.text
    actions["Label map node"].trigger()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == 1
    panel.dialogs.path = tmp_path / "nowhere" / "l.nrrd"
    actions["Label map file..."].trigger()
    assert panel.widget._card.code == "EXPORT_FAILED"


def test_what_an_export_leaves_out_is_said(panel_of, tmp_path):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    segments(node)[-1].SetName("L5 corrected")
    actions = {action.text: action for action in panel.widget._exports.menu.actions()}
    for name, action in (("l.nrrd", "Label map file..."), ("l.seg.nrrd", "Segmentation file (.seg.nrrd)...")):
        panel.dialogs.path = tmp_path / name
        actions[action].trigger()
        first, second = panel.ui.statusLabel.text.split("\n")
        assert first == f"Exported: {name}" and second.startswith("L5 corrected was exported as L4 vertebra, although")
    actions["Label map node"].trigger()
    assert "L5 corrected was exported as" in panel.ui.statusLabel.text
    for segment in segments(node):
        segment.RemoveRepresentation(Result.LABELMAP)
    node.GetSegmentation().RemoveAllSegments()
    panel.dialogs.path = tmp_path
    actions["STL file per segment..."].trigger()
    assert panel.widget._card.code == "EXPORT_EMPTY" and list(tmp_path.glob("*.stl")) == []


def test_card_of_an_export_that_failed_goes_with_the_next_one(panel_of, tmp_path):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    actions = {action.text: action for action in panel.widget._exports.menu.actions()}
    panel.dialogs.path = tmp_path / "l.png"
    actions["Label map file..."].trigger()
    assert panel.widget._card.code == "OUTPUT_FORMAT"
    panel.dialogs.path = tmp_path / "l.nrrd"
    actions["Label map file..."].trigger()
    assert panel.ui.statusLabel.text == "Exported: l.nrrd" and not panel.ui.cardFrame.isVisibleTo(panel.top)


@pytest.mark.parametrize("action", ["Label map file...", "Label map node"])
def test_an_export_merges_once_and_is_told_even_where_memory_is_short(panel_of, tmp_path, monkeypatch, action):  # noqa: F811
    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    merged, merge = [], Result.merge
    for module in (Result, SceneNodes):
        monkeypatch.setattr(module, "merge", lambda node: merged.append(node) or merge(node))
    actions = {action.text: action for action in panel.widget._exports.menu.actions()}
    panel.dialogs.path = tmp_path / "l.nrrd"
    actions[action].trigger()
    assert panel.ui.statusLabel.text.startswith("Exported: ") and merged == panel.results()

    def full(node):
        raise MemoryError

    monkeypatch.setattr(Result, "_lost", full)
    actions[action].trigger()
    done, note = panel.ui.statusLabel.text.split("\n")
    assert done.startswith("Exported: ") and note.startswith("There is not enough memory")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.nrrd")}
    nodes = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode")
    monkeypatch.setattr(SceneNodes, "merge", full)
    actions[action].trigger()
    card = panel.widget._card
    assert card.title == "Not enough memory" and card.action == "" and "crop" not in card.remedy
    assert not panel.ui.cardActionButton.isVisibleTo(panel.top)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.nrrd")} == before
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == nodes


def test_cursor_waits_while_an_export_works_and_no_longer(panel_of, tmp_path, monkeypatch):  # noqa: F811
    from PySide6 import QtCore

    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    seen = []

    def look(name, result):
        cursor = QtWidgets.QApplication.overrideCursor()
        seen.append((name, cursor is not None and cursor.shape() == QtCore.Qt.WaitCursor))
        return result

    actions = {action.text: action for action in panel.widget._exports.menu.actions()}
    merge, write = Result.merge, SceneNodes._writeSurface
    monkeypatch.setattr(SceneNodes, "merge", lambda node: look("merge", merge(node)))
    monkeypatch.setattr(Result, "_lost", lambda node: look("notes", 0.0))
    monkeypatch.setattr(SceneNodes, "_writeSurface", lambda *arguments: look("surface", write(*arguments)))
    panel.dialogs.replaceFiles = lambda names: look("asked", True)
    panel.dialogs.path = tmp_path / "l.nrrd"
    actions["Label map file..."].trigger()
    look("done", None)
    assert seen == [("merge", True), ("notes", True), ("done", False)]
    panel.dialogs.path = tmp_path
    actions["STL file per segment..."].trigger()
    actions["STL file per segment..."].trigger()
    assert set(seen[3:]) == {("surface", True), ("asked", False)}
    panel.dialogs.path = tmp_path / "l.png"
    actions["Label map file..."].trigger()
    look("failed", None)
    assert panel.widget._card.code == "OUTPUT_FORMAT" and seen[-2:] == [("merge", True), ("failed", False)]


def test_export_writes_the_result_for_which_it_was_asked(panel_of, tmp_path):  # noqa: F811
    from SAUNetLib.formats.segmentations import read_segmentation

    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(first)
    press_and_wait(panel)
    (node,) = panel.results()
    node.GetSegmentation().RemoveSegment("SAUNet_41")
    actions = {action.text: action for action in panel.widget._exports.menu.actions()}

    def answer(*arguments):
        """The window stands open until a run has ended."""
        assert panel.wait() and panel.ui.resultSelector.currentNode() is not node
        return tmp_path / "l.nrrd" if len(arguments) == 3 else tmp_path

    panel.dialogs.saveFile = panel.dialogs.chooseFolder = answer
    panel.ui.inputSelector.setCurrentNode(second)
    for action in ("Label map file...", "STL file per segment..."):
        panel.ui.resultSelector.setCurrentNode(node)
        panel.ui.segmentButton.click()
        actions[action].trigger()
    assert 41 not in read_segmentation(tmp_path / "l.nrrd").labels
    assert {path.name[:5] for path in tmp_path.glob("*.stl")} == {"first"}


# -- parameters, module ----------------------------------------------------------------------------------------------


def save_and_close_scene(panel):
    """The scene as text."""
    slicer.mrmlScene.SetSaveToXMLString(1)
    slicer.mrmlScene.Commit()
    text = slicer.mrmlScene.GetSceneXMLString()
    panel.widget.sceneStartClose()
    slicer.mrmlScene.Clear()
    panel.widget.sceneEndClose()
    return text


def load_scene(text):
    slicer.mrmlScene.SetLoadFromXMLString(1)
    slicer.mrmlScene.SetSceneXMLString(text)
    slicer.mrmlScene.Import()


def test_choices_are_saved_with_the_scene(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.deviceComboBox.currentIndex = 2
    text = save_and_close_scene(panel)
    assert panel.ui.deviceComboBox.currentIndex == 0
    panel.widget.sceneStartClose()
    load_scene(text)
    panel.widget.enter()
    assert panel.ui.deviceComboBox.currentIndex == 2


def test_a_volume_that_a_script_chooses_meanwhile_begins_with_automatic(panel_of):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(first)
    panel.widget._parameters.lowest = Lowest.L4
    panel.widget.exit()
    panel.widget.enter()
    assert panel.widget._parameters.lowest is Lowest.L4
    panel.widget.exit()
    panel.logic.getParameterNode().inputVolume = second
    panel.widget.enter()
    assert panel.widget._parameters.lowest is Lowest.AUTO and panel.widget._parameters.inputVolume is second


def test_a_scene_of_a_later_version_is_shown_with_the_choices_that_are_known(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.previousComboBox.currentIndex = 1
    panel.widget.exit()
    node = panel.logic.getParameterNode().parameterNode
    node.SetParameter("device", "NPU")
    panel.widget.enter()
    assert panel.widget._parameters.device.value == "auto" and panel.widget._parameters.previous.value == "keep"
    press_and_wait(panel)
    assert len(panel.results()) == 1


def test_scene_that_is_loaded_while_the_panel_is_shown(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    panel.ui.outputComboBox.currentIndex = 1
    text = save_and_close_scene(panel)
    assert panel.ui.resultSelector.currentNode() is None and panel.ui.outputComboBox.currentIndex == 0
    load_scene(text)
    panel.widget.sceneEndImport()
    assert panel.ui.outputComboBox.currentIndex == 1 and panel.ui.inputSelector.currentNode().GetName() == "T2 sag"
    assert panel.ui.segmentsTable.segmentationNode() is panel.results()[0] is panel.ui.editor.segmentationNode()


def test_a_loaded_scene_s_volume_keeps_the_lowest_vertebra_that_was_stated(panel_of):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(first)
    panel.widget.sceneStartImport()
    loaded = panel.logic.getParameterNode()
    loaded.inputVolume, loaded.lowest = second, Lowest.L4
    panel.widget.sceneEndImport()
    assert panel.widget._parameters.inputVolume is second and panel.widget._parameters.lowest is Lowest.L4


def test_checking_the_computer_leaves_the_model_that_is_chosen(panel_of, tmp_path):  # noqa: F811
    from SAUNetPanel.Dependencies import Dependencies

    class Several(Dependencies):
        def models(self):
            return ["saunet-lumbar", "clinic-cervical"]

        def missing(self):
            return []

    add_volume()
    panel = panel_of(dependencies=Several(), record=str(tmp_path / "record"))
    panel.ui.modelComboBox.currentIndex = 1
    panel.ui.checkButton.click()
    assert panel.ui.modelComboBox.currentText == "clinic-cervical" and panel.ui.modelComboBox.count == 2
    press_and_wait(panel)
    assert json.loads((tmp_path / "record").read_text())["request"]["model"] == "clinic-cervical"
    panel.ui.modelComboBox.currentIndex = 0
    panel.ui.checkButton.click()
    assert panel.ui.modelComboBox.currentIndex == 0 and panel.widget._parameters.model == ""


def test_leaving_and_entering_the_module(panel_of, monkeypatch):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    deaf = []
    monkeypatch.setattr(qMRMLSegmentEditorWidget, "removeViewObservations", lambda editor: deaf.append(editor))
    panel.widget.exit()
    assert not panel.ui.editor._native._shortcuts and len(deaf) == 1, "nor do clicks in the views reach the editor"
    panel.ui.deviceComboBox.currentIndex = 2  # nobody listens any more
    panel.widget.enter()
    assert panel.ui.editor._native._shortcuts and panel.ui.deviceComboBox.currentIndex == 0
    assert panel.ui.editor.segmentationNode() is panel.results()[0]


def test_keys_are_the_editor_s_only_while_it_is_open_and_has_a_result(panel_of):  # noqa: F811
    """In Slicer 5.10 a key that starts an effect without a segmentation ends Slicer."""
    add_volume()
    panel = panel_of()
    panel.widget.enter()
    editor, section = panel.ui.editor, panel.ui.editSection
    assert not editor._native._shortcuts, "there is no result"
    section.collapsed = False
    assert not editor._native._shortcuts
    press_and_wait(panel)
    assert editor._native._shortcuts
    editor.setActiveEffectByName("Paint")
    assert editor.activeEffect() is not None
    section.collapsed = True
    assert not editor._native._shortcuts and editor.activeEffect() is None, "nothing is painted unseen"
    section.collapsed = False
    assert editor._native._shortcuts
    panel.ui.resultSelector.setCurrentNode(None)
    assert not editor._native._shortcuts
    panel.ui.resultSelector.setCurrentNode(panel.results()[0])
    assert editor._native._shortcuts
    panel.widget.cleanup()
    assert not editor._native._shortcuts, "nor after the module was reloaded"


def in_window(panel):
    """The panel in a window of its own, which has the focus; it lives as long as the panel."""
    window = panel.window = QtWidgets.QMainWindow()
    window.setCentralWidget(panel.top._native)
    window.show()
    window.activateWindow()
    assert process_events(window.isActiveWindow)
    return window


def test_tab_reaches_what_lies_below_the_list_of_segments(panel_of):  # noqa: F811
    from PySide6 import QtCore, QtTest

    add_volume()
    panel = panel_of()
    press_and_wait(panel)
    window = in_window(panel)
    panel.ui.inputSelector._native._box.setFocus()
    reached = []
    for _ in range(12):
        QtTest.QTest.keyClick(window.windowHandle(), QtCore.Qt.Key.Key_Tab)
        reached.append(QtWidgets.QApplication.focusWidget())
    wanted = panel.ui.segmentsTable._native._table, panel.ui.exportButton._native, panel.ui.editSection._native
    assert [reached.count(one) for one in wanted] == [1, 1, 1]


def test_space_presses_the_button_that_has_the_focus_and_else_is_the_editor_s(panel_of, monkeypatch):  # noqa: F811
    from PySide6 import QtCore, QtTest

    add_volume()
    panel = panel_of()
    button, editor, section = (
        one._native for one in (panel.ui.segmentButton, panel.ui.editor, panel.ui.advancedSection)
    )
    window = in_window(panel)
    press_and_wait(panel)
    panel.ui.editSection.collapsed = False
    started = []
    monkeypatch.setattr(panel.widget, "_start", lambda: started.append(1))

    def space():
        QtTest.QTest.keyClick(window.windowHandle(), QtCore.Qt.Key.Key_Space)
        slicer.app.processEvents()

    panel.ui.inputSelector._native._box.setFocus()
    QtTest.QTest.keyClick(window.windowHandle(), QtCore.Qt.Key.Key_Tab)
    assert button.hasFocus()
    space()
    assert started == [1] and editor.spaces == 0
    section.setFocus(QtCore.Qt.FocusReason.TabFocusReason)
    space()
    assert not panel.ui.advancedSection.collapsed and editor.spaces == 0
    effect = next(one for one in editor.findChildren(QtWidgets.QPushButton) if one.text() == "Paint")
    effect.setFocus()
    space()
    assert editor.spaces == 1
    effect.clearFocus()
    for clicked in (button, effect):
        QtTest.QTest.mouseClick(clicked, QtCore.Qt.MouseButton.LeftButton)
    assert len(started) == 2
    space()
    assert len(started) == 2 and editor.spaces == 2
    panel.widget._focus.close()
    section.setFocus(QtCore.Qt.FocusReason.TabFocusReason)
    space()
    assert editor.spaces == 3, "nothing of a panel that is gone stands before other shortcuts"


def test_focus_of_what_is_hidden_or_disabled_goes_to_no_button(panel_of):  # noqa: F811
    """Space is then still the editor's."""
    from PySide6 import QtCore, QtTest

    add_volume()
    panel = panel_of()
    editor, window = panel.ui.editor._native, in_window(panel)

    def click_header(section):
        QtTest.QTest.mouseClick(section._native, QtCore.Qt.MouseButton.LeftButton, pos=QtCore.QPoint(40, 10))

    def space():
        QtTest.QTest.keyClick(window.windowHandle(), QtCore.Qt.Key.Key_Space)
        slicer.app.processEvents()

    panel.ui.advancedSection.collapsed = False
    panel.ui.outputComboBox.setFocus()
    press_and_wait(panel)
    click_header(panel.ui.editSection)
    space()
    assert editor.spaces == 1 and panel.ui.setupSection.collapsed and panel.ui.outputComboBox.enabled
    click_cell(panel, 3, NAME)
    click_header(panel.ui.resultSection)
    space()
    assert editor.spaces == 2 and not panel.ui.editSection.collapsed
    panel.ui.logSection.setFocus()
    for collapsed in (False, True):
        space()
        assert panel.ui.logSection.collapsed is collapsed and panel.ui.logSection.hasFocus()


@pytest.mark.parametrize("name, parameter", [("installButton", None), ("theirs", "threshold")])
def test_what_an_effect_of_another_extension_has_is_not_the_panel_s(panel_of, monkeypatch, name, parameter):  # noqa: F811
    theirs, make = [], qMRMLSegmentEditorWidget.__init__

    def with_effect(editor, parent=None):
        make(editor, parent)
        theirs.append(QtWidgets.QPushButton("theirs", editor))
        theirs[0].setObjectName(name)
        theirs[0].setProperty("SlicerParameterName", parameter)

    monkeypatch.setattr(qMRMLSegmentEditorWidget, "__init__", with_effect)
    add_volume()
    panel = panel_of()
    assert panel.ui.installButton.text == "Install"
    panel.widget.exit()
    shiboken6.delete(theirs[0])
    panel.widget.enter()
    assert panel.ui.statusLabel.text == "Ready."


def test_effect_of_another_extension_comes_late(panel_of):  # noqa: F811
    panel = panel_of()
    factory = slicer.qSlicerSegmentEditorEffectFactory.instance()
    factory.effectRegistered.emit("Local Threshold")
    assert panel.ui.editor._native.listed == 1
    panel.widget.cleanup()
    factory.effectRegistered.emit("Fast Marching")
    assert panel.ui.editor._native.listed == 1


@pytest.mark.parametrize("entered", [True, False])
def test_scene_saved_in_the_middle_of_painting_paints_nothing_unseen(panel_of, tmp_path, entered):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.editSection.collapsed = False
    press_and_wait(panel)
    node = panel.ui.editor.mrmlSegmentEditorNode()
    assert not node.GetSaveWithScene()
    if not entered:
        panel.widget.exit()
    panel.ui.editor.setActiveEffectByName("Paint")  # as a scene of an earlier version brings it along
    panel.widget.sceneEndImport()
    assert panel.ui.editor.activeEffect() is None


def test_lowest_vertebra_is_stated_of_one_volume_only(panel_of):  # noqa: F811
    first, second = add_volume(name="one"), add_volume(name="two")
    panel = panel_of()
    panel.ui.inputSelector.setCurrentNode(first)
    panel.ui.lowestComboBox.currentIndex = 3
    assert panel.widget._options()["lowest"] == "L4"
    panel.ui.outputComboBox.currentIndex = 1
    assert panel.widget._options()["lowest"] is None, "three classes have no levels"
    panel.ui.outputComboBox.currentIndex = 0
    assert panel.widget._options()["lowest"] == "L4"
    panel.ui.outputComboBox.currentIndex = 1
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel.widget._options()["lowest"] is None and panel.ui.lowestComboBox.currentIndex == 0
    assert panel.widget._options()["levels"] is False, "the other choices stay"
    panel.ui.lowestComboBox.currentIndex = 3
    panel.widget.exit()
    slicer.mrmlScene.RemoveNode(second)
    panel.widget.enter()
    assert panel.widget._parameters.inputVolume is first and panel.widget._options()["lowest"] is None


def test_lowest_vertebra_may_be_stated_before_there_is_a_volume(panel_of):  # noqa: F811
    panel = panel_of()
    panel.ui.lowestComboBox.currentIndex = 3
    panel.ui.inputSelector.setCurrentNode(add_volume())
    assert panel.widget._options()["lowest"] == "L4"


# -- loading the network in advance ----------------------------------------------------------------------------------


def shown(panel):
    """The panel after it has been shown for a while."""
    assert panel.widget._warmUp.active and panel.widget._warmUp.interval == WARM_MS
    panel.widget._warmUp.setInterval(1)
    return panel


def test_shown_panel_loads_the_network_and_the_click_finds_it_loaded(panel_of):  # noqa: F811
    add_volume()
    panel = shown(panel_of())
    assert process_events(lambda: panel.engine.alive and panel.engine._group > 0 and not panel.engine.busy)
    assert not panel.logic.running and panel.ui.statusLabel.text == "Ready." and panel.engine._idle.active
    group = panel.engine._group
    press_and_wait(panel)
    assert panel.engine._group == group and len(panel.results()) == 1
    panel.widget.exit()
    assert panel.engine.alive and panel.engine._idle.active  # it stays for ten minutes


def test_choosing_a_volume_loads_the_network_too(panel_of):  # noqa: F811
    panel = shown(panel_of())
    assert process_events(lambda: not panel.widget._warmUp.active) and not panel.engine.alive
    panel.ui.inputSelector.setCurrentNode(add_volume())
    assert process_events(lambda: panel.engine.alive)


def test_nothing_is_loaded_where_packages_are_missing(panel_of):  # noqa: F811
    from SAUNetPanel.Dependencies import Dependencies

    class Bare(Dependencies):
        def missing(self):
            return ["torch>=2.4"]

    add_volume()
    panel = shown(panel_of(dependencies=Bare()))
    assert process_events(lambda: not panel.widget._warmUp.active) and not panel.engine.alive


def test_leaving_stops_what_is_loading_without_a_card(panel_of):  # noqa: F811
    add_volume()
    panel = shown(panel_of("cold"))
    assert process_events(lambda: panel.engine.warming and panel.engine._group > 0)
    panel.widget.exit()
    assert process_events(lambda: not panel.engine.alive, 5) and panel.widget._card is None
    panel.widget.enter()
    panel.widget.exit()
    assert not panel.widget._warmUp.active and not panel.engine.alive


def test_network_that_cannot_be_loaded_in_advance_is_no_error_yet(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.logic._onEvent({"event": "error", "code": "MODEL_NOT_FOUND", "cause": "no such model."})
    assert panel.widget._card is None and "could not be warmed up: no such model" in panel.ui.logEdit.plainText


@pytest.mark.parametrize("away", [True, False])
def test_result_that_was_removed_is_not_spoken_of_any_more(panel_of, away):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.previousComboBox.currentIndex = 1
    press_and_wait(panel)
    press_and_wait(panel)
    first, second = panel.results()
    slicer.mrmlScene.RemoveNode(first)
    slicer.app.processEvents()
    assert panel.ui.statusLabel.text.startswith("Done in ")
    if away:
        panel.widget.exit()
    slicer.mrmlScene.RemoveNode(second)
    if away:
        panel.widget.enter()
    slicer.app.processEvents()
    assert panel.ui.statusLabel.text == "Ready."


@pytest.mark.parametrize("found", [True, False])
def test_how_a_run_ended_while_another_module_was_open_is_said(panel_of, found):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    made = truth()
    panel = panel_of(result=None if found else dataclasses.replace(made, labels=np.zeros_like(made.labels)))
    panel.widget._parameters.inputVolume = first
    panel.ui.segmentButton.click()
    panel.widget.exit()
    assert panel.wait()
    panel.widget.enter()
    said = panel.ui.statusLabel.text
    assert said.startswith("Done in " if found else "Nothing was found")
    panel.ui.outputComboBox.currentIndex = 1
    assert panel.ui.statusLabel.text == said
    panel.widget._parameters.inputVolume = second
    assert panel.ui.statusLabel.text == "Ready."
    panel.widget._parameters.inputVolume = first
    assert panel.ui.statusLabel.text == "Ready.", "it is said until another volume is chosen"
    press_and_wait(panel)
    panel.widget.exit()
    slicer.mrmlScene.Clear()
    panel.widget.enter()
    assert panel.ui.statusLabel.text.startswith("Load a sagittal spine MRI")


@pytest.mark.parametrize("meanwhile", ["", "another is chosen", "removed", "another was chosen"])
def test_failure_while_another_module_was_open_is_shown(panel_of, meanwhile):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of("memory", "segment")
    parameters = panel.widget._parameters
    parameters.inputVolume = first
    panel.ui.segmentButton.click()
    if meanwhile == "another was chosen":
        parameters.inputVolume = second
    panel.widget.exit()
    assert panel.wait()
    if meanwhile == "another is chosen":
        parameters.inputVolume = second
    elif meanwhile == "removed":
        slicer.mrmlScene.RemoveNode(first)
    panel.widget.enter()
    if meanwhile:
        assert parameters.inputVolume is second and panel.widget._card is None
        assert panel.ui.statusLabel.text == "Segmenting another volume failed: Not enough memory."
        panel.widget.exit()
        panel.widget.enter()
        assert panel.ui.statusLabel.text.startswith("Segmenting another volume failed"), "until another one is chosen"
    else:
        assert panel.widget._card.code == "MEMORY" and panel.ui.cardTitle.isVisibleTo(panel.top)


def test_run_goes_on_while_another_module_is_shown(panel_of):  # noqa: F811
    add_volume()
    panel = panel_of()
    panel.ui.segmentButton.click()
    panel.widget.exit()
    assert panel.wait() and len(panel.results()) == 1
    panel.widget.enter()
    assert panel.ui.segmentButton.text == "Segment spine"


def test_python_api_blocks_and_returns_the_node(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    seen = []
    node = panel.logic.segment(volume, device="cpu", progress=lambda stage, done: seen.append(done))
    assert np.array_equal(Result.merge(node).labels, truth().labels)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)
    assert panel.logic.segment(volume, replace=node) is node
    with pytest.raises(Cards.PanelError) as raised:
        panel.logic.segment(None)
    assert raised.value.code == "NO_VOLUME"
    with pytest.raises(TypeError, match="level"):
        panel.logic.segment(volume, level=True)
    assert not panel.logic.running


@pytest.mark.parametrize("code", ["INPUT_PIXEL_TYPE", "NEWER_THAN_THE_PANEL"])
def test_python_api_raises_what_the_card_says(panel_of, code):  # noqa: F811
    """The engine's own remedy was lost, which for a label map names the image that it was drawn on."""
    panel, cards = panel_of("memory", "read", code=code), []
    panel.logic.failed.connect(cards.append)
    with pytest.raises(Cards.PanelError, match=r"The main memory is full\. Close other programs\.") as raised:
        panel.logic.segment(add_volume())
    assert [raised.value.card] == cards and raised.value.code == code


def test_a_run_that_a_receiver_begins_at_the_end_of_another_has_its_own_result(panel_of):  # noqa: F811
    first, second = add_volume(name="first"), add_volume(name="second")
    panel = panel_of()
    inner = []

    def more(node):
        panel.logic.finished.disconnect(more)
        inner.append(panel.logic.segment(second))

    panel.logic.finished.connect(more)
    outer = panel.logic.segment(first)
    assert outer.GetNodeReference(Result.INPUT_ROLE) is first
    assert inner[0].GetNodeReference(Result.INPUT_ROLE) is second
    panel.logic.failed.connect(lambda card: inner.append(panel.logic.segment(second)))
    with pytest.raises(Cards.PanelError) as raised:
        panel.logic.segment(None)
    assert raised.value.code == "NO_VOLUME" and inner[1].GetNodeReference(Result.INPUT_ROLE) is second


def test_python_api_replaces_no_segmentation_that_it_has_not_made(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    assert panel.logic.segment(volume, replace=mine) is mine, "it is empty"
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "other")
    other.GetSegmentation().AddEmptySegment("tumour", "tumour")
    made = panel.logic.segment(volume, replace=other)
    assert made is not other and other.GetSegmentation().GetNthSegmentID(0) == "tumour"
    assert panel.logic.segment(volume, replace=other, replaceEdited=True) is other


@pytest.mark.parametrize(
    "options, kind",
    [({"lowest": "L9"}, ValueError), ({"lowest": "L5", "levels": False}, ValueError), ({"levels": "no"}, TypeError),
     ({"replace": "A spine"}, TypeError), ({"device": 3}, TypeError), ({"progress": 3}, TypeError),
     ({"replaceEdited": 1}, TypeError), ({"model": 5}, TypeError)],
)  # fmt: skip
def test_python_api_refuses_wrong_arguments_at_once(panel_of, options, kind):  # noqa: F811
    panel = panel_of()
    volume = add_volume()
    with pytest.raises(kind, match=next(iter(options))):
        panel.logic.segment(volume, **options)
    with pytest.raises(TypeError, match="volume node"):
        panel.logic.segment("T2 sag")
    assert not panel.logic.running and not panel.engine.alive and panel.results() == []


def test_a_refused_option_names_the_help_that_lists_the_options():
    from SAUNetPanel.Logic import Options

    with pytest.raises(TypeError) as caught:
        Options(device=3)
    assert pydoc.locate(re.search(r'see help\("(.+)"\)', str(caught.value))[1]) is Options


def test_python_api_takes_the_parameter_node_s_choices(panel_of, tmp_path):  # noqa: F811
    from SAUNetPanel.Logic import Device, Options

    assert Options(device=Device.CPU, lowest=Lowest.L5) == Options(device="cpu", lowest="L5")
    assert Options(lowest=Lowest.AUTO) == Options() and Options(lowest="l5").lowest == "l5"
    panel = panel_of()
    assert panel.logic.segment(add_volume(), device=Device.CPU, lowest=Lowest.L5) in panel.results()


def test_progress_that_fails_does_not_lose_the_result(panel_of, capsys):  # noqa: F811
    panel = panel_of()
    node = panel.logic.segment(add_volume(), progress=lambda stage: None)
    assert node.GetSegmentation().GetNumberOfSegments() > 0 and not panel.logic.running
    assert "TypeError" in capsys.readouterr().err


def test_a_segmentation_that_is_closed_meanwhile_ends(panel_of):  # noqa: F811
    panel = panel_of()
    with pytest.raises(Cards.PanelError) as caught:
        panel.logic.segment(add_volume(), progress=lambda *_: panel.logic.close())
    assert caught.value.code == "CANCELLED" and not panel.logic.running and panel.results() == []


def test_an_option_that_no_request_can_hold_leaves_nothing_behind(panel_of, tmp_path):  # noqa: F811
    panel = panel_of()
    for _ in range(2):
        with pytest.raises(TypeError):
            panel.logic.segment(add_volume(), lowest={"L5"})
        assert not panel.logic.running and not panel.engine.busy
    assert panel.logic.segment(add_volume(), model=tmp_path / "mine.safetensors") in panel.results()


def test_result_that_the_panel_does_not_understand_leaves_the_scene_alone(panel_of):  # noqa: F811
    volume = add_volume()
    panel = panel_of()
    press_and_wait(panel)
    (node,) = panel.results()
    before = Result.fingerprint(node.GetSegmentation())
    odd = truth().summary() | {"structures": [{"value": 41}, {"value": 250}]}
    for replace in (None, node):
        with pytest.raises(KeyError):
            panel.logic.nodes.importResult(volume, truth().labels, odd, True, replace)
    assert panel.results() == [node] and Result.fingerprint(node.GetSegmentation()) == before


def test_folder_that_could_not_be_removed_is_removed_at_the_next_run(panel_of, monkeypatch):  # noqa: F811
    from SAUNetLib.formats import temporary

    add_volume()
    panel = panel_of()
    real = temporary.remove_folder

    def held(folder):
        raise PermissionError("used by another process")

    monkeypatch.setattr(temporary, "remove_folder", held)
    press_and_wait(panel)
    (left,) = panel.logic._undeleted
    assert left.is_dir() and "could not be removed yet" in panel.ui.logEdit.plainText and panel.widget._card is None
    monkeypatch.setattr(temporary, "remove_folder", real)
    press_and_wait(panel)
    assert not left.exists() and panel.logic._undeleted == []


def test_result_equals_the_pipeline_with_the_real_worker(scene, tiny_model):  # noqa: F811
    import builders

    from SAUNetLib.engine import Engine
    from SAUNetLib.model import load_model
    from SAUNetLib.pipeline import segment

    volume = add_volume()
    panel = make_panel(EngineProcess(workerCommand(ROOT), {"OMP_NUM_THREADS": "1"}))
    panel.widget._parameters.model = str(tiny_model)
    panel.ui.deviceComboBox.currentIndex = 2
    expected = segment(builders.volume(builders.geometry()), Engine(load_model(str(tiny_model)), "cpu"))
    panel.ui.segmentButton.click()
    assert panel.wait(90)
    assert panel.widget._card is None, panel.widget._card
    (node,) = panel.results()
    merged = Result.merge(node)
    labels, matrix = merged.labels, merged.matrix
    assert np.array_equal(labels, expected.labels)
    assert np.allclose(matrix, SceneNodes.voxelsToRas(volume))
    names = [row["name"] for row in expected.summary()["structures"]]
    assert [segment_.GetName() for segment_ in segments(node)] == names
    assert panel.engine.alive
    close_panel(panel)
    assert not panel.engine.alive


def test_click_on_a_phantom_equals_the_command_with_the_shipped_model(scene, tmp_path):  # noqa: F811
    from SAUNetLib.anatomy import structures
    from SAUNetLib.cli import main
    from SAUNetLib.formats.segmentations import read_segmentation
    from SAUNetLib.resources import resource
    from SAUNetLib.training.phantom import PhantomOptions, make_phantom

    if not resource("models", "saunet-lumbar.safetensors").is_file():
        pytest.skip("needs the shipped model")
    made = make_phantom(PhantomOptions(seed=1, slices=3, pixel=1.2)).volume
    volume = add_node(made, "Phantom")
    panel = make_panel(EngineProcess(workerCommand(ROOT)))
    panel.ui.deviceComboBox.currentIndex = 2
    panel.ui.segmentButton.click()
    panel.logic.nodes.writeVolume(volume, tmp_path / "phantom.nrrd")
    command = ["segment", str(tmp_path / "phantom.nrrd"), "--output", str(tmp_path / "l.nrrd"), "--device", "cpu"]
    assert main([*command, "--quiet"]) == 0
    assert panel.wait(120) and panel.widget._card is None, panel.widget._card
    (node,) = panel.results()
    expected = read_segmentation(tmp_path / "l.nrrd")
    assert np.array_equal(Result.merge(node).labels, expected.labels) and expected.labels.any()
    for segment in segments(node):
        structure = structures()[segment.GetLabelValue()]
        assert segment.GetName() == structure.name and f"SCT^{structure.code}^" in segment.GetTerminology()
    close_panel(panel)


@pytest.mark.parametrize("kind", ["phantom", "boxes"])
def test_self_test_s_scene_side(panel_of, kind):  # noqa: F811
    """What Testing/Slicer runs in Slicer, but for the Segment Editor's effects and the engine."""
    from unittest import TestCase

    from SAUNetPanel import SelfTest

    panel = panel_of().widget
    made = getattr(SelfTest, kind)()
    volume = SelfTest.volumeNode(made.volume)
    panel.ui.inputSelector.setCurrentNode(volume)
    assert panel.ui.segmentButton.enabled
    node = SelfTest.importTruth(panel, volume, made)
    SelfTest.checkSegments(TestCase(), node, volume)
    SelfTest.export(TestCase(), panel, node)
    assert panel.ui.resultSelector.currentNode() is node


def test_self_test_s_buttons(panel_of):  # noqa: F811
    from unittest import TestCase

    from SAUNetPanel import SelfTest

    add_volume()
    SelfTest.cancelRun(TestCase(), panel_of("wait", "load").widget)
    panel = panel_of()
    assert SelfTest.pressButton(TestCase(), panel.widget) is panel.results()[0]


# -- windows of their own --------------------------------------------------------------------------------------------


def in_dialog(action):
    """Do something in the window that opens next."""
    from PySide6 import QtCore

    QtCore.QTimer.singleShot(50, lambda: action(QtWidgets.QApplication.activeModalWidget()))


def test_windows_are_deleted_when_they_were_answered(scene, monkeypatch, tmp_path):  # noqa: F811
    """Their parent is the main window, which keeps them; PythonQt deletes only what has none."""
    from SAUNetPanel.Dialogs import Dialogs

    deleted = []
    monkeypatch.setattr(QtWidgets.QDialog, "deleteLater", lambda window: deleted.append(type(window).__name__))
    for end in ("reject", "accept"):
        in_dialog(lambda dialog, end=end: getattr(dialog, end)())
        assert (Dialogs().saveFile("Export", str(tmp_path / "l.nrrd"), "NRRD (*.nrrd)") is None) == (end == "reject")
        in_dialog(lambda box: box.reject())
        assert Dialogs().replaceEdited("T2 sag") == "cancel"
    assert deleted == ["QFileDialog", "QMessageBox"] * 2


@pytest.mark.parametrize("text, answer", [("Keep both", "keep"), ("Replace", "replace"), ("Cancel", "cancel")])
def test_question_about_an_edited_result(scene, text, answer):  # noqa: F811
    from SAUNetPanel.Dialogs import Dialogs

    def press(box):
        assert "was edited by hand" in box.text()
        buttons = {button.text().replace("&", ""): button for button in box.buttons()}
        by_enter.append(box.defaultButton() == buttons["Keep both"])
        buttons[text].click()

    by_enter = []
    in_dialog(press)
    assert Dialogs().replaceEdited("T2 sag spine") == answer and by_enter == [True]


@pytest.mark.parametrize("typed, chosen, saved", [
    ("result", "NRRD (*.nrrd)", "result.nrrd"), ("result.nii.gz", "NRRD (*.nrrd)", "result.nii.gz"),
    ("result.nii", "NRRD (*.nrrd)", "result.nii"), ("v1.2", "NIfTI (*.nii.gz *.nii)", "v1.2.nii.gz"),
    ("result.gz", "NIfTI (*.nii.gz *.nii)", "result.nii.gz"), ("R.NRRD", "NRRD (*.nrrd)", "R.NRRD")])  # fmt: skip
def test_saved_file_gets_the_chosen_ending(scene, tmp_path, typed, chosen, saved):  # noqa: F811
    from SAUNetPanel.Dialogs import Dialogs

    def choose(dialog):
        dialog.setOption(QtWidgets.QFileDialog.Option.DontUseNativeDialog)
        dialog.selectNameFilter(chosen)
        dialog.setDirectory(str(tmp_path))
        dialog.findChild(QtWidgets.QLineEdit, "fileNameEdit").setText(typed)
        dialog.accept()

    in_dialog(choose)
    path = Dialogs().saveFile("Export", "T2 sag spine", "NIfTI (*.nii.gz *.nii);;NRRD (*.nrrd)")
    assert path is not None and path.name == saved
    in_dialog(lambda dialog: dialog.reject())
    assert Dialogs().saveFile("Export", "name", "NRRD (*.nrrd)") is None


@pytest.mark.parametrize("agreed", [True, False])
def test_file_that_gets_its_ending_here_is_not_replaced_unasked(scene, tmp_path, monkeypatch, agreed):  # noqa: F811
    from SAUNetPanel.Dialogs import Dialogs

    asked = []
    monkeypatch.setattr(
        slicer.util, "confirmYesNoDisplay", lambda text, title, textFormat: asked.append(text) or agreed
    )
    (tmp_path / "result.nrrd").write_bytes(b"old")

    def choose(dialog):
        dialog.setOption(QtWidgets.QFileDialog.Option.DontUseNativeDialog)
        dialog.setDirectory(str(tmp_path))
        dialog.findChild(QtWidgets.QLineEdit, "fileNameEdit").setText("result")
        dialog.accept()

    in_dialog(choose)
    path = Dialogs().saveFile("Export", "name", "NRRD (*.nrrd)")
    assert asked == ["The file result.nrrd already exists. Replace it?"]
    assert path == (tmp_path / "result.nrrd" if agreed else None)


def test_window_stays_responsive_while_the_engine_works(panel_of):  # noqa: F811
    from PySide6 import QtCore

    add_volume()
    panel = panel_of("wait", "segment")
    ticks = []
    timer = QtCore.QTimer()
    timer.timeout.connect(lambda: ticks.append(1))
    timer.start(10)
    panel.ui.segmentButton.click()
    assert process_events(lambda: len(ticks) > 20) and panel.logic.running
    press_later(panel)
    assert panel.wait()


def test_what_it_is_not_for_is_seen_with_all_sections_closed(panel_of):  # noqa: F811
    panel = panel_of()
    label = panel.ui.useLabel
    assert "Not for diagnostic use" in label.text and label.isVisibleTo(panel.top)
    top = panel.top._native
    top.show()
    slicer.app.processEvents()
    assert panel.ui.segmentButton.y + panel.ui.segmentButton.height <= label.y < panel.ui.resultSection.y
    assert label.height < 20, "one small line"
    assert label.styleSheet == "", "in the style's own colour, which is readable"


def test_nothing_needs_more_than_350_pixels(panel_of):  # noqa: F811
    from SAUNetPanel.Cards import cardOf

    add_volume(name="A volume with a rather long name, as scanners give them (T2 TSE sagittal, 4 mm)")
    panel = panel_of()
    press_and_wait(panel)
    top = panel.top._native
    sections = [name for name in vars(panel.ui) if name.endswith("Section")]
    for name in sections:
        getattr(panel.ui, name).collapsed = False
    panel.ui.checkButton.click()
    top.show()  # before, a layout does not ask again what its widgets need
    cards = [cardOf({"code": code}) for code in sorted(Cards.codes())]
    cards.append(cardOf({"code": "INSTALL_FAILED", "cause": f"https://download.pytorch.org/{'x' * 99}.whl"}))
    buttons = [getattr(panel.ui, f"card{name}Button") for name in ("Action", "Copy", "Close")]
    texts = [button.text for button in buttons]
    for card in cards:
        panel.widget.showCard(card)
        texts[0] = buttons[0].text
        for button, text in zip(buttons, texts, strict=True):  # as long as another language may need
            button.text = text + text[: round(0.4 * len(text))]
        slicer.app.processEvents()
        assert len(sections) == 6 and top.minimumSizeHint().width() <= 350, card
    top.resize(350, 600)
    slicer.app.processEvents()
    for name in ("inputSelector", "resultSelector", "modelComboBox"):
        assert getattr(panel.ui, name).width > 180, f"{name} shows as much of a name as there is place for"


def test_every_control_has_a_name_for_a_screen_reader():
    """A label that is its buddy, a text of its own, or an accessible name."""
    from xml.etree import ElementTree

    tree = ElementTree.parse(ROOT / "SAUNetSegmentation" / "Resources" / "UI" / "SAUNetSegmentation.ui")

    def of(widget, name):
        found = next((one for one in widget.findall("property") if one.get("name") == name), None)
        return "" if found is None else "".join(found.itertext()).strip()

    labelled = {}
    for form in (one for one in tree.iter("layout") if one.get("class") == "QFormLayout"):
        rows = {}
        for item in form.findall("item"):
            rows.setdefault(item.get("row"), []).append(item.find("widget"))
        for label, field in rows.values():
            assert label.get("class") == "QLabel" and of(label, "buddy") == field.get("name"), field.get("name")
            labelled[field.get("name")] = of(label, "text")
    assert len(labelled) == 8 and all(text.endswith(":") for text in labelled.values())
    plain = {"QLabel", "QFrame", "qMRMLWidget"}
    for widget in (one for one in tree.iter("widget") if one.get("class") not in plain):
        name = widget.get("name")
        given = of(widget, "text") or of(widget, "accessibleName")
        assert name in labelled or given or name == "cardActionButton", name  # that one's text comes with the card
