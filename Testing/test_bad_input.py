"""Every bad input of the corpus: its code, nothing written, little memory, and the next request is served as ever."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import random as randomness
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bad_inputs
import builders
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from bad_inputs import ANY, GOOD, GRID, WORKS, Case
from conftest import ROOT

from SAUNetLib.cli import main
from SAUNetLib.engine import Engine
from SAUNetLib.errors import SAUNetError
from SAUNetLib.formats.dicom_elements import read_header
from SAUNetLib.formats.dicom_files import is_dicom
from SAUNetLib.model import load_model
from SAUNetLib.pipeline import segment, segment_file
from SAUNetLib.relabel import relabel_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pipes, links and /proc")

CORPUS = bad_inputs.corpus()
LINES = list(bad_inputs.lines())
BAD = [case for case in CORPUS if case.code not in (WORKS, ANY)]
SLOW = ("1,000 slices",)
"""Served by the worker only."""
LISTED = {
    "truncated", "wrong magic", "gzip bomb", "huge size", "overflowing offset", "NaN or infinite", "constant",
    "unit mistake", "spacing", "direction", "2D, 4D, colour, complex", "label map", "slices and rows",
    "non-spine MRI", "CT", "empty and mixed folders", "missing and duplicate slices", "enhanced multi-frame",
    "transfer syntaxes", "paths", "output", "models", "malformed requests",
}  # fmt: skip
MOST_MEMORY = 2 * 10**9
PATIENCE = 120
"""Seconds after which a worker counts as hanging; a request is promised in 30 on a computer that is not busy."""


@pytest.fixture(scope="module")
def build(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """A case's folder and request; made once, since no case may change its files."""
    root, made = tmp_path_factory.mktemp("corpus"), {}

    def call(case: Case) -> tuple[Path, dict[str, Any]]:
        if case not in made:
            folder = root / str(len(made))
            made[case] = folder, case.build(folder, tiny_model)
        return made[case]

    return call


