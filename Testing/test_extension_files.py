"""The extension as Slicer's build and its extensions index see it, and the module file."""

import ast
import graphlib
import json
import re
import shutil
import sys
import tomllib
import types
from pathlib import Path

import pytest
import slicer
import yaml
from harness import cmake_lists, errors, process_events
from harness.fixtures import MODULE, ROOT, add_volume, scene, truth  # noqa: F401
from harness.pythonqt import wrap
from PySide6 import QtCore, QtGui, QtWidgets
from SAUNetPanel import engineFolder
from SAUNetPanel.Logic import SAUNetParameterNode

PANEL = sorted((MODULE / "SAUNetPanel").glob("*.py"))


def cmake(name):
    return re.search(rf'set\({name} "([^"]*)"\)', (ROOT / "CMakeLists.txt").read_text())[1]


def s4ext():
    lines = (ROOT / "SAUNet.s4ext").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_index_entry_has_the_keys_and_types_of_schema_1_0_2():
    entry = json.loads((ROOT / "SAUNet.json").read_text())
    kinds = dict.fromkeys(("$schema", "category", "scm_url", "scm_revision", "scm_type", "build_subdirectory"), str)
    kinds |= {"dicom_support_rule": str, "build_dependencies": list, "enabled": bool, "tier": int}
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert {"$schema", "category", "scm_url"} <= entry.keys() <= kinds.keys()
    assert all(isinstance(value, kinds[key]) for key, value in entry.items()) and 1 <= entry["tier"] <= 5
    repository = entry["scm_url"].rsplit("/", 1)[1]
    assert entry["scm_url"].startswith("https://") and repository.startswith("Slicer") and repository.endswith(".git")


def test_both_forms_of_the_entry_and_cmake_agree():
    entry, old = json.loads((ROOT / "SAUNet.json").read_text()), s4ext()
    assert old["scmurl"] == entry["scm_url"] and old["scmrevision"] == entry["scm_revision"]
    assert old["depends"].split() == entry["build_dependencies"] == cmake("EXTENSION_DEPENDS").split()
    assert old["category"] == entry["category"] == cmake("EXTENSION_CATEGORY")
    for key, name in (("homepage", "HOMEPAGE"), ("contributors", "CONTRIBUTORS"), ("iconurl", "ICONURL"),
                      ("description", "DESCRIPTION"), ("screenshoturls", "SCREENSHOTURLS")):  # fmt: skip
        assert old[key] == cmake(f"EXTENSION_{name}")
    assert "project(SAUNet)" in (ROOT / "CMakeLists.txt").read_text()


def test_description_file_has_the_fields_that_slicer_s_developer_guide_lists():
    """The required ones, and no other ones; every value on one line and without a parameter in an address."""
    required = {"scm", "scmurl", "scmrevision", "homepage", "category"}
    further = {"depends", "build_subdirectory", "contributors", "iconurl", "description", "screenshoturls", "enabled"}
    assert required <= s4ext().keys() <= required | further | {"status"}
    assert s4ext()["scm"] == "git" and s4ext()["enabled"] == "1" and "&" not in "".join(s4ext().values())


def test_index_accepts_category_name_and_form():
    """What its scripts check: a known category, LF endings, the extension's name as project, no prefix in the name."""
    text = (ROOT / "SAUNet.json").read_text(encoding="utf-8")
    assert json.loads(text)["category"] in ("Segmentation", "Analysis", "Quantification")
    assert text == json.dumps(json.loads(text), indent=2) + "\n" and list(json.loads(text)) == sorted(json.loads(text))
    homepage = (ROOT / "README.md").read_text(encoding="utf-8")
    for needed in (
        "SAUNet",
        "Apache-2.0",
        "SAU-Net Spine Segmentation",
        "MIDL 2020",
        "SpineLumbarT2",
        "done-light.png",
    ):
        assert needed in homepage


def test_pictures_in_the_readme_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(pictures) >= 5 and all((ROOT / picture).is_file() for picture in pictures)


