"""Checking the computer, installing what is missing, bundles for a computer without a connection, About."""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import types
import zipfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import slicer
from harness.fixtures import ROOT, add_volume, panel_of, scene  # noqa: F401
from packaging.utils import canonicalize_name
from SAUNetPanel import Bundle, Dependencies, Logic, Report
from SAUNetPanel.Cards import PanelError

from SAUNetLib import bundle
from SAUNetLib.errors import UsageError


@pytest.fixture
def needs(scene, monkeypatch):  # noqa: F811
    """Dependencies on a computer whose packages a dictionary lists."""
    installed = {"torch": "2.6.0+cu124", "safetensors": "0.5", "connected-components-3d": "4.0", "pynrrd": "1.1",
                 "slicerio": "1.2", "numpy": "2.0", "SimpleITK": "2.4"}  # fmt: skip
    monkeypatch.setattr(Dependencies, "versionOf", lambda name: installed.get(name))
    made = Dependencies.Dependencies()
    made.installed = installed
    return made


@pytest.fixture
def pip(needs, monkeypatch):
    """slicer.util.pip_install as Slicer 5.10 has it: it installs what is asked for."""
    calls = []

    def install(arguments):
        calls.append(arguments)
        constraints = Path(arguments[arguments.index("-c") + 1]).read_text()
        calls.append(constraints)
        for one in arguments:
            if ">=" in one:
                needs.installed[one.partition(">=")[0]] = one.partition(">=")[2]

    monkeypatch.setattr(slicer.util, "pip_install", install)
    return calls


def test_terms_are_loaded_where_the_module_of_sample_data_is_switched_off(scene, monkeypatch):  # noqa: F811
    from SAUNetPanel import SceneNodes

    import SAUNetSegmentation

    loaded = []
    monkeypatch.setattr(SceneNodes, "loadTerminology", lambda logic, path: loaded.append(path.name))
    monkeypatch.setitem(sys.modules, "SampleData", None)
    SAUNetSegmentation.onStartupCompleted()
    assert loaded == ["SegmentationCategoryTypeModifier-SAUNet.term.json"]


def test_requirements_are_those_of_the_engine():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {line.split(">=")[0]: line for line in project["dependencies"]}
    assert all(known[one.split(">=")[0]] == one for one in bundle.PACKAGES)
    imported = importlib.metadata.packages_distributions()
    names = {canonicalize_name(one) for name in Logic._PACKAGES for one in imported[name]}
    assert names >= {one.split(">=")[0] for one in bundle.PACKAGES}


@pytest.mark.parametrize("wanted, found, met", [
    ("torch>=2.4", "2.10.0", True), ("torch>=2.4", "2.3.9", False), ("torch>=2.4", "2.4.0rc1", False),
    ("torch>=2.4", "2.13.0+cpu", True), ("torch>=2.4", "2.14.0.dev20261101+cu130", True),
    ("torch>=2.4", "2.4.1a0+git", True), ("torch>=1.0.0", "1.0", True), ("torch>=1.3,<2", "2.0", False),
    ("torch", "0.1", True), ("torch>=2", "unknown", False), ("nowhere>=1", "", False),
    ("nowhere>=1; python_version < '3'", "", True), ("torch>=9; python_version >= '3'", "2.4", False),
])  # fmt: skip
def test_requirements_are_understood_as_pip_does(needs, wanted, found, met):
    needs.installed["torch"] = found
    assert Dependencies.isMet(wanted) is met


def test_check_says_what_is_there_and_what_is_not(needs):
    rows = {row.name: row for row in needs.check(add_volume())}
    assert rows["PyTorch"].fine and "2.6.0" in rows["PyTorch"].detail and "NVIDIA" in rows["PyTorch"].detail
    assert rows["Slicer"].fine and "guess" in rows["Estimated time"].detail
    assert needs.checkHtml().startswith("<b>Everything is there.</b>")
    del needs.installed["torch"]
    rows = {row.name: row for row in needs.check()}
    assert rows["PyTorch"].fine is False and needs.missing() == [Dependencies.TORCH]
    assert "\u2717" in needs.checkHtml() and needs.checkHtml().startswith("<b>Missing or not suitable: PyTorch</b>")


