"""Loads a .ui file as Slicer does, but rejects what Slicer would silently ignore."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import widgets
from .pythonqt import Object, wrap

STAND_INS = [getattr(widgets, name) for name in (
    "ctkCollapsibleButton", "ctkSliderWidget", "qMRMLWidget", "qMRMLNodeComboBox", "qMRMLSegmentsTableView",
    "qMRMLSegmentEditorWidget", "qMRMLSegmentationShow3DButton", "qSlicerSegmentEditorEffectFactory",
)]  # fmt: skip


class QUiLoader:
    """qt.QUiLoader: custom widgets come from Slicer's designer plugins, here from the stand-ins."""

    def load(self, file: Object) -> Any:
        """The top widget of an open file.

        Raises:
            ValueError: an unknown class or property, a name that is used twice, or a connection that Qt could not make.
        """
        path = Path(file.fileName())
        tree = ElementTree.parse(path)
        connections = tree.getroot().find("connections")
        wanted = [] if connections is None else [[part.text or "" for part in one] for one in connections]
        if connections is not None:
            tree.getroot().remove(connections)
        policies = _take_policies(tree)
        loader = QtUiTools.QUiLoader()
        for cls in STAND_INS:
            if issubclass(cls, QtWidgets.QWidget):
                loader.registerCustomWidget(cls)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, path.name)
            tree.write(copy)
            top = loader.load(str(copy))
        known = {one.objectName(): one for one in [top, *top.findChildren(QtWidgets.QWidget)] if one.objectName()}
        _check_widgets(tree, known)
        for name, policy in policies.items():
            known[name].sizeAdjustPolicy = policy
        for sender, signal, receiver, slot, *_ in wanted:
            _connect(known[sender], signal, known[receiver], slot)
        return wrap(top)


def _take_policies(tree: Any) -> dict[str, Any]:
    """Take out each node selector's sizeAdjustPolicy: no property made by PySide6 can have a Qt enumeration as type."""
    taken = {}
    for element in tree.getroot().iter("widget"):
        for described in element.findall("property"):
            if (element.get("class"), described.get("name")) == ("qMRMLNodeComboBox", "sizeAdjustPolicy"):
                scope, _, value = (described.findtext("enum") or "").partition("::")
                taken[element.get("name")] = getattr(getattr(QtWidgets, scope), value)
                element.remove(described)
    return taken


def _check_widgets(tree: Any, known: dict[str, Any]) -> None:
    seen = set()
    for element in tree.getroot().iter("widget"):
        name, cls = element.get("name"), element.get("class")
        if name in seen:
            raise ValueError(f"two widgets are named {name}")
        seen.add(name)
        found = known.get(name)
        if found is None or type(found).__name__ != cls:
            raise ValueError(f"{name} is no {cls}")
        for described in element.findall("property"):
            if described.get("stdset") == "0":
                continue
            if (cls, described.get("name")) == ("QLabel", "buddy"):  # not a property: the loader itself handles it
                if described.findtext("cstring") not in known:
                    raise ValueError(f"{name} names a widget that does not exist")
                continue
            if found.metaObject().indexOfProperty(described.get("name")) < 0:
                raise ValueError(f"{cls} {name} has no property {described.get('name')}")


def _connect(sender: Any, signal: str, receiver: Any, slot: str) -> None:
    if signal not in getattr(type(sender), "signatures", {}):
        raise ValueError(f"{type(sender).__name__} has no signal {signal}")
    name = slot.partition("(")[0]
    offered = any(name in base.__dict__.get("api", ()) for base in type(receiver).__mro__)
    if not offered and name not in qt_slots(receiver):
        raise ValueError(f"{type(receiver).__name__} has no slot {slot}")
    getattr(sender, signal.partition("(")[0]).connect(getattr(receiver, name))


def qt_slots(native: QtCore.QObject) -> set[str]:
    """Names of the slots that Qt knows."""
    meta = native.metaObject()
    return {bytes(meta.method(index).name().data()).decode() for index in range(meta.methodCount())}
