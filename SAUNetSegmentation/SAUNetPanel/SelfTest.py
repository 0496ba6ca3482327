"""The module's self-test, which runs in Slicer: segment a phantom by pressing the button, correct it, export it."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer

from .Result import isEdited, labelValues, merge, provenance
from .Widget import DOUBLE_CLICK_S

if TYPE_CHECKING:
    from SAUNetLib.volume import Volume

MOST_SECONDS, MOST_SECONDS_TO_CANCEL = 600, 10


def runSelfTest(test: Any) -> None:
    """Run everything.

    Args:
        test: the ScriptedLoadableModuleTest, for its messages and assertions.
    """
    slicer.mrmlScene.Clear()
    slicer.util.selectModule("SAUNetSegmentation")
    panel = slicer.modules.SAUNetSegmentationWidget.panel
    test.delayDisplay("Make a phantom")
    missing = panel.dependencies.missing()
    made = boxes() if missing else phantom()
    volume = volumeNode(made.volume)
    panel.ui.inputSelector.setCurrentNode(volume)
    test.assertTrue(panel.ui.segmentButton.enabled)
    if missing:
        test.delayDisplay("The engine is not installed; only the scene side is tested")
        node = importTruth(panel, volume, made)
    else:
        test.delayDisplay("Press the button, and press it again to cancel")
        cancelRun(test, panel)
        test.delayDisplay("Press the button")
        node = pressButton(test, panel)
    checkSegments(test, node, volume)
    correct(test, panel, node)
    export(test, panel, node)
    test.delayDisplay("Test passed")


@dataclass(frozen=True)
class Made:
    """An image and its label map (k, j, i)."""

    volume: "Volume"
    labels: np.ndarray


def phantom() -> Made:
    """A small lumbar phantom; needs the engine's packages."""
    from SAUNetLib.training.phantom import PhantomOptions, make_phantom

    made = make_phantom(PhantomOptions(seed=1, slices=7, pixel=1.2))
    return Made(made.volume, made.labels)


def boxes() -> Made:
    """Boxes in place of two vertebrae, the disc between them and the canal; needs only Slicer's own packages."""
    from SAUNetLib.volume import Geometry, Volume

    labels = np.zeros((7, 60, 50), np.uint8)
    for value, rows, columns in ((41, (8, 26), (10, 28)), (92, (26, 32), (10, 28)), (42, (32, 50), (10, 28))):
        labels[1:6, slice(*rows), slice(*columns)] = value
    labels[2:5, 5:55, 30:36] = 2
    # Columns from anterior to posterior, rows from superior to inferior, slices from left to right.
    direction = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    geometry = Geometry((50, 60, 7), (1.2, 1.2, 4.0), (0.0, 0.0, 0.0), direction)
    return Made(Volume((labels > 0) * np.int16(300) + np.int16(50), geometry, "boxes"), labels)


def volumeNode(volume: "Volume") -> Any:
    """A volume as a node in the scene."""
    from SAUNetLib.volume import LPS_TO_RAS

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Phantom")
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(volume.voxels))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(LPS_TO_RAS @ volume.geometry.matrix))
    return node


def pressButton(test: Any, panel: Any) -> Any:
    """Segment and wait; returns the segmentation node."""
    panel.ui.segmentButton.click()
    waitForEnd(test, panel, MOST_SECONDS)
    test.assertIsNone(panel._card, str(panel._card))
    return panel.ui.resultSelector.currentNode()


def cancelRun(test: Any, panel: Any) -> None:
    """Cancel right after the start and check that the scene is unchanged."""
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    panel.ui.segmentButton.click()
    slicer.app.processEvents()
    test.assertTrue(panel.logic.running)
    time.sleep(DOUBLE_CLICK_S)
    panel.ui.segmentButton.click()
    waitForEnd(test, panel, MOST_SECONDS_TO_CANCEL)
    test.assertIsNone(panel._card, str(panel._card))
    test.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), before)


def waitForEnd(test: Any, panel: Any, seconds: float) -> None:
    """Let Slicer work until the run has ended."""
    end = time.monotonic() + seconds
    while panel.logic.running and time.monotonic() < end:
        slicer.app.processEvents()
        time.sleep(0.02)
    test.assertFalse(panel.logic.running, "the engine did not end in time")


def importTruth(panel: Any, volume: Any, made: Made) -> Any:
    """Import the image's own labels as if the engine had found them."""
    from SAUNetLib.segmentation import Segmentation

    result = Segmentation(made.labels, made.volume.geometry, provenance={"model": "none"})
    node = panel.logic.nodes.importResult(volume, result.labels, result.summary(), True)
    panel._parameters.result = node
    return node


def checkSegments(test: Any, node: Any, volume: Any) -> None:
    """Check names, codes, geometry and provenance."""
    segmentation = node.GetSegmentation()
    test.assertGreater(segmentation.GetNumberOfSegments(), 3)
    segment = segmentation.GetNthSegment(1)
    test.assertIn("SCT^", segment.GetTerminology())
    test.assertEqual(merge(node).labels.shape, slicer.util.arrayFromVolume(volume).shape)
    test.assertIn("model", provenance(node))
    test.assertFalse(isEdited(node))


def correct(test: Any, panel: Any, node: Any) -> None:
    """Grow a segment with the Segment Editor's effect Margin, then undo it."""
    editor = panel.ui.editor
    panel.ui.editSection.collapsed = False
    identity = node.GetSegmentation().GetNthSegmentID(1)
    editor.setCurrentSegmentID(identity)
    before = (merge(node).labels == labelValues(node)[identity]).sum()
    editor.setActiveEffectByName("Margin")
    effect = editor.activeEffect()
    effect.setParameter("MarginSizeMm", "2.0")
    effect.self().onApply()
    test.assertGreater((merge(node).labels == labelValues(node)[identity]).sum(), before)
    test.assertTrue(isEdited(node))
    editor.undo()
    test.assertFalse(isEdited(node))
    editor.setActiveEffect(None)


def export(test: Any, panel: Any, node: Any) -> None:
    """Check that every kind of file is written and not empty."""
    nodes = panel.logic.nodes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nodes.exportLabelMap(node, folder / "labels.nii.gz")
        nodes.exportLabelMap(node, folder / "labels.nrrd")
        nodes.exportSegmentation(node, folder / "result.seg.nrrd")
        surfaces = nodes.exportSurfaces(node, folder, lambda names: False)
        test.assertEqual(len(surfaces), node.GetSegmentation().GetNumberOfSegments())
        test.assertTrue(all(path.stat().st_size > 0 for path in folder.iterdir()))
    labelMap, merged = nodes.exportLabelMapNode(node)
    test.assertTrue(np.array_equal(slicer.util.arrayFromVolume(labelMap), merged.labels))