def test_estimate_comes_from_the_last_run(needs):
    volume = add_volume()
    assert needs.estimate(volume).startswith("about 5 s")  # a small volume: nearly all of it is starting
    needs.remember(volume, "cpu float32", 20.0)
    assert needs.estimate(volume) == "20 s"


def test_memory_and_graphics_card_are_told_on_windows_too(needs, monkeypatch):
    import ctypes

    def status(pointer):
        fields = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint64))
        assert ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint32))[0] == 64  # dwLength
        fields[1] = 16 * 2**30  # ullTotalPhys
        return 1

    kernel = types.SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    assert Dependencies._totalMemoryOnWindows() == 16 * 2**30
    monkeypatch.setattr(Dependencies.sys, "platform", "win32")
    monkeypatch.setattr(Dependencies.shutil, "which", lambda name: f"C:\\Windows\\{name}.exe")
    monkeypatch.setattr(Dependencies.Console, "output", lambda arguments: "NVIDIA RTX A2000, 6138 MiB\r\n")
    assert Dependencies.graphicsCard() == "NVIDIA RTX A2000, 6138 MiB"


def test_damaged_model_is_seen(needs, monkeypatch, tmp_path):
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr("SAUNetLib.model_card.resource", lambda *parts: tmp_path.joinpath(*parts))
    assert needs.modelRow().fine is False
    write_model(tmp_path / "models", "1.2")
    assert needs.modelRow().fine is True
    (tmp_path / "models" / "saunet-lumbar.safetensors").write_bytes(b"changed")
    assert needs.modelRow().fine is False and "damaged" in needs.modelRow().detail


def test_the_check_is_of_the_model_that_the_engine_would_take(needs, monkeypatch, tmp_path):
    """A newer one of the user's own is chosen; an older one is not."""
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr("SAUNetLib.model_card.resource", lambda *parts: tmp_path.joinpath(*parts))
    write_model(tmp_path / "models", "1.2")
    for own, chosen in (("1.1", "1.2"), ("1.10", "1.10")):
        write_model(tmp_path / "own", own)
        assert f"saunet-lumbar {chosen} " in needs.modelRow().detail
        assert f"saunet-lumbar {chosen}." in Report.aboutText()


def write_model(folder, version):
    """A file of the standard model's name, with a card that fits it."""
    folder.mkdir(exist_ok=True)
    weights = folder / "saunet-lumbar.safetensors"
    weights.write_bytes(version.encode())
    card = json.loads((ROOT / "Resources" / "models" / "saunet-lumbar.json").read_text(encoding="utf-8"))
    card |= {"version": version, "sha256": hashlib.sha256(version.encode()).hexdigest()}
    weights.with_suffix(".json").write_text(json.dumps(card))


def test_nothing_is_installed_without_consent(needs, pip):
    del needs.installed["pynrrd"]
    asked = []
    assert needs.installMissing(lambda text: asked.append(text)) is False
    assert "pynrrd>=1.0" in asked[0] and pip == []


def test_install_pins_slicer_s_own_packages(needs, pip):
    del needs.installed["pynrrd"]
    assert needs.installMissing(lambda text: True) is True
    assert pip[0][-1] == "pynrrd>=1.0" and "numpy==2.0\n" in pip[1] and "SimpleITK==2.4\n" in pip[1]
    # light-the-torch, which fetches PyTorch, refuses Slicer 5.12's pip, and some versions of PyTorch its setuptools.
    assert "pip==" not in pip[1] and "setuptools==" not in pip[1]
    assert needs.installMissing(lambda text: True) is False  # nothing is missing any more


def test_slicer_5_12_installs_with_pip_ensure(needs, monkeypatch):
    calls = []

    def ensure(requirements, constraints=None, prompt_install=True, requester=None):
        calls.append((requirements, prompt_install, Path(constraints).read_text()))
        needs.installed["pynrrd"] = "1.1"

    packaging = types.ModuleType("slicer.packaging")
    packaging.pip_ensure = ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    monkeypatch.setattr(slicer, "packaging", packaging, raising=False)
    del needs.installed["pynrrd"]
    assert needs.installMissing(lambda text: True)
    assert calls[0][:2] == (["pynrrd>=1.0"], False) and "numpy==2.0" in calls[0][2]


