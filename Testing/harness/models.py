"""The item models behind Slicer's node and segment lists, written after their sources: what a row shows, and when."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import shiboken6
import slicer
import vtk
from PySide6 import QtGui
from PySide6.QtCore import Property, QModelIndex, QObject, QSortFilterProxyModel, Qt
from PySide6.QtGui import QStandardItem, QStandardItemModel

NODE_ID = Qt.ItemDataRole.UserRole + 1


class Observers:
    """VTK observers that are removed together, or when the Qt object that they serve is gone."""

    everyone: ClassVar[weakref.WeakSet[Observers]] = weakref.WeakSet()

    def __init__(self, owner: QObject) -> None:
        self._owner: QObject = owner
        self._tags: dict[tuple[int, int], Any] = {}
        self.everyone.add(self)

    def add(self, of: Any, event: Any, action: Callable[[Any], Any], kind: Any = None, priority: float = 0.0) -> None:
        """Call the action with the event's data, or with None if it has none."""

        def call(caller: Any, event: str, data: Any = None) -> None:
            if shiboken6.isValid(self._owner):
                action(data)
            else:
                self.clear()

        call.CallDataType = vtk.VTK_OBJECT if kind is None else kind  # type: ignore[attr-defined]
        self._tags[of.AddObserver(event, call, priority), id(of)] = of

    def __contains__(self, of: Any) -> bool:
        return any(one is of for one in self._tags.values())

    def clear(self, of: Any = None) -> None:
        """Remove all, or those of one object."""
        for tag, one in list(self._tags):
            if of is None or id(of) == one:
                self._tags.pop((tag, one)).RemoveObserver(tag)


