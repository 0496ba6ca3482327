"""A strict stand-in for slicer.parameterNodeWrapper: str, bool, enumerations and nodes, with their widgets."""

from __future__ import annotations

import enum
import typing
from typing import Any

import slicer

from .pythonqt import Object


class _Parameter:
    """Reads and writes one value as the original does: text in parameters, nodes in references."""

    def __init__(self, name: str, kind: Any, default: Any) -> None:
        node = isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)
        if not (node or kind in (str, bool) or (isinstance(kind, type) and issubclass(kind, enum.Enum))):
            raise TypeError(f"{name}: the stand-in does not know {kind}")
        self.name, self.kind, self.node = name, kind, node
        self.default = (
            default if default is not None or node else next(iter(kind)) if kind not in (str, bool) else kind()
        )

    def read(self, holder: Any) -> Any:
        if self.node:
            return holder.GetNodeReference(self.name)
        text = holder.GetParameter(self.name)
        if not text and self.default:  # as in the original: a missing value becomes the default
            self.write(holder, self.default)
            return self.default
        if self.kind is str:
            return text
        return text == "True" if self.kind is bool else self.kind[text]

    def write(self, holder: Any, value: Any) -> None:
        if self.node:
            if value is not None and not isinstance(value, self.kind):
                raise ValueError(f"{self.name} takes a {self.kind.__name__}, not {value!r}")
            holder.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            return
        if not isinstance(value, self.kind):
            raise ValueError(f"{self.name} takes a {self.kind.__name__}, not {value!r}")
        holder.SetParameter(self.name, value.name if isinstance(value, enum.Enum) else str(value))


def parameterNodeWrapper(cls: type) -> type:
    """Class decorator: typed access to a parameter node."""
    hints = typing.get_type_hints(cls)
    known = {name: _Parameter(name, kind, getattr(cls, name, None)) for name, kind in hints.items()}

    def initialise(self: Any, node: Any) -> None:
        self.parameterNode, self._guis = node, {}
        for one in known.values():
            if not one.node and not node.GetParameter(one.name) and one.default not in ("", None):
                one.write(node, one.default)

    cls.__init__ = initialise  # type: ignore[misc]
    for name, one in known.items():
        setattr(cls, name, property(lambda self, one=one: one.read(self.parameterNode),
                                    lambda self, value, one=one: one.write(self.parameterNode, value)))  # fmt: skip
    cls.allParameters = known
    cls.AddObserver = lambda self, event, callback, priority=0.0: self.parameterNode.AddObserver(
        event, callback, priority
    )
    cls.RemoveObserver = lambda self, tag: self.parameterNode.RemoveObserver(tag)
    cls.Modified = lambda self: self.parameterNode.Modified()
    cls.StartModify = lambda self: self.parameterNode.StartModify()
    cls.EndModify = lambda self, before: self.parameterNode.EndModify(before)
    cls.connectGui, cls.disconnectGui = _connect_gui, _disconnect_gui
    return cls


def _connect_gui(self: Any, gui: Any) -> int:
    """Connect every widget that has the dynamic property SlicerParameterName."""
    connections = []
    for widget in gui.__dict__.values():
        name = widget.property("SlicerParameterName") if isinstance(widget, Object) else None
        if name:
            if name not in self.allParameters:
                raise ValueError(f"there is no parameter {name}")
            connections.append(_Connection(self, self.allParameters[name], widget))
    tag = max(self._guis, default=-1) + 1
    self._guis[tag] = connections, self.AddObserver("ModifiedEvent", lambda *_: [one.show() for one in connections])
    return tag


def _disconnect_gui(self: Any, tag: int) -> None:
    if tag in self._guis:
        connections, observer = self._guis.pop(tag)
        self.RemoveObserver(observer)
        for one in connections:
            one.disconnect()


class _Connection:
    """One widget and one parameter."""

    def __init__(self, wrapper: Any, parameter: _Parameter, widget: Object) -> None:
        self.wrapper, self.parameter, self.widget = wrapper, parameter, widget
        kind, name = type(widget).__name__, parameter.kind
        self.showing = False
        if kind == "QComboBox" and not parameter.node and name not in (str, bool):
            self.choices = list(name)
            widget.clear()
            for choice in self.choices:
                widget.addItem(getattr(name, "label", lambda one: one.name)(choice))
            self.signal = widget.currentIndexChanged
        elif kind == "QCheckBox" and name is bool:
            self.signal = widget.stateChanged
        elif kind == "QLineEdit" and name is str:
            self.signal = widget.textChanged
        elif kind == "qMRMLNodeComboBox" and parameter.node:
            widget.nodeTypes = [name.__name__]
            self.signal = widget.currentNodeChanged
        else:
            raise RuntimeError(f"a {kind} cannot show {parameter.name}")
        self.show()
        self.signal.connect(self.changed)

    def show(self) -> None:
        value, self.showing = self.parameter.read(self.wrapper.parameterNode), True
        kind = type(self.widget).__name__
        if kind == "QComboBox":
            self.widget.currentIndex = self.choices.index(value)
        elif kind == "QCheckBox":
            self.widget.checked = value
        elif kind == "QLineEdit":
            self.widget.text = value
        else:
            self.widget.setCurrentNode(value)
        self.showing = False

    def changed(self) -> None:
        if self.showing:
            return
        kind = type(self.widget).__name__
        if kind == "QComboBox":
            value = self.choices[self.widget.currentIndex]
        elif kind == "QCheckBox":
            value = self.widget.checked
        elif kind == "QLineEdit":
            value = self.widget.text
        else:
            value = self.widget.currentNode()
        self.parameter.write(self.wrapper.parameterNode, value)

    def disconnect(self) -> None:
        self.signal.disconnect(self.changed)
