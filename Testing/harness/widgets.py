"""Stand-ins for CTK's and Slicer's widgets. `api` and `signatures` list what the originals declare for Python."""

from __future__ import annotations

from typing import Any, ClassVar

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from .models import NODE_ID, NodeFilter, Observers, SceneModel, SegmentsModel
from .pythonqt import errors


def _stored(kind: Any, name: str, default: Any, changed: str = "") -> Property:
    """A property that is only stored."""

    def read(self: Any) -> Any:
        return self.__dict__.get(f"_{name}", default)

    def write(self: Any, value: Any) -> None:
        self.__dict__[f"_{name}"] = value
        if changed:
            getattr(self, changed)()

    return Property(kind, read, write)


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A button that shows what lies below it while it is checked."""

    contentsCollapsed = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.setChecked(True)
        self.setBackgroundRole(QtGui.QPalette.Window)
        self.setForegroundRole(QtGui.QPalette.WindowText)
        self.setSizePolicy(QtWidgets.QSizePolicy.Minimum, QtWidgets.QSizePolicy.Preferred)
        self.setContentsMargins(0, 28, 0, 0)
        self.toggled.connect(lambda checked: self._collapse(not checked))

    def _collapse(self, collapsed: bool) -> None:
        for child in self.findChildren(QWidget, options=Qt.FindDirectChildrenOnly):
            if collapsed:
                child.setProperty("_shown", not child.isHidden())
                child.hide()
            elif child.property("_shown") is not False:
                child.show()
        self.setMaximumHeight(26 if collapsed else 16777215)
        self.contentsCollapsed.emit(collapsed)
        self.update()

    collapsed = Property(bool, lambda self: not self.isChecked(), lambda self, value: self.setChecked(not value))

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(120, 26) if self.collapsed else super().sizeHint()

    def minimumSizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(60, 26) if self.collapsed else super().minimumSizeHint()

    def hitButton(self, place: QtCore.QPoint) -> bool:
        return place.y() < 26

    def paintEvent(self, event: Any) -> None:
        painter, palette = QtGui.QPainter(self), self.palette()
        group = QtGui.QPalette.Active if self.isEnabled() else QtGui.QPalette.Disabled
        if not self.collapsed:
            painter.setPen(palette.color(QtGui.QPalette.Mid))
            painter.drawRect(0, 13, self.width() - 1, self.height() - 14)
        painter.setPen(palette.color(QtGui.QPalette.Mid))
        painter.setBrush(palette.button())
        painter.drawRoundedRect(0, 0, self.width() - 1, 25, 3, 3)
        painter.setPen(palette.color(group, QtGui.QPalette.ButtonText))
        painter.drawText(26, 0, self.width() - 30, 26, Qt.AlignVCenter | Qt.AlignLeft, self.text())
        option = QtWidgets.QStyleOption()
        option.initFrom(self)
        option.rect = QtCore.QRect(7, 6, 13, 13)
        arrow = QtWidgets.QStyle.PE_IndicatorArrowRight if self.collapsed else QtWidgets.QStyle.PE_IndicatorArrowDown
        self.style().drawPrimitive(arrow, option, painter, self)


class ctkSliderWidget(QWidget):
    """A slider with a spin box."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    api = ("setValue", "setDecimals", "reset")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider, self._box = QtWidgets.QSlider(Qt.Horizontal), QtWidgets.QDoubleSpinBox()
        self._slider.setRange(0, 1000)
        self._box.setRange(0, 99)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._changed)
        self._slider.valueChanged.connect(lambda value: self._box.setValue(value / 1000 * self._box.maximum()))

    def _changed(self, value: float) -> None:
        self._slider.blockSignals(True)
        self._slider.setValue(round(value / max(self._box.maximum(), 1e-9) * 1000))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    value = Property(float, lambda self: self._box.value(), lambda self, value: self._box.setValue(value))
    maximum = Property(float, lambda self: self._box.maximum(), lambda self, value: self._box.setMaximum(value))
    minimum = Property(float, lambda self: self._box.minimum(), lambda self, value: self._box.setMinimum(value))
    singleStep = Property(
        float, lambda self: self._box.singleStep(), lambda self, value: self._box.setSingleStep(value)
    )
    pageStep = _stored(float, "pageStep", 0.1)
    decimals = Property(int, lambda self: self._box.decimals(), lambda self, value: self._box.setDecimals(value))

    def setValue(self, value: float) -> None:
        self._box.setValue(value)


