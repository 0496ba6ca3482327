"""What is fuzzed: each target takes bytes and a folder of its own, and raises nothing for anything that it is given.

A target may end well or with a refusal of ours (`SAUNetError`, the panel's `PanelError`). An INTERNAL error, any other
exception, a crash or a hang is a finding.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import sys
import tempfile
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from SAUNetLib import process, worker
from SAUNetLib.errors import SAUNetError
from SAUNetLib.evaluation.readings import read_readings
from SAUNetLib.formats.atomic import check_writable
from SAUNetLib.formats.endings import SEGMENTATIONS
from SAUNetLib.formats.segmentations import read_segmentation
from SAUNetLib.formats.volumes import read_volume
from SAUNetLib.model import load_model, save_model
from SAUNetLib.network import SAUNet
from SAUNetLib.relabel import relabel
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.volume import Geometry

process.ours = True  # what ITK prints of the inputs is no finding
CARD = {
    "name": "tiny", "version": "1", "description": "", "classes": ["background", "vertebra", "disc", "canal"],
    "pixel_mm": 1.5, "network": {"classes": 4, "widths": [2, 2, 2, 2, 2]}, "licence": "", "attribution": "",
    "data": "", "command": "", "date": "",
}  # fmt: skip
Target = Callable[[bytes, Path], None]


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Lets our refusals pass, but not those that stand for a bug or say nothing."""
    try:
        yield
    except SAUNetError as error:
        assert error.code != "INTERNAL", error.cause
        assert error.cause.strip(".") and error.remedy.strip("."), error


def _image(ending: str, read: Callable[[Path], object] = read_volume, pack: Callable[[bytes], bytes] = bytes) -> Target:
    def target(data: bytes, folder: Path) -> None:
        path = folder / f"image{ending}"
        path.write_bytes(pack(data))
        with refusals():
            read(path)

    return target


def _packed(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def weights(data: bytes, folder: Path) -> None:
    """A weights file whose card has the right sum."""
    (folder / "m.safetensors").write_bytes(data)
    card = CARD | {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / "m.json").write_text(json.dumps(card))
    with refusals():
        load_model(folder / "m.safetensors")


def card(data: bytes, folder: Path) -> None:
    """A card beside good weights; its sum is put right where there is one."""
    (folder / "m.safetensors").write_bytes(_good_weights())
    with contextlib.suppress(ValueError, RecursionError):
        entries = json.loads(data)
        if isinstance(entries, dict) and "sha256" in entries:
            data = json.dumps(entries | {"sha256": hashlib.sha256(_good_weights()).hexdigest()}).encode()
    (folder / "m.json").write_bytes(data)
    with refusals():
        load_model(folder / "m.safetensors")


@cache
def _good_weights() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "good.safetensors")
        save_model(SAUNet(**CARD["network"]), path, CARD)
        return path.read_bytes()


def request(data: bytes, folder: Path) -> None:
    """A whole session of the worker, the network and the files replaced: one answer per request, each one line."""
    source, events = _text(data), io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")
    lines = list(iter(lambda: source.readline(worker.LONGEST_LINE), ""))
    wanted = sum(bool(line.strip()) and not worker._is_cancel(worker.read_entries(line)) for line in lines)
    with mock.patch("SAUNetLib.pipeline.segment_file", _segment_file):
        _Worker(lines, wanted, events).serve()
    events.seek(0)
    said = [json.loads(line) for line in events.read().split("\n") if line]
    assert said[0]["event"] == "ready"
    answers = [event for event in said if event["event"] in ("result", "error")]
    assert len(answers) == wanted, f"{len(answers)} answers to {wanted} requests"
    assert all(answer.get("code") != "INTERNAL" for answer in answers), answers