def test_torch_comes_through_the_pytorch_extension_only(needs, pip, monkeypatch):
    del needs.installed["torch"]
    with pytest.raises(PanelError) as raised:
        needs.installMissing(lambda text: pytest.fail("asked before it is known whether it can be done"))
    assert raised.value.code == "PYTORCH" and pip == []
    asked = []

    class Logic:
        def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
            asked.append(torchVersionRequirement)
            address = os.environ["PIP_CONSTRAINT"]  # pip splits it at spaces
            assert " " not in address and "numpy==2.0\n" in Path(url2pathname(urlsplit(address).path)).read_text()
            needs.installed["torch"] = "2.6"
            return object()

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = Logic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    monkeypatch.setenv("PIP_CONSTRAINT", "mine.txt")
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    with monkeypatch.context() as windows, pytest.raises(PanelError) as raised:
        windows.setattr(sys, "platform", "win32")
        needs.installMissing(lambda text: pytest.fail("asked before it is known whether it can be done"))
    assert raised.value.code == "PYTORCH_IN_USE"
    assert needs.installMissing(lambda text: True) and asked == [Dependencies.TORCH.removeprefix("torch")] and pip == []
    assert os.environ["PIP_CONSTRAINT"] == "mine.txt"


@pytest.mark.parametrize("failure, code", [
    (OSError('[WinError 126] Not found. Error loading "C:\\Users\\jane\\torch\\lib\\c10.dll" or one of its parts.'),
     "VISUAL_C"),
    (ImportError("DLL load failed while importing _C"), "PYTORCH_BROKEN"),
    (ModuleNotFoundError("No module named 'sympy'", name="sympy"), "PYTORCH_BROKEN"),
    (RuntimeError("Command returned non-zero exit status 1."), "INSTALL_FAILED"),
])  # fmt: skip
def test_pytorch_that_is_installed_but_cannot_be_imported_is_told_as_such(needs, pip, monkeypatch, failure, code):
    """The extension imports it at once, which fails where Windows has no Visual C++ library; the rest was left out."""
    del needs.installed["torch"], needs.installed["pynrrd"]
    lines = []
    needs.log.connect(lines.append)

    class Logic:
        def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
            if code != "INSTALL_FAILED":
                needs.installed["torch"] = "2.6.0+cpu"
            raise failure

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = Logic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    with pytest.raises(PanelError) as raised:
        needs.installMissing(lambda text: True)
    assert raised.value.code == code and f"{type(failure).__name__}: {failure}" in lines
    assert "jane" not in str(raised.value)
    assert needs.missing() == ([] if code != "INSTALL_FAILED" else [Dependencies.TORCH, "pynrrd>=1.0"])


def test_failed_installation_is_a_card(needs, monkeypatch):
    del needs.installed["pynrrd"]
    lines = []
    needs.log.connect(lines.append)

    def fail(arguments):
        raise RuntimeError("no connection")

    monkeypatch.setattr(slicer.util, "pip_install", fail)
    with pytest.raises(PanelError) as raised:
        needs.installMissing(lambda text: True)
    assert raised.value.code == "INSTALL_FAILED" and "RuntimeError: no connection" in lines
    monkeypatch.setattr(
        slicer.util, "pip_install", lambda arguments: None
    )  # as Slicer under --testing: nothing happens
    with pytest.raises(PanelError) as raised:
        needs.installMissing(lambda text: True)
    assert "pynrrd" in raised.value.card.cause