def test_icon_and_screenshots_exist_where_their_urls_point():
    base = "https://raw.githubusercontent.com/SAUNet/SlicerSAUNet/main/"
    for url in (cmake("EXTENSION_ICONURL"), *cmake("EXTENSION_SCREENSHOTURLS").split()):
        assert url.startswith(base) and (ROOT / url.removeprefix(base)).is_file()
    icon = QtGui.QImage(str(MODULE / "Resources" / "Icons" / "SAUNetSegmentation.png"))
    assert (icon.width(), icon.height()) == (128, 128)
    for name in ("idle", "running", "done", "error"):
        for style in ("light", "dark"):
            assert QtGui.QImage(str(ROOT / "Resources" / "Screenshots" / f"{name}-{style}.png")).width() == 350


def test_the_wheel_holds_the_resources_that_the_engine_reads_and_no_pictures():
    placed = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "SAUNetLib").rglob("*.py"))
    read = {f"Resources/{name}" for name in re.findall(r"""resource\("([^"]+)""", code)}
    assert read == {"Resources/anatomy.csv", "Resources/models"} == placed.keys() - {"constraints.txt"}
    assert all(placed[name] == f"SAUNetLib/{name}" and (ROOT / name).exists() for name in placed)


def test_the_package_states_what_the_citation_and_the_entry_state():
    project = pyproject()["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    card = json.loads((ROOT / "Resources" / "models" / "saunet-lumbar.json").read_text(encoding="utf-8"))
    weights = card["licence"].replace("CC BY ", "CC-BY-")  # as SPDX spells it
    assert project["license"] == f"{citation['license']} AND {weights}"
    assert project["authors"] == citation["authors"] == [{"name": s4ext()["contributors"]}]
    addresses = s4ext()["homepage"], s4ext()["scmurl"], citation["preferred-citation"]["url"]
    assert tuple(project["urls"].values()) == addresses
    versions = [one.rpartition(" ")[2] for one in project["classifiers"] if " :: Python :: " in one]
    assert f"Python {', '.join(versions[:-1])} or {versions[-1]}." in (ROOT / "README.md").read_text(encoding="utf-8")


def test_licence_and_line_endings():
    assert (ROOT / "LICENSE").is_file()
    endings = (".py", ".md", ".csv", ".json", ".txt", ".toml", ".ui", ".svg", ".s4ext", ".yml", ".cff")
    folders = ("SAUNetLib", "SAUNetSegmentation", "Resources", "Testing", "docs", ".github")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    paths = [path for path in (*paths, *ROOT.glob("*.*")) if path.suffix in endings]
    assert len(paths) > 200 and [path for path in paths if b"\r" in path.read_bytes()] == []


def test_the_wheel_says_that_its_types_may_be_relied_on():
    build = pyproject()["tool"]["hatch"]["build"]
    assert build.keys() == {"targets"} and build["targets"].keys() == {"wheel"}
    assert build["targets"]["wheel"].keys() == {"packages", "force-include"}, "nothing is left out"
    assert build["targets"]["wheel"]["packages"] == ["SAUNetLib"]
    assert (ROOT / "SAUNetLib" / "py.typed").read_bytes() == b""


@pytest.mark.parametrize("place", cmake_lists.wanted(), ids=lambda place: place[1])
def test_cmake_names_every_file(place):
    hint = "run `python Testing/harness/cmake_lists.py`"
    assert cmake_lists.found(*place) == cmake_lists.wanted()[place], hint


def test_module_file_only_wires():
    text = (MODULE / "SAUNetSegmentation.py").read_text()
    assert len(text.splitlines()) <= 130
    allowed = {"slicer", "SAUNetPanel"}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            assert {name.split(".")[0] for name in names} <= allowed
        else:
            assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Expr | ast.Assign)


def test_panel_names_no_torch_engine_no_slicer_and_network_nothing_of_the_project():
    def imported(path):
        """The packages that a module names; dots where it names one by its place."""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += ["." * node.level or node.module] if isinstance(node, ast.ImportFrom) else []
            yield from (name.split(".")[0] or name for name in names)

    for path in PANEL:
        assert not {"torch", "safetensors", "cc3d"} & set(imported(path)), path
    for path in (ROOT / "SAUNetLib").rglob("*.py"):
        assert not {"slicer", "qt", "ctk", "vtk"} & set(imported(path)), path
    for path in (ROOT / "SAUNetLib" / "network").glob("*.py"):
        assert not {"SAUNetLib", "..", "..."} & set(imported(path)), path