def _text(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace")


class _Worker(worker.Worker):
    """A worker without a network, whose stream of requests stays open (its end cancels) until all are answered."""

    def __init__(self, lines: list[str], wanted: int, events: io.TextIOWrapper) -> None:
        super().__init__(SimpleNamespace(readline=self._readline), events)  # type: ignore[arg-type]
        self._lines, self._answered = iter(lines), threading.Semaphore(0)
        self._wanted = wanted

    def _readline(self, _: int) -> str:
        line = next(self._lines, "")
        if not line:
            for _ in range(self._wanted):
                self._answered.acquire(timeout=20)
        return line

    def _serve_one(self, number: int, entries: worker.Entries) -> None:
        super()._serve_one(number, entries)
        self._answered.release()

    def _engine_for(self, request: worker.Request) -> SimpleNamespace:
        return SimpleNamespace(
            model=SimpleNamespace(card=SimpleNamespace(name="tiny")), device=SimpleNamespace(type="cpu")
        )


def _segment_file(image: str, output: str, engine: object, **options: object) -> Segmentation:
    """In the place of the pipeline: looks at the paths as it does, computes and writes nothing."""
    check_writable(output, SEGMENTATIONS)
    with refusals():
        read_volume(image)
    return _segmentation()


@cache
def _segmentation() -> Segmentation:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, 1], labels[0, 3], labels[1, 5] = 44, 95, 45
    return Segmentation(labels, Geometry((8, 8, 2), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), np.eye(3)))


def assignments(data: bytes, folder: Path) -> None:
    """What `saunet relabel` is told: lines of STRUCTURE=LEVEL."""
    pairs = (line.partition("=") for line in data.decode("utf-8", "replace").splitlines())
    with refusals():
        relabel(_segmentation(), {key: value for key, _, value in pairs})


def config(data: bytes, folder: Path) -> None:
    """The configuration of a training."""
    from SAUNetLib.training.run import read_config  # takes seconds

    (folder / "config.json").write_bytes(data)
    with refusals():
        read_config(folder / "config.json")


def readings(data: bytes, folder: Path) -> None:
    """The table of radiologists' readings."""
    (folder / "table.csv").write_bytes(data)
    with refusals():
        read_readings(folder / "table.csv")


def bundle(data: bytes, folder: Path) -> None:
    """The manifest of an offline bundle (its first line) and one file in it (the rest); nothing lands outside."""
    module, problem = load_panel()
    manifest, _, content = data.partition(b"\n")
    path, inside = folder / "bundle.zip", folder / "inner" / "inside"
    inside.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", manifest)
        archive.writestr("wheels/a.whl", content)
        archive.writestr("../outside", content)
    with contextlib.suppress(problem):
        module.openBundle(path, inside, (5, 10))
    landed = {one.relative_to(folder).parts[:3] for one in folder.rglob("*") if one.is_file()}
    assert all(parts[0] != "outside" and parts[:2] != ("inner", "outside") for parts in landed), landed


def archive(data: bytes, folder: Path) -> None:
    """A whole offline bundle, byte by byte."""
    module, problem = load_panel()
    (folder / "bundle.zip").write_bytes(data)
    with contextlib.suppress(problem):
        module.openBundle(folder / "bundle.zip", folder, (5, 10))


@cache
def load_panel() -> tuple[types.ModuleType, type[Exception]]:
    """The panel's reader of bundles; all that it takes of Slicer is the translation."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "SAUNetSegmentation"))
    if "slicer.i18n" not in sys.modules:
        for name in ("slicer", "slicer.i18n"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["slicer.i18n"].tr = str  # type: ignore[attr-defined]
    from SAUNetPanel import Bundle, Cards

    Bundle.this_platform = lambda: "linux"
    return Bundle, Cards.PanelError


TARGETS: dict[str, Target] = {
    "nifti": _image(".nii"),
    "gzip": _image(".nii.gz"),
    "packed": _image(".nii.gz", pack=_packed),
    "nrrd": _image(".nrrd"),
    "meta": _image(".mha"),
    "dicom": _image(""),
    "segmentation": _image(".seg.nrrd", read_segmentation),
    "weights": weights,
    "card": card,
    "request": request,
    "assignments": assignments,
    "config": config,
    "readings": readings,
    "bundle": bundle,
    "archive": archive,
}