class SceneModel(QStandardItemModel):
    """qMRMLSceneModel: the scene's nodes, between the item "None" and the actions where a selector offers them."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.scene: Any = None
        self.before: list[str] = []
        self.after: list[str] = []
        self._observers, self._node_observers = Observers(self), Observers(self)
        self._root = QStandardItem("Scene")
        self._root.setData("scene", NODE_ID)
        self.appendRow(self._root)

    def node(self, index: Any) -> Any:
        """The node of a row, or None."""
        identity = index.data(NODE_ID)
        return self.scene.GetNodeByID(identity) if identity and self.scene is not None else None

    def row(self, identity: str) -> int:
        """The row of a node among all rows, or -1."""
        rows = range(self._root.rowCount())
        return next((row for row in rows if self._root.child(row).data(NODE_ID) == identity), -1)

    def set_before(self, texts: list[str]) -> None:
        """What is offered before the nodes."""
        self._replace(0, self.before, texts)
        self.before = texts

    def set_after(self, texts: list[str]) -> None:
        """What is offered after the nodes."""
        self._replace(self._root.rowCount() - len(self.after), self.after, texts)
        self.after = texts

    def _replace(self, first: int, old: list[str], new: list[str]) -> None:
        if new != old:
            self._root.removeRows(first, len(old))
            for row, text in enumerate(new, start=first):
                self._root.insertRow(row, [QStandardItem(text)])

    def set_scene(self, scene: Any) -> None:
        self._observers.clear()
        self.scene = scene
        if scene is not None:
            add, kind = self._observers.add, slicer.vtkMRMLScene
            add(scene, kind.NodeAddedEvent, lambda node: self.scene.IsImporting() or self._insert(node))
            leaving = kind.NodeAboutToBeRemovedEvent
            add(scene, leaving, lambda node: self.scene.IsClosing() or self._remove(node), priority=-10.0)
            add(scene, kind.EndImportEvent, lambda _: self.update_scene())
            add(scene, kind.EndCloseEvent, lambda _: self.update_scene())
        self.update_scene()

    def update_scene(self) -> None:
        """Remove the rows of all nodes and add them again, which clears any selection."""
        before, after = len(self.before), len(self.after)
        self._node_observers.clear()
        self._root.removeRows(before, self._root.rowCount() - before - after)
        if self.scene is not None:
            for place in range(self.scene.GetNumberOfNodes()):
                self._insert(self.scene.GetNthNode(place))

    def _insert(self, node: Any) -> None:
        item = QStandardItem(node.GetName())
        item.setData(node.GetID(), NODE_ID)
        self._root.insertRow(self._root.rowCount() - len(self.after), [item])
        self._node_observers.add(node, vtk.vtkCommand.ModifiedEvent, lambda _: self._modified(node))

    def _remove(self, node: Any) -> None:
        self._node_observers.clear(node)
        row = self.row(node.GetID())
        if row >= 0:
            self._root.removeRow(row)

    def _modified(self, node: Any) -> None:
        row = -1 if self.scene is None or self.scene.IsClosing() or self.scene.IsImporting() else self.row(node.GetID())
        if row >= 0:
            self._root.child(row).setText(node.GetName())


class NodeFilter(QSortFilterProxyModel):
    """qMRMLSortFilterProxyModel: the nodes of some types, with an attribute if one is required."""

    def __init__(self, model: SceneModel, parent: QObject) -> None:
        super().__init__(parent)
        self.types: list[str] = []
        self.with_children, self.with_hidden = True, False
        self.attributes: dict[str, tuple[str, Any]] = {}
        self._observers = Observers(self)
        self.setDynamicSortFilter(True)
        self.setSourceModel(model)

    def filterAcceptsRow(self, row: int, parent: QModelIndex) -> bool:
        node = self.sourceModel().node(self.sourceModel().index(row, 0, parent))
        if node is None:
            return True
        if node.GetHideFromEditors() and not self.with_hidden:
            return False
        fit = (kind for kind in self.types if node.IsA(kind) and (self.with_children or node.GetClassName() == kind))
        kind = next(fit, None)
        if kind is None:
            return not self.types
        if kind not in self.attributes:
            return True
        if node not in self._observers:
            self._observers.add(node, vtk.vtkCommand.ModifiedEvent, lambda _: self.invalidate())
        name, value = self.attributes[kind]
        found = node.GetAttribute(name)
        return found is not None and (value is None or str(value) == found)


VISIBLE, COLOR, NAME = range(3)
"""Columns of a list of segments."""
_ID, _INDEX, _VISIBLE, _NAME, _CODE, _COLOR = (Qt.ItemDataRole.UserRole + 1 + number for number in range(6))


class SegmentsModel(QStandardItemModel):
    """qMRMLSegmentsModel without the columns opacity, layer and status.

    An event that names no segment adds and removes rows, but leaves those whose segment's ID still exists. A change of
    a row writes everything that the row holds into its segment, even while the row is being updated.
    """

    nameColumn = Property(int, lambda self: NAME)

    def __init__(self, parent: QObject) -> None:
        super().__init__(0, 3, parent)
        self.node: Any = None
        self._observers = Observers(self)
        self.itemChanged.connect(self._write)

    def set_node(self, node: Any) -> None:
        if node is self.node:
            return
        self._observers.clear()
        self.node = node
        self._rebuild()
        if node is not None:
            kinds, add = slicer.vtkSegmentation, self._observers.add
            add(node, kinds.SegmentAdded, self._added, vtk.VTK_STRING, 10.0)
            add(node, kinds.SegmentRemoved, self._removed, vtk.VTK_STRING, 10.0)
            add(node, kinds.SegmentModified, self._segment_modified, vtk.VTK_STRING, -10.0)
            add(node, kinds.SegmentsOrderModified, lambda _: self._reorder(), priority=-15.0)
            shown = slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent
            add(node, shown, lambda _: self._update(self.ids(), [VISIBLE]), priority=-15.0)
            add(node, slicer.vtkMRMLSegmentationNode.SegmentationChangedEvent, lambda _: self._rebuild())

    def ids(self) -> list[str]:
        """The segments' IDs, row by row."""
        return [self.item(row, 0).data(_ID) for row in range(self.rowCount())]

    def _segments(self) -> list[str]:
        return list(self.node.GetSegmentation().GetSegmentIDs()) if self.node is not None else []

    def _rebuild(self) -> None:
        self.beginResetModel()
        self.removeRows(0, self.rowCount())
        for identity in self._segments():
            self._insert(identity)
        self.endResetModel()

    def _insert(self, identity: str) -> None:
        if identity not in self.ids():
            items = [QStandardItem() for _ in range(self.columnCount())]
            for column, item in enumerate(items):
                self._show(item, identity, column)
            self.insertRow(self.node.GetSegmentation().GetSegmentIndex(identity), items)

    def _added(self, identity: str | None) -> None:
        for one in [identity] if identity else self._segments():
            self._insert(one)

    def _removed(self, identity: str | None) -> None:
        left = self._segments()
        for one in [identity] if identity else [one for one in self.ids() if one not in left]:
            if one in self.ids():
                self.removeRow(self.ids().index(one))

    def _segment_modified(self, identity: str | None) -> None:
        self._update([identity] if identity else self._segments(), range(self.columnCount()))

    def _update(self, identities: list[str], columns: Any) -> None:
        for identity in identities:
            for column in columns:
                if identity in self.ids():
                    self._show(self.item(self.ids().index(identity), column), identity, column)

    def _reorder(self) -> None:
        for place, identity in enumerate(self._segments()):
            row = self.ids().index(identity)
            if row != place:
                self.insertRow(place, self.takeRow(row))

    def _show(self, item: QStandardItem, identity: str, column: int) -> None:
        """Every `setData` that changes something is a change of the row, so the row is written before the next one."""
        segmentation, display = self.node.GetSegmentation(), self.node.GetDisplayNode()
        segment = segmentation.GetSegment(identity)
        item.setData(identity, _ID)
        if segment is None:
            return
        item.setData(segmentation.GetSegmentIndex(identity), _INDEX)
        if column == NAME:
            item.setData(segment.GetName(), _NAME)
            item.setData(_color_of(segment), _COLOR)
            item.setData(segment.GetTerminology(), _CODE)
            item.setText(segment.GetName())
        elif display is not None and column == COLOR:
            item.setData(_color_of(segment), Qt.ItemDataRole.DecorationRole)
        elif display is not None:
            shown = bool(display.GetSegmentVisibility(identity))
            if item.data(_VISIBLE) is not shown:
                item.setData(shown, _VISIBLE)
                item.setText("\u25c9" if shown else "\u25cb")

    def _write(self, item: QStandardItem) -> None:
        identity, display = item.data(_ID), self.node.GetDisplayNode()
        segment = self.node.GetSegmentation().GetSegment(identity)
        if segment is None or (display is None and item.column() != NAME):
            return
        color = item.data(_COLOR if item.column() == NAME else Qt.ItemDataRole.DecorationRole)
        if item.column() == VISIBLE:
            if item.data(_VISIBLE) is not None:
                display.SetSegmentVisibility(identity, item.data(_VISIBLE))
            return
        if item.column() == NAME:
            segment.SetTerminology(item.data(_CODE) or "")
        if _color_of(segment) != color:
            segment.SetColor(color.redF(), color.greenF(), color.blueF())
        if item.column() == NAME and item.data(_NAME) != segment.GetName():
            segment.SetName(item.data(_NAME))

    def type(self, row: int, name: str) -> None:
        """Rename a segment as a double click, a name and Enter do, for tests."""
        self.item(row, NAME).setData(name, _NAME)

    def rows(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """Name, colour and visibility as each row shows them, for tests."""
        for row in range(self.rowCount()):
            color = self.item(row, COLOR).data(Qt.ItemDataRole.DecorationRole)
            yield self.item(row, NAME).text(), color.getRgb()[:3], self.item(row, VISIBLE).data(_VISIBLE)


def _color_of(segment: Any) -> QtGui.QColor:
    return QtGui.QColor.fromRgbF(*segment.GetColor())