def test_packages_and_modules_of_the_engine_import_each_other_in_one_direction():
    def room(parts):
        """The package below SAUNetLib, or the module in it, of a path."""
        return parts[0] if parts else ""

    rooms, modules = {}, {}
    for path in (ROOT / "SAUNetLib").rglob("*.py"):
        parts = path.relative_to(ROOT / "SAUNetLib").with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = parts[: len(parts) - node.level]
                names = [node.module.split(".")] if node.module else [[one.name] for one in node.names]
                rooms.setdefault(room(parts), set()).update(room([*base, *name]) for name in names)
                own = ".".join(parts).removesuffix(".__init__")
                modules.setdefault(own, set()).update(".".join([*base, *name]) for name in names)
    for name, others in rooms.items():
        others.discard(name)
    order = list(graphlib.TopologicalSorter(rooms).static_order())  # a CycleError names the packages, or the modules
    graphlib.TopologicalSorter(modules).prepare()
    assert order.index("network") < order.index("training") < order.index("evaluation") < order.index("cli")


class Reversed(QtCore.QTranslator):
    """A language in which every word is another one."""

    def translate(self, context, text, disambiguation=None, n=-1):
        return text[::-1]

    def isEmpty(self):
        return False


def test_a_translation_leaves_alone_what_is_no_text(scene):  # noqa: F811
    """Names of parameters were translated too, and with them no widget was connected."""
    application, language = QtWidgets.QApplication.instance(), Reversed()
    application.installTranslator(language)
    try:
        top = slicer.util.loadUI(str(MODULE / "Resources" / "UI" / "SAUNetSegmentation.ui"))
    finally:
        application.removeTranslator(language)
    ui = slicer.util.childWidgetVariables(top)
    assert ui.cardCloseButton.text == "esolC" and ui.inputSelector.noneDisplay == "IRM enips lattigas a tceleS"
    named = {ui.__dict__[name].property("SlicerParameterName") for name in vars(ui)}
    assert named == {None, *SAUNetParameterNode.allParameters} - {"model"}
    assert ui.inputSelector.nodeTypes == ["vtkMRMLScalarVolumeNode"]
    assert ui.resultSelector.nodeTypes == ["vtkMRMLSegmentationNode"]
    assert ui.cardFrame.styleSheet.startswith("QFrame#cardFrame {")
    top._native.deleteLater()


def test_every_text_of_the_panel_can_be_translated():
    """What is shown goes through _(): no plain text is assigned to a widget or given to a card."""
    for path in PANEL:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                shown = node.targets[0].attr in ("text", "toolTip", "title")
                plain = isinstance(node.value, ast.Constant) and bool(node.value.value)
                assert not (shown and plain), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}: _() takes a plain string"


def test_slicer_finds_every_text_that_is_to_be_translated():
    """By this expression of its update_translations.py: a text that ends in single quotes hides the next one."""

    def texts(source):
        return [node for node in ast.walk(ast.parse(source)) if getattr(getattr(node, "func", None), "id", "") == "_"]

    for path in [MODULE / "SAUNetSegmentation.py", *PANEL]:
        source = path.read_text(encoding="utf-8")
        found = re.sub(r'([^_])_\((\s*?".+?"\s*?)\)', r'\1translate("context", \2)', source, flags=re.DOTALL)
        assert texts(found) == [], path.name