def pip_says(*lines):
    """`pip_install` that prints lines and fails, through Slicer's own function."""
    import subprocess

    def install(arguments):
        code = "import sys; print(*sys.argv[1:], sep='\\n'); sys.exit(1)"
        command = [sys.executable, "-c", code, *lines]
        slicer.util.logProcessOutput(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    return install


@pytest.mark.parametrize("lines, code, cause", [
    (("WARNING: Retrying after connection broken by 'ProxyError('Cannot connect to proxy.')'",
      "ERROR: Could not find a version that satisfies the requirement pynrrd>=1.0 (from versions: none)",
      "ERROR: No matching distribution found for pynrrd>=1.0"),
     "INSTALL_FAILED", "No matching distribution found for pynrrd>=1.0"),
    (("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/opt/Slicer 5/lib/x.py'",
      "Check the permissions."),
     "INSTALL_WRITE", "Could not install packages due to an OSError: [Errno 13] Permission denied: '[path]'"),
    (("ERROR: Could not install packages: [WinError 5] Zugriff verweigert: 'C:\\\\Users\\\\jane\\\\x.py'",),
     "INSTALL_WRITE", "Could not install packages: [WinError 5] Zugriff verweigert: '[path]'"),
    (("Collecting pynrrd>=1.0",), "INSTALL_FAILED", "A package could not be installed."),
])  # fmt: skip
def test_failed_installation_says_what_pip_said(needs, panel_of, monkeypatch, capsys, lines, code, cause):  # noqa: F811
    del needs.installed["pynrrd"]
    monkeypatch.setattr(slicer.util, "pip_install", pip_says(*lines))
    panel = panel_of(dependencies=needs)
    console = sys.stdout
    panel.ui.installButton.click()
    card = panel.widget._card
    assert (card.code, card.cause) == (code, cause)
    assert ("connection" in card.remedy) == (code == "INSTALL_FAILED")
    panel.ui.cardActionButton.click()
    shown, printed = panel.ui.logEdit.plainText, capsys.readouterr().out
    assert all(line in shown and line in printed for line in lines) and "CalledProcessError" in shown
    assert sys.stdout is console
    panel.ui.cardCopyButton.click()
    report = slicer.app.clipboard().text()
    assert card.code in report and "/opt" not in report and "jane" not in report


def test_report_has_no_login_of_a_package_index(scene):  # noqa: F811
    line = "Looking in indexes: https://jane:****@packages.example.org/simple, https://example.org/simple"
    text = Report.reportText(None, [line], [], {})
    assert "jane" not in text and "https://example.org/simple" in text


def test_only_what_the_installing_thread_prints_is_heard(capsys):
    import threading

    from SAUNetPanel import Console

    lines = []
    with Console.heard(lines.append):
        print("one\ntwo", 3, end="")
        print(" and the rest", flush=True)
        other = threading.Thread(target=print, args=("another module's",))
        other.start()
        other.join()
    print("later")
    assert lines == ["one", "two 3 and the rest"]
    assert capsys.readouterr().out == "one\ntwo 3 and the rest\nanother module's\nlater\n"


# -- bundle ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A bundle with one wheel and a model, for this platform."""
    models = tmp_path / "models"
    models.mkdir()
    card = json.loads((ROOT / "Resources" / "models" / "saunet-lumbar.json").read_text(encoding="utf-8"))
    (models / "saunet-lumbar.safetensors").write_bytes(b"weights")
    os.utime(models / "saunet-lumbar.safetensors", (0, 0))  # before the years of a zip file begin
    (models / "saunet-lumbar.json").write_text(json.dumps(card | {"version": "99"}))
    monkeypatch.setenv("SAUNET_MODELS", str(models))
    commands = []

    def download(command):
        commands.append(command)
        for one in bundle.PACKAGES:
            make_wheel(Path(command[command.index("--dest") + 1]), one.partition(">=")[0], "99")
        return 0

    path = tmp_path / "bundle.zip"
    with monkeypatch.context() as patched:
        patched.setattr(bundle, "_run", download)
        names = bundle.write_bundle(path, "5.12", bundle.this_platform())
    return types.SimpleNamespace(path=path, names=names, command=commands[0], models=models)


def make_wheel(folder, name, version, tag="py3-none-any", needs=()):
    """An empty wheel with its requirements."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in needs),
    ]
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(about))
        archive.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")


def test_bundle_holds_wheels_model_and_their_hashes(made):
    wheels = {f"wheels/{one.partition('>=')[0].replace('-', '_')}-99-py3-none-any.whl" for one in bundle.PACKAGES}
    assert set(made.names) == wheels | {"models/saunet-lumbar.safetensors", "models/saunet-lumbar.json"}
    with zipfile.ZipFile(made.path) as archive:
        manifest = json.loads(archive.read(bundle.MANIFEST))
        for entry in manifest["files"]:
            assert entry["sha256"] == hashlib.sha256(archive.read(entry["name"])).hexdigest()
    command = made.command
    assert "--only-binary=:all:" in command and command[command.index("--python-version") + 1] == "3.12"


TAGS = {
    "linux": ("cp312-cp312-manylinux_2_28_x86_64", "py3-none-manylinux_2_27_x86_64"),
    "windows": ("cp312-cp312-win_amd64", "py3-none-win_amd64"),
    "macos-arm64": ("cp312-cp312-macosx_14_0_arm64", "py3-none-macosx_11_0_arm64"),
}
"""Tags of wheels as the packages' makers have them."""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels from which the real pip takes all; what torch needs depends on where it will run."""
    folder = tmp_path / "index"
    folder.mkdir()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    needs = [
        'gpu-kit[blas]==13.*; platform_system == "Linux"', 'colour; sys_platform == "win32"', "common>=2",
        'apple; sys_platform == "darwin" and platform_machine == "arm64"', 'unwanted; extra == "more"',
        'new; python_version >= "3.12"', 'old; python_version < "3.12"', 'dos; os_name == "nt"',
    ]  # fmt: skip
    for compiled, packed in TAGS.values():
        for version in (pins["torch"], bundle.TORCH_FOR_WINDOWS):
            make_wheel(folder, "torch", version, compiled, needs)
        make_wheel(folder, "torch", "99", compiled)
        make_wheel(folder, "safetensors", pins["safetensors"], packed)
    make_wheel(folder, "gpu-kit", "13.1", needs=['gpu-blas; extra == "blas"', 'gpu-fft; extra == "fft"'])
    make_wheel(folder, "gpu-blas", "1", TAGS["linux"][1], ["common<3"])
    make_wheel(folder, "connected-components-3d", pins["connected-components-3d"])
    make_wheel(folder, "pynrrd", pins["pynrrd"], needs=["Common"])
    make_wheel(folder, "common", "2.5", needs=["torch"])  # in a circle
    for name in ("colour", "apple", "unwanted", "new", "old", "dos", "gpu-fft"):
        make_wheel(folder, name, "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder


@pytest.mark.parametrize("platform, own", [
    ("linux", {"gpu-kit", "gpu-blas"}), ("windows", {"colour", "dos"}), ("macos-arm64", {"apple"}),
])  # fmt: skip
def test_bundle_holds_what_its_platform_needs_and_nothing_else(made, index, tmp_path, platform, own):
    """Whatever the platform on which it is made, and in the pinned versions."""
    names = bundle.write_bundle(tmp_path / "b.zip", "5.12", platform)
    wheels = {tuple(name.removeprefix("wheels/").split("-")[:2]) for name in names if name.startswith("wheels/")}
    pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert ("torch", bundle.TORCH_FOR_WINDOWS if platform == "windows" else pinned) in wheels
    engine = {one.partition(">=")[0] for one in bundle.PACKAGES}
    assert {name.replace("_", "-") for name, _ in wheels} == engine | {"common", "new"} | own
    if sys.platform == "linux":  # Windows does not remove what is open
        opened = {str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()}
        assert not [one for one in opened if ".whl" in one]


def test_wheels_that_do_not_fit_together_make_no_bundle(made, index, tmp_path):
    make_wheel(index, "common", "3", needs=["torch"])  # the newest, but not for gpu-blas, which is looked at later
    with pytest.raises(UsageError) as raised:
        bundle.write_bundle(tmp_path / "b.zip", "5.12", "linux")
    assert raised.value.code == "NOT_INSTALLED" and "common<3" in raised.value.cause
    assert not (tmp_path / "b.zip").exists()


def test_intel_macs_are_refused_as_pytorch_has_no_wheels_for_them(made, tmp_path):
    with pytest.raises(UsageError) as raised:
        bundle.write_bundle(tmp_path / "b.zip", "5.12", "macos-x86_64")
    assert raised.value.code == "USAGE" and "macos-arm64" in raised.value.remedy


SYSTEMS = [
    ("linux", "x86_64", "linux-x86_64", "linux"),
    ("linux", "aarch64", "linux-aarch64", "linux-aarch64"),
    ("win32", "AMD64", "win-amd64", "windows"),
    ("win32", "ARM64", "win-amd64", "windows"),  # a Slicer for x86_64
    ("win32", "ARM64", "win-arm64", "windows-arm64"),
    ("darwin", "arm64", "macosx-11.0-universal2", "macos-arm64"),
    ("darwin", "x86_64", "macosx-10.13-universal2", "macos-x86_64"),
]
"""The system, its processor, what Python was built for, and what we call it."""


@pytest.mark.parametrize("system, machine, python, name", SYSTEMS)
def test_a_bundle_is_taken_by_the_platform_that_it_is_made_for(
    made, monkeypatch, tmp_path, system, machine, python, name
):
    monkeypatch.setattr(Bundle, "this_platform", bundle.this_platform)  # fuzzing has one of its own
    monkeypatch.setattr(bundle, "sys", types.SimpleNamespace(platform=system))
    monkeypatch.setattr(bundle, "machine", lambda: machine)
    monkeypatch.setattr(bundle.sysconfig, "get_platform", lambda: python)
    assert bundle.this_platform() == name
    for platform in bundle.PLATFORMS:
        rewrite(made.path, {"platform": platform})
        if platform == name:
            (tmp_path / "unpacked").mkdir()
            assert Bundle.openBundle(made.path, tmp_path / "unpacked", (5, 12))["platform"] == name
            continue
        with pytest.raises(PanelError) as raised:
            Bundle.openBundle(made.path, tmp_path, (5, 12))
        assert raised.value.code == ("BUNDLE" if name in bundle.PLATFORMS else "BUNDLE_PLATFORM")
        assert f"this is {name}." in raised.value.card.cause


@pytest.mark.parametrize("change", [{"slicer": "4.11"}, {"platform": "amiga"}, {"output": "b.tar"},
                                    {"output": "bundle.zip/b.zip"}, {"index": "https//a.b/c"}])  # fmt: skip
def test_bundle_refuses_what_it_cannot_make(made, tmp_path, change, monkeypatch):
    monkeypatch.setattr(bundle, "_run", lambda command: pytest.fail("it downloads before it checks"))
    wanted = {"output": "b.zip", "slicer": "5.12", "platform": "linux"} | change
    wanted["output"] = tmp_path / wanted["output"]
    with pytest.raises(UsageError):
        bundle.write_bundle(**wanted)
    assert not wanted["output"].exists()


@pytest.mark.parametrize("free", [10**8, 10**11])
def test_failed_download_leaves_the_old_bundle(made, monkeypatch, free):
    monkeypatch.setattr(bundle, "_run", lambda command: 1)
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free))
    before = made.path.read_bytes()
    with pytest.raises(UsageError) as raised:
        bundle.write_bundle(made.path, "5.12", "linux")
    assert raised.value.code == "NOT_INSTALLED" and made.path.read_bytes() == before
    assert ("0.1 GB are free" in raised.value.remedy) == (free < 10**9)