@pytest.fixture(scope="module")
def expected(tiny_engine: Engine) -> np.ndarray:
    """The labels of the plain image."""
    return segment(GOOD, tiny_engine, levels=False).labels


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with sizes and times of change."""
    found = (Path(parent, name) for parent, below, names in os.walk(folder) for name in [*below, *names])
    states = {str(path): path.lstat() for path in found if path.name != "out"}
    return {path: (0, 0) if stat.S_ISDIR(one.st_mode) else (one.st_size, one.st_mtime_ns)
            for path, one in states.items()}  # fmt: skip


def check_failure(case: Case, failure: dict[str, Any], code: str) -> None:
    assert failure["code"] == code, failure
    for part in (failure["cause"], failure["remedy"]):
        assert part.endswith(".") and len(part) > 8 and "\n" not in part and "Secret" not in part
        assert "Traceback" not in part and "Error(" not in part
    assert len(failure["cause"]) < 700


def check_result(case: Case, output: str, expected: np.ndarray) -> None:
    """The labels of the plain image, wherever the unusual one has its voxels."""
    if not output.isascii():
        output = os.path.relpath(output)
    found = sitk.ReadImage(output)
    if case.code == WORKS:
        labels = sitk.Resample(found, GOOD.to_sitk(), sitk.Transform(), sitk.sitkNearestNeighbor)
        assert np.array_equal(sitk.GetArrayFromImage(labels), expected)
    assert set(np.unique(sitk.GetArrayFromImage(found))) <= {0, 1, 2, 3}


# --- in process -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CORPUS if case.name not in SLOW], ids=lambda case: case.title)
def test_in_process(case: Case, build, expected, tiny_engine: Engine, capfd: pytest.CaptureFixture) -> None:
    folder, entries = build(case)
    before = files(folder)
    failure = None
    capfd.readouterr()
    try:
        engine = tiny_engine
        if case.kind == "models" or entries["device"] != "cpu":
            engine = Engine(load_model(entries["model"]), entries["device"], "float32")
        options = {key: entries.get(key) for key in ("series", "lowest", "table", "preview")}
        segment_file(entries["image"], entries["output"], engine, levels=False, **options)
    except SAUNetError as error:
        failure = error.as_dict()
    assert capfd.readouterr() == ("", ""), "what libraries print is nothing for users"
    if case.code in (WORKS, ANY):
        assert failure is None
        check_result(case, entries["output"], expected)
        Path(entries["output"]).unlink()
    else:
        assert failure is not None, "it went through"
        check_failure(case, failure, case.code)
    assert files(folder) == before, "neither files left behind nor changed"


@pytest.mark.parametrize("source", [bad_inputs.ball, bad_inputs.noise])
def test_the_shipped_model_finds_no_spine_where_there_is_none(source) -> None:
    found = segment(source(), Engine(load_model(), "cpu", "float32"))
    assert not found.labels.any() and [notice.code for notice in found.warnings] == ["NOTHING_FOUND"]


# --- one worker -----------------------------------------------------------------------------------


class Child:
    """A worker with a thread that hears its events."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with open(log, "wb") as place:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "SAUNetLib.worker"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=place, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.heard: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.heard.put(line)
        self.heard.put(b"")

    def answer(self, line: bytes) -> tuple[dict[str, Any], float]:
        """The event that ends the request in a line, and the peak of resident memory meanwhile in bytes."""
        process = Path("/proc", str(self.process.pid))
        (process / "clear_refs").write_text("5")
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        while True:
            said = self.heard.get(timeout=PATIENCE)
            assert said, f"the worker died of {line[:200]!r}: {self.log.read_text()[-2000:]}"
            event = json.loads(said)
            if event["event"] in ("result", "error"):
                status = (process / "status").read_text()
                return event, 1024 * int(status.partition("VmHWM:")[2].split()[0])

    def segment(self, entries: dict[str, Any]) -> tuple[dict[str, Any], float]:
        return self.answer(json.dumps({"command": "segment", **entries}).encode())


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """The one worker for everything below; nothing that it served may have ended or upset it."""
    started = Child(tmp_path_factory.mktemp("worker") / "log")
    assert json.loads(started.heard.get(timeout=PATIENCE))["event"] == "ready"
    yield started
    assert started.process.poll() is None
    with contextlib.suppress(OSError):
        started.process.stdin.close()
    assert started.process.wait(PATIENCE) == 0
    assert "Traceback" not in started.log.read_text()


@pytest.fixture(scope="module")
def unharmed(child: Child, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """Ask for the plain image again: the answer must never change."""
    folder = tmp_path_factory.mktemp("good")
    image = bad_inputs.save(folder)
    first: list[np.ndarray] = []

    def call() -> np.ndarray:
        event, _ = child.segment({"image": str(image), "output": str(folder / "b.nrrd"), "model": str(tiny_model),
                                  "device": "cpu", "levels": False})  # fmt: skip
        assert event["event"] == "result", event
        first.append(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "b.nrrd"))))
        (folder / "b.nrrd").unlink()
        assert np.array_equal(first[0], first[-1]) and len(list(folder.iterdir())) == 1
        return first[0]

    return call


def sayable(entries: dict[str, Any]) -> bool:
    """Whether the system takes the texts; the worker refuses a request with others as a whole."""
    try:
        return all(b"\0" not in os.fsencode(value) for value in entries.values() if isinstance(value, str))
    except UnicodeEncodeError:
        return False


@pytest.mark.parametrize("kind", sorted({case.kind for case in CORPUS}))
def test_through_one_worker(kind: str, child: Child, unharmed, build) -> None:
    plain = unharmed()
    for number, case in enumerate(case for case in CORPUS if case.kind == kind):
        folder, entries = build(case)
        before = files(folder)
        event, peak = child.segment({**entries, "id": case.title})
        assert event["id" if sayable(entries) else "code"] == (case.title if sayable(entries) else "USAGE"), case.title
        assert peak < MOST_MEMORY, f"{case.title}: {peak / 2**20:.0f} MiB"
        if case.code in (WORKS, ANY):
            assert event["event"] == "result", event
            check_result(case, entries["output"], plain)
            Path(entries["output"]).unlink()
        else:
            check_failure(case, event, case.code if sayable(entries) else "USAGE")
        assert files(folder) == before, case.title
        if number % 8 == 7:
            unharmed()
    unharmed()


