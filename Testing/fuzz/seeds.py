"""The seeds of the fuzzing: for each target small inputs that are valid, so that mutations start from inside."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

import builders
import numpy as np
import SimpleITK as sitk

from SAUNetLib.formats.segmentations import write_segmentation
from SAUNetLib.segmentation import Segmentation

from . import targets

GRID = builders.geometry(size=(8, 10, 3))


def write_seeds(corpus: Path) -> None:
    """Write all of them as corpus/TARGET/seed-NAME."""
    with tempfile.TemporaryDirectory() as folder:
        made = images(Path(folder)) | models(Path(folder)) | texts()
    for (target, name), data in made.items():
        path = corpus / target / f"seed-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def images(folder: Path) -> dict[tuple[str, str], bytes]:
    """The same small volume in every format that is read."""
    made: dict[tuple[str, str], bytes] = {}
    volume = builders.volume(GRID)
    for dtype in ("uint8", "int16", "float32", "float64"):
        image = builders.volume(GRID, dtype=dtype).to_sitk()
        for target, ending in (("nifti", ".nii"), ("gzip", ".nii.gz"), ("nrrd", ".nrrd"), ("meta", ".mha")):
            path = folder / f"a{ending}"
            sitk.WriteImage(image, str(path), useCompression=False)
            made[target, dtype] = path.read_bytes()
            if ending in (".nrrd", ".mha") and dtype == "int16":
                sitk.WriteImage(image, str(path), useCompression=True)
                made[target, "compressed"] = path.read_bytes()
    made["packed", "int16"] = made["nifti", "int16"]
    made["meta", "text"] = made["meta", "int16"].replace(b"BinaryData = True", b"BinaryData = False")
    made["nifti", "4d"] = _nifti(sitk.JoinSeries([volume.to_sitk()] * 2), folder)
    made["nifti", "colour"] = _nifti(sitk.Compose([volume.to_sitk()] * 3), folder)
    made["nifti", "nifti2"] = _nifti2(volume)
    labelled = Segmentation(builders.segmentation(GRID).labels, GRID)
    write_segmentation(labelled, folder / "b.seg.nrrd")
    made["segmentation", "levels"] = (folder / "b.seg.nrrd").read_bytes()
    write_segmentation(labelled, folder / "c.nrrd")
    made["segmentation", "labels"] = (folder / "c.nrrd").read_bytes()
    made["dicom", "slice"] = builders.write_dicom_series(folder / "dicom", volume)[0].read_bytes()
    builders.write_enhanced(folder / "enhanced", volume, [2, 0, 1])
    made["dicom", "enhanced"] = (folder / "enhanced").read_bytes()
    return made


def _nifti(image: sitk.Image, folder: Path) -> bytes:
    sitk.WriteImage(image, str(folder / "n.nii"))
    return (folder / "n.nii").read_bytes()


def _nifti2(volume: builders.Volume) -> bytes:
    """A NIfTI-2 file, written field by field (ITK writes only NIfTI-1)."""
    head = np.zeros(544, np.uint8)
    fields = ((0, "<i4", 540), (12, "<i2", 4), (14, "<i2", 16), (16, "<i8", (3, *volume.geometry.size, 1, 1, 1, 1)),
              (104, "<f8", (1, *volume.geometry.spacing, 1, 1, 1, 1)), (168, "<i8", 544), (176, "<f8", 1),
              (348, "<i4", 1), (400, "<f8", (0, 0, -3.5, 0, 1.2, 0, 0, 0, 0, 1.5, 0, 0)))  # fmt: skip
    head[4:12] = np.frombuffer(b"n+2\0\r\n\x1a\n", np.uint8)
    for place, kind, value in fields:
        raw = np.atleast_1d(np.asarray(value, kind)).view(np.uint8)
        head[place : place + raw.size] = raw
    return head.tobytes() + volume.voxels.astype("<i2").tobytes()


def models(folder: Path) -> dict[tuple[str, str], bytes]:
    """Weights and cards."""
    good = targets._good_weights()
    card = targets.CARD | {"sha256": "0" * 64, "metrics": {"a": {"dice": [0.9, 0.1]}}, "limits": ["none"]}
    return {
        ("weights", "good"): good,
        ("weights", "empty"): (2).to_bytes(8, "little") + b"{}",
        ("card", "good"): json.dumps(card).encode(),
        ("card", "other"): json.dumps(card | {"network": {"classes": 1, "reading": "concatenate"}}).encode(),
    }


def texts() -> dict[tuple[str, str], bytes]:
    """Requests, assignments, configurations, tables, manifests."""
    session = [
        {"command": "warm", "model": "tiny", "device": "cpu", "id": 1},
        {"command": "segment", "image": "a.nrrd", "output": "b.nrrd", "levels": False, "id": "2"},
        {"command": "segment", "image": "a", "output": "b.seg.nrrd", "table": "c.csv", "preview": "d.png",
         "series": "4", "lowest": "L5"},
        {"command": "cancel"},
    ]  # fmt: skip
    content = b"wheel"
    packed = io.BytesIO()
    files = [{"name": "wheels/a.whl", "size": len(content), "sha256": sha256(content).hexdigest()}]
    manifest = {"format": 1, "slicer": "5.10", "platform": "linux", "python": "3.12", "files": files}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", json.dumps(manifest))
        file.writestr("wheels/a.whl", content)
    table = "Patient,IVD label,Spondylolisthesis,Disc narrowing,Pfirrman grade\n1,1,0,1,3\n1,2,1,0,5\n"
    training = {"name": "small", "network": {"widths": [4, 4, 8, 8, 8]}, "crop": [64, 64], "validation": ["1"]}
    return {
        ("request", "session"): "".join(json.dumps(one) + "\n" for one in session).encode(),
        ("assignments", "levels"): b"L4=L3\nL4/L5=L3/L4\n45=44",
        ("config", "small"): json.dumps(training).encode(),
        ("readings", "table"): table.encode(),
        ("archive", "good"): packed.getvalue(),
        ("bundle", "good"): json.dumps(manifest).encode() + b"\n" + content,
        ("bundle", "outside"): json.dumps(manifest).replace("wheels/a.whl", "../outside").encode() + b"\n" + content,
    }
