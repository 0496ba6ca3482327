"""The panel's widgets and observers: show what the logic does and react to clicks. The logic makes all decisions."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from SAUNetLib.anatomy import ENCODING_TAG
from SAUNetLib.model_card import DEFAULT_MODEL

from .Cards import Card, PanelError, actions, cardOf
from .Dependencies import Dependencies
from .Dialogs import Dialogs
from .Exports import ExportMenu
from .Focus import KeyboardFocus
from .Logic import Device, Lowest, Output, Previous, SAUNetSegmentationLogic
from .Report import aboutText, privateNames, reportText, withoutNames
from .Result import (
    INPUT_ROLE,
    browserOf,
    elided,
    isEdited,
    isResult,
    notices,
    provenance,
    state,
)

DOUBLE_CLICK_S = 0.5
"""Seconds after the start up to which a second click counts as part of a double click; later it cancels."""
WARM_MS = 1500
"""Milliseconds that a volume is shown in the panel before the engine loads the network in advance."""


class Outcome(NamedTuple):
    """How the last run ended; shown while its volume (ID) is chosen and its result (ID), if any, exists."""

    volume: str | None = None
    text: str = ""
    result: str | None = None


class Widget:
    """The panel's behaviour, acting on the widgets of its .ui file.

    Args:
        uiWidget: the loaded .ui file.
        logic: does the work.
        dependencies: knows and installs what the engine needs.
        dialogs: asks the user.
    """

    def __init__(
        self,
        uiWidget: Any,
        logic: SAUNetSegmentationLogic,
        dependencies: Dependencies | None = None,
        dialogs: Dialogs | None = None,
    ) -> None:
        self.logic = logic
        self.dependencies = dependencies or Dependencies()
        self.dialogs = dialogs or Dialogs()
        self.ui = childWidgets(uiWidget)
        self._uiWidget = uiWidget
        self._focus = KeyboardFocus(uiWidget, self.ui.editor)
        self._parameters: Any = None
        self._volumeId: str | None = None  # of the chosen volume; the node itself may be removed any time
        self._resultId: str | None = None  # of the shown result
        self._leftId: str | None = None  # of the previous result, until it is known whether it was removed
        self._leavingId: str | None = None  # of a node that is just being removed
        self._shownFor: dict[str, str] = {}  # ID of a volume -> ID of its result shown last
        self._segmentedId: str | None = None  # of the run's volume
        self._outcome = Outcome()
        self._missed: tuple[str | None, Card] | None = None  # run that failed while another module was open
        self._shownBefore: tuple[Any, Any] | None = None  # result shown when the run began, and its state
        self._guiTag: Any = None
        self._observerTag: Any = None
        self._staleLists: Any = None  # the segmentation whose segment lists must be rebuilt
        self._watched: tuple[Any, Any] = (None, None)  # the shown result, and the browser of its volume's frames
        self._observers: list[tuple[Any, int]] = []  # of the two
        self._card: Card | None = None
        self._log: list[str] = []
        self._stage, self._share, self._started = "", 0.0, 0.0
        self._clock = qt.QTimer()
        self._clock.setInterval(1000)
        self._entered = self._installing = False
        self._warmUp = qt.QTimer()
        self._warmUp.setInterval(WARM_MS)
        self._warmUp.setSingleShot(True)
        self._settle = qt.QTimer()
        self._settle.setInterval(0)
        self._settle.setSingleShot(True)
        idle = ("inputSelector", "modelComboBox", "deviceComboBox", "outputComboBox", "lowestComboBox",
                "previousComboBox", "installButton", "bundleButton")  # fmt: skip
        self._whileIdle = [(getattr(self.ui, name), getattr(self.ui, name).toolTip) for name in idle]
        self._effects = slicer.qSlicerSegmentEditorEffectFactory.instance()
        self._connect()
        self._exports = ExportMenu(self.ui.exportButton, self)
        self.ui.resultSelector.addAttribute("vtkMRMLSegmentationNode", ENCODING_TAG)
        self.ui.segmentsTable.tableWidget().tabKeyNavigation = False  # otherwise Tab never leaves the table
        self.ui.aboutLabel.text = aboutText()
        self.ui.progressBar.visible = False
        self.showCard(None)
        self._fillModels()

    def _connect(self) -> None:
        ui, logic = self.ui, self.logic
        ui.segmentButton.connect("clicked(bool)", self.onSegmentClicked)
        ui.cardActionButton.connect("clicked(bool)", self.onCardAction)
        ui.cardCopyButton.connect("clicked(bool)", self.onCopyReport)
        ui.copyLogButton.connect("clicked(bool)", self.onCopyReport)
        ui.cardCloseButton.connect("clicked(bool)", self.onCardClosed)
        # With Qt 6 this is a selector's only signal if the other node has the same name, as two series may.
        ui.inputSelector.connect("nodeActivated(vtkMRMLNode*)", self.onVolumeActivated)
        ui.resultSelector.connect("nodeActivated(vtkMRMLNode*)", self.onResultActivated)
        ui.segmentsTable.tableWidget().connect("clicked(QModelIndex)", self.onSegmentNameClicked)
        ui.editSection.connect("contentsCollapsed(bool)", self._useEditor)
        for name in ("result", "edit", "advanced", "setup", "log", "about"):
            section = getattr(ui, f"{name}Section")
            section.connect("contentsCollapsed(bool)", lambda closed, one=section: self._focus.onFolded(one, closed))
        self._effects.connect("effectRegistered(QString)", self._onEffectRegistered)
        ui.opacitySlider.connect("valueChanged(double)", self.onOpacityChanged)
        ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChanged)
        ui.checkButton.connect("clicked(bool)", self.onCheck)
        ui.installButton.connect("clicked(bool)", self.onInstall)
        ui.bundleButton.connect("clicked(bool)", self.onInstallBundle)
        self._clock.connect("timeout()", self._showProgress)
        self._warmUp.connect("timeout()", self._warm)
        self._settle.connect("timeout()", self._onSettled)
        logic.progressed.connect(self._onProgressed)
        logic.finished.connect(self._onFinished)
        logic.failed.connect(self._onFailed)
        logic.aboutToReplace.connect(self._onAboutToReplace)
        logic.log.connect(self.addLog)
        self.dependencies.log.connect(self.addLog)

    # -- the module's life -------------------------------------------------------------------------------------------

    def showParameters(self) -> None:
        """Show the scene's parameters, with a volume chosen if there is one."""
        if self._parameters is None:
            self.setParameterNode(self.logic.getParameterNode())
        if self._parameters.inputVolume is None:
            self._parameters.inputVolume = self.logic.nodes.likelyVolume()
        missed, self._missed = self._missed, None
        if missed is not None:
            self._showFailure(*missed)
        self._update()

    def enter(self) -> None:
        """The user opens the module."""
        self._entered = True
        self.logic.nodes.recognise()
        self.showParameters()
        self.ui.editor.updateWidgetFromMRML()
        self._useEditor()
        self._warmUp.start()

    def exit(self) -> None:
        """The user opens another module: clicks in the views must no longer reach the editor."""
        self._entered = False
        self._warmUp.stop()
        self.logic.cool()
        self._useEditor()
        self.ui.editor.removeViewObservations()
        self.setParameterNode(None)
        # The list inside the editor stays active: watch its result, to release it from memory when it is removed.
        self._watch(self.ui.editor.segmentationNode())
        self._list(None)

    def _useEditor(self) -> None:
        """Give the editor the result, keys and effects while the section Correct is open, and nothing otherwise.

        Slicer's editor shows the image of what it gets in the slice views, and discards its previous undo steps.
        """
        editor, seen = self.ui.editor, self._correcting()
        if seen:
            self._edit(self._parameters.result)
        if seen and editor.segmentationNode() is not None:
            editor.installKeyboardShortcuts()
        else:
            editor.setActiveEffect(None)
            editor.uninstallKeyboardShortcuts()

    def _correcting(self) -> bool:
        """Whether the editor is visible."""
        return self._entered and self._parameters is not None and not self.ui.editSection.collapsed

    def _unseen(self) -> AbstractContextManager[None]:
        """A context in which changes to the editor affect no view unless the editor is visible."""
        return nullcontext() if self._correcting() else self.logic.nodes.viewsKept()

    def _edit(self, node: Any) -> None:
        """Give the editor a result, and the image that it was made from."""
        editor = self.ui.editor
        if editor.segmentationNode() is not node:
            editor.setSegmentationNode(node)
        volume = node.GetNodeReference(INPUT_ROLE) if node is not None else None
        if volume is not None and editor.sourceVolumeNode() is not volume:
            editor.setSourceVolumeNode(volume)

    def _onEffectRegistered(self) -> None:
        """Another extension registered an effect, after this panel's setup if Slicer starts with the panel."""
        self.ui.editor.updateEffectList()

    def sceneStartClose(self, caller: Any = None, event: Any = None) -> None:
        """The scene is about to close: a run loses its volume."""
        self.logic.cancel()
        self._forget()
        self.ui.editor.removeViewObservations()

    def sceneEndClose(self, caller: Any = None, event: Any = None) -> None:
        """The scene is empty; if the module is shown, it continues with new parameters."""
        self.showCard(None)
        if self._entered:
            self.enter()

    def sceneStartImport(self, caller: Any = None, event: Any = None) -> None:
        """A scene is being loaded: the selectors lose their selection, and must not write that."""
        self.setParameterNode(None)
        self._volumeId = None  # the loaded scene brings its own choices

    def sceneEndImport(self, caller: Any = None, event: Any = None) -> None:
        """The scene is loaded: show its choices and results."""
        # A scene saved while painting has the effect active: it would paint unseen, and Slicer 5.10 crashes if it
        # becomes active without a segmentation.
        self.ui.editor.setActiveEffect(None)
        if self._entered:
            self.setParameterNode(None)
            self.enter()

    def sceneEndBatch(self, caller: Any = None, event: Any = None) -> None:
        """A batch of changes is done, during which the editor does nothing: it has lost its segmentation."""
        if self._entered and self._parameters is not None:
            self._showResult(self._parameters.result)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def sceneNodeLeaves(self, caller: Any, event: Any, node: Any) -> None:
        """A node is about to be removed: the selectors already move to its neighbour."""
        self._leavingId = node.GetID()

    def sceneNodesChanged(self, caller: Any = None, event: Any = None) -> None:
        """A node was added, changed or removed; everything that depends on it is updated after this event."""
        self._leavingId = None
        if not self._entered and self._watched[0] is not None and self._watched[0].GetScene() is None:
            self._watch(None)
        self._settle.start()

    def _onSettled(self) -> None:
        self._beginLists()
        self.logic.nodes.recognise()  # also in other modules: a clone's original may soon be gone
        if not self._entered:
            self._watch(self.ui.editor.segmentationNode())  # its list stays active, perhaps with another result
            return
        if self._parameters is None:
            return
        own = self._parameters.parameterNode, self.ui.editor.mrmlSegmentEditorNode()
        if any(node is None or node.GetScene() is None for node in own):  # somebody has removed it
            self.setParameterNode(None)
            self.showParameters()
        left, self._leftId = self._leftId, None
        if left is not None and slicer.mrmlScene.GetNodeByID(left) is None:  # the selector has moved to its neighbour
            self._leaveOthers()
        if self._leaveRemoved():
            self._update()
        self._showResult(self._parameters.result)

    def cleanup(self) -> None:
        """The module is unloaded or reloaded."""
        self._clock.stop()
        self._focus.close()
        self._effects.disconnect("effectRegistered(QString)", self._onEffectRegistered)
        self.exit()
        self.ui.editor.setMRMLSegmentEditorNode(None)  # the next panel's editor, or another one's, uses the node
        self._forget()
        self._settle.stop()
        self.logic.close()
        # A reload only hides it, and an editor without its node reports an error for every segment added or removed.
        self._uiWidget.deleteLater()

    def _forget(self) -> None:
        """Release all nodes."""
        self.setParameterNode(None)
        self._showResult(None)
        self.ui.editor.setSegmentationNode(None)
        self._useEditor()
        self._volumeId = self._resultId = self._leftId = self._segmentedId = self._shownBefore = None
        self._outcome, self._missed, self._staleLists = Outcome(), None, None
        self._shownFor.clear()

    def setParameterNode(self, parameters: Any) -> None:
        """Show these parameters instead of the previous ones."""
        if self._parameters is not None:
            self._parameters.disconnectGui(self._guiTag)
            self._parameters.RemoveObserver(self._observerTag)
        self._parameters = parameters
        if parameters is not None:
            self._makeEditorNode()
            # While another module was open, the volume may have been removed or another one chosen.
            before, self._volumeId = self._volumeId, idOf(parameters.inputVolume)
            self._resultId, self._leftId = idOf(parameters.result), None
            if before != self._volumeId:
                self._leaveVolume()
            if before not in (None, self._volumeId):
                parameters.lowest = Lowest.AUTO
            self._guiTag = parameters.connectGui(self.ui)
            self._observerTag = parameters.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
            self._showModel()
            self._update()

    def _makeEditorNode(self) -> None:
        """Give the editor a settings node of this module, so that the module Segment Editor keeps its own."""
        tag = "SAUNetSegmentEditor"
        node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            node.UnRegister(None)
            node.SetSingletonTag(tag)
            node.SetSaveWithScene(False)  # what it shows follows from the result
            node = slicer.mrmlScene.AddNode(node)
        with self._unseen():  # another panel, or the one before a reload, may have left a result in it
            self.ui.editor.setMRMLSegmentEditorNode(node)

    def _onParametersModified(self, caller: Any = None, event: Any = None) -> None:
        self._followVolume()
        before, self._resultId = self._resultId, idOf(self._parameters.result if self._parameters else None)
        if before not in (None, self._resultId):
            self._leftId = self._leftId or before
            self._settle.start()
        self._update()

    def onVolumeActivated(self, node: Any) -> None:
        """The user clicked a volume, or the selector was told to show another one."""
        if self._parameters is not None:
            self._parameters.inputVolume = node

    def onResultActivated(self, node: Any) -> None:
        """The user clicked a result, or the selector was told to show another one."""
        if self._parameters is not None:
            self._parameters.result = node

    def _followVolume(self) -> None:
        """Another volume was chosen: show its own result."""
        volume = self._parameters.inputVolume if self._parameters else None
        before, self._volumeId = self._volumeId, idOf(volume)
        changed = before != self._volumeId
        if changed:
            self._leaveVolume()
        if changed and before is not None:
            self._parameters.lowest = Lowest.AUTO
        if changed and volume is not None:
            self._leaveOthers()
        if changed and self._entered:
            self._warmUp.start()

    def _leaveVolume(self) -> None:
        """Drop the messages about the volume that was chosen before."""
        self._outcome = Outcome()
        self.showCard(None)

    def _leaveRemoved(self) -> bool:
        """Drop the last run's message if its result was removed; returns whether it was."""
        made = self._outcome.result
        removed = made is not None and slicer.mrmlScene.GetNodeByID(made) is None
        if removed:
            self._outcome = Outcome()
        return removed

    def _leaveOthers(self) -> None:
        """Show the chosen volume's own result, and no longer another volume's.

        A result whose volume is unknown or gone may be this volume's, and stays if there is no other.
        """
        shown, own = self._parameters.result, self._ownResult()
        source = idOf(shown.GetNodeReference(INPUT_ROLE)) if shown is not None else None
        if own is not None or source not in (None, self._leavingId):
            self._parameters.result = own

    def _ownResult(self) -> Any:
        """The chosen volume's result that was shown last, else its newest; None if it has none."""
        nodes, volume = self.logic.nodes, self._parameters.inputVolume
        shown = slicer.mrmlScene.GetNodeByID(self._shownFor.get(idOf(volume) or "", ""))
        return shown if nodes.isResultOf(shown, volume) else nodes.previousResult(volume)

    def _warm(self) -> None:
        """Load the network while the user still looks at the volume."""
        volume = self._parameters.inputVolume if self._entered and not self._installing else None
        if volume is not None and not self.dependencies.missing():
            self.logic.warm(**self._options())

    def _options(self) -> dict[str, Any]:
        """What is chosen under Advanced, as the logic's options."""
        parameters = self._parameters
        levels = parameters.output is Output.LEVELS
        return {
            "levels": levels,
            "lowest": parameters.lowest.value if levels and parameters.lowest is not Lowest.AUTO else None,
            "device": parameters.device.value,
            "model": parameters.model,
        }

    # -- segmenting --------------------------------------------------------------------------------------------------

    def onSegmentClicked(self) -> None:
        """Start a run, or cancel the current one."""
        if not self.logic.running:
            self._start()
        elif time.monotonic() - self._started >= DOUBLE_CLICK_S:
            self.logic.cancel()
            self._update()

    def _start(self) -> None:
        missing = self.dependencies.missing()
        if missing:
            cause = _("These packages are missing: {packages}.").format(packages=", ".join(missing))
            self.showCard(cardOf({"code": "NOT_INSTALLED", "cause": cause}))
            return
        previous = self._previousOptions()
        if previous is None:
            return
        self._leaveVolume()  # the messages of its last run
        self._log.clear()
        self.ui.logEdit.clear()
        self._stage, self._share, self._started = _("Starting the engine"), 0.0, time.monotonic()
        self._clock.start()
        volume = self._parameters.inputVolume
        self._segmentedId = idOf(volume)
        shown = self._parameters.result
        self._shownBefore = (shown, _stateOf(shown)) if shown is not None else None
        try:
            self.logic.start(volume, **self._options(), **previous)
        finally:
            self._update()

    def _previousOptions(self) -> dict[str, Any] | None:
        """What to do with the previous result, as the logic's options; None if the user cancelled."""
        parameters = self._parameters
        node = parameters.result
        if not self.logic.nodes.isResultOf(node, parameters.inputVolume):
            node = self._ownResult()
        if node is None or parameters.previous is Previous.KEEP:
            return {}
        if not isEdited(node):
            return {"replace": node}
        answer = self.dialogs.replaceEdited(node.GetName())
        if answer == "cancel":
            return None
        return {"replace": node, "replaceEdited": True} if answer == "replace" else {}

    def _onProgressed(self, stage: str, share: float) -> None:
        self._stage, self._share = stage, max(share, self._share)
        self._showProgress()

    def _showProgress(self) -> None:
        if not self.logic.running:
            self._clock.stop()
            return
        self.ui.progressBar.value = round(1000 * self._share)
        left = remaining(time.monotonic() - self._started, self._share)
        self.say(f"{self._stage}{f' - {left}' if left else '...'}")

    def _onFinished(self, node: Any) -> None:
        self._clock.stop()
        self._segmentedId = None
        seconds = time.monotonic() - self._started
        elsewhere = self._worksElsewhere(node)
        self._shownBefore = None
        if not elsewhere:
            (self._parameters or self.logic.getParameterNode()).result = node
        self._update()
        if not elsewhere:
            self.ui.editor.updateWidgetFromMRML()  # its segment list was rebuilt, without the selection
        self._remember(node, seconds)
        count = node.GetSegmentation().GetNumberOfSegments()
        if count:
            done = _("Done in {seconds} s. Structures: {count}. Check the result before using it.")
        else:
            done = _(
                "Nothing was found in {seconds} s. Choose a sagittal MRI of the spine, and check in the views that"
                " front and back are correct."
            )
        text = done.format(count=count, seconds=max(1, round(seconds)))
        shown = _("It is {name} under Result.").format(name=elided(node.GetName())) if elsewhere else ""
        text = f"{text} {shown}".rstrip()
        self._outcome = Outcome(idOf(node.GetNodeReference(INPUT_ROLE)), text, idOf(node))
        self.say(text)
        self.ui.resultSection.collapsed = False
        self.addLog(text)

    def _worksElsewhere(self, node: Any) -> bool:
        """Whether the user is correcting another result, or turned to it during the run: it then stays shown."""
        shown = (self._parameters or self.logic.getParameterNode()).result
        if shown is None or shown is node:
            return False
        return self._shownBefore != (shown, _stateOf(shown)) or self.ui.editor.activeEffect() is not None

    def _remember(self, node: Any, seconds: float) -> None:
        """Store the run's duration, which is the best estimate for the next volume."""
        device, volume = provenance(node).get("device"), node.GetNodeReference(INPUT_ROLE)
        if device and volume is not None:
            self.dependencies.remember(volume, device, seconds)

    def _onFailed(self, card: Card) -> None:
        self._clock.stop()
        self._update()
        self.addLog(f"{card.code}: {card.cause}")
        segmented, self._segmentedId, self._shownBefore = self._segmentedId, None, None
        if card.code == "CANCELLED":
            self.say(_("Cancelled. Nothing was changed."))
        elif self._parameters is None:
            self._missed = segmented, card  # shown when the user comes back, perhaps to another volume
        else:
            self._showFailure(segmented, card)

    def _showFailure(self, segmented: str | None, card: Card) -> None:
        """Show a run's card; for another volume only a line, as the card's button would act on the chosen one."""
        chosen = idOf(self._parameters.inputVolume)
        if chosen in (None, segmented):
            self.showCard(card)
            return
        text = _("Segmenting another volume failed: {title}.").format(title=card.title)
        self._outcome = Outcome(chosen, text)
        self.say(text)

    def _onAboutToReplace(self, node: Any) -> None:
        """Enable the editor's Undo to restore the previous result."""
        if self.ui.editor.segmentationNode() is not node:
            if self._worksElsewhere(node):
                return
            with self._unseen():
                self._edit(node)
        self.ui.editor.saveStateForUndo()
        self._settle.start()  # the editor's list may continue with another result

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Update everything that depends on the parameters, the scene and whether a run is under way."""
        if self._parameters is None:
            return
        self._leaveRemoved()
        running, volume = self.logic.running, self._parameters.inputVolume
        button = self.ui.segmentButton
        cancelling = self.logic.cancelling
        button.text = _("Cancelling...") if cancelling else _("Cancel") if running else _("Segment spine")
        self._focus.enable(button, not cancelling if running else volume is not None and not self._installing)
        button.toolTip = self._segmentToolTip(volume)
        self.ui.progressBar.visible = running
        busy = _("Not available while the engine is working or being installed.")
        if self._installing:
            button.toolTip = busy
        for widget, toolTip in self._whileIdle:
            if (running or self._installing) and not widget.inherits("QAbstractButton"):
                widget.clearFocus()  # else Qt moves it to a button, which a Space meant for an effect would press
            widget.enabled = not (running or self._installing)
            widget.toolTip = toolTip if widget.enabled else busy
        if running:
            self._showProgress()
        elif self._installing:
            self.say(_("Installing. This can take a few minutes; the log shows the progress."))
        elif self._card is not None:
            self.say("")
        elif volume is None:
            self.say(_("Load a sagittal spine MRI, then choose it above."))
        elif self._outcome.text and self._outcome.volume == idOf(volume):
            self.say(self._outcome.text)
        elif self.dependencies.missing():
            self.say(_("The engine is not installed yet: press Install in the section Setup."))
        else:
            self.say(_("Ready."))
        self._showResult(self._parameters.result)

    def _segmentToolTip(self, volume: Any) -> str:
        if self.logic.cancelling:
            return _("The engine is stopping; this takes at most two seconds.")
        if self.logic.running:
            return _("Stop the engine. Nothing will be changed.")
        if volume is None:
            return _("Choose a volume first: load a sagittal spine MRI with Add Data or the module DICOM.")
        return _("Segment the vertebrae, discs and spinal canal in the volume chosen above.")

    def _showResult(self, node: Any) -> None:
        ui, editor = self.ui, self.ui.editor
        volume = node.GetNodeReference(INPUT_ROLE) if node is not None else None
        chosen = self._parameters.inputVolume if self._parameters is not None else None
        if self.logic.nodes.isResultOf(node, chosen):
            self._shownFor[chosen.GetID()] = node.GetID()
        if ui.segmentsTable.segmentationNode() is not node:
            self._list(node)
        self._watch(node)
        if self._correcting():
            other = editor.segmentationNode() is not node
            self._edit(node)
            if other:
                self._useEditor()
        editor.sourceVolumeNodeSelectorVisible = node is not None and volume is None  # the user may know the image
        self._showOpacity(node)
        ui.exportButton.enabled = node is not None
        ui.editSection.enabled = node is not None
        missing = _("There is no result yet: segment a volume first.")
        ui.exportButton.toolTip = _("Save the result as a label map, a segmentation or surfaces.") if node else missing
        ui.show3DButton.toolTip = _("Show or hide the surfaces in the 3D view.") if node else missing
        ui.editSection.toolTip = _("Correct the result by hand with the Segment Editor.") if node else missing
        texts = notices(node, chosen) if isResult(node) else []
        ui.warningsLabel.text = "\n".join(texts)
        ui.warningsLabel.visible = bool(texts)

    def _showOpacity(self, node: Any, event: Any = None) -> None:
        slider, display = self.ui.opacitySlider, node.GetDisplayNode() if node is not None else None
        slider.enabled = display is not None
        if display is not None:
            slider.blockSignals(True)  # it rounds, and would write the rounded value
            slider.value = display.GetOpacity()
            slider.blockSignals(False)

    def _list(self, node: Any) -> None:
        """Show a result in the segment list and the button for surfaces."""
        self.ui.segmentsTable.clearSelection()  # it would look for that in the other result, or report an error
        self.ui.segmentsTable.setSegmentationNode(node)
        self.ui.show3DButton.setSegmentationNode(node)

    def _watch(self, node: Any) -> None:
        """Observe a result's segments, which Undo may replace by an earlier run's, and its volume's frame."""
        volume = node.GetNodeReference(INPUT_ROLE) if node is not None else None
        watched = node, browserOf(volume) if volume is not None else None
        if watched == self._watched:
            return
        for observed, tag in self._observers:
            observed.RemoveObserver(tag)
        kinds = slicer.vtkSegmentation
        calls = (
            (node, kinds.SegmentModified, self.sceneNodesChanged),
            (node, kinds.SegmentAdded, self._listAnew),
            (node, kinds.SegmentRemoved, self._listAnew),
            (node, kinds.SegmentsOrderModified, self._listAnew),
            (node, kinds.SourceRepresentationModified, self.sceneNodesChanged),
            (node, slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent, self._showOpacity),
            (watched[1], vtk.vtkCommand.ModifiedEvent, self.sceneNodesChanged),
            (watched[1], slicer.vtkMRMLSequenceBrowserNode.SequenceNodeModifiedEvent, self.sceneNodesChanged),
        )
        self._watched = watched
        self._observers = [(one, one.AddObserver(event, call)) for one, event, call in calls if one is not None]

    def _listAnew(self, node: Any, event: Any = None) -> None:
        """Rebuild segment lists, whose rows after one that was added, removed or moved keep their old indices."""
        self._staleLists = node
        self.sceneNodesChanged()

    def _beginLists(self) -> None:
        """Rebuild stale segment lists, which would write old names and colours over the next new ones.

        When a row is updated, everything it holds is written into its segment
        (`qMRMLSegmentsModel::updateItemDataFromSegment`, `onItemChanged`).
        """
        node, self._staleLists = self._staleLists, None
        if node is None or node.GetScene() is None:
            return
        # To segment editors, nothing is selected in a rebuilt list: the effect would end.
        editors = slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode")
        before = [(editor.GetSelectedSegmentID(), editor.GetActiveEffectName()) for editor in editors]
        node.InvokeCustomModifiedEvent(slicer.vtkMRMLSegmentationNode.SegmentationChangedEvent)
        for editor, (segmentId, effect) in zip(editors, before, strict=True):
            if segmentId and editor.GetSelectedSegmentID() != segmentId:
                editor.SetSelectedSegmentID(segmentId)
            if effect and editor.GetActiveEffectName() != effect:
                editor.SetActiveEffectName(effect)

    def showCard(self, card: Card | None) -> None:
        """Show a card, or None."""
        self._card = card
        ui = self.ui
        ui.cardFrame.visible = card is not None
        if card is not None:
            ui.cardTitle.text = card.title
            ui.cardText.text = f"{card.cause}\n\n{card.remedy}"
            ui.cardActionButton.text = actions().get(card.action, "")
            ui.cardActionButton.visible = bool(card.action)
            self.say("")

    def say(self, text: str) -> None:
        """Show a text in the status line."""
        self.ui.statusLabel.text = text
        self.ui.statusLabel.visible = bool(text)

    def addLog(self, line: str) -> None:
        """Add a line to the log; names now in the scene are removed for reports here, later ones in `reportText`."""
        self._log.append(withoutNames(line, privateNames()))
        self.ui.logEdit.appendPlainText(line)

    # -- error cards -------------------------------------------------------------------------------------------------

    def onCardClosed(self) -> None:
        """Close the card."""
        self.showCard(None)
        self._update()

    def onCardAction(self) -> None:
        """Apply the card's remedy."""
        action = self._card.action if self._card else ""
        if action not in ("log", "pick"):  # the log is read beside the card; choosing another volume closes it
            self.onCardClosed()
        if action:
            self._remedies()[action]()

    def _remedies(self) -> dict[str, Callable[[], Any]]:
        """What the buttons do; their texts are in `Cards.actions`."""
        return {
            "cpu": self._useProcessor,
            "pick": self._openVolumes,
            "harden": self._hardenTransform,
            "install": self._openAndInstall,
            "check": self._openAndCheck,
            "model": self._useStandardModel,
            "retry": self._start,
            "log": self._openLog,
            "crop": lambda: slicer.util.selectModule("CropVolume"),
            "extensions": lambda: slicer.app.openExtensionsManagerDialog(),
            "pytorch": lambda: slicer.util.selectModule("PyTorchUtils"),
        }

    def _useProcessor(self) -> None:
        self._parameters.device = Device.CPU
        self._start()

    def _useStandardModel(self) -> None:
        self._parameters.model = ""
        self._showModel()
        self._start()

    def _hardenTransform(self) -> None:
        if self._parameters.inputVolume is not None:
            self._parameters.inputVolume.HardenTransform()
            self._start()

    def _openVolumes(self) -> None:
        """Open the selector's list, for which only the combo box inside it has a method."""
        for box in slicer.util.findChildren(self.ui.inputSelector, className="ctkComboBox"):
            box.showPopup()

    def _openAndInstall(self) -> None:
        self._open(self.ui.setupSection)
        self.onInstall()

    def _openAndCheck(self) -> None:
        self._open(self.ui.setupSection)
        self.onCheck()

    def _openLog(self) -> None:
        self._open(self.ui.logSection)

    @staticmethod
    def _open(section: Any) -> None:
        """Open a section and scroll to it, as most windows are too low to show it."""
        section.collapsed = False
        area = section.parent()
        while area is not None and area.className() != "QScrollArea":
            area = area.parent()
        if area is not None:
            qt.QTimer.singleShot(0, lambda: area.ensureWidgetVisible(section))  # once it has its size

    def onCopyReport(self) -> None:
        """Put versions, code and log on the clipboard, without paths and patient data."""
        result = self.result()
        about = provenance(result) if isResult(result) else {}
        text = reportText(self._card, self._log, privateNames(), about)
        slicer.app.clipboard().setText(text)

    # -- result ------------------------------------------------------------------------------------------------------

    def onSegmentNameClicked(self, index: Any) -> None:
        """Move the slice views to a segment whose name is clicked.

        Slicer's list would do so at every change of selection: also when rebuilt, and in 5.10 at a click on the eye.
        """
        table = self.ui.segmentsTable
        if index.column() == table.model().nameColumn:
            table.jumpSlices()

    def result(self) -> Any:
        """The shown result, or None."""
        return self._parameters.result if self._parameters else None

    def onOpacityChanged(self, value: float) -> None:
        """Set the opacity of the shown result."""
        node = self.result()
        if node is not None and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetOpacity(value)

    # -- models ------------------------------------------------------------------------------------------------------

    def _fillModels(self) -> None:
        combo = self.ui.modelComboBox
        names = [DEFAULT_MODEL, *(name for name in self.dependencies.models() if name != DEFAULT_MODEL)]
        combo.blockSignals(True)
        combo.clear()
        for name in names:
            combo.addItem(_("Standard ({name})").format(name=name) if name == DEFAULT_MODEL else name, name)
        combo.blockSignals(False)

    def _showModel(self) -> None:
        combo = self.ui.modelComboBox
        wanted = self._parameters.model or DEFAULT_MODEL
        if combo.findData(wanted) < 0:
            combo.addItem(wanted, wanted)
        combo.setCurrentIndex(combo.findData(wanted))

    def onModelChanged(self) -> None:
        """The user chose a model."""
        if self._parameters is not None:
            name = self.ui.modelComboBox.currentData
            self._parameters.model = "" if name in (None, DEFAULT_MODEL) else name

    # -- setup -------------------------------------------------------------------------------------------------------

    def onCheck(self) -> None:
        """Show which of the engine's requirements this computer meets."""
        volume = self._parameters.inputVolume if self._parameters else None
        self.ui.setupBrowser.setHtml(self.dependencies.checkHtml(volume))
        self._fillModels()
        if self._parameters is not None:
            self._showModel()

    def onInstall(self) -> None:
        """Install what is missing, with the user's consent."""
        nothing = _("Nothing was installed.")
        if not self.dependencies.missing():
            nothing = _("All packages are installed.")
            if not self.dependencies.modelRow().fine:
                model = _("The model is missing or damaged: use Install from file... or install the extension again.")
                nothing = f"{nothing} {model}"
        self._install(self.dependencies.installMissing, nothing)

    def onInstallBundle(self) -> None:
        """Install from a bundle that was made elsewhere."""
        path = self.dialogs.openFile(_("Install from file"), _("Bundle") + " (*.zip)")
        if path is not None:
            self._install(lambda ask: self.dependencies.installBundle(Path(path), ask), _("Nothing was installed."))

    def _install(self, install: Any, nothing: str) -> None:
        """Run an installation. Slicer handles events while pip works, so everything can be clicked meanwhile."""
        if self._installing:
            return
        self._warmUp.stop()
        self.logic.close()
        self.showCard(None)
        card, done = None, False
        self._installing = True
        try:
            self._update()
            done = install(self.dialogs.confirmInstall)
        except PanelError as error:
            card = error.card
        finally:
            self._installing = False
            self._update()
        if card is not None:
            self.showCard(card)
        else:
            self.say(_("Installed.") if done else nothing)
            self._warmUp.start()
        self.onCheck()


