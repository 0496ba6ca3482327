"""The panel's work without its widgets: segment a volume node, blocking or with callbacks."""

import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from SAUNetLib.errors import is_out_of_memory
from SAUNetLib.formats import temporary
from SAUNetLib.stages import done

from .Cards import VOLUME_FILE, Card, PanelError, cardOf
from .EngineProcess import EngineProcess
from .Result import Frame, isEdited, isResult, shownFrame, state
from .SceneNodes import SceneNodes, checksum
from .Signal import Signal


class Device(Enum):
    """Where the network runs."""

    AUTO = "auto"
    GPU = "gpu"
    CPU = "cpu"

    def label(self) -> str:
        """The text shown to the user."""
        return {"auto": _("Automatic"), "gpu": _("Graphics card"), "cpu": _("Processor")}[self.value]


class Output(Enum):
    """What the segments are."""

    LEVELS = "levels"
    CLASSES = "classes"

    def label(self) -> str:
        """The text shown to the user."""
        return {"levels": _("Every vertebra and disc"), "classes": _("Vertebrae, discs, canal")}[self.value]


class Lowest(Enum):
    """The level of the lowest complete vertebra: found by the engine, or stated; levels run from lowest to highest."""

    AUTO = "auto"
    L6, L5, L4, L3, L2, L1 = "L6", "L5", "L4", "L3", "L2", "L1"
    T13, T12, T11, T10, T9, T8, T7 = "T13", "T12", "T11", "T10", "T9", "T8", "T7"
    T6, T5, T4, T3, T2, T1 = "T6", "T5", "T4", "T3", "T2", "T1"
    C7, C6, C5, C4, C3, C2, C1 = "C7", "C6", "C5", "C4", "C3", "C2", "C1"

    def label(self) -> str:
        """The text shown to the user."""
        return _("Automatic") if self is Lowest.AUTO else self.value


class Previous(Enum):
    """What happens to the previous result of the same volume."""

    REPLACE = "replace"
    KEEP = "keep"

    def label(self) -> str:
        """The text shown to the user."""
        return {"replace": _("Replace unless edited"), "keep": _("Keep and add a new one")}[self.value]