def test_border_of_a_card_is_seen_in_both_styles():
    """3:1, as the accessibility guidelines (WCAG 2.2, 1.4.11) ask."""
    ui = (MODULE / "Resources" / "UI" / "SAUNetSegmentation.ui").read_text(encoding="utf-8")

    def luminance(colour):
        parts = (int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    (border,) = re.findall(r"border: 1px solid #(\w{6})", ui)
    assert luminance("efefef") / luminance(border) >= 3 and luminance(border) / luminance("323232") >= 3


@pytest.mark.parametrize("installed", [True, False])
def test_engine_is_found_in_a_checkout_and_in_an_installation(tmp_path, installed):
    module = tmp_path / "modules"
    (module / "SAUNetPanel").mkdir(parents=True)
    engine = (module if installed else tmp_path) / "SAUNetLib"
    engine.mkdir()
    (engine / "worker.py").touch()
    assert engineFolder(module / "SAUNetPanel" / "__init__.py") == engine.parent
    shutil.rmtree(engine)
    with pytest.raises(ImportError):
        engineFolder(module / "SAUNetPanel" / "__init__.py")


def test_installed_tree_runs_the_worker(tmp_path):
    """What CMake would install, and nothing else, starts the engine's process."""
    for (path, _), entries in cmake_lists.wanted().items():
        for entry in (one.replace("${MODULE_NAME}", "SAUNetSegmentation") for one in entries):
            target = tmp_path / entry
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path.parent / entry, target)
    import subprocess

    command = [sys.executable, str(tmp_path / "SAUNetPanel" / "Bootstrap.py"), str(tmp_path), "SAUNetLib.worker"]
    request = {"command": "segment", "image": str(tmp_path / "none.nrrd"), "output": str(tmp_path / "out.nrrd"),
               "device": "cpu", "model": "none", "id": "1"}  # fmt: skip
    done = subprocess.run(
        command, input=json.dumps(request) + "\n", capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[:2] == ["process", "ready"], done.stderr
    from SAUNetLib.resources import resource

    assert resource("anatomy.csv").is_file() and (tmp_path / "Resources" / "anatomy.csv").is_file()


def test_contributing_names_the_libraries_that_the_workflow_installs_for_the_tests():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    command = next(step["run"] for step in flow["jobs"]["fast"]["steps"] if "apt-get" in step.get("run", ""))
    assert f"`{command}`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_workflow_is_valid():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert set(flow) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads the key `on` as true
    for job in flow["jobs"].values():
        assert (
            {"runs-on", "steps"}
            <= job.keys()
            <= {"name", "runs-on", "needs", "timeout-minutes", "strategy", "env", "steps"}
        )
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert step.keys() <= {"name", "id", "if", "run", "uses", "with", "env"}
    for script in re.findall(r"Testing/Slicer/\w+\.py", str(flow)):
        assert (ROOT / script).is_file()


# -- the module file on the stand-in ---------------------------------------------------------------------------------


@pytest.fixture
def module(scene, monkeypatch):  # noqa: F811
    import SAUNetSegmentation

    path = str(MODULE / "SAUNetSegmentation.py")
    monkeypatch.setattr(slicer.modules, "saunetsegmentation", types.SimpleNamespace(path=path), raising=False)
    return SAUNetSegmentation


class Parent:
    """qSlicerScriptedLoadableModule: title, categories ... can be set."""

    path = str(MODULE / "SAUNetSegmentation.py")


def test_module_has_title_category_and_help(module):
    parent = Parent()
    module.SAUNetSegmentation(parent)
    assert parent.title == "SAU-Net Spine Segmentation" and parent.categories == ["Segmentation"]
    assert "Not for diagnostic use" in parent.helpText and parent.acknowledgementText
    assert parent.contributors == [s4ext()["contributors"]]


def test_module_widget_lives_from_setup_to_cleanup(module):
    holder = QtWidgets.QWidget()
    QtWidgets.QVBoxLayout(holder)
    holder.setProperty("isEntered", True)
    parent = wrap(holder)
    widget = module.SAUNetSegmentationWidget(parent)
    widget.setup()
    assert widget.panel._warmUp.active  # it is shown: the module was reloaded
    volume = add_volume()
    widget.panel.ui.inputSelector.setCurrentNode(volume)
    widget.exit()
    widget.enter()
    assert widget.panel._parameters.inputVolume is volume
    slicer.mrmlScene.Clear()
    assert widget.panel._parameters is not None and widget.panel._parameters.inputVolume is None
    assert process_events(lambda: not widget.panel.ui.segmentButton.enabled)
    widget.cleanup()
    assert widget.panel._parameters is None


def test_what_a_reload_leaves_behind_says_nothing_of_segments(module):
    """The old editor complained of every segment that came or went: Slicer only hides what was the module's."""
    holder = QtWidgets.QWidget()
    QtWidgets.QVBoxLayout(holder)
    holder.setProperty("isEntered", True)
    volume, result = add_volume(), truth()
    for number in range(2):
        widget = module.SAUNetSegmentationWidget(wrap(holder))
        widget.setup()
        node = widget.panel.logic.nodes.importResult(volume, result.labels, result.summary(), True)
        widget.panel.ui.resultSelector.setCurrentNode(node)
        widget.panel.ui.editSection.collapsed = False
        assert widget.panel.ui.editor.segmentationNode() is node
        node.GetSegmentation().AddEmptySegment("mine", "mine")
        widget.cleanup()
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.DeferredDelete)
        node.GetSegmentation().RemoveSegment("mine")
        assert errors == [] and holder.findChildren(QtWidgets.QWidget) == [], number