def childWidgets(uiWidget: Any) -> SimpleNamespace:
    """The panel's widgets by name, as from `slicer.util.childWidgetVariables`, but without those inside the editor.

    Those belong to Slicer and to effects of any extension: they may have a name that the panel uses or a parameter
    that it does not know, and may be deleted any time.
    """
    editor = slicer.util.findChildren(uiWidget, name="editor")[0]
    foreign = set(slicer.util.findChildren(editor)[1:])
    own = [one for one in slicer.util.findChildren(uiWidget) if one not in foreign and getattr(one, "name", "")]
    return SimpleNamespace(**{one.name: one for one in own})


def idOf(node: Any) -> str | None:
    """A node's ID in the scene; None for no node."""
    return node.GetID() if node is not None else None


def _stateOf(node: Any) -> Any:
    """A result's `state`; if memory runs out, one that equals no other, so that it counts as changed."""
    try:
        return state(node)
    except MemoryError:
        return object()


def remaining(elapsed: float, share: float) -> str:
    """The estimated time left, in words; empty while too little is known."""
    if share < 0.12 or elapsed < 1 or share >= 1:
        return ""
    seconds = elapsed * (1 - share) / share
    if seconds < 90:
        return _("about {seconds} s left").format(seconds=max(1, round(seconds)))
    return _("about {minutes} min left").format(minutes=round(seconds / 60))