@parameterNodeWrapper
class SAUNetParameterNode:
    """All choices of the panel; they are saved with the scene.

    inputVolume - the volume to segment.
    result - the segmentation that is shown.
    model - name of the model; empty for the standard one.
    device, output, lowest, previous - see the enumerations.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    result: slicer.vtkMRMLSegmentationNode
    model: str = ""
    device: Device = Device.AUTO
    output: Output = Output.LEVELS
    lowest: Lowest = Lowest.AUTO
    previous: Previous = Previous.REPLACE


@dataclass(frozen=True)
class Options:
    """How a volume is segmented.

    Attributes:
        levels: one segment per vertebra and disc; otherwise vertebrae, discs and canal.
        lowest: level of the lowest complete vertebra, such as L5; None leaves it to the engine. Only with levels.
        device: auto, gpu (cuda, or mps on a Mac) or cpu.
        model: a model's name, or its .safetensors file; empty for the standard model.
        replace: segmentation node whose content the result replaces, if it is empty or an unedited result; a result
            that was edited by hand and a segmentation that is not a result are kept.
        replaceEdited: replace those as well; a segmentation edited after the start is kept.

    Raises:
        TypeError, ValueError: an option of the wrong type, or a level that is not a vertebra.
    """

    levels: bool = True
    lowest: str | None = None
    device: str = "auto"
    model: str | Path = ""
    replace: Any = None
    replaceEdited: bool = False

    def __post_init__(self) -> None:
        for name, choice in (("device", self.device), ("lowest", self.lowest)):
            if isinstance(choice, Enum):  # of the parameter node
                object.__setattr__(self, name, None if choice is Lowest.AUTO else choice.value)
        kinds = {"levels": bool, "lowest": (str, type(None)), "device": str, "model": (str, Path),
                 "replace": (slicer.vtkMRMLSegmentationNode, type(None)), "replaceEdited": bool}  # fmt: skip
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                found = type(value).__name__
                raise TypeError(f'{name} must not be of type {found}; see help("SAUNetPanel.Logic.Options")')
        known = [level.value for level in Lowest if level is not Lowest.AUTO]
        if self.lowest is not None and self.lowest.strip().upper() not in known:
            raise ValueError(f"lowest must be a vertebra, such as L5, not {self.lowest!r}")
        if self.lowest is not None and not self.levels:
            raise ValueError("lowest needs levels=True: vertebrae without names have no lowest level")

    def network(self) -> dict[str, Any]:
        """The entries of an engine request that select the network and device."""
        return {"device": deviceName(self.device), "model": str(self.model) or None}


class SAUNetSegmentationLogic(ScriptedLoadableModuleLogic):
    """Segment volume nodes with the engine.

    For Slicer's Python console::

        from SAUNetSegmentation import SAUNetSegmentationLogic

        logic = SAUNetSegmentationLogic()
        segmentation = logic.segment(getNode("T2 sag"), progress=print)
        logic.close()

    The engine stays ready between volumes and ends with ``close``; left open, it keeps its memory for ten minutes::

        for volume in getNodesByClass("vtkMRMLScalarVolumeNode"):
            if volume.GetClassName() == "vtkMRMLScalarVolumeNode":  # label maps are scalar volumes too
                logic.segment(volume, levels=True, device="cpu")
        logic.close()

    Signals:
        progressed (str, float): stage as shown to the user, fraction of the whole run from 0 to 1.
        finished (node): the segmentation node is in the scene.
        failed (Card): nothing was changed; a cancelled run fails with the code CANCELLED.
        aboutToReplace (node): the content of this segmentation is about to be replaced.
        log (str): a line for the log.

    Args:
        engine: the child process.
    """

    def __init__(self, engine: EngineProcess | None = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.progressed, self.finished, self.failed, self.log = Signal(), Signal(), Signal(), Signal()
        self.aboutToReplace = Signal()
        self.nodes = SceneNodes(slicer.mrmlScene)
        self.engine = engine or EngineProcess()
        self.engine.event.connect(self._onEvent)
        self.engine.log.connect(self.log.emit)
        self._folder: Path | None = None
        self._undeleted: list[Path] = []
        self._job: tuple[Any, Options, Frame, int] | None = None  # volume, options, the frame it shows, its checksum
        self._run: list[Any] = []  # what became of it: the node or the card
        self._agreed: tuple[str, str | None] | None = None  # state of the edited segmentation that may be replaced
        temporary.remove_leftovers()

    def getParameterNode(self) -> SAUNetParameterNode:
        """The scene's parameters of this module."""
        node = super().getParameterNode()
        # In a scene saved by a later version: the wrapper rejects a node with a choice that it does not know.
        for name, kind in (("device", Device), ("output", Output), ("lowest", Lowest), ("previous", Previous)):
            if node.GetParameter(name) not in ("", *kind.__members__):
                node.UnsetParameter(name)
        return SAUNetParameterNode(node)  # type: ignore[call-arg]

    @property
    def running(self) -> bool:
        """Whether a volume is being segmented."""
        return self._job is not None

    @property
    def cancelling(self) -> bool:
        """Whether that run has been cancelled."""
        return self.running and self.engine.cancelled

    def segment(self, volumeNode: Any, progress: Callable[[str, float], Any] | None = None, **options: Any) -> Any:
        """Segment a volume and wait for the result; Slicer's window stays responsive.

        Args:
            volumeNode: scalar volume with a sagittal spine MRI.
            progress: called with the stage and the fraction done.
            options: see `Options`.

        Returns:
            The segmentation node.

        Raises:
            RuntimeError: as `start`.
            TypeError, ValueError: an invalid argument; nothing was changed.
            PanelError: with the code and the words of the error card.
        """
        if progress is not None and not callable(progress):
            raise TypeError("progress must be a function of a stage and a share, or None")
        if progress is not None:
            self.progressed.connect(progress)
        try:
            run = self._start(volumeNode, options)
            while self.running and self._run is run:  # a receiver of its end may have started another one
                slicer.app.processEvents()
                time.sleep(0.01)
        finally:
            if progress is not None:
                self.progressed.disconnect(progress)
        if not run:  # closed by a callback or a button, which emits no signal
            raise PanelError("CANCELLED")
        if isinstance(run[0], Card):
            raise PanelError(run[0])
        return run[0]

    def start(self, volumeNode: Any, **options: Any) -> None:
        """Start segmenting a volume; `finished` or `failed` reports the end. Arguments as in `segment`.

        Raises:
            RuntimeError: a volume is being segmented, or this is not Slicer's main thread.
            TypeError, ValueError: as `segment`.
        """
        self._start(volumeNode, options)

    def _start(self, volumeNode: Any, options: dict[str, Any]) -> list[Any]:
        """Same as `start`; returns the list that will receive the run's result or failure."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the scene and the engine's process belong to Slicer's main thread; start from there")
        if self.running:
            raise RuntimeError("a volume is being segmented")
        wanted = Options(**options)
        run = self._run = []
        if volumeNode is not None and not isinstance(volumeNode, slicer.vtkMRMLNode):
            raise TypeError(f"a volume node is needed, not {volumeNode!r}; see slicer.util.getNode")
        self._removeFolder()
        try:
            self.nodes.check(volumeNode)
            self._folder = temporary.make_folder()
            files = {"image": str(self._folder / VOLUME_FILE), "output": str(self._folder / "labels.nrrd")}
            self.nodes.writeVolume(volumeNode, Path(files["image"]))
            self._job = volumeNode, wanted, shownFrame(volumeNode), checksum(volumeNode)
            agreed = wanted.replaceEdited and wanted.replace is not None
            self._agreed = state(wanted.replace) if agreed else None
            self.engine.run("segment", **files, levels=wanted.levels, lowest=wanted.lowest, **wanted.network())
        except PanelError as error:
            self._fail(error.card)
        except OSError:
            self._fail(PanelError("FOLDER").card)
        except MemoryError:
            self._fail(PanelError("MEMORY").card)
        except Exception:  # an option cannot be put into a request
            self._job = None
            self._removeFolder()
            raise
        return run

    def warm(self, **options: Any) -> None:
        """Load the network in advance so that the first click need not wait. Arguments as in `segment`."""
        if not self.running and not self.engine.alive:
            self.engine.run("warm", **Options(**options).network())

    def cool(self) -> None:
        """Stop loading the network in advance; a loaded network stays in memory."""
        if self.engine.warming:
            self.engine.cancel()

    def cancel(self) -> None:
        """End the run; `failed` follows within two seconds."""
        self.engine.cancel()

    def close(self) -> None:
        """End the engine and remove the private folder immediately, without any message."""
        self._job = None
        self.engine.close()
        self._removeFolder()

    def _onEvent(self, event: dict[str, Any]) -> None:
        if not self.running:
            if event["event"] == "error" and event["code"] != "CANCELLED":
                self.log.emit(_("The engine could not be warmed up: {cause}").format(cause=event.get("cause", "")))
            return
        if event["event"] == "progress":
            self.progressed.emit(
                stageText(event.get("stage", "")), done(event.get("stage", ""), event.get("fraction", 0))
            )
        elif event["event"] == "error":
            self._fail(cardOf(withPackageFault(event)))
        elif event["event"] == "result":
            self._finish(event)

    def _finish(self, event: dict[str, Any]) -> None:
        assert self._job is not None
        try:
            node = self._import(*self._job, event)
        except PanelError as error:
            self._fail(error.card)
            return
        except Exception as error:
            self.log.emit(f"{type(error).__name__}: {error}")
            self._fail(PanelError("MEMORY" if is_out_of_memory(error) else "RESULT_UNREADABLE").card)
            return
        self._end(node)
        self.finished.emit(node)

    def _import(self, volumeNode: Any, options: Options, frame: Frame, voxels: int, event: dict[str, Any]) -> Any:
        if volumeNode.GetScene() is None:
            raise PanelError("VOLUME_GONE")
        self.nodes.check(volumeNode)
        assert self._folder is not None
        labels = self.nodes.readLabels(self._folder / "labels.nrrd", volumeNode)
        if shownFrame(volumeNode).value == frame.value and checksum(volumeNode) != voxels:
            raise PanelError("RESULT_GEOMETRY", _("The volume's voxels were changed during segmentation."))
        replace = options.replace if self._mayReplace(options.replace) else None
        return self.nodes.importResult(
            volumeNode, labels, event, options.levels, replace, frame, self.aboutToReplace.emit
        )

    def _mayReplace(self, node: Any) -> bool:
        """Whether a node may be replaced; it may have been edited or removed while the engine worked."""
        if node is None or node.GetScene() is None:
            return False
        drawn = node.GetSegmentation().GetNumberOfSegments() > 0
        return not drawn or (isResult(node) and not isEdited(node)) or self._agreed == state(node)

    def _fail(self, card: Card) -> None:
        self._end(card)
        self.failed.emit(card)

    def _end(self, outcome: Any) -> None:
        """Clean up after a run. A caller waiting for its end holds the list, so no node is kept here."""
        self._job = None
        self._removeFolder()
        self._run.append(outcome)
        self._run = []

    def _removeFolder(self) -> None:
        """Remove the run's folder, and what an earlier run could not remove."""
        folders, self._undeleted = [*self._undeleted, *([self._folder] if self._folder else [])], []
        self._folder = None
        for folder in folders:
            try:
                temporary.remove_folder(folder)
            except OSError as error:
                self._undeleted.append(folder)
                self.log.emit(_("The temporary folder could not be removed yet: {error}").format(error=error))