def test_panel_that_is_made_but_not_shown_takes_no_keys_and_starts_no_engine(module):
    holder = QtWidgets.QWidget()
    QtWidgets.QVBoxLayout(holder)
    holder.setProperty("isEntered", False)
    add_volume()
    widget = module.SAUNetSegmentationWidget(wrap(holder))
    widget.setup()
    assert not widget.panel.ui.editor._native._shortcuts and not widget.panel._warmUp.active
    assert widget.panel.ui.segmentButton.enabled  # yet it is ready for scripts
    slicer.mrmlScene.Clear()
    assert widget.panel._parameters is None
    widget.enter()
    assert widget.panel._warmUp.active
    widget.cleanup()
    assert not widget.panel._warmUp.active


@pytest.fixture
def shown(module):
    """The module's widget, opened by the user, as Slicer makes it."""
    holder = QtWidgets.QWidget()
    QtWidgets.QVBoxLayout(holder)
    holder.setProperty("isEntered", True)
    widget = module.SAUNetSegmentationWidget(wrap(holder))
    widget.setup()
    yield widget
    widget.cleanup()


def test_a_result_stays_while_its_image_is_removed(shown):
    """The selector goes on to another volume before the image is gone: what was corrected went from under the brush."""
    panel, result = shown.panel, truth()
    first, second = add_volume(name="first"), add_volume(name="second")
    node = panel.logic.nodes.importResult(first, result.labels, result.summary(), True)
    panel.ui.inputSelector.setCurrentNode(first)
    panel.ui.editSection.collapsed = False
    panel.ui.editor.setActiveEffectByName("Paint")
    slicer.mrmlScene.RemoveNode(first)
    slicer.app.processEvents()
    assert panel.ui.inputSelector.currentNode() is second
    assert panel.ui.resultSelector.currentNode() is node is panel.ui.editor.segmentationNode()
    assert panel.ui.editor.activeEffect() is not None and "chosen above" not in panel.ui.warningsLabel.text
    third = add_volume(name="third")
    own = panel.logic.nodes.importResult(third, result.labels, result.summary(), True)
    panel.ui.inputSelector.setCurrentNode(third)
    assert panel.ui.resultSelector.currentNode() is own


def scene_text():
    slicer.mrmlScene.SetSaveToXMLString(1)
    slicer.mrmlScene.Commit()
    return slicer.mrmlScene.GetSceneXMLString()


def load_scene(text, clear):
    """As qSlicerSceneReader::load: File > Load Scene (or Add Data) without, or with, what is there."""
    slicer.mrmlScene.SetLoadFromXMLString(1)
    slicer.mrmlScene.SetSceneXMLString(text)
    slicer.mrmlScene.Connect() if clear else slicer.mrmlScene.Import()


@pytest.mark.parametrize("clear", [True, False])
def test_scene_that_is_loaded_while_the_panel_is_shown_is_shown_with_its_result(shown, clear):
    panel, result = shown.panel, truth()
    panel.ui.inputSelector.setCurrentNode(add_volume())
    node = panel.logic.nodes.importResult(add_volume(name="series 2"), result.labels, result.summary(), True)
    panel.ui.resultSelector.setCurrentNode(node)
    panel.ui.editSection.collapsed = False
    panel.ui.lowestComboBox.currentIndex = 3
    text = scene_text()
    if not clear:
        slicer.mrmlScene.Clear()
    for _ in range(2 if clear else 1):
        load_scene(text, clear)
        (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        assert panel.ui.inputSelector.currentNode().GetName() == "T2 sag" and panel.ui.lowestComboBox.currentIndex == 3
        assert panel.ui.resultSelector.currentNode() is node is panel.ui.segmentsTable.segmentationNode()
        assert panel.ui.editSection.enabled and panel.ui.editor.segmentationNode() is node
        assert panel.ui.editor.sourceVolumeNode().GetName() == "series 2" and panel.ui.editor._native._shortcuts
    slicer.mrmlScene.Clear()
    assert panel.ui.editor.segmentationNode() is None and not panel.ui.editor._native._shortcuts


def test_scene_that_is_added_leaves_what_is_chosen(shown):
    panel = shown.panel
    panel.ui.editSection.collapsed = False
    add_volume(name="of the other scene")
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetSingletonNode("SAUNetSegmentation", "vtkMRMLScriptedModuleNode"))
    text = scene_text()
    slicer.mrmlScene.Clear()
    first, second = add_volume(name="first"), add_volume(name="second")
    panel.ui.inputSelector.setCurrentNode(second)
    node = panel.logic.nodes.importResult(first, truth().labels, truth().summary(), True)
    panel.ui.resultSelector.setCurrentNode(node)
    load_scene(text, clear=False)
    assert panel.ui.inputSelector.nodeCount() == 3 and panel.ui.inputSelector.currentNode() is second
    assert panel.ui.resultSelector.currentNode() is node is panel.ui.editor.segmentationNode()


