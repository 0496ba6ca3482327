"""The stand-in is strict: what PythonQt, CTK and Slicer do not offer fails here, and README.md names what is called."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import slicer
from harness import errors, process_events
from harness.fixtures import MODULE, ROOT, add_volume, scene, segments, truth  # noqa: F401

qt = sys.modules["qt"]
README = (ROOT / "Testing" / "harness" / "README.md").read_text(encoding="utf-8")


def test_properties_are_attributes():
    button = qt.QPushButton("text")
    assert button.text == "text" and button.enabled is True
    button.enabled = False
    assert button.enabled is False
    with pytest.raises(TypeError):
        button.text()
    for wrong in ({"enabled": "yes"}, {"text": 3}, {"checkd": True}, {"note": "mine"}):
        with pytest.raises(AttributeError):
            setattr(button, *next(iter(wrong.items())))
    with pytest.raises(AttributeError):
        button.width = 3  # Qt does not let it be written


def test_members_that_do_not_exist_fail():
    button = qt.QPushButton()
    for name in ("clicked_", "setTxt", "sender", "staticMetaObject"):
        with pytest.raises(AttributeError):
            getattr(button, name)
    with pytest.raises(AttributeError):
        _ = qt.QNothing
    with pytest.raises(TypeError):
        button.setText(text="no keywords in PythonQt")


def test_signals_connect_in_both_forms_and_cut_arguments():
    button, heard = qt.QPushButton(), []
    button.clicked.connect(lambda: heard.append("no argument"))
    button.connect("clicked(bool)", lambda checked: heard.append(checked))
    button.connect("clicked()", lambda *arguments: heard.append(arguments))
    button.click()
    assert len(heard) == 3 and all(one in heard for one in ("no argument", False, ()))
    for wrong in ("clicked(int)", "pressed(bool)", "nothing()"):
        with pytest.raises(AttributeError):
            button.connect(wrong, print)
    receiver = heard.clear
    button.clicked.connect(receiver)
    assert button.clicked.disconnect(receiver) and not button.clicked.disconnect(receiver)


def test_exceptions_in_slots_do_not_reach_the_caller():
    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    assert "ZeroDivisionError" in errors.pop()
    heard = []
    qt.QTimer.singleShot(1, lambda: heard.append(1))
    assert process_events(lambda: heard)


def test_a_python_class_on_qobject_filters_events_and_has_attributes_of_its_own():
    class Filter(qt.QObject):
        def __init__(self):
            qt.QObject.__init__(self)
            self.heard = []

        def eventFilter(self, watched, event):
            self.heard.append(event.type() == qt.QEvent.EnabledChange and watched == button)
            return 1 / 0 if not button.enabled else False

    button, own = qt.QPushButton(), Filter()
    button.installEventFilter(own)
    button.enabled = False
    assert True in own.heard and "ZeroDivisionError" in errors.pop()
    errors.clear()
    button.removeEventFilter(own)
    own.heard.clear()
    button.enabled = True
    assert own.heard == []


def test_stand_in_widgets_offer_what_is_declared_and_no_more(scene):  # noqa: F811
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    for name in ("_offer", "currentText", "addItem", "nodes"):
        with pytest.raises(AttributeError):
            getattr(combo, name)


def selector_of_volumes(scene, none=False):  # noqa: F811
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes, combo.noneEnabled = ["vtkMRMLScalarVolumeNode"], none
    combo.setMRMLScene(scene)
    return combo


def test_selector_without_none_chooses_a_node_that_is_there_and_none_that_comes_later(scene):  # noqa: F811
    empty = selector_of_volumes(scene)
    volume = add_volume()
    assert empty.currentNode() is None and empty.nodeCount() == 1
    assert selector_of_volumes(scene).currentNode() is volume
    assert selector_of_volumes(scene, none=True).currentNode() is None


@pytest.mark.parametrize("none", [False, True])
def test_selector_loses_its_choice_when_a_scene_was_imported(scene, none):  # noqa: F811
    """qMRMLSceneModel::updateScene, at the end of an import and of closing: all rows go, and come again."""
    first, second = add_volume(name="first"), add_volume(name="second")
    combo, heard = selector_of_volumes(scene, none), []
    combo.setCurrentNode(second)
    combo.currentNodeChanged.connect(heard.append)
    scene.StartState(scene.BatchProcessState)
    scene.StartState(scene.ImportState)
    third = add_volume(name="third")
    assert combo.nodeCount() == 2 and combo.currentNode() is second
    scene.EndState(scene.ImportState)
    assert combo.currentNode() is None and heard == [None]
    scene.EndState(scene.BatchProcessState)
    assert [combo.nodeFromIndex(index) for index in range(combo.nodeCount())] == [first, second, third]
    combo.setCurrentNode(first)
    scene.RemoveNode(first)
    assert combo.currentNode() is second


def test_selector_tells_of_a_click_on_a_node_of_the_same_name(scene):  # noqa: F811
    """qMRMLNodeComboBox takes the name of a node for it: currentTextChanged, which Qt 6 emits for another text only."""
    first, second = add_volume(name="T2"), add_volume(name="T2")
    combo, heard, clicked = selector_of_volumes(scene), [], []
    combo.currentNodeChanged.connect(heard.append)
    combo.nodeActivated.connect(clicked.append)
    combo._native._box.setCurrentIndex(1)
    combo._native._box.activated.emit(1)
    assert combo.currentNode() is second is not first and heard == [] and clicked == [second]


def test_node_takes_its_item_in_the_hierarchy_along(scene):  # noqa: F811
    """qSlicerSubjectHierarchyPluginLogic::onNodeAboutToBeRemoved."""
    hierarchy, node = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene), add_volume()
    item = hierarchy.GetItemByDataNode(node)
    assert item and hierarchy.GetItemName(item) == "T2 sag"
    scene.RemoveNode(node)
    assert hierarchy.GetItemName(item) == "" and hierarchy.GetNumberOfItems() == 0


def test_list_of_segments_writes_what_it_still_shows(scene):  # noqa: F811
    """As qMRMLSegmentsModel does, whose onItemChanged is called for every part of a row that is brought up to date."""
    from SAUNetPanel.SceneNodes import SceneNodes

    node = SceneNodes(scene).importResult(add_volume(), truth().labels, truth().summary(), True)
    table, canal = slicer.qMRMLSegmentsTableView(), segments(node)[0]
    table.setSegmentationNode(node)
    with slicer.util.NodeModify(node):
        canal.SetName("cord")
        canal.SetTerminology(segments(node)[1].GetTerminology())
    name = next(table._native._model.rows())[0]
    assert name == "cord" and canal.GetTerminology() != segments(node)[1].GetTerminology()
    canal.SetColor(1, 0, 0)  # one change after the other is safe
    assert next(table._native._model.rows())[1] == (255, 0, 0)
    table.setSegmentationNode(None)


@pytest.mark.parametrize("change", [
    ("<property name=\"headerVisible\">", "<property name=\"headersVisible\">"),
    ("name=\"exportButton\"", "name=\"show3DButton\""),
    ("mrmlSceneChanged(vtkMRMLScene*)", "sceneChanged(vtkMRMLScene*)"),
    ("<slot>setMRMLScene(vtkMRMLScene*)</slot>", "<slot>setScene(vtkMRMLScene*)</slot>"),
    ("<cstring>inputSelector</cstring>", "<cstring>selectInput</cstring>"),
])  # fmt: skip
def test_mistakes_in_a_ui_file_fail(tmp_path, change):
    text = (MODULE / "Resources" / "UI" / "SAUNetSegmentation.ui").read_text()
    assert change[0] in text
    (tmp_path / "wrong.ui").write_text(text.replace(*change, 1))
    with pytest.raises(ValueError):
        slicer.util.loadUI(str(tmp_path / "wrong.ui"))


VERB = "(Set|Get|Is|Add|Create|Remove|Export|Load|Write|Harden|Deserialize)"


def called():
    """Names that the panel calls on VTK and MRML objects, and takes from qt, slicer.util and slicer.app."""
    for path in [*(MODULE / "SAUNetPanel").glob("*.py"), MODULE / "SAUNetSegmentation.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            method = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if re.fullmatch(VERB + r"[A-Z]\w*", method):
                yield method
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                if owner in ("qt", "slicer.util", "slicer.app", "packaging"):
                    yield node.attr


PLAIN = """GetID GetName GetScene GetSegment GetSegmentation GetDimensions GetNumberOfPoints GetScalars GetPointData
    GetExtent GetImageData GetIJKToRASMatrix GetDisplayNode GetLabelValue GetColor GetParentTransformNode GetSpacing
    GetTransformNodeID GetNumberOfSegments GetAttribute GetNumberOfScalarComponents GetOutputPort GetNumberOfCells"""
"""Getters that the documentation of VTK or MRML has on its first pages."""
FOREIGN = """SetTransform SetInputData SetInputConnection SetFileTypeToBinary SetHeader SetDimensions
    SetSpacing SetOrigin GetExitCodeProcess SetDirection GetArrayFromImage GetImageFromArray
    GetDirection GetOrigin GetSize GetData SetData"""
"""VTK's filters and points, SimpleITK and Windows."""