def deviceName(device: str) -> str:
    """The engine's name for a device."""
    return {"gpu": "mps" if sys.platform == "darwin" else "cuda"}.get(device, device)


def withPackageFault(event: dict[str, Any]) -> dict[str, Any]:
    """The error event; replaced by a clearer one if a package or part of PyTorch was missing.

    Install can add a package, but it takes PyTorch for installed whatever parts are missing.
    """
    cause = str(event.get("cause"))
    if event.get("code") not in ("INTERNAL", "NOT_INSTALLED"):
        return event
    match = re.search(r"No module named '(\w+)((?:\.\w+)*)'", cause)
    if match is not None and (match[1] in _PACKAGES and not (match[1] == "torch" and match[2])):
        return {"code": "NOT_INSTALLED", "cause": _("The package {name} is missing.").format(name=match[1])}
    if (match is not None and match[1] != "SAUNetLib") or _TORCHS_LIBRARY.search(cause):
        return {"code": "PYTORCH_BROKEN"}
    return event


_PACKAGES = ("numpy", "SimpleITK", "PIL", "packaging", "torch", "safetensors", "cc3d", "nrrd")
"""Packages that the engine itself imports; any other missing one is a part of PyTorch or one of its dependencies."""
_TORCHS_LIBRARY = re.compile(r"(?:OSError|ImportError): .*(?:\btorch\b|\bc10\b|libtorch)", re.DOTALL)


def stageText(stage: str) -> str:
    """The text shown to the user for a stage."""
    texts = {
        "load": _("Loading the network"),
        "read": _("Reading the volume"),
        "prepare": _("Preparing the slices"),
        "segment": _("Segmenting"),
        "levels": _("Naming vertebrae and discs"),
        "write": _("Writing the result"),
    }
    return texts.get(stage, _("Working"))
