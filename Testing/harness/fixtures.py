"""Fixtures of the panel's tests: the scene, volumes in it, well-behaved and misbehaving workers, the panel itself."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer
import vtk

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SAUNetSegmentation"
sys.path[:0] = [str(path) for path in (ROOT, ROOT / "Testing", MODULE) if str(path) not in sys.path]

import builders  # noqa: E402

from harness import errors, install, process_events  # noqa: E402
from harness.models import Observers  # noqa: E402
from SAUNetLib.formats.segmentations import write_segmentation  # noqa: E402
from SAUNetLib.notices import Notice  # noqa: E402
from SAUNetLib.volume import LPS_TO_RAS  # noqa: E402

install()

PROVENANCE = {"software": "SAUNet 0", "model": "tiny 1", "model_sha256": "0" * 64, "device": "cpu float32",
              "options": "levels=True lowest=L5", "time": "2026-01-01T00:00:00+00:00"}  # fmt: skip
WARNING = Notice(
    "LEVELS_ASSUMED",
    "The lowest complete vertebra was named L4: no sacrum is in view, so the level was inferred from the sizes and "
    "the curvature of the vertebrae.",
)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty scene, no settings, and a temporary folder of its own; an exception in a slot fails the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    slicer.mrmlScene.Clear()
    slicer.app.userSettings().clear()
    errors.clear()
    yield slicer.mrmlScene
    raised = list(errors)
    for left in list(Observers.everyone):  # what was not closed must not be deleted while the scene calls it
        left.clear()
    slicer.mrmlScene.Clear()
    left = list(folder.iterdir())
    assert not raised, raised[0]
    assert left == [], "the temporary folder is not empty"


def add_volume(grid: Any = None, name: str = "T2 sag", dtype: Any = np.int16) -> Any:
    """A volume node with `builders.volume`."""
    return add_node(builders.volume(grid or builders.geometry(), dtype=dtype), name)


def add_node(source: Any, name: str) -> Any:
    """A volume node with a volume's voxels and geometry."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(source.voxels))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(LPS_TO_RAS @ source.geometry.matrix))
    return node


def add_transform(node: Any, linear: bool = True) -> Any:
    """Put a node under a transform node: a rotation with a shift, or a non-linear transform."""
    if linear:
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turned")
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = builders.rotation(20), (5, 6, 7)
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    else:
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "bent")
        bend = vtk.vtkThinPlateSplineTransform()
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for place in ((0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (50, 50, 50)):
            source.InsertNextPoint(place)
            target.InsertNextPoint([value * 1.1 if value == 50 else value + 3 for value in place])
        bend.SetSourceLandmarks(source)
        bend.SetTargetLandmarks(target)
        bend.SetBasisToR()
        transform.SetAndObserveTransformToParent(bend)
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def segments(node: Any) -> list[Any]:
    """The segments of a segmentation node, in their order."""
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(index) for index in range(segmentation.GetNumberOfSegments())]


def paint(node: Any, index: int = 0) -> None:
    """Edit a segment as the Segment Editor does: its voxels are copied, changed and set."""
    from SAUNetPanel import Result

    segmentation = node.GetSegmentation()
    identity = segmentation.GetNthSegmentID(index)
    image = slicer.vtkOrientedImageData()
    image.DeepCopy(segmentation.GetSegment(identity).GetRepresentation("Binary labelmap"))
    voxels = Result.voxelsOf(image)
    value = segmentation.GetSegment(identity).GetLabelValue()
    mask = (voxels == value).astype(np.uint8)
    mask[0, 0, 0] = 1
    voxels[:] = mask
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.SetBinaryLabelmapToSegment(image, node, identity, logic.MODE_REPLACE, image.GetExtent())


def truth(grid: Any = None, **rest: Any) -> Any:
    """The exact segmentation of `add_volume`'s image."""
    rest = {"provenance": PROVENANCE, "warnings": (WARNING,), "partial": frozenset({44})} | rest
    return builders.segmentation(grid or builders.geometry(), **rest)


def fake_engine(folder: Path, behaviour: str = "", stage: str = "", result: Any = None, **entries: Any) -> Any:
    """An engine process that runs workers/fake_worker.py; its result is `truth` or another segmentation."""
    from SAUNetPanel.EngineProcess import EngineProcess, workerCommand

    result = result or truth()
    labels = folder / "truth.nrrd"
    write_segmentation(result, labels)
    plan = {"labels": str(labels), "summary": result.summary(), "behaviour": behaviour, "stage": stage, **entries}
    command = workerCommand(ROOT / "Testing" / "harness" / "workers", "fake_worker")
    return EngineProcess(command, {"SAUNET_FAKE": json.dumps(plan)})


class Answers:
    """Dialogs that answer by themselves."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.path: Path | None = None
        self.answer = "cancel"
        self.consent = True

    def saveFile(self, title: str, name: str, filters: str) -> Path | None:
        self.asked.append(title)
        return self.path

    def openFile(self, title: str, filters: str) -> Path | None:
        self.asked.append(title)
        return self.path

    def chooseFolder(self, title: str) -> Path | None:
        self.asked.append(title)
        return self.path

    def replaceFiles(self, names: list[str]) -> bool:
        self.asked += names
        return self.consent

    def replaceEdited(self, name: str) -> str:
        self.asked.append(name)
        return self.answer

    def confirmInstall(self, text: str) -> bool:
        self.asked.append(text)
        return self.consent


def make_panel(engine: Any, dependencies: Any = None) -> SimpleNamespace:
    """The real .ui file and the real widget, entered."""
    from SAUNetPanel.Logic import SAUNetSegmentationLogic
    from SAUNetPanel.Widget import Widget

    top = slicer.util.loadUI(str(MODULE / "Resources" / "UI" / "SAUNetSegmentation.ui"))
    top.setMRMLScene(slicer.mrmlScene)
    logic = SAUNetSegmentationLogic(engine=engine)
    answers = Answers()
    widget = Widget(top, logic, dependencies, answers)
    widget.enter()
    panel = SimpleNamespace(top=top, ui=widget.ui, widget=widget, logic=logic, dialogs=answers, engine=engine)
    panel.wait = lambda seconds=20.0: process_events(lambda: not logic.running, seconds)
    panel.results = lambda: slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return panel


def close_panel(panel: SimpleNamespace) -> None:
    """End the panel as Slicer does when it unloads a module."""
    panel.widget.cleanup()
    panel.top.setMRMLScene(None)
    panel.top.deleteLater()
    slicer.app.processEvents()


@pytest.fixture
def panel_of(scene: Any, tmp_path: Path) -> Iterator[Any]:
    """Function: the panel with a fake worker (arguments of `fake_engine`), or with another engine."""
    made = []

    def make(behaviour: str = "", stage: str = "", engine: Any = None, dependencies: Any = None, **entries: Any) -> Any:
        panel = make_panel(engine or fake_engine(tmp_path, behaviour, stage, **entries), dependencies)
        made.append(panel)
        return panel

    yield make
    for panel in made:
        close_panel(panel)