def test_lines_that_are_no_requests(child: Child, unharmed) -> None:
    for line in LINES:
        event, peak = child.answer(line.content)
        assert (event["event"], event["code"]) == ("error", "USAGE"), line.name
        assert event["cause"] and event["remedy"] and peak < MOST_MEMORY
    unharmed()


def test_a_full_disk(child: Child, unharmed, tiny_model: Path, tmp_path: Path) -> None:
    """The system refuses every byte beyond a limit, as a full disk does."""
    import resource

    image, process = bad_inputs.save(tmp_path), child.process.pid
    unlimited = resource.prlimit(process, resource.RLIMIT_FSIZE)
    for name in ("b.nrrd", "b.nii.gz", "b.mha", "b.nii"):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (100, unlimited[1]))
        event, _ = child.segment({"image": str(image), "output": str(tmp_path / name), "model": str(tiny_model)})
        resource.prlimit(process, resource.RLIMIT_FSIZE, unlimited)
        assert event["code"] == "OUTPUT_WRITE" and "free disk space" in event["remedy"], event
        assert [path.name for path in tmp_path.iterdir()] == [image.name]
        unharmed()


def test_random_damage_to_dicom_costs_no_memory(child: Child, unharmed, tiny_model: Path, tmp_path: Path) -> None:
    """GDCM allocates, and keeps, whatever length a damaged element declares."""
    builders.write_enhanced(tmp_path / "e.dcm", GOOD, list(range(5)))
    whole = (tmp_path / "e.dcm").read_bytes()
    end = whole.index(b"\xe0\x7f\x10\x00") + 12
    request = {"image": str(tmp_path / "e.dcm"), "output": str(tmp_path / "b.nrrd"),
               "model": str(tiny_model), "levels": False, "device": "cpu"}  # fmt: skip
    event, usual = child.segment(request)  # PyTorch for NVIDIA's cards takes half a gigabyte more
    assert event["event"] == "result"
    answers: Counter[str] = Counter()
    for seed in range(60):
        chance, raw = randomness.Random(seed), bytearray(whole)
        for _ in range(chance.choice((1, 2, 5, 20))):
            raw[chance.randrange(128, end)] = chance.choice((0, 255, chance.randrange(256)))
        (tmp_path / "e.dcm").write_bytes(raw)
        event, peak = child.segment(request)
        answers[event.get("code", "result")] += 1
        assert peak < usual + MOST_MEMORY / 4, f"seed {seed}: {(peak - usual) / 2**20:.0f} MiB more"
        (tmp_path / "b.nrrd").unlink(missing_ok=True)
    assert answers["INPUT_UNREADABLE"] > 20 and "INTERNAL" not in answers
    assert [path.name for path in tmp_path.iterdir()] == ["e.dcm"]
    unharmed()


# --- command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted({case.kind for case in BAD}))
def test_on_the_command_line(kind: str, build, capfd: pytest.CaptureFixture) -> None:
    """Two of each kind: the exit status of the code, and one line."""
    chosen = [case for case in BAD if case.kind == kind and sayable(build(case)[1]) and "lowest" not in case.name]
    status = {"USAGE": 2, "DEVICE": 2, "OUTPUT": 2, "INPUT": 3, "MODEL": 4}
    for case, as_json in zip((chosen[0], chosen[-1]), (False, True), strict=True):
        folder, entries = build(case)
        before = files(folder)
        options = [
            (f"--{key}", str(value)) for key, value in entries.items() if key not in ("image", "levels", "device")
        ]
        arguments = ["segment", *itertools.chain(*options), "--classes", *(["--json"] if as_json else [])]
        if entries["device"] == "cpu":
            arguments += ["--device", "cpu"]
        capfd.readouterr()
        code = main([*arguments, "--", entries["image"]])
        out, err = capfd.readouterr()
        if entries["device"] == "cpu":
            assert code == status[case.code.partition("_")[0]], err
            assert err.startswith(f"error {case.code}: ") and err.count("\n") == 1
            assert (json.loads(out)["error"]["code"] == case.code) if as_json else not out
        assert files(folder) == before


