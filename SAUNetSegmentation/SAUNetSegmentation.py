"""The Slicer module "SAU-Net Spine Segmentation": the classes that Slicer expects, wired to those in SAUNetPanel."""

import slicer
from SAUNetPanel.Logic import SAUNetSegmentationLogic
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

__all__ = ["SAUNetSegmentation", "SAUNetSegmentationLogic", "SAUNetSegmentationTest", "SAUNetSegmentationWidget"]


class SAUNetSegmentation(ScriptedLoadableModule):
    """Name, category and help of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("SAU-Net Spine Segmentation")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Terminologies", "SubjectHierarchy"]
        self.parent.contributors = ["The SAUNet developers"]
        self.parent.helpText = _(
            "Segments vertebrae, intervertebral discs and the spinal canal in sagittal spine MRI. Choose a volume,"
            " press <i>Segment spine</i>, correct the result with the Segment Editor in the section <i>Correct</i>,"
            " and save it with <i>Export...</i>. Not for diagnostic use."
            " See the <a href='https://github.com/SAUNet/SlicerSAUNet#readme'>tutorial and documentation</a>."
        )
        self.parent.acknowledgementText = _(
            "The network is SAU-Net: a Dense U-Net with inter-slice attention. The label values are TotalSpineSeg's."
        )
        slicer.app.connect("startupCompleted()", onStartupCompleted)


def onStartupCompleted():
    """Register the terminology and the sample data, which need other modules to be loaded."""
    from SAUNetPanel.SampleVolumes import registerSampleData
    from SAUNetPanel.SceneNodes import loadTerminology

    from SAUNetLib.resources import resource

    terms = resource("SegmentationCategoryTypeModifier-SAUNet.term.json")
    loadTerminology(slicer.modules.terminologies.logic(), terms)
    registerSampleData()


class SAUNetSegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Forwards the module's life-cycle events to the panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None

    def setup(self):
        """Load the .ui file and wire the modules; Slicer calls it once."""
        from SAUNetPanel.Widget import Widget

        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SAUNetSegmentation.ui"))
        self.layout.addWidget(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SAUNetSegmentationLogic()
        self.panel = Widget(uiWidget, self.logic)
        scene = slicer.mrmlScene
        for event, method in (
            (scene.StartCloseEvent, self.panel.sceneStartClose),
            (scene.EndCloseEvent, self.panel.sceneEndClose),
            (scene.StartImportEvent, self.panel.sceneStartImport),
            (scene.EndImportEvent, self.panel.sceneEndImport),
            (scene.EndBatchProcessEvent, self.panel.sceneEndBatch),
            (scene.NodeAboutToBeRemovedEvent, self.panel.sceneNodeLeaves),
            (scene.NodeAddedEvent, self.panel.sceneNodesChanged),
            (scene.NodeRemovedEvent, self.panel.sceneNodesChanged),
        ):
            self.addObserver(scene, event, method)
        if getattr(self.parent, "isEntered", False):  # reloaded while shown
            self.panel.enter()
        else:
            self.panel.showParameters()

    def enter(self):
        """The user opens the module."""
        self.panel.enter()

    def exit(self):
        """The user opens another module."""
        self.panel.exit()

    def cleanup(self):
        """The module is unloaded."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.cleanup()

    def onReload(self):
        """Also reload the modules of the panel and the engine; Slicer reloads only this file."""
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] in ("SAUNetPanel", "SAUNetLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class SAUNetSegmentationTest(ScriptedLoadableModuleTest):
    """The module's self-test; it runs in Slicer."""

    def runTest(self):
        """Run `SAUNetPanel.SelfTest`, which Testing/Slicer/run_self_test.py also starts."""
        from SAUNetPanel.SelfTest import runSelfTest

        runSelfTest(self)
