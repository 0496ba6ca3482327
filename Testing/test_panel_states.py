"""The panel under whatever a clinician and Slicer do, in any order: what must be true after every step."""

import contextlib
import sys
import tempfile
import traceback
import types
from pathlib import Path
from unittest import mock

import builders
import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from harness import errors
from harness.fixtures import MODULE, PROVENANCE, Answers, add_transform, add_volume, paint, segments, truth
from harness.models import Observers
from harness.processes import ScriptedProcess
from harness.pythonqt import wrap
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PySide6 import QtCore, QtWidgets
from SAUNetPanel import EngineProcess, Result, Signal, Widget
from SAUNetPanel.Dependencies import Dependencies
from SAUNetPanel.Logic import Lowest

qt = sys.modules["qt"]
SMALL = {"size": (24, 32, 5), "spacing": (2.4, 3.0, 5.0)}
LABELS = truth(builders.geometry(**SMALL)).labels
DAY_MS = 86_400_000
MARK, EDITED, NUMBER = "Test.mark", "Test.edited", "Test.number"
"""Attributes of nodes, which a scene keeps: which volume it is; the fingerprint of what a hand made of a result; which
segmentation it is."""
numbers = st.integers(0, 5)
kinds = st.sampled_from(["plain", "oblique", "turned", "bent", "empty"])


class Ready(Dependencies):
    """A computer that has all packages, and on which something may be done while one is installed."""

    meanwhile = staticmethod(lambda: None)

    def missing(self):
        return []

    def models(self):
        return ["saunet-lumbar", "clinic-cervical"]

    def checkHtml(self, volumeNode=None):
        return ""

    def installMissing(self, ask):
        self.meanwhile()
        return ask("")