def test_a_killed_download_is_removed_by_the_next(made, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = Path(tempfile.gettempdir()) / f"saunet-{ended.pid}-0123456789ab"
    left.mkdir(mode=0o700)
    folders = []
    monkeypatch.setattr(bundle, "_run", lambda command: folders.append(Path(command[command.index("--dest") + 1])) or 1)
    with pytest.raises(UsageError):
        bundle.write_bundle(made.path, "5.12", "linux")
    assert not left.exists() and not folders[0].exists()
    assert folders[0].name.startswith(f"saunet-{os.getpid()}-"), "as one that can be found again"


def test_bundle_installs_without_a_connection(needs, pip, made, monkeypatch, tmp_path):
    target = tmp_path / "target"
    monkeypatch.setenv("SAUNET_MODELS", str(target))
    del needs.installed["pynrrd"]
    asked = []
    assert needs.installBundle(made.path, lambda text: not asked.append(text))
    assert asked[0].endswith("Models: 1")
    assert "--no-index" in pip[0] and "--find-links" in pip[0] and pip[0][-1] == "pynrrd>=1.0"
    assert (target / "saunet-lumbar.safetensors").read_bytes() == b"weights"
    assert "saunet-lumbar" in needs.models()


def rewrite(path, manifest=None, **files):
    """The bundle with some files or entries of the manifest replaced."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(content[bundle.MANIFEST]) | (manifest or {})
    content |= {bundle.MANIFEST: json.dumps(about).encode()} | files
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:-200]),
    lambda path: path.write_bytes(b"no zip"),
    lambda path: rewrite(path, **{"models/saunet-lumbar.safetensors": b"weightz"}),
    lambda path: rewrite(path, **{"models/saunet-lumbar.safetensors": b"weights and more"}),
    lambda path: rewrite(path, {"slicer": "5.10"}),
    lambda path: rewrite(path, {"platform": "amiga"}),
    lambda path: rewrite(path, {"format": 99}),
    lambda path: rewrite(path, {"files": [{"name": "../outside.whl", "size": 1, "sha256": ""}]}),
    lambda path: rewrite(path, {"files": [{"name": "/tmp/outside.whl", "size": 1, "sha256": ""}]}),
    lambda path: rewrite(path, {"files": "nonsense"}),
])  # fmt: skip
def test_damaged_or_foreign_bundle_installs_nothing(needs, pip, made, damage, monkeypatch, tmp_path):
    target = tmp_path / "target"
    monkeypatch.setenv("SAUNET_MODELS", str(target))
    damage(made.path)
    with pytest.raises(PanelError) as raised:
        needs.installBundle(made.path, lambda text: True)
    assert raised.value.code == "BUNDLE" and pip == [] and not target.exists()


def test_a_bundle_for_which_there_is_no_room_is_no_foreign_one(needs, pip, made, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Bundle, "_unpack", full)
    with pytest.raises(PanelError) as raised:
        needs.installBundle(made.path, lambda text: True)
    assert raised.value.code == "BUNDLE_UNPACK" and "No space left" in raised.value.card.cause and pip == []


def test_a_bundle_replaces_no_pytorch_that_windows_holds(needs, pip, made, monkeypatch):
    del needs.installed["torch"]
    here = bundle.this_platform()
    monkeypatch.setattr(Bundle, "this_platform", lambda: here)
    monkeypatch.setattr(Dependencies.sys, "platform", "win32")
    monkeypatch.setitem(Dependencies.sys.modules, "torch", types.ModuleType("torch"))
    with pytest.raises(PanelError) as raised:
        needs.installBundle(made.path, lambda text: pytest.fail("asked"))
    assert raised.value.code == "PYTORCH_IN_USE" and pip == []


def test_without_a_temporary_folder_an_installation_fails_with_a_card(needs, pip, made, monkeypatch):
    def none():
        raise OSError(28, "No space left on device")

    del needs.installed["pynrrd"]
    monkeypatch.setattr(Dependencies.temporary, "make_folder", none)
    for install in (needs.installMissing, lambda ask: needs.installBundle(made.path, ask)):
        with pytest.raises(PanelError) as raised:
            install(lambda text: True)
        assert raised.value.code == "INSTALL_FAILED" and "temporary folder" in raised.value.card.cause and pip == []


def test_what_was_installed_stays_so_where_the_temporary_folder_cannot_be_removed(needs, pip, monkeypatch):
    kept = []

    def held(folder):
        kept.append(folder)
        raise PermissionError(13, "in use")

    del needs.installed["pynrrd"]
    lines = []
    needs.log.connect(lines.append)
    with monkeypatch.context() as patched:
        patched.setattr(Dependencies.temporary, "remove_folder", held)
        assert needs.installMissing(lambda text: True)
    assert any("could not be removed yet" in line for line in lines)
    for folder in kept:
        Dependencies.temporary.remove_folder(folder)


# -- the section in the panel ----------------------------------------------------------------------------------------


def test_buttons_of_the_setup_section(needs, pip, panel_of):  # noqa: F811
    del needs.installed["pynrrd"]
    panel = panel_of(dependencies=needs)
    panel.ui.checkButton.click()
    assert "pynrrd" in panel.ui.setupBrowser.plainText and "not installed" in panel.ui.setupBrowser.plainText
    panel.dialogs.consent = False
    panel.ui.installButton.click()
    assert panel.ui.statusLabel.text == "Nothing was installed." and pip == []
    panel.dialogs.consent = True
    panel.ui.installButton.click()
    assert panel.ui.statusLabel.text == "Installed." and "not installed" not in panel.ui.setupBrowser.plainText
    assert panel.widget._warmUp.active  # now the network can be loaded in advance
    panel.ui.installButton.click()
    assert panel.ui.statusLabel.text == "All packages are installed." and len(panel.dialogs.asked) == 2
    assert "Everything is there." in panel.ui.setupBrowser.plainText
    panel.ui.bundleButton.click()  # the file dialog was cancelled
    assert panel.ui.statusLabel.text == "All packages are installed."
    panel.dialogs.path = Path("/nonexistent.zip")
    panel.ui.bundleButton.click()
    assert panel.widget._card.code == "BUNDLE_UNPACK"


def test_install_says_what_it_cannot_install(needs, panel_of, monkeypatch):  # noqa: F811
    panel = panel_of(dependencies=needs)

    def gone():
        raise OSError

    monkeypatch.setattr(Dependencies, "find_model", gone)
    panel.ui.installButton.click()
    said, found = panel.ui.statusLabel.text, panel.ui.setupBrowser.plainText
    assert said.startswith("All packages are installed. The model is missing or damaged: use Install from file...")
    assert found.startswith("Missing or not suitable: Model") and panel.ui.bundleButton.text in said
    needs.installed["pynrrd"] = "0.1"
    assert needs.checkHtml().startswith("<b>Missing or not suitable: pynrrd, Model</b>"), "it is there, but too old"


def test_nothing_else_starts_while_packages_are_installed(needs, panel_of, monkeypatch):  # noqa: F811
    """Slicer handles events after every line of pip's output."""
    del needs.installed["pynrrd"]
    panel = panel_of(dependencies=needs)
    add_volume()
    panel.widget.showParameters()
    panel.dialogs.consent = True
    seen = []

    def install(arguments):
        seen.append(panel.ui.statusLabel.text)
        for button in (panel.ui.installButton, panel.ui.bundleButton, panel.ui.segmentButton):
            assert not button.enabled and "installed" in button.toolTip
        panel.widget.onInstall()
        panel.widget._warm()
        assert not panel.logic.engine.alive
        needs.installed["pynrrd"] = "1.1"

    monkeypatch.setattr(slicer.util, "pip_install", install)
    panel.engine.run("warm")
    assert panel.engine.alive  # what it has loaded could not be replaced on Windows
    panel.ui.installButton.click()
    assert len(seen) == 1 and seen[0].startswith("Installing")
    assert panel.ui.statusLabel.text == "Installed." and panel.ui.segmentButton.enabled
    assert panel.ui.installButton.enabled and "being installed" not in panel.ui.installButton.toolTip


def test_first_click_without_packages_offers_to_install_them(needs, pip, panel_of):  # noqa: F811
    add_volume()
    del needs.installed["pynrrd"], needs.installed["torch"]
    panel = panel_of(dependencies=needs)
    assert "not installed yet" in panel.ui.statusLabel.text
    panel.ui.segmentButton.click()
    assert panel.widget._card.code == "NOT_INSTALLED" and not panel.engine.alive
    assert (
        f"{Dependencies.TORCH}, pynrrd>=1.0" in panel.ui.cardText.text and panel.ui.cardActionButton.text == "Install"
    )


def test_missing_package_card_installs(needs, pip, panel_of):  # noqa: F811
    from SAUNetPanel.Cards import cardOf

    del needs.installed["pynrrd"]
    panel = panel_of(dependencies=needs)
    panel.widget.showCard(cardOf({"code": "NOT_INSTALLED", "cause": "the package pynrrd is missing."}))
    panel.ui.cardActionButton.click()
    assert panel.ui.setupSection.collapsed is False and needs.missing() == []


def test_missing_pytorch_extension_opens_the_extensions_manager(needs, pip, panel_of):  # noqa: F811
    del needs.installed["torch"]
    panel = panel_of(dependencies=needs)
    panel.ui.installButton.click()
    assert panel.widget._card.code == "PYTORCH" and panel.ui.cardActionButton.text == "Open Extensions"
    panel.ui.cardActionButton.click()
    assert slicer.app.extensionsManagerOpened


def test_about_says_what_matters(panel_of):  # noqa: F811
    text = panel_of().ui.aboutLabel.text
    assert "Not for diagnostic use" in text and "Apache 2.0" in text
    assert "Inter-Slice Attention" in text and "<ul" in text and "Licence of the model: CC BY 4.0" in text
