"""Stand-ins for CTK's and Slicer's widgets. `api` and `signatures` list what the originals declare for Python."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget


def _stored(kind: Any, name: str, default: Any, changed: str = "") -> Property:
    """A property that is only kept."""

    def read(self: Any) -> Any:
        return self.__dict__.get(f"_{name}", default)

    def write(self: Any, value: Any) -> None:
        self.__dict__[f"_{name}"] = value
        if changed:
            getattr(self, changed)()

    return Property(kind, read, write)


class ctkCollapsibleButton(QWidget):
    """A button that shows or hides what lies below it."""

    contentsCollapsed = Signal(bool)
    toggled = Signal(bool)
    clicked = Signal(bool)
    api = ("setText",)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._text, self._is_collapsed = "", False
        self.setContentsMargins(0, 28, 0, 0)

    def _collapse(self, collapsed: bool) -> None:
        self._is_collapsed = bool(collapsed)
        for child in self.findChildren(QWidget, options=Qt.FindDirectChildrenOnly):
            if collapsed:
                child.setProperty("_shown", not child.isHidden())
                child.hide()
            elif child.property("_shown") is not False:
                child.show()
        self.setMaximumHeight(26 if collapsed else 16777215)
        self.contentsCollapsed.emit(self._is_collapsed)
        self.update()

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    collapsed = Property(bool, lambda self: self._is_collapsed, _collapse)
    text = Property(str, lambda self: self._text, _set_text)
    setText = _set_text

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(120, 26) if self._is_collapsed else super().sizeHint()

    def minimumSizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(60, 26) if self._is_collapsed else super().minimumSizeHint()

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() < 26 and self.isEnabled():
            self._collapse(not self._is_collapsed)

    def paintEvent(self, event: Any) -> None:
        painter, palette = QtGui.QPainter(self), self.palette()
        group = QtGui.QPalette.Active if self.isEnabled() else QtGui.QPalette.Disabled
        if not self._is_collapsed:
            painter.setPen(palette.color(QtGui.QPalette.Mid))
            painter.drawRect(0, 13, self.width() - 1, self.height() - 14)
        painter.setPen(palette.color(QtGui.QPalette.Mid))
        painter.setBrush(palette.button())
        painter.drawRoundedRect(0, 0, self.width() - 1, 25, 3, 3)
        painter.setPen(palette.color(group, QtGui.QPalette.ButtonText))
        painter.drawText(26, 0, self.width() - 30, 26, Qt.AlignVCenter | Qt.AlignLeft, self._text)
        option = QtWidgets.QStyleOption()
        option.initFrom(self)
        option.rect = QtCore.QRect(7, 6, 13, 13)
        arrow = (
            QtWidgets.QStyle.PE_IndicatorArrowRight if self._is_collapsed else QtWidgets.QStyle.PE_IndicatorArrowDown
        )
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


class _Observer:
    """VTK observers that are removed together."""

    def __init__(self) -> None:
        self._tags: list[tuple[Any, int]] = []

    def observe(self, node: Any, events: tuple[Any, ...], action: Any) -> None:
        for event in events if node is not None else ():
            self._tags.append((node, node.AddObserver(event, lambda *_: action())))

    def clear(self) -> None:
        for node, tag in self._tags:
            node.RemoveObserver(tag)
        self._tags = []


class qMRMLNodeComboBox(QWidget):
    """A selector of nodes."""

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
        self._box = QtWidgets.QComboBox()
        self._box.setSizeAdjustPolicy(QtWidgets.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        layout.addWidget(self._box)
        self.setSizePolicy(QtWidgets.QSizePolicy.Expanding, QtWidgets.QSizePolicy.Fixed)
        self._box.currentIndexChanged.connect(self._index_changed)
        self._scene: Any = None
        self._observer = _Observer()
        self._attributes: list[tuple[str, str, Any]] = []
        self._ids: list[str] = []
        self._current = ""
        self._filling = False

    def _fill(self) -> None:
        scene = self._scene
        if scene is None or scene.IsBatchProcessing():
            return
        nodes = [node for node in slicer.util.getNodesByClass("vtkMRMLNode", scene) if self._shown(node)]
        self._filling = True
        self._box.clear()
        self._ids = [""] if self.noneEnabled else []
        if self.noneEnabled:
            self._box.addItem(self.noneDisplay or "None")
        for node in nodes:
            self._ids.append(node.GetID())
            self._box.addItem(node.GetName())
        self._filling = False
        if self._current not in self._ids:
            self._select(self._ids[0] if self._ids else "")
        else:
            self._show()

    def _shown(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        kinds = self.nodeTypes or []
        if not any(node.IsA(kind) if self.showChildNodeTypes else node.GetClassName() == kind for kind in kinds):
            return False
        wanted = [(key, value) for kind, key, value in self._attributes if node.IsA(kind)]
        return all(
            node.GetAttribute(key) is not None if value is None else node.GetAttribute(key) == value
            for key, value in wanted
        )

    def _show(self) -> None:
        self._filling = True
        self._box.setCurrentIndex(self._ids.index(self._current) if self._current in self._ids else -1)
        self._filling = False

    def _index_changed(self, index: int) -> None:
        if not self._filling and 0 <= index < len(self._ids):
            self._select(self._ids[index])

    def _select(self, identity: str) -> None:
        changed = identity != self._current
        self._current = identity
        self._show()
        if changed:
            self.currentNodeChanged.emit(self.currentNode())
            self.currentNodeIDChanged.emit(identity)

    nodeTypes = _stored("QStringList", "types", [], "_fill")
    noneEnabled = _stored(bool, "none", False, "_fill")
    noneDisplay = _stored(str, "none_text", "", "_fill")
    showHidden = _stored(bool, "hidden_nodes", False, "_fill")
    showChildNodeTypes = _stored(bool, "children", True, "_fill")
    addEnabled = _stored(bool, "add", True)
    removeEnabled = _stored(bool, "remove", True)
    editEnabled = _stored(bool, "edit", False)
    renameEnabled = _stored(bool, "rename", False)
    baseName = _stored(str, "base", "")
    selectNodeUponCreation = _stored(bool, "upon", True)
    currentNodeID = Property(str, lambda self: self._current, lambda self, identity: self._select(identity))

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self._observer.clear()
        kinds = slicer.vtkMRMLScene
        events = (
            kinds.NodeAddedEvent,
            kinds.NodeRemovedEvent,
            kinds.EndBatchProcessEvent,
            vtk.vtkCommand.ModifiedEvent,
        )
        self._observer.observe(scene, events, self._fill)
        self._fill()

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._current) if self._scene and self._current else None

    def setCurrentNode(self, node: Any) -> None:
        self._fill()
        identity = node if isinstance(node, str) else node.GetID() if node is not None else ""
        if identity in self._ids or not identity:
            self._select(identity)

    setCurrentNodeID = setCurrentNode

    def nodeCount(self) -> int:
        return len([identity for identity in self._ids if identity])

    def nodeFromIndex(self, index: int) -> Any:
        return self._scene.GetNodeByID([identity for identity in self._ids if identity][index])

    def addAttribute(self, kind: str, name: str, value: Any = None) -> None:
        self._attributes.append((kind, name, value))
        self._fill()


class qMRMLSegmentsTableView(qMRMLWidget):
    """The list of segments: eye, colour, name."""

    api = ("segmentationNode", "setSegmentationNode", "selectedSegmentIDs", "setSelectedSegmentIDs", "clearSelection",
           "setSelectionMode", "setHeaderVisible", "setReadOnly")  # fmt: skip
    selectionMode = _stored(int, "mode", 3)
    headerVisible = _stored(bool, "header", True)
    visibilityColumnVisible = _stored(bool, "visibility", True)
    colorColumnVisible = _stored(bool, "color", True)
    opacityColumnVisible = _stored(bool, "opacity", False)
    statusColumnVisible = _stored(bool, "status", False)
    layerColumnVisible = _stored(bool, "layer", False)
    readOnly = _stored(bool, "read_only", False)
    filterBarVisible = _stored(bool, "filter", False)
    segmentCount = Property(int, lambda self: self._table.rowCount())

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._table = QtWidgets.QTableWidget(0, 3)
        self._table.horizontalHeader().hide()
        self._table.verticalHeader().hide()
        self._table.verticalHeader().setDefaultSectionSize(22)
        self._table.setShowGrid(False)
        self._table.setColumnWidth(0, 28)
        self._table.setColumnWidth(1, 28)
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.setSelectionBehavior(QtWidgets.QTableWidget.SelectRows)
        layout.addWidget(self._table)
        self._node: Any = None
        self._observer = _Observer()

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node
        self._observer.clear()
        if node is not None:
            segmentation = node.GetSegmentation()
            kinds = (segmentation.SegmentAdded, segmentation.SegmentRemoved, segmentation.SegmentModified)
            self._observer.observe(segmentation, kinds, self._fill)
        self._fill()

    def _fill(self) -> None:
        ids = [] if self._node is None else list(self._node.GetSegmentation().GetSegmentIDs())
        self._table.setRowCount(len(ids))
        for row, identity in enumerate(ids):
            segment = self._node.GetSegmentation().GetSegment(identity)
            display = self._node.GetDisplayNode()
            shown = display is None or display.GetSegmentVisibility(identity)
            self._table.setItem(row, 0, QtWidgets.QTableWidgetItem("\u25c9" if shown else "\u25cb"))
            swatch = QtGui.QPixmap(14, 14)
            swatch.fill(QtGui.QColor.fromRgbF(*segment.GetColor()))
            self._table.setItem(row, 1, QtWidgets.QTableWidgetItem(QtGui.QIcon(swatch), ""))
            self._table.setItem(row, 2, QtWidgets.QTableWidgetItem(segment.GetName()))

    def selectedSegmentIDs(self) -> list[str]:
        ids = list(self._node.GetSegmentation().GetSegmentIDs()) if self._node else []
        return [ids[index.row()] for index in self._table.selectionModel().selectedRows()]


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


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """The Segment Editor: its nodes and its history are real, its effects are buttons without function."""

    api = ("mrmlSegmentEditorNode", "setMRMLSegmentEditorNode", "segmentationNode", "setSegmentationNode",
           "sourceVolumeNode", "setSourceVolumeNode", "currentSegmentID", "setCurrentSegmentID", "activeEffect",
           "setActiveEffect", "setActiveEffectByName", "effectByName", "saveStateForUndo", "undo", "redo",
           "installKeyboardShortcuts", "uninstallKeyboardShortcuts", "setupViewObservations",
           "removeViewObservations", "updateWidgetFromMRML")  # fmt: skip
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
        self._history = slicer.vtkSegmentationHistory()
        self._shortcuts, self._effect = False, None
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
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

    def mrmlSegmentEditorNode(self) -> Any:
        return self._editor

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        self._editor = node

    def segmentationNode(self) -> Any:
        return self._editor.GetSegmentationNode() if self._editor else None

    def setSegmentationNode(self, node: Any) -> None:
        if self._editor is None:
            raise RuntimeError("setSegmentationNode needs a segment editor node first")
        self._editor.SetAndObserveSegmentationNode(node)
        self._history.RemoveAllStates()
        self._history.SetSegmentation(node.GetSegmentation() if node is not None else None)

    def sourceVolumeNode(self) -> Any:
        return self._editor.GetSourceVolumeNode() if self._editor else None

    def setSourceVolumeNode(self, node: Any) -> None:
        self._editor.SetAndObserveSourceVolumeNode(node)

    def saveStateForUndo(self) -> None:
        self._history.SaveState()

    def undo(self) -> None:
        self._history.RestorePreviousState()

    def redo(self) -> None:
        self._history.RestoreNextState()

    def activeEffect(self) -> Any:
        return self._effect

    def setActiveEffect(self, effect: Any) -> None:
        if effect is not None:
            raise NotImplementedError("the stand-in has no effects, but for their names")
        self._effect = None

    def setActiveEffectByName(self, name: str) -> None:
        if self.segmentationNode() is None:
            raise RuntimeError("Slicer 5.10 would crash here")
        self._effect = name

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        self._shortcuts = True

    def uninstallKeyboardShortcuts(self) -> None:
        self._shortcuts = False

    def updateWidgetFromMRML(self) -> None:
        pass

    def removeViewObservations(self) -> None:
        pass