class PanelStates(RuleBasedStateMachine):
    """The real module in the real scene; its engine's process says what a rule lets it say."""

    # -- the stage ---------------------------------------------------------------------------------------------------

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir()
        self.now, self.marks, self.runs, self.made = 100.0, 0, 0, 0
        self.kept, self.consented, self.lowest_of, self.saved = set(), None, None, None
        self.card, self.card_of = None, None
        self.failures, self.vtk_log = [], vtk.vtkStringOutputWindow()
        process = types.SimpleNamespace(
            QProcess=ScriptedProcess, QTimer=qt.QTimer, QProcessEnvironment=qt.QProcessEnvironment
        )
        path = types.SimpleNamespace(path=str(MODULE / "SAUNetSegmentation.py"))
        for target, name, value in (
            (tempfile, "tempdir", str(self.temporary)),
            (EngineProcess, "qt", process),
            (Widget, "time", types.SimpleNamespace(monotonic=lambda: self.now)),
            (Widget, "Dependencies", Ready),
            (Widget, "Dialogs", Answers),
            (Signal, "traceback", types.SimpleNamespace(print_exc=self.failed)),
            (sys, "excepthook", lambda *error: self.failures.append("".join(traceback.format_exception(*error)))),
            (slicer.util, "selectModule", lambda name: self.leave_the_module() if self.entered else None),
        ):
            self.stack.enter_context(mock.patch.object(target, name, value))
        self.stack.enter_context(mock.patch.object(slicer.modules, "saunetsegmentation", path, create=True))
        window = vtk.vtkOutputWindow.GetInstance()
        vtk.vtkOutputWindow.SetInstance(self.vtk_log)
        self.stack.callback(vtk.vtkOutputWindow.SetInstance, window)
        ScriptedProcess.everyone.clear()
        slicer.mrmlScene.Clear()
        slicer.app.userSettings().clear()
        errors.clear()
        self.entered = True
        self.set_up()

    def failed(self):
        self.failures.append(traceback.format_exc())

    def set_up(self):
        from SAUNetSegmentation import SAUNetSegmentationWidget

        holder = QtWidgets.QWidget()
        QtWidgets.QVBoxLayout(holder)
        holder.setProperty("isEntered", self.entered)
        self.module = SAUNetSegmentationWidget(wrap(holder))
        self.module.setup()
        self.panel, self.logic = self.module.panel, self.module.logic
        self.ui, self.engine, self.dialogs = self.panel.ui, self.logic.engine, self.panel.dialogs
        self.dialogs.replaceEdited = self.replace_edited
        for timer in self.timers():
            timer.setInterval(DAY_MS)  # time passes when a rule says so

    def timers(self):
        return [self.panel._clock, self.panel._warmUp, self.engine._idle, self.engine._polite, self.engine._firm]

    def tear_down(self):
        self.module.cleanup()
        self.module.parent._native.deleteLater()
        slicer.app.processEvents()
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.DeferredDelete)  # as Slicer's own event loop does

    def teardown(self):
        fine = sys.exc_info()[0] is None
        try:
            self.tear_down()
            if not fine:
                return
            assert not ScriptedProcess.living() and list(self.temporary.iterdir()) == []
            assert not any(timer.active for timer in self.timers())
            self.nothing_was_raised()
        finally:
            for left in list(Observers.everyone):
                left.clear()
            slicer.mrmlScene.Clear()
            self.stack.close()

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def parameters(self):
        """What the panel shows; None while another module is open."""
        return self.panel._parameters if self.entered else None

    def volumes(self):
        return [one for one in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if one.GetAttribute(MARK)]

    def results(self):
        return [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if Result.isResult(node)]

    def shown(self):
        """The result that the panel shows."""
        return self.parameters.result if self.parameters else None

    def pick(self, nodes, number):
        return nodes[number % len(nodes)] if nodes else None

    def choose(self, selector, nodes, number):
        """Click a node, or with -1 none, in the selector's list."""
        selector.setCurrentNode(self.pick(nodes, number) if number >= 0 else None)
        box = selector._native._box
        box.activated.emit(box.currentIndex())

    def process(self):
        living = ScriptedProcess.living()
        return living[0] if living else None

    @initialize(loaded=st.lists(kinds, max_size=3), segmented=st.booleans())
    def begin(self, loaded, segmented):
        for number, kind in enumerate(loaded):
            self.load_a_volume(kind)
            self.choose_a_volume(number)
            if segmented:
                self.press_the_button("keep")
            if self.logic.running:
                self.answer_request()

    # -- volumes -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.volumes()) < 6)
    @rule(kind=kinds)
    def load_a_volume(self, kind):
        self.marks += 1
        if kind == "empty":
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        else:
            grid = builders.geometry(oblique=15.0 * (kind == "oblique"), **SMALL)
            node = add_volume(grid, name=f"T2 {self.marks}", dtype=np.int32)
            voxels = slicer.util.arrayFromVolume(node)
            voxels[:] = 1000 * self.marks + voxels // 4
        node.SetAttribute(MARK, str(self.marks))
        if kind in ("turned", "bent"):
            add_transform(node, linear=kind == "turned")

    @precondition(lambda self: self.parameters and self.ui.inputSelector.enabled and self.volumes())
    @rule(number=st.integers(-1, 5))
    def choose_a_volume(self, number):
        self.choose(self.ui.inputSelector, self.volumes(), number)

    @precondition(lambda self: self.volumes())
    @rule(number=numbers)
    def delete_a_volume(self, number):
        slicer.mrmlScene.RemoveNode(self.pick(self.volumes(), number))

    @precondition(lambda self: self.volumes())
    @rule(number=numbers)
    def rename_a_volume(self, number):
        node = self.pick(self.volumes(), number)
        node.SetName(node.GetName() + " again")

    @precondition(lambda self: self.volumes())
    @rule(number=numbers)
    def move_a_volume(self, number):
        self.pick(self.volumes(), number).SetOrigin(50, 0, 0)

    # -- segmenting --------------------------------------------------------------------------------------------------

    def replace_edited(self, name):
        (node,) = [one for one in self.results() if one.GetName() == name and Result.isEdited(one)] or [None]
        assert node is not None, "asked without a reason"
        if self.dialogs.answer == "replace":
            self.consented = node.GetAttribute(NUMBER), Result.fingerprint(node.GetSegmentation())
        return self.dialogs.answer

    @precondition(lambda self: self.parameters)
    @rule(answer=st.sampled_from(["cancel", "keep", "replace"]))
    def press_the_button(self, answer):
        self.dialogs.answer, self.now = answer, self.now + 10
        if not self.logic.running:
            self.consented = None
        self.ui.segmentButton.click()

    @precondition(lambda self: self.parameters and not self.logic.running)
    @rule()
    def double_click_the_button(self):
        self.dialogs.answer, self.consented, self.now = "keep", None, self.now + 10
        enabled = self.ui.segmentButton.enabled
        self.ui.segmentButton.click()
        started = self.logic.running
        self.ui.segmentButton.click()
        assert self.logic.running == started and (enabled or not started) and not (started and self.engine._cancelled)

    @precondition(lambda self: self.parameters and self.ui.deviceComboBox.enabled)
    @rule(name=st.sampled_from(["device", "output", "previous", "model"]), number=numbers)
    def choose_an_option(self, name, number):
        box = getattr(self.ui, f"{name}ComboBox")
        box.currentIndex = number % box.count

    @precondition(lambda self: self.parameters and self.ui.lowestComboBox.enabled)
    @rule(number=numbers)
    def state_the_lowest_vertebra(self, number):
        self.ui.lowestComboBox.currentIndex = number
        volume = self.parameters.inputVolume
        self.lowest_of = volume.GetAttribute(MARK) if volume is not None else None

    # -- the engine --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.process() and self.process().requests)
    @rule(stage=st.sampled_from(["load", "read", "prepare", "segment", "levels", "write"]))
    def engine_reaches_a_stage(self, stage):
        process = self.process()
        process.say(event="progress", id=process.requests[0]["id"], stage=stage, fraction=0.5)

    @precondition(lambda self: self.process() and self.process().requests)
    @rule()
    def engine_ends_its_request(self):
        self.answer_request()

    def answer_request(self):
        process = self.process()
        request = process.requests[0]
        if request["command"] == "warm":
            process.answer(event="result", command="warm")
        else:
            self.runs += 1
            process.answer(event="result", output=request["output"], **self.segmented(request))

    def segmented(self, request):
        """Write the labels of the image that the engine was given; the summary names its mark."""
        if not Path(request["image"]).exists():  # its folder is gone: the panel does not wait for it any more
            return {}
        image = sitk.ReadImage(request["image"])
        voxels = sitk.GetArrayFromImage(image)
        mark = int(np.median(voxels)) // 1000
        labels, whole = np.zeros(voxels.shape, np.uint8), np.roll(LABELS, (mark, self.runs % 3), (2, 1))
        place = tuple(slice(min(sizes)) for sizes in zip(labels.shape, whole.shape, strict=True))
        labels[place] = whole[place]
        if not request["levels"]:
            labels = builders.to_classes(labels)
        written = sitk.GetImageFromArray(labels)
        written.CopyInformation(image)
        sitk.WriteImage(written, request["output"])
        values = [int(value) for value in np.unique(labels) if value]
        about = {**PROVENANCE, "options": f"mark {mark}", "time": f"run {self.runs}"}
        return {"structures": [{"value": value} for value in values], "provenance": about,
                "warnings": [{"code": "LEVELS_ASSUMED", "text": f"Of mark {mark}, run {self.runs}."}]}  # fmt: skip

    @precondition(lambda self: self.process() and self.process().requests)
    @rule(code=st.sampled_from(["MEMORY", "DEVICE", "INPUT_NOT_SAGITTAL", "MODEL_DAMAGED", "INTERNAL", "USAGE"]))
    def engine_says_what_failed(self, code):
        mark, before = self.mark_of(self.process().requests[0]), self.panel._card
        self.process().answer(event="error", code=code, cause="it failed.")
        chosen = self.parameters.inputVolume if self.parameters else None
        if mark and chosen is not None and self.panel._card is not before and self.panel._card is not None:
            assert chosen.GetAttribute(MARK) == mark, "the card's button would act on another volume"

    def mark_of(self, request):
        """The mark of the volume that the engine was given, None where it was given none, or it is gone."""
        if request["command"] == "warm" or not Path(request["image"]).exists():
            return None
        return str(int(np.median(sitk.GetArrayFromImage(sitk.ReadImage(request["image"])))) // 1000)

    @precondition(lambda self: self.process() and any("cancelled" in one for one in self.process().requests))
    @rule()
    def engine_hears_that_it_is_cancelled(self):
        process = self.process()
        while process.requests and "cancelled" in process.requests[0]:
            process.answer(event="error", code="CANCELLED", cause="")

    @precondition(lambda self: self.process())
    @rule(how=st.sampled_from([(9, True), (11, True), (3, False), (0, False), "refused"]))
    def engine_dies(self, how):
        if how == "refused":
            self.process().refuse()
        else:
            self.process().end(*how)

    @precondition(lambda self: self.process() and (self.process().doomed or self.process().closed))
    @rule()
    def system_tells_that_the_engine_ended(self):
        self.process().end()

    @precondition(lambda self: any(timer.active for timer in self.timers()))
    @rule(number=numbers)
    def time_passes(self, number):
        self.now += 30
        timer = self.pick([timer for timer in self.timers() if timer.active], number)
        if timer.singleShot:
            timer.stop()
        timer._native.timeout.emit()

    # -- results -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.parameters and self.results())
    @rule(number=st.integers(-1, 5))
    def choose_a_result(self, number):
        self.choose(self.ui.resultSelector, self.results(), number)

    @precondition(lambda self: self.results())
    @rule(number=numbers, kind=st.sampled_from(["paint", "rename", "delete", "add", "move"]), segment=numbers)
    def edit_a_result(self, number, kind, segment):
        node = self.pick(self.results(), number)
        segmentation, count = node.GetSegmentation(), node.GetSegmentation().GetNumberOfSegments()
        if self.ui.editor.segmentationNode() is node:
            self.ui.editor.saveStateForUndo()
        if kind == "add":
            segmentation.AddEmptySegment()
        elif kind == "move":
            add_transform(node)
        elif count and kind == "paint":
            if segments(node)[segment % count].GetRepresentation(Result.LABELMAP).GetNumberOfPoints():
                paint(node, segment % count)
        elif count and kind == "rename":
            segmentation.GetNthSegment(segment % count).SetName(f"mine {self.now}")
        elif count:
            segmentation.RemoveSegment(segmentation.GetNthSegmentID(segment % count))
        self.remember_the_edit(node)

    def remember_the_edit(self, node):
        node.SetAttribute(EDITED, Result.fingerprint(node.GetSegmentation()) if Result.isEdited(node) else None)

    @precondition(lambda self: self.parameters and self.ui.editor.segmentationNode() and self.ui.editSection.enabled)
    @rule(forth=st.booleans())
    def undo_or_redo(self, forth):
        self.ui.editor.redo() if forth else self.ui.editor.undo()
        self.remember_the_edit(self.ui.editor.segmentationNode())

    @precondition(lambda self: self.results())
    @rule(number=numbers)
    def delete_a_result(self, number):
        self.remove_result(self.pick(self.results(), number))

    def remove_result(self, node):
        self.kept.discard(node.GetAttribute(NUMBER))
        slicer.mrmlScene.RemoveNode(node)

    @precondition(lambda self: self.parameters and self.shown() is not None)
    @rule(number=st.integers(0, 3), where=st.sampled_from(["", "there", "nowhere"]), ends=st.booleans())
    def export(self, number, where, ends):
        """The window that asks for a file stands open for a while: meanwhile a run may end."""
        about = Result.provenance(self.shown()).get("options")
        path = self.folder / ("exports" if where == "there" else "nowhere") / ["", "l.nrrd", "l.seg.nrrd", ""][number]
        (self.folder / "exports").mkdir(exist_ok=True)
        if path.is_file():
            path.unlink()

        def choose(*arguments):
            if ends and self.process() and self.process().requests:
                self.answer_request()
            return path if where else None

        self.dialogs.saveFile = self.dialogs.chooseFolder = choose
        self.panel._exports.menu.actions()[number].trigger()
        assert not path.is_file() or about is None or about.encode() in path.read_bytes()

    @precondition(lambda self: self.shown() is not None and segments(self.shown()))
    @rule()
    def load_a_result_from_its_file(self):
        path = self.folder / f"{self.made} spine.seg.nrrd"
        self.logic.nodes.exportSegmentation(self.shown(), path)
        node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path))
        slicer.app.processEvents()
        self.remember_the_edit(node)

    @precondition(lambda self: self.results())
    @rule(number=numbers)
    def clone_a_result(self, number):
        """As the module Data does."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.GetItemByDataNode(self.pick(self.results(), number))
        cloned = slicer.modules.subjecthierarchy.logic().CloneSubjectHierarchyItem
        node = hierarchy.GetItemDataNode(cloned(hierarchy, item))
        node.RemoveAttribute(NUMBER)
        slicer.app.processEvents()
        self.remember_the_edit(node)

    @precondition(lambda self: self.parameters and self.shown() is not None)
    @rule(number=st.integers(0, 3))
    def look(self, number):
        if number == 0:
            self.ui.opacitySlider.value = 0.3
        elif number == 1:
            self.ui.show3DButton.click()
        else:
            self.ui.editSection.collapsed = number == 2

    # -- cards, setup ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.parameters and self.panel._card)
    @rule(button=st.sampled_from(["cardActionButton", "cardActionButton", "cardCloseButton", "cardCopyButton"]))
    def press_a_card_s_button(self, button):
        self.dialogs.answer, self.consented = "keep", None
        getattr(self.ui, button).click()

    @precondition(lambda self: self.parameters)
    @rule(agreed=st.booleans(), meanwhile=st.sampled_from(["", "leave", "close the scene", "load", "press"]))
    def install(self, agreed, meanwhile):
        self.dialogs.consent = agreed
        happens = {
            "leave": lambda: self.leave_the_module() if self.entered else None,
            "close the scene": self.close_the_scene,
            "load": lambda: self.load_a_volume("plain"),
            "press": self.ui.segmentButton.click,
        }
        self.panel.dependencies.meanwhile = happens.get(meanwhile, lambda: None)
        self.ui.installButton.click()

    @precondition(lambda self: self.parameters)
    @rule()
    def check_the_computer(self):
        self.ui.checkButton.click()

    # -- Slicer ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.entered)
    @rule()
    def leave_the_module(self):
        self.entered = False
        self.module.parent._native.setProperty("isEntered", False)
        self.module.exit()

    @precondition(lambda self: not self.entered)
    @rule()
    def enter_the_module(self):
        self.entered = True
        self.module.parent._native.setProperty("isEntered", True)
        self.module.enter()

    @rule()
    def reload_the_module(self):
        self.tear_down()
        assert not ScriptedProcess.living() and list(self.temporary.iterdir()) == []
        self.set_up()

    @precondition(lambda self: self.volumes())
    @rule()
    def close_the_scene(self):
        self.kept.clear()
        slicer.mrmlScene.Clear()

    @precondition(lambda self: self.volumes())
    @rule()
    def save_the_scene(self):
        """As File > Save: every node's file, then the scene."""
        self.made += 1
        endings = {"vtkMRMLVolumeNode": "nrrd", "vtkMRMLSegmentationNode": "seg.nrrd", "vtkMRMLTransformNode": "h5",
                   "vtkMRMLColorTableNode": "ctbl"}  # fmt: skip
        for kind, ending in endings.items():
            for node in slicer.util.getNodesByClass(kind):
                if ending == "nrrd" and node.GetImageData() is None:
                    continue
                node.AddDefaultStorageNode()
                storage = node.GetStorageNode()
                storage.SetFileName(str(self.folder / f"{self.made}-{node.GetID()}.{ending}"))
                storage.UseCompressionOff()
                assert storage.WriteData(node)
        path = self.folder / f"{self.made}.mrml"
        slicer.mrmlScene.SetRootDirectory(str(self.folder))
        assert slicer.mrmlScene.Commit(str(path))
        parameters = slicer.mrmlScene.GetSingletonNode("SAUNetSegmentation", "vtkMRMLScriptedModuleNode")
        self.saved = path, self.lowest_of, parameters is not None

    @precondition(lambda self: self.saved)
    @rule(close=st.booleans())
    def load_the_scene(self, close):
        path, lowest_of, parameters = self.saved
        if close:
            self.kept.clear()
        if parameters:
            self.lowest_of = lowest_of
        slicer.mrmlScene.SetURL(str(path))
        slicer.mrmlScene.Connect() if close else slicer.mrmlScene.Import()

    # -- what must be true -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_was_raised(self):
        assert errors == [], errors[0]
        assert self.failures == [], self.failures[0]
        said = self.vtk_log.GetOutput()
        assert "ERROR" not in said and "Traceback" not in said, said

    def check_invariants(self, *arguments):
        slicer.app.processEvents()  # what the panel does after an event
        super().check_invariants(*arguments)

    @invariant()
    def at_most_one_engine_runs(self):
        assert len(ScriptedProcess.living()) <= 1
        assert self.engine.alive == bool(ScriptedProcess.living())
        assert not self.logic.running or self.engine.busy

    @invariant()
    def private_folder_lives_as_long_as_the_run(self):
        assert len(list(self.temporary.iterdir())) == self.logic.running

    @invariant()
    def buttons_tell_what_can_be_done(self):
        if not self.parameters:
            return
        ui, running, volume = self.ui, self.logic.running, self.parameters.inputVolume
        cancelled = running and self.engine._cancelled
        text = "Cancelling..." if cancelled else "Cancel" if running else "Segment spine"
        assert (ui.segmentButton.text, ui.segmentButton.enabled) == (
            text, not cancelled if running else volume is not None)  # fmt: skip
        for box in (ui.inputSelector, ui.deviceComboBox, ui.lowestComboBox, ui.modelComboBox, ui.installButton):
            assert box.enabled is not running
        for widget in (ui.exportButton, ui.show3DButton, ui.editSection, ui.opacitySlider):
            assert widget.enabled is (self.shown() is not None), widget.name

    @invariant()
    def every_part_shows_the_same(self):
        if not self.parameters:
            return
        ui, node, volume = self.ui, self.shown(), self.parameters.inputVolume
        assert ui.inputSelector.currentNode() is volume
        corrected = not ui.editSection.collapsed
        for part in (ui.segmentsTable, ui.show3DButton, *[ui.editor] * corrected):
            assert part.segmentationNode() is node, part
        assert ui.resultSelector.currentNode() is node
        if node is not None:
            source = node.GetNodeReference(Result.INPUT_ROLE)
            assert source is None or not corrected or ui.editor.sourceVolumeNode() is source
            assert ui.editor.sourceVolumeNodeSelectorVisible is (source is None)
            assert ui.segmentsTable.segmentCount == node.GetSegmentation().GetNumberOfSegments()
        assert ui.warningsLabel.text == ("\n".join(Result.notices(node, volume)) if Result.isResult(node) else "")

    @invariant()
    def editor_hears_keys_only_where_it_is_seen(self):
        seen = self.entered and not self.ui.editSection.collapsed and self.shown() is not None
        assert bool(self.ui.editor._native._shortcuts) is bool(seen)

    @invariant()
    def words_are_of_what_is_there(self):
        if not self.parameters:
            return
        ui, said = self.ui, self.ui.statusLabel.text
        assert ui.progressBar.isVisibleTo(self.top()) is self.logic.running
        assert ui.cardFrame.isVisibleTo(self.top()) is (self.panel._card is not None)
        if said.startswith("Ready"):
            assert self.parameters.inputVolume is not None and not self.logic.running
        if said.startswith("Load a"):
            assert self.parameters.inputVolume is None and not self.logic.running
        if said.startswith("Done"):
            assert self.shown() is not None and not self.logic.running
        assert not said.startswith(("Done", "Cancelled", "Ready", "Load a")) or not self.logic.running

    @invariant()
    def card_is_of_the_volume_that_is_chosen(self):
        if not self.parameters:
            return
        if self.panel._card is not self.card:
            self.card, self.card_of = self.panel._card, self.parameters.inputVolume
        assert self.card is None or self.card_of is self.parameters.inputVolume

    def top(self):
        return wrap(self.panel._uiWidget._native)

    @invariant()
    def result_is_of_the_volume_it_was_made_of(self):
        for node in self.results():
            volume = node.GetNodeReference(Result.INPUT_ROLE)
            if volume is not None and node.GetSegmentation().GetNumberOfSegments():
                about = Result.provenance(node)
                assert about["options"] == f"mark {volume.GetAttribute(MARK)}"

    @invariant()
    def what_a_hand_made_is_never_lost(self):
        nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        for node in nodes:
            if not node.GetAttribute(NUMBER) or (edited := node.GetAttribute(EDITED)) is None:
                continue
            now = Result.fingerprint(node.GetSegmentation())
            if now != edited:
                assert self.consented == (node.GetAttribute(NUMBER), edited), f"{node.GetName()} was overwritten"
                node.RemoveAttribute(EDITED)
            else:
                # Without its volume nothing takes its place, and nobody can tell whether it was moved.
                assert Result.isEdited(node) or node.GetNodeReference(Result.INPUT_ROLE) is None
        for node in nodes:
            if not node.GetAttribute(NUMBER):
                self.made += 1
                node.SetAttribute(NUMBER, str(self.made))
        present = {node.GetAttribute(NUMBER) for node in nodes}
        assert self.kept <= present
        self.kept = present

    @invariant()
    def scene_holds_whole_nodes_only(self):
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            assert Result.isResult(node) and node.GetDisplayNode() is not None and "spine" in node.GetName()
        for node in slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode"):
            assert node.GetImageData() is not None and node.GetDisplayNode().GetColorNode() is not None
        for kind in ("vtkMRMLScriptedModuleNode", "vtkMRMLSegmentEditorNode"):
            assert slicer.mrmlScene.GetNumberOfNodesByClass(kind) <= 1

    @invariant()
    def lowest_vertebra_is_stated_of_one_volume(self):
        if self.parameters and self.parameters.lowest is not Lowest.AUTO and self.lowest_of is not None:
            volume = self.parameters.inputVolume
            assert volume is None or volume.GetAttribute(MARK) == self.lowest_of


TestPanelStates = PanelStates.TestCase
TestPanelStates.settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=30,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
