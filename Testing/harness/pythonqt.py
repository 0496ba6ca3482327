"""Shows PySide6's objects to Python as PythonQt shows Qt objects.

Qt properties are attributes, signals have connect(), everything else is a method that takes no keywords; anything that
Qt does not have raises AttributeError.
"""

from __future__ import annotations

import enum
import traceback
import types
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

errors: list[str] = []
"""Tracebacks of exceptions in slots; PythonQt prints them and continues."""
used: set[tuple[str, str]] = set()
"""(class, name) of every member that was used, for the table in README.md."""

_PYSIDE_ONLY = {"connect", "disconnect", "emit", "sender", "tr", "signalsBlocked", "receivers", "staticMetaObject"}
_classes: dict[type, type] = {}
_overrides: dict[str, dict[str, Callable[..., Any]]] = {}
"""Members that PythonQt and PySide6 offer differently: class name -> member -> function of the object and arguments."""


class Meta(type):
    """A wrapped class: enumeration values and static methods."""

    native: type

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_") or name == "native":
            raise AttributeError(name)
        override = _override(cls.native, f"static {name}")
        if override:
            return override
        value = getattr(cls.native, name)
        used.add((cls.native.__name__, name))
        if isinstance(value, (enum.Enum, int, str)):
            return value
        if isinstance(value, type):
            return wrap_class(value) if not issubclass(value, enum.Enum) else value
        return _method(value)