def test_readme_names_every_call():
    elsewhere = {*PLAIN.split(), *FOREIGN.split()}
    missing = sorted({name for name in called() if name not in README and name not in elsewhere})
    assert missing == []


def test_readme_names_only_files_that_exist():
    for name in re.findall(r"^\| `(\w+\.py)`", README, re.MULTILINE):
        assert Path(ROOT, "Testing", "harness", name).is_file()


WITHOUT_ENGINE = """
import sys
for name in ("torch", "cc3d", "nrrd", "safetensors", "slicerio", "scipy", "PIL"):
    sys.modules[name] = None  # cannot be imported
from harness import install
install()
import unittest
from types import SimpleNamespace
import slicer
from SAUNetPanel import SelfTest
from SAUNetPanel.SceneNodes import SceneNodes
made = SelfTest.boxes()
volume = SelfTest.volumeNode(made.volume)
panel = SimpleNamespace(logic=SimpleNamespace(nodes=SceneNodes(slicer.mrmlScene)), _parameters=SimpleNamespace())
node = SelfTest.importTruth(panel, volume, made)
SelfTest.checkSegments(unittest.TestCase(), node, volume)
SelfTest.export(unittest.TestCase(), panel, node)
print("tested")
"""


def test_the_self_test_s_scene_side_needs_no_package_of_the_engine():
    """Where Slicer's own tests run, nothing is installed."""
    paths = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "Testing", MODULE))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ENGINE], capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("tested\n"), done.stderr