def test_names_that_are_no_text_among_others(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Several images: what its name forbids to write is told, the others are served."""
    odd, plain = tmp_path / os.fsdecode(b"\xff.nii.gz"), bad_inputs.save(tmp_path)
    odd.write_bytes(plain.read_bytes())
    arguments = [
        "--model",
        str(tiny_model),
        "--classes",
        "--device",
        "cpu",
        "--json",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["segment", str(odd), str(plain), *arguments]) == 2
    out, err = capfd.readouterr()
    answers = json.loads(out)
    assert answers[0]["error"]["code"] == "OUTPUT_WRITE" and answers[0]["image"] == str(odd)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["image.nii.gz"] and err.count("\n") == 1


# --- the walk over a DICOM file's elements --------------------------------------------------------

SEQUENCES = (0, 0x00209113, 0x00209116, 0x00289110)
WALKED = (0x00200032, 0x00280030, 0x00280008, 0x00280010, 0x0008103E)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian"])
@pytest.mark.parametrize("undefined", [False, True])
def test_the_walk_finds_what_pydicom_finds(syntax: str, undefined: bool, tmp_path: Path) -> None:
    path = bad_inputs.rewritten(syntax, undefined)(tmp_path)
    data, header = pydicom.dcmread(path), read_header(path, WALKED)
    for tag in WALKED:
        listed = [element.value for element in data.iterall() if element.tag == tag]
        listed = ["\\".join(map(str, value)) if isinstance(value, list | pydicom.multival.MultiValue) else str(value)
                  for value in listed]  # fmt: skip
        if tag == 0x00280010:
            assert header.short(tag) == data.Rows == GRID.size[1]
        else:
            assert [text for place in SEQUENCES for text in header.texts(tag, place)] == listed and listed
    assert header.pixel_bytes == len(data.PixelData) and not header.compressed


def test_the_walk_reads_pydicom_s_examples(tmp_path: Path) -> None:
    """Images of many makers; what is refused is damaged or of a transfer syntax that is not read here."""
    read = 0
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        if not is_dicom(path):
            continue
        try:
            header = read_header(path, WALKED)
        except ValueError:
            continue
        data = pydicom.dcmread(path, force=True)  # one has no mark
        assert header.pixel_bytes > 0 or "PixelData" not in data
        assert "Rows" not in data or header.short(0x00280010) == data.Rows
        read += 1
    assert read > 50


# --- the corpus -----------------------------------------------------------------------------------


def test_the_corpus_is_large_and_covers_every_kind_of_the_list() -> None:
    found = Counter(case.kind for case in BAD)
    found["malformed requests"] += len(LINES)
    print(f"{len(BAD) + len(LINES)} bad inputs, {len(CORPUS) - len(BAD)} unusual ones that work, of {len(found)} kinds")
    assert len(BAD) + len(LINES) >= 100
    assert sum(number for kind, number in found.items() if kind != "truncated") >= 100
    assert {case.kind for case in CORPUS} >= LISTED and all(found[kind] >= 2 for kind in LISTED - {"non-spine MRI"})
    assert len({case.title for case in CORPUS}) == len(CORPUS)


def test_a_level_of_thousands_of_digits_is_no_bug(tmp_path):
    """Python makes no number of so many."""
    labels = sitk.Cast(GOOD.to_sitk() * 0 + 44, sitk.sitkUInt8)
    sitk.WriteImage(labels, str(tmp_path / "a.nii.gz"))
    for assignment in ({"4" * 5000: "L3"}, {"44": "4" * 5000}):
        with pytest.raises(SAUNetError, match="is not a level"):
            relabel_file(tmp_path / "a.nii.gz", assignment)