class Object(metaclass=Meta):
    """A Qt object as PythonQt shows it."""

    __slots__ = ("__weakref__", "_native")
    native: type = QtCore.QObject

    def __init__(self, *values: Any) -> None:
        native = _Shell if "eventFilter" in vars(type(self)) else type(self).native
        object.__setattr__(self, "_native", native(*(unwrap(value) for value in values)))
        if isinstance(self._native, QtCore.QObject):
            self._native._wrapper = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _get(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        derived = type(self) is not _classes.get(type(self).native)
        if derived and self._native.metaObject().indexOfProperty(name) < 0:
            object.__setattr__(self, name, value)
        else:
            _set(self._native, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Object) and (self._native is other._native or bool(self._native == other._native))

    def __hash__(self) -> int:
        return hash(id(self._native))

    def __repr__(self) -> str:
        return f"<{type(self.native).__name__} {self.native.__name__}>"


class _Shell(QtCore.QObject):
    """What Qt sees of a Python class derived from QObject: calls that class's versions of Qt's virtual methods."""

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:
        try:
            return self._wrapper.eventFilter(wrap(watched), wrap(event))
        except Exception:
            errors.append(traceback.format_exc())
            return False


class Signal:
    """A signal of an object."""

    def __init__(self, native: Any, name: str) -> None:
        self._native, self._name = native, name

    def connect(self, receiver: Any) -> bool:
        """Call a function at every emission."""
        return _connect(self._native, self._name, receiver)

    def disconnect(self, receiver: Any) -> bool:
        """Stop calling a function."""
        return _disconnect(self._native, self._name, receiver)

    def __call__(self, *values: Any) -> None:
        getattr(self._native, self._name).emit(*(unwrap(value) for value in values))

    emit = __call__


def wrap(value: Any) -> Any:
    """A value of PySide6 as PythonQt would return it."""
    if isinstance(value, (list, tuple)):
        return type(value)(wrap(one) for one in value)
    if isinstance(value, QtCore.QObject):
        known = getattr(value, "_wrapper", None)
        return known if known is not None else _wrapped(value)
    if type(value).__module__.startswith("PySide6") and not isinstance(value, (enum.Enum, type)):
        return _wrapped(value)
    return value


def _wrapped(value: Any) -> Object:
    cls = wrap_class(type(value))
    result = cls.__new__(cls)
    object.__setattr__(result, "_native", value)
    if isinstance(value, QtCore.QObject):
        value._wrapper = result
    return result


def wrap_class(native: type) -> type:
    """The class that wraps a class of PySide6 or a stand-in."""
    if native not in _classes:
        _classes[native] = Meta(native.__name__, (Object,), {"__slots__": (), "native": native})
    return _classes[native]


def unwrap(value: Any) -> Any:
    """The value that PySide6 takes."""
    if isinstance(value, Object):
        return value._native
    if isinstance(value, (list, tuple)):
        return [unwrap(one) for one in value]
    if callable(value) and not isinstance(value, (type, enum.Enum)):
        return _guarded(value)
    return value


def override(class_name: str, name: str) -> Callable[[Any], Any]:
    """Decorator: how PythonQt offers a member of a class (a static one with ``static`` before its name)."""

    def keep(function: Any) -> Any:
        _overrides.setdefault(class_name, {})[name] = function
        return function

    return keep


def _override(native: type, name: str) -> Any:
    for base in native.__mro__:
        found = _overrides.get(base.__name__, {}).get(name)
        if found:
            return found
    return None


def _get(wrapper: Object, name: str) -> Any:
    native = wrapper._native
    special = _override(type(native), name)
    if special:
        return lambda *values: special(native, *values)
    if name == "connect":
        return lambda signal, receiver: _connect(native, signal, receiver)
    if name == "disconnect":
        return lambda signal, receiver: _disconnect(native, signal, receiver)
    if name == "className":
        return lambda: type(native).__name__
    if isinstance(native, QtCore.QObject):
        if not shiboken6.isValid(native):
            raise ValueError(f"trying to access {name!r} of a destroyed {type(native).__name__}")
        meta, known = native.metaObject(), "objectName" if name == "name" else name
        if meta.indexOfProperty(known) >= 0:
            used.add((_declaring(native, known), name))
            return wrap(native.property(known))
        if _signals(native, name):
            used.add((_declaring(native, name), name))
            return Signal(native, name)
        if name.encode() in {bytes(one.data()) for one in native.dynamicPropertyNames()}:
            return wrap(native.property(name))
    if not _offered(native, name):
        raise AttributeError(f"{type(native).__name__} has no attribute named {name!r}")
    used.add((_declaring(native, name), name))
    return _method(getattr(native, name))


def _set(native: Any, name: str, value: Any) -> None:
    known = "objectName" if name == "name" else name
    if isinstance(native, QtCore.QObject):
        index = native.metaObject().indexOfProperty(known)
        if index >= 0:
            used.add((_declaring(native, known), name))
            described = native.metaObject().property(index)
            if not described.isWritable():
                raise AttributeError(f"property {name!r} of {type(native).__name__} is not writable")
            _check_type(described.typeName(), value, name)
            if not native.setProperty(known, unwrap(value)):
                raise AttributeError(f"property {name!r} of {type(native).__name__} does not accept {value!r}")
            return
        if name.encode() in {bytes(one.data()) for one in native.dynamicPropertyNames()}:
            native.setProperty(name, unwrap(value))
            return
    raise AttributeError(
        f"{name!r} does not exist on {type(native).__name__}, and attributes cannot be added to Qt objects"
    )


def _check_type(kind: str, value: Any, name: str) -> None:
    wanted = {"bool": (bool, int), "QString": str, "int": int, "double": (int, float)}.get(kind)
    if wanted and not isinstance(value, wanted):
        raise AttributeError(f"property {name!r} of type {kind!r} does not accept {value!r}")


def _offered(native: Any, name: str) -> bool:
    """A stand-in offers what its original declares (`api`), and its Qt base class what Qt offers."""
    if name.startswith("_") or name in _PYSIDE_ONLY:
        return False
    for base in type(native).__mro__:
        if name in base.__dict__.get("api", ()):
            return True
        if base.__module__.startswith("PySide6") and hasattr(base, name):
            return not name.endswith(("Event", "Events")) or name in ("event",)
    return False


def _declaring(native: Any, name: str) -> str:
    for base in type(native).__mro__:
        if name in base.__dict__ or name in base.__dict__.get("api", ()):
            return base.__name__
    return type(native).__name__


def _signals(native: Any, name: str) -> list[Any]:
    # Not cached: widgets of a class share a meta-object, which becomes invalid when Python collects one of them.
    methods = (native.metaObject().method(index) for index in range(native.metaObject().methodCount()))
    return [
        one
        for one in methods
        if one.methodType() == QtCore.QMetaMethod.MethodType.Signal and bytes(one.name().data()).decode() == name
    ]


def _method(function: Any) -> Any:
    def call(*values: Any) -> Any:
        return wrap(function(*(unwrap(value) for value in values)))

    return call


def _connect(native: Any, signal: str, receiver: Any) -> bool:
    name, count = _find(native, signal)
    if count is None:
        count = max(one.parameterCount() for one in _signals(native, name))
    slots = native.__dict__.setdefault("_slots", [])
    slot = _guarded(receiver, count)
    slots.append((name, receiver, slot))
    getattr(native, name).connect(slot)
    return True


def _disconnect(native: Any, signal: str, receiver: Any) -> bool:
    name, _ = _find(native, signal)
    slots = native.__dict__.setdefault("_slots", [])
    for entry in slots:
        if entry[0] == name and entry[1] == receiver:
            slots.remove(entry)
            getattr(native, name).disconnect(entry[2])
            return True
    return False


def _find(native: Any, signal: str) -> tuple[str, int | None]:
    """Name and number of arguments of a signal given by name or by signature.

    PythonQt only returns False for a signal that does not exist; here it is an error.
    """
    name, bracket, arguments = signal.partition("(")
    declared = getattr(type(native), "signatures", {})
    if not bracket:
        if not _signals(native, name):
            raise AttributeError(f"{type(native).__name__} has no signal {signal!r}")
        return name, None
    plain = signal.replace(" ", "").replace("const", "").replace("&", "")
    if plain in declared:
        return name, declared[plain]
    if native.metaObject().indexOfSignal(QtCore.QMetaObject.normalizedSignature(signal).data().decode()) < 0:
        raise AttributeError(f"{type(native).__name__} has no signal {signal!r}")
    used.add((_declaring(native, name), signal))
    return name, 0 if arguments.strip() == ")" else arguments.count(",") + 1


def _guarded(receiver: Any, count: int = 9) -> Any:
    """A function as PythonQt calls it: with no more arguments than it takes, and its exceptions go to `errors`."""
    wanted = count
    function = receiver.__func__ if isinstance(receiver, types.MethodType) else receiver
    if isinstance(function, types.FunctionType) and not function.__code__.co_flags & 0x04:
        wanted = min(count, function.__code__.co_argcount - isinstance(receiver, types.MethodType))

    def slot(*values: Any) -> None:
        try:
            receiver(*(wrap(value) for value in values[:wanted]))
        except Exception:
            errors.append(traceback.format_exc())

    # PySide6 chooses between a signal's overloads by the number of arguments that the function declares.
    exact = {0: lambda: slot(), 1: lambda a: slot(a), 2: lambda a, b: slot(a, b), 3: lambda a, b, c: slot(a, b, c)}
    return exact.get(count, slot)


@override("QByteArray", "data")
def _data(native: Any) -> bytes:
    return bytes(native.data())


@override("QComboBox", "addItem")
def _add_item(native: Any, text: str, data: Any = None) -> None:
    native.addItem(text, unwrap(data))


@override("QTimer", "static singleShot")
def _single_shot(milliseconds: int, receiver: Any) -> None:
    QtCore.QTimer.singleShot(milliseconds, _guarded(receiver, 0))


@override("QFileDialog", "static getOpenFileName")
def _open_file_name(*values: Any) -> str:
    return str(QtWidgets.QFileDialog.getOpenFileName(*(unwrap(value) for value in values))[0])


@override("QDialog", "exec_")
def _exec(native: Any) -> int:
    return int(native.exec())


class Namespace(types.ModuleType):
    """The module qt: Qt's classes."""

    def __getattr__(self, name: str) -> Any:
        for module in (QtCore, QtGui, QtWidgets):
            if name.startswith("Q") and hasattr(module, name):
                return wrap_class(getattr(module, name))
        raise AttributeError(f"module 'qt' has no attribute {name!r}")
