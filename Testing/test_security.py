"""Security: no code from data, no shell, bundles that stay in their folder, private folders, known parts."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import json
import re
import stat
import subprocess
import sys
import tempfile
import tomllib
import warnings
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from harness.fixtures import MODULE, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from SAUNetPanel import Bundle
from SAUNetPanel.Cards import PanelError

from SAUNetLib import bundle
from SAUNetLib.formats import temporary

SHIPPED = sorted([*(ROOT / "SAUNetLib").rglob("*.py"), *MODULE.rglob("*.py"), ROOT / "run.py"])
UNSEEN_IMPORTS = {"_pickle", "marshal", "cloudpickle", "joblib"}
UNSEEN_CALLS = re.compile(r"compile|__import__|yaml\.((full|unsafe)_load(_all)?|load_all)")
NOTES = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def complaints(source: str) -> list[str]:
    """What in a module could run data as code and is not among Bandit's rules."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNSEEN_IMPORTS]
        if isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            found += [f"calls {name}"] if UNSEEN_CALLS.fullmatch(name) else []
            found += ["unpickles"] if options.get("allow_pickle", "False") != "False" else []
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_shipped_runs_data_as_code(path):
    assert complaints(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("line", [
    "import marshal", "from joblib import load", "compile(x, y, z)", "__import__(x)", "np.load(x, allow_pickle=True)",
    "yaml.unsafe_load(x)", "yaml.full_load_all(x)", "yaml.load_all(x, y)",
])  # fmt: skip
def test_the_check_itself_sees_what_it_looks_for(line):
    assert complaints(line)


def explained() -> set[str]:
    """Bandit's rules whose findings docs/reliability.md explains."""
    return set(re.findall(r"^\| (B\d{3}) ", NOTES, re.MULTILINE))


def test_bandit_finds_only_what_is_explained():
    options = ["--quiet", "--ignore-nosec", "--format", "json", "--recursive"]
    command = [sys.executable, "-m", "bandit", *options, "SAUNetLib", MODULE.name, "run.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    report = json.loads(done.stdout)
    assert report["errors"] == []
    assert {one["issue_severity"] for one in report["results"]} <= {"LOW"}
    assert {one["test_id"] for one in report["results"]} == explained()


# -- bundle ----------------------------------------------------------------------------------------------------------

CONTENT = b"wheel"


def make_bundle(path: Path, name: str = "wheels/a.whl", content: bytes = CONTENT, **entry: object) -> Path:
    """A bundle for this platform with one file."""
    files = [{"name": name, "size": len(CONTENT), "sha256": sha256(CONTENT).hexdigest()} | entry]
    about = {"format": bundle.FORMAT, "slicer": "5.10", "platform": bundle.this_platform(), "files": files}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(bundle.MANIFEST, json.dumps(about))
        archive.writestr(zipfile.ZipInfo(name), content)
    return path


def test_a_good_bundle_is_unpacked(tmp_path):
    Bundle.openBundle(make_bundle(tmp_path / "b.zip"), tmp_path, (5, 10))
    assert (tmp_path / "wheels" / "a.whl").read_bytes() == CONTENT


@pytest.mark.parametrize("name", [
    "../outside.whl", "wheels/../../outside.whl", "/tmp/outside.whl", "wheels//outside.whl", "wheels/..", "wheels/.",
    "wheels\\..\\..\\outside.whl", "C:/outside.whl", "wheels/C:outside.whl", "wheels/a:b.whl", "outside.whl",
    "wheels/a/b.whl", "models/a.whl", "wheels/a.json", "other/a.whl", "wheels/\u0430.whl", "wheels/a.whl\n", "",
])  # fmt: skip
def test_a_bundle_writes_nothing_outside_its_folder(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = make_bundle(tmp_path / "b.zip", name)
    with pytest.raises(PanelError) as raised:
        Bundle.openBundle(path, inside, (5, 10))
    assert raised.value.code == "BUNDLE"
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one != path]


@pytest.mark.parametrize("entry", [
    {"content": b"wheez"}, {"content": b"whee"}, {"content": b"wheels"}, {"content": bytes(2**24)},
    {"sha256": "0" * 64}, {"sha256": None}, {"size": 2**40}, {"size": float("inf")}, {"size": -1}, {"size": "x"},
])  # fmt: skip
def test_a_bundle_s_files_are_what_its_manifest_says(tmp_path, entry):
    with pytest.raises(PanelError) as raised:
        Bundle.openBundle(make_bundle(tmp_path / "b.zip", **entry), tmp_path, (5, 10))
    assert raised.value.code == "BUNDLE"
    assert sum(one.stat().st_size for one in tmp_path.rglob("*.whl")) <= len(CONTENT) + 2**20


def test_a_bundle_that_states_more_than_the_limit_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Bundle, "LARGEST", len(CONTENT) - 1)
    with pytest.raises(PanelError) as raised:
        Bundle.openBundle(make_bundle(tmp_path / "b.zip"), tmp_path, (5, 10))
    assert raised.value.code == "BUNDLE" and not list(tmp_path.rglob("*.whl"))


def test_a_manifest_that_unpacks_without_end_is_not_read_whole(tmp_path, monkeypatch):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(bundle.MANIFEST, b"[" * 2**26)
    (tmp_path / "b.zip").write_bytes(data.getvalue())
    asked, loads = [], json.loads
    monkeypatch.setattr(Bundle.json, "loads", lambda text: asked.append(len(text)) or loads(text))
    with pytest.raises(PanelError):
        Bundle.openBundle(tmp_path / "b.zip", tmp_path, (5, 10))
    assert asked == [Bundle.LARGEST_MANIFEST]


# -- private folders -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_temporary_folders_are_closed_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    private = temporary.make_folder()
    with tempfile.TemporaryDirectory() as other:
        modes = {stat.S_IMODE(folder.stat().st_mode) for folder in (private, Path(other))}
    temporary.remove_folder(private)
    assert modes == {0o700} and list(tmp_path.iterdir()) == []


# -- parts -----------------------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """The exact versions that are tested, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def closure(names: list[str]) -> set[str]:
    """Packages with all that they need here."""
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, importlib.metadata.requires(name) or ())
            names += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def test_the_bill_of_materials_is_current():
    """docs/sbom.json names exactly what the engine in Slicer needs, in the pinned versions."""
    bill = json.loads((ROOT / "docs" / "sbom.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "saunet"
    listed = {canonicalize_name(one["name"]): one["version"].split("+")[0] for one in bill["components"]}
    assert listed == {name: pins().get(name) for name in listed}, "made with other versions than constraints.txt's"
    worker = [Requirement(one).name for one in bundle.PACKAGES] + ["numpy", "SimpleITK"]
    # On Linux, PyTorch's build for NVIDIA cards brings that maker's libraries, which are not pinned.
    assert closure(worker) & pins().keys() <= listed.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {canonicalize_name(name) for name in worker} <= {
        canonicalize_name(Requirement(one).name) for one in project["dependencies"]
    }


def test_the_pins_are_what_is_tested_and_audited_with_every_change():
    """In the continuous integration; an exception made from the audit is explained in docs/reliability.md."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML 1.1 reads the key `on` as true
    steps = [step | job for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    audits = [step for step in steps if "pip-audit" in step["run"]]
    assert audits and all("--requirement constraints.txt" in step["run"] for step in audits)
    assert not any(step.get("if") or step.get("continue-on-error") for step in audits)
    assert all(one in NOTES for step in audits for one in re.findall(r"--ignore-vuln[ =](\S+)", step["run"]))
    installs = [step["run"] for step in steps if "pip install" in step["run"]]
    assert installs and all("--constraint constraints.txt" in one for one in installs)
