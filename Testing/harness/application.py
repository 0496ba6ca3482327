"""slicer.app, the scene and the modules that Slicer's Python provides, built on slicer-core's libraries."""

from __future__ import annotations

import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from PySide6 import QtCore, QtWidgets

from . import parameters, uiloader
from .pythonqt import Namespace, errors, wrap, wrap_class

__all__ = ["errors", "install", "process_events"]

_installed: dict[str, Any] = {}


class _Application:
    """qSlicerApplication; what is not written here does not exist."""

    majorVersion, minorVersion, revision = 5, 12, "34567"
    slicerHome = "/nonexistent"

    def __init__(self, native: QtWidgets.QApplication) -> None:
        self._native = native
        self._settings = QtCore.QSettings(str(Path(tempfile.mkdtemp()) / "settings.ini"), QtCore.QSettings.IniFormat)

    def processEvents(self) -> None:
        self._native.processEvents()

    def clipboard(self) -> Any:
        return wrap(self._native.clipboard())

    def userSettings(self) -> Any:
        return wrap(self._settings)

    def openExtensionsManagerDialog(self) -> None:
        self.extensionsManagerOpened = True

    def translate(self, context: str, text: str) -> str:
        return text

    def topLevelWidgets(self) -> list[Any]:
        return [wrap(one) for one in self._native.topLevelWidgets()]

    def testingEnabled(self) -> bool:
        return True

    def connect(self, signal: str, receiver: Callable[[], Any]) -> bool:
        if signal != "startupCompleted()":
            raise AttributeError(f"qSlicerApplication has no signal {signal!r}")
        return True


class _Module:
    """A module: path, logic()."""

    def __init__(self, logic: Any = None, path: str = "") -> None:
        self._logic, self.path = logic, path

    def logic(self) -> Any:
        return self._logic


class _ModuleBase:
    """slicer.ScriptedLoadableModule.ScriptedLoadableModule."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__

    def resourcePath(self, name: str) -> str:
        return str(Path(self.parent.path).parent / "Resources" / name)


class _WidgetBase:
    """slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, name: str) -> str:
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / name)

    def setup(self) -> None:
        pass

    def cleanup(self) -> None:
        pass

    def onReload(self) -> None:
        pass


class _LogicBase:
    """slicer.ScriptedLoadableModule.ScriptedLoadableModuleLogic."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> Any:
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
            node = slicer.mrmlScene.AddNode(node)
        return node


class _TestBase:
    """slicer.ScriptedLoadableModule.ScriptedLoadableModuleTest; the self-test itself runs in Slicer only."""


def install() -> None:
    """Make qt, ctk and Slicer's own modules importable; the second call does nothing."""
    if _installed:
        return
    native = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    native.setStyle("Fusion")
    qt, ctk = Namespace("qt"), types.ModuleType("ctk")
    qt.QUiLoader = uiloader.QUiLoader  # type: ignore[attr-defined]
    qt.Qt = wrap_class(QtCore.Qt)  # type: ignore[attr-defined]
    for cls in uiloader.STAND_INS:
        setattr(ctk if cls.__name__.startswith("ctk") else slicer, cls.__name__, wrap_class(cls))
    modules = {
        "qt": qt,
        "ctk": ctk,
        "slicer.i18n": _module("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text),
        "slicer.parameterNodeWrapper": _module(
            "slicer.parameterNodeWrapper", parameterNodeWrapper=parameters.parameterNodeWrapper
        ),
        "slicer.ScriptedLoadableModule": _module(
            "slicer.ScriptedLoadableModule",
            ScriptedLoadableModule=_ModuleBase,
            ScriptedLoadableModuleWidget=_WidgetBase,
            ScriptedLoadableModuleLogic=_LogicBase,
            ScriptedLoadableModuleTest=_TestBase,
            __all__=[f"ScriptedLoadableModule{part}" for part in ("", "Widget", "Logic", "Test")],
        ),
    }
    sys.modules.update(modules)
    _installed.update(modules)
    slicer.app = _Application(native)
    slicer.mrmlScene = _scene()


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


def _scene() -> Any:
    """A scene with the logics that Slicer's own modules provide."""
    scene, application = slicer.vtkMRMLScene(), slicer.vtkMRMLApplicationLogic()
    application.SetMRMLScene(scene)
    logics = {}
    for name, cls in (
        ("segmentations", "vtkSlicerSegmentationsModuleLogic"),
        ("terminologies", "vtkSlicerTerminologiesModuleLogic"),
        ("subjecthierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
        ("volumes", "vtkSlicerVolumesLogic"),
        ("sequences", "vtkSlicerSequencesLogic"),
    ):
        logic = getattr(slicer, cls)()
        logic.SetMRMLApplicationLogic(application)
        with _silence():
            logic.SetMRMLScene(scene)
        logics[name] = logic
    slicer.modules = types.SimpleNamespace(**{name: _Module(logic) for name, logic in logics.items()})
    slicer.modules.applicationLogic = application  # keeps it alive
    scene.AddObserver(scene.NodeAddedEvent, _place)
    scene.AddObserver(scene.NodeAboutToBeRemovedEvent, _displace)
    return scene


def _silence() -> Any:
    """Suppress the warning that Slicer's own term files are missing, which slicer-core does not contain."""
    import contextlib

    import vtk

    @contextlib.contextmanager
    def quiet() -> Any:
        before = vtk.vtkObject.GetGlobalWarningDisplay()
        vtk.vtkObject.SetGlobalWarningDisplay(0)
        yield
        vtk.vtkObject.SetGlobalWarningDisplay(before)

    return quiet()


def _observe_calldata() -> tuple[Any, Any]:
    import vtk

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def place(scene: Any, event: str, node: Any) -> None:
        """Slicer's subject hierarchy plugins give every data node an item."""
        if node.IsA("vtkMRMLDisplayableNode") and not node.GetHideFromEditors():
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
            if hierarchy and not hierarchy.GetItemByDataNode(node):
                hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def displace(scene: Any, event: str, node: Any) -> None:
        """They remove the item with its node, unless the whole scene is closing."""
        hierarchy = None
        if node.IsA("vtkMRMLDisplayableNode") and not scene.IsClosing():
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
        if item:
            hierarchy.RemoveItem(item, False, False)

    return place, displace


_place, _displace = _observe_calldata()


def process_events(until: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Run Qt's event loop until a condition is met; False if it was not met in time."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            return False
        slicer.app.processEvents()
        time.sleep(0.005)
    slicer.app.processEvents()
    return True