class qMRMLWidget(QWidget):
    """A widget that knows the scene."""

    mrmlSceneChanged = Signal(object)
    signatures: ClassVar[dict[str, int]] = {"mrmlSceneChanged(vtkMRMLScene*)": 1}
    api = ("setMRMLScene", "mrmlScene")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class ctkComboBox(QtWidgets.QComboBox):
    """The combo box inside a node selector."""


class qMRMLNodeComboBox(QWidget):
    """A node selector: Qt's own combo box on the models that follow the scene."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    signatures: ClassVar[dict[str, int]] = {
        "currentNodeChanged(vtkMRMLNode*)": 1,
        "currentNodeChanged(bool)": 1,
        "nodeActivated(vtkMRMLNode*)": 1,
    }
    api = ("mrmlScene", "setMRMLScene", "currentNode", "setCurrentNode", "setCurrentNodeID", "setCurrentNodeIndex",
           "nodeCount", "nodeFromIndex", "addAttribute", "removeAttribute", "addNode", "removeCurrentNode",
           "setNodeTypeLabel", "nodeTypeLabel", "sortFilterProxyModel", "addMenuAction")  # fmt: skip

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._box = ctkComboBox()
        layout.addWidget(self._box)
        self.setSizePolicy(QtWidgets.QSizePolicy.Preferred, QtWidgets.QSizePolicy.Fixed)
        self._model = SceneModel(self)
        self._filter = NodeFilter(self._model, self)
        self._switching = False
        self._box.setModel(self._filter)
        self._box.setRootModelIndex(self._filter.index(0, 0))
        self._box.currentTextChanged.connect(lambda _: self._changed())
        self._box.activated.connect(self._activated)
        for signal in (self._filter.rowsRemoved, self._filter.modelReset, self._filter.layoutChanged):
            signal.connect(lambda *_: self._refresh())
        self.setEnabled(False)

    def _offer(self) -> None:
        """Offer the item "None", and the actions, which a selector without a scene does not have."""
        self._model.set_before([self.noneDisplay or "None"] if self.noneEnabled else [])
        actions = ["Rename"] * self.renameEnabled + ["Edit"] * self.editEnabled
        if self.addEnabled:
            actions += ["Create new", "Create new as..."][: 1 + self.renameEnabled] * len(self.nodeTypes)
        actions += ["Delete"] * self.removeEnabled
        index = self._box.currentIndex()
        self._model.set_after(["separator", *actions] if actions and self.mrmlScene() is not None else [])
        self._box.setCurrentIndex(index)

    def _refresh(self) -> None:
        if self.currentNode() is None:
            self.setCurrentNode(None)

    def _changed(self) -> None:
        if self._switching:
            return
        node, index = self.currentNode(), self._box.currentIndex()
        if node is None and index != (0 if self.noneEnabled else -1):  # an action: the last node is taken instead
            last = self.nodeFromIndex(self.nodeCount() - 1)
            if last is not None:
                self.setCurrentNode(last)
            return
        self.currentNodeChanged.emit(node)
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _activated(self, row: int) -> None:
        """The user clicked a node or "None" (not an action), or one of these was set."""
        node = self._node(row)
        if node is not None or (self.noneEnabled and row == 0):
            self.nodeActivated.emit(node)

    def _set_filter(self, name: str, value: Any) -> None:
        if getattr(self._filter, name) != value:
            setattr(self._filter, name, value)
            self._filter.invalidate()
            self._offer()

    nodeTypes = Property(
        "QStringList",
        lambda self: self._filter.types,
        lambda self, kinds: self._set_filter("types", [kind for kind in kinds if kind]),
    )
    showHidden = Property(
        bool, lambda self: self._filter.with_hidden, lambda self, value: self._set_filter("with_hidden", value)
    )
    showChildNodeTypes = Property(
        bool, lambda self: self._filter.with_children, lambda self, value: self._set_filter("with_children", value)
    )
    noneEnabled = _stored(bool, "none", False, "_offer")
    noneDisplay = _stored(str, "none_text", "", "_offer")
    addEnabled = _stored(bool, "add", True, "_offer")
    removeEnabled = _stored(bool, "remove", True, "_offer")
    editEnabled = _stored(bool, "edit", False, "_offer")
    renameEnabled = _stored(bool, "rename", False, "_offer")
    sizeAdjustPolicy = Property(
        object, lambda self: self._box.sizeAdjustPolicy(), lambda self, policy: self._box.setSizeAdjustPolicy(policy)
    )
    baseName = _stored(str, "base", "")
    selectNodeUponCreation = _stored(bool, "upon", True)

    def _current_id(self) -> str:
        node = self.currentNode()
        return node.GetID() if node is not None else ""

    def setCurrentNodeID(self, identity: str) -> None:
        before, row = self._box.currentIndex(), self._model.row(identity)
        index = self._filter.mapFromSource(self._model.index(row, 0, self._model.index(0, 0))) if row >= 0 else None
        if index is not None and index.isValid():
            self._box.setCurrentIndex(index.row())
        else:
            self._box.setCurrentIndex(0 if self.noneEnabled else -1)
        if self._box.currentIndex() != before:  # Slicer sends its view a key press, which counts as a click
            self._activated(self._box.currentIndex())

    currentNodeID = Property(str, _current_id, setCurrentNodeID)

    def mrmlScene(self) -> Any:
        return self._model.scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._model.scene:
            return
        before = self._box.currentData(NODE_ID) if self.nodeCount() else None
        self._switching = True
        self._model.set_scene(scene)
        self._switching = False
        self._offer()
        self._box.setRootModelIndex(self._filter.index(0, 0))
        self.setCurrentNodeID(self._current_id() if before is None else before)
        self.setEnabled(scene is not None)

    def currentNode(self) -> Any:
        return self._node(self._box.currentIndex())

    def _node(self, row: int) -> Any:
        index = self._filter.index(row, 0, self._filter.index(0, 0))
        return self._model.node(index) if index.isValid() else None

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def nodeCount(self) -> int:
        others = len(self._model.before) + len(self._model.after)
        return self._box.count() - others if self.mrmlScene() is not None else 0

    def nodeFromIndex(self, index: int) -> Any:
        return self._node(index + self.noneEnabled)

    def addAttribute(self, kind: str, name: str, value: Any = None) -> None:
        if kind in self._filter.types and self._filter.attributes.get(kind) != (name, value):
            self._filter.attributes[kind] = name, value
            self._filter.invalidate()


class qMRMLSegmentsTableView(qMRMLWidget):
    """The list of segments: eye, colour, name."""

    api = ("segmentationNode", "setSegmentationNode", "selectedSegmentIDs", "setSelectedSegmentIDs", "clearSelection",
           "setSelectionMode", "setHeaderVisible", "setReadOnly", "tableWidget", "model", "jumpSlices")  # fmt: skip
    selectionMode = _stored(int, "mode", 3)
    headerVisible = _stored(bool, "header", True)
    visibilityColumnVisible = _stored(bool, "visibility", True)
    colorColumnVisible = _stored(bool, "color", True)
    opacityColumnVisible = _stored(bool, "opacity", False)
    statusColumnVisible = _stored(bool, "status", False)
    layerColumnVisible = _stored(bool, "layer", False)
    readOnly = _stored(bool, "read_only", False)
    filterBarVisible = _stored(bool, "filter", False)
    jumpToSelectedSegmentEnabled = _stored(bool, "jump", False)
    segmentCount = Property(int, lambda self: self._model.rowCount())

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._model = SegmentsModel(self)
        self._table = QtWidgets.QTableView()
        self._table.setModel(self._model)
        self._table.horizontalHeader().hide()
        self._table.verticalHeader().hide()
        self._table.verticalHeader().setDefaultSectionSize(22)
        self._table.setShowGrid(False)
        self._table.setColumnWidth(0, 28)
        self._table.setColumnWidth(1, 28)
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.setSelectionBehavior(QtWidgets.QTableView.SelectRows)
        self._table.selectionModel().selectionChanged.connect(lambda *_: self._selection_changed())
        self._before: list[str] = []
        self._model.modelAboutToBeReset.connect(self._about_to_be_reset)
        self._model.modelReset.connect(self._restore)
        layout.addWidget(self._table)

    def segmentationNode(self) -> Any:
        return self._model.node

    def setSegmentationNode(self, node: Any) -> None:
        self._model.set_node(node)

    def selectedSegmentIDs(self) -> list[str]:
        return [self._model.ids()[index.row()] for index in self._table.selectionModel().selectedRows()]

    def clearSelection(self) -> None:
        self._table.clearSelection()

    def _about_to_be_reset(self) -> None:
        self._before = self.selectedSegmentIDs()

    def _restore(self) -> None:
        """modelReset: select again what was selected, also in another segmentation."""
        if self._before and self._model.node is None:
            errors.append("qMRMLSegmentsTableView::setSelectedSegmentIDs failed: segmentation node is not set")
            return
        flags = QtCore.QItemSelectionModel.SelectionFlag
        for row in [row for row, identity in enumerate(self._model.ids()) if identity in self._before]:
            self._table.selectionModel().select(self._model.index(row, 0), flags.Select | flags.Rows)

    def tableWidget(self) -> QtWidgets.QTableView:
        return self._table

    def model(self) -> SegmentsModel:
        return self._model

    def _selection_changed(self) -> None:
        if self.jumpToSelectedSegmentEnabled:
            self.jumpSlices()

    def jumpSlices(self) -> None:
        """Move the slice views to the centre of the first selected segment."""
        selected, node = self.selectedSegmentIDs(), self._model.node
        if not selected or node is None:
            return
        for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            view.JumpSliceByCentering(*node.GetSegmentCenterRAS(selected[0]))


class qMRMLSegmentationShow3DButton(QPushButton):
    """Makes and removes the surfaces."""

    api = ("segmentationNode", "setSegmentationNode", "setLocked")
    locked = _stored(bool, "locked", False)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setText("Show 3D")
        self.setCheckable(True)
        self.setEnabled(False)
        self._node: Any = None
        self.toggled.connect(self.onToggled)

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node
        self.setEnabled(node is not None)
        self.blockSignals(True)
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        self.setChecked(node is not None and bool(node.GetSegmentation().ContainsRepresentation(surface)))
        self.blockSignals(False)

    def onToggled(self, on: bool = True) -> None:
        if self._node is not None:
            self._node.CreateClosedSurfaceRepresentation() if on else self._node.RemoveClosedSurfaceRepresentation()


class qSlicerSegmentEditorEffectFactory(QtCore.QObject):
    """The singleton that knows all effects; extensions register theirs while Slicer starts."""

    effectRegistered = Signal(str)
    _one: ClassVar[Any] = None

    @classmethod
    def instance(cls) -> Any:
        cls._one = cls._one or cls()
        return cls._one


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """The Segment Editor: its nodes and its history are real, its effects are buttons without function."""

    api = ("mrmlSegmentEditorNode", "setMRMLSegmentEditorNode", "segmentationNode", "setSegmentationNode",
           "sourceVolumeNode", "setSourceVolumeNode", "currentSegmentID", "setCurrentSegmentID", "activeEffect",
           "setActiveEffect", "setActiveEffectByName", "effectByName", "saveStateForUndo", "undo", "redo",
           "installKeyboardShortcuts", "uninstallKeyboardShortcuts", "setupViewObservations",
           "removeViewObservations", "updateEffectList", "updateWidgetFromMRML")  # fmt: skip
    EFFECTS = ("Threshold", "Paint", "Draw", "Erase", "Level tracing", "Grow from seeds", "Fill between slices",
               "Margin", "Hollow", "Smoothing", "Scissors", "Islands", "Logical operators", "Mask volume")  # fmt: skip
    segmentationNodeSelectorVisible = _stored(bool, "segmentation_selector", True)
    sourceVolumeNodeSelectorVisible = _stored(bool, "source_selector", True)
    switchToSegmentationsButtonVisible = _stored(bool, "switch", True)
    maskingSectionVisible = _stored(bool, "masking", True)
    specifyGeometryButtonVisible = _stored(bool, "geometry_button", False)
    show3DButtonVisible = _stored(bool, "show3d", True)
    addRemoveSegmentButtonsVisible = _stored(bool, "add_remove", True)
    autoShowSourceVolumeNode = _stored(bool, "auto_show", True)
    undoEnabled = _stored(bool, "undo", True)
    maximumNumberOfUndoStates = _stored(int, "states", 10)
    readOnly = _stored(bool, "read_only", False)
    effectColumnCount = _stored(int, "columns", 2)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor: Any = None
        self._segmentation: Any = None
        self._volume: Any = None
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._observers, self._node_observers, self._segmentation_observers = (Observers(self) for _ in range(3))
        self._shortcuts: list[QtGui.QShortcut] = []
        self.spaces = 0
        self.listed = 0
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._segmentations, self._volumes = qMRMLNodeComboBox(), qMRMLNodeComboBox()
        for box, kind in ((self._segmentations, "vtkMRMLSegmentationNode"), (self._volumes, "vtkMRMLScalarVolumeNode")):
            box.nodeTypes, box.renameEnabled = [kind], True
            box.sizeAdjustPolicy = QtWidgets.QComboBox.AdjustToMinimumContentsLengthWithIcon
            box.hide()
            layout.addWidget(box)
        self._volumes.noneEnabled, self._volumes.addEnabled = True, False
        self._segmentations.currentNodeChanged.connect(self._segmentation_chosen)
        self._volumes.currentNodeChanged.connect(self._volume_chosen)
        layout.addWidget(QLabel("Effects"))
        grid = QGridLayout()
        grid.setSpacing(2)
        for index, name in enumerate(self.EFFECTS):
            grid.addWidget(QPushButton(name), index // 2, index % 2)
        layout.addLayout(grid)
        row = QHBoxLayout()
        for name, action in (("Undo", self.undo), ("Redo", self.redo)):
            button = QPushButton(name)
            button.setObjectName(f"{name}Button")
            button.clicked.connect(lambda _=False, action=action: action())
            row.addWidget(button)
        layout.addLayout(row)

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        blockers = [QtCore.QSignalBlocker(box) for box in (self._segmentations, self._volumes)]
        super().setMRMLScene(scene)
        for box in (self._segmentations, self._volumes):
            box.setMRMLScene(scene)
        for blocker in blockers:
            blocker.unblock()
        self._logic.SetMRMLScene(scene)
        self.updateWidgetFromMRML()
        self._observers.clear()
        if scene is not None:
            self._observers.add(scene, slicer.vtkMRMLScene.EndCloseEvent, lambda _: self.updateWidgetFromMRML())
            self._observers.add(scene, slicer.vtkMRMLScene.EndBatchProcessEvent, lambda _: self._batch_ended())

    def _batch_ended(self) -> None:
        """The selectors take precedence over the editor's node."""
        if self._editor is not None:
            self.setSegmentationNode(self._segmentations.currentNode())
            self._logic.SetSourceVolumeNode(self._volumes.currentNode())
        self.updateWidgetFromMRML()

    def mrmlSegmentEditorNode(self) -> Any:
        return self._editor

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        if node is self._editor:
            return
        self._node_observers.clear()
        self._editor = node
        self._logic.SetSegmentEditorNode(node)
        if node is not None:
            self._node_observers.add(node, vtk.vtkCommand.ModifiedEvent, lambda _: self.updateWidgetFromMRML())
            self.updateWidgetFromMRML()

    def segmentationNode(self) -> Any:
        """The node in the selector, which has no item "None"."""
        return self._segmentations.currentNode()

    def setSegmentationNode(self, node: Any) -> None:
        if self._editor is None and node is not None:
            raise RuntimeError("setSegmentationNode needs a segment editor node first")
        if self._logic.GetSegmentationNode() is not node:
            self._logic.SetSegmentationNode(node)
            self.setActiveEffect(None)

    def _segmentation_chosen(self, node: Any) -> None:
        if self._scene is not None and not self._scene.IsBatchProcessing():
            self.setSegmentationNode(node)

    def sourceVolumeNode(self) -> Any:
        return self._logic.GetSourceVolumeNode()

    def setSourceVolumeNode(self, node: Any) -> None:
        if node is not None and self._logic.GetSegmentationNode() is None:
            raise RuntimeError("setSourceVolumeNode needs a segmentation first")
        self._logic.SetSourceVolumeNode(node)

    def _volume_chosen(self, node: Any) -> None:
        if self._scene is not None and not self._scene.IsBatchProcessing():
            self._logic.SetSourceVolumeNode(node)

    def updateWidgetFromMRML(self) -> None:
        scene = self._scene
        if scene is None or scene.IsClosing() or scene.IsBatchProcessing() or self._editor is None:
            return
        was = self._editor.StartModify()
        node = self._logic.GetSegmentationNode()
        self._show(self._segmentations, node)
        if node is not self._segmentation:
            self._segmentation = node
            self._segmentation_observers.clear()
            if node is not None:
                kinds = slicer.vtkSegmentation
                for event in (kinds.ContainedRepresentationNamesModified, kinds.SegmentAdded, kinds.SegmentRemoved):
                    self._segmentation_observers.add(node, event, lambda _: self._segments_changed(), vtk.VTK_STRING)
                self._volumes.setCurrentNode(node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()))
                node.CreateDefaultDisplayNodes()
                for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
                    view.SetLabelVolumeID(None)
        volume = self._logic.GetSourceVolumeNode()
        if node is not None and volume is not self._volume:
            self._volume = volume
            self._show(self._volumes, volume)
            for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode") if volume is not None else ():
                if volume.GetID() not in (view.GetBackgroundVolumeID(), view.GetForegroundVolumeID()):
                    view.SetBackgroundVolumeID(volume.GetID())
                    view.SetForegroundVolumeID(None)
                    view.SetLabelVolumeID(None)
        self._editor.EndModify(was)

    def _segments_changed(self) -> None:
        """onSegmentAddedRemoved; without its node, the editor still observes the last segmentation."""
        if self._editor is None:
            errors.append("qMRMLSegmentEditorWidget::onSegmentAddedRemoved: Invalid segment editor parameter set node")

    @staticmethod
    def _show(box: qMRMLNodeComboBox, node: Any) -> None:
        if box.currentNode() is not node:
            blocker = QtCore.QSignalBlocker(box)
            box.setCurrentNode(node)
            blocker.unblock()

    def saveStateForUndo(self) -> None:
        self._logic.SaveStateForUndo()

    def undo(self) -> None:
        self._logic.Undo()

    def redo(self) -> None:
        self._logic.Redo()

    def activeEffect(self) -> Any:
        return (self._editor.GetActiveEffectName() or None) if self._editor is not None else None

    def setActiveEffect(self, effect: Any) -> None:
        if effect is not None:
            raise NotImplementedError("the stand-in has no effects, but for their names")
        if self._editor is not None:
            self._editor.SetActiveEffectName("")

    def updateEffectList(self) -> None:
        self.listed += 1

    def setActiveEffectByName(self, name: str) -> None:
        if self._logic.GetSegmentationNode() is None:
            raise RuntimeError("Slicer 5.10 would crash here")
        self._editor.SetActiveEffectName(name)

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        """Only one of the many: the space bar, which in the whole window chooses the effect that was used last."""
        self.uninstallKeyboardShortcuts()
        shortcut = QtGui.QShortcut(QtGui.QKeySequence(Qt.Key_Space), parent or self.window())
        shortcut.activated.connect(self._space_pressed)
        self._shortcuts.append(shortcut)

    def uninstallKeyboardShortcuts(self) -> None:
        while self._shortcuts:
            shortcut = self._shortcuts.pop()
            if shiboken6.isValid(shortcut):
                shiboken6.delete(shortcut)

    def _space_pressed(self) -> None:
        self.spaces += 1

    def removeViewObservations(self) -> None:
        pass