def test_image_that_is_removed_can_be_replaced_in_the_section_correct(shown):
    panel, image = shown.panel, add_volume()
    panel.ui.inputSelector.setCurrentNode(add_volume(name="another"))
    node = panel.logic.nodes.importResult(image, truth().labels, truth().summary(), True)
    panel.ui.resultSelector.setCurrentNode(node)
    assert panel.ui.editor.sourceVolumeNodeSelectorVisible is False
    slicer.mrmlScene.RemoveNode(image)
    assert process_events(lambda: panel.ui.editor.sourceVolumeNodeSelectorVisible is True, 5)


def test_segmentation_file_that_is_loaded_while_the_panel_is_shown_can_be_chosen(shown, tmp_path):
    panel, path = shown.panel, tmp_path / "r.seg.nrrd"
    node = panel.logic.nodes.importResult(add_volume(), truth().labels, truth().summary(), True)
    panel.logic.nodes.exportSegmentation(node, path)
    slicer.mrmlScene.Clear()
    assert slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path)) is not None
    assert process_events(lambda: panel.ui.resultSelector.nodeCount() == 1)
    shown.exit()
    assert slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path)) is not None
    shown.enter()
    assert panel.ui.resultSelector.nodeCount() == 2


def test_reload_forgets_the_modules(module):
    holder = QtWidgets.QWidget()
    QtWidgets.QVBoxLayout(holder)
    before = {name: value for name, value in sys.modules.items() if name.split(".")[0] in ("SAUNetPanel", "SAUNetLib")}
    try:
        module.SAUNetSegmentationWidget(wrap(holder)).onReload()
        assert not [name for name in sys.modules if name.split(".")[0] in ("SAUNetPanel", "SAUNetLib")]
    finally:
        sys.modules.update(before)


def test_sample_data_is_registered_and_not_downloaded(module, monkeypatch):
    registered = []

    class Logic:
        @staticmethod
        def registerCustomSampleDataSource(**entries):
            registered.append(entries)

    sample = types.ModuleType("SampleData")
    sample.SampleDataLogic = Logic
    monkeypatch.setitem(sys.modules, "SampleData", sample)
    module.onStartupCompleted()
    (entry,) = registered
    assert re.fullmatch(r"SHA256:[0-9a-f]{64}", entry["checksums"]) and entry["uris"].startswith("https://")
    assert Path(entry["thumbnailFileName"]).is_file()
    assert slicer.modules.terminologies.logic().IsTerminologyContextLoaded("Segmentation category and type - SAUNet")


def test_sample_is_the_file_whose_hash_is_stated(shared_data):
    import hashlib

    from SAUNetPanel.SampleVolumes import LUMBAR

    content = (shared_data / "real_volumes" / "t2_lumbar.nii.gz").read_bytes()
    assert LUMBAR["checksums"] == f"SHA256:{hashlib.sha256(content).hexdigest()}"


def test_levels_to_choose_from_are_the_anatomy_s():
    from SAUNetPanel.Logic import Lowest

    from SAUNetLib.anatomy import vertebra_levels

    assert sorted(one.value for one in Lowest) == sorted(("auto", *vertebra_levels()))


def test_every_notice_is_explained():
    """`docs/notices.md` has a row for each code, and for no other; the engine gives no others."""
    from SAUNetLib.notices import CODES

    calls = re.compile(r'\bNotice\(\s*"(\w+)"')
    given = {code for path in (ROOT / "SAUNetLib").rglob("*.py") for code in calls.findall(path.read_text("utf-8"))}
    page = (ROOT / "docs" / "notices.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    explained = {code for row in rows for code in re.findall(r"`([A-Z0-9_]{4,})`", row.split("|")[1])}
    assert len(given) > 20 and given <= CODES.keys() == explained
