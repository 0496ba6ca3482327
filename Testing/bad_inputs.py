"""The corpus of bad inputs: every case makes its files in a folder and states the expected outcome."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import builders
import numpy as np
import safetensors.torch
import SimpleITK as sitk
import torch

from SAUNetLib.volume import Geometry, Volume

GRID = builders.geometry(size=(24, 32, 5), spacing=(2.4, 3.0, 3.5))
GOOD = builders.volume(GRID)
FORMATS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
WORKS = "works"
"""The code of an input that is unusual but valid: it must give the labels that the plain image gives."""
RESULT = "out/result.nrrd"
ANY = "any result"
"""The code of another valid image: it must give some labels on its own grid."""


@dataclass(frozen=True)
class Case:
    """A bad input, or an unusual one that must work.

    Attributes:
        kind: what is wrong, in a word or two.
        name: unique within the kind.
        code: of the expected error, or `WORKS` or `ANY`.
        make: writes files into an empty folder; returns the image, or entries of the worker's request. A model case
            finds a model there, which it may damage.
    """

    kind: str
    name: str
    code: str
    make: Callable[[Path], Path | dict[str, Any]]

    @property
    def title(self) -> str:
        return ascii(f"{self.kind}: {self.name}")[1:-1]

    def build(self, folder: Path, model: Path) -> dict[str, Any]:
        """Make the case's files in a new folder; returns its request: by default, write RESULT there with the model."""
        folder.mkdir()
        if self.kind == "models":
            for path in (model, model.with_suffix(".json")):
                shutil.copy(path, folder / f"model{path.suffix}")
        made = self.make(folder)
        entries = made if isinstance(made, dict) else {"image": str(made)}
        return {"output": str(folder / RESULT), "model": str(model), "device": "cpu", "levels": False} | entries


@dataclass(frozen=True)
class Line:
    """A line for the worker's stdin that is not a valid request."""

    name: str
    content: bytes


# --- making files ---------------------------------------------------------------------------------


def save(
    folder: Path,
    ending: str = ".nii.gz",
    image: Volume | sitk.Image = GOOD,
    compressed: bool = False,
    name: str = "image",
) -> Path:
    path = folder / f"{name}{ending}"
    frame = image.to_sitk() if isinstance(image, Volume) else image
    sitk.WriteImage(frame, str(path), compressed and ending != ".nii")
    return path


def on(grid: Geometry | None = None, **changes: Any) -> Volume:
    """The good voxels on a grid with some fields changed."""
    fields = {name: getattr(GRID, name) for name in ("size", "spacing", "origin", "direction")}
    return Volume(GOOD.voxels, grid or Geometry(**(fields | changes)))


def with_voxels(change: Callable[[np.ndarray], Any], dtype: Any = np.float32) -> Volume:
    voxels = GOOD.voxels.astype(dtype)
    change(voxels)
    return Volume(voxels, GRID)


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def cut(ending: str, where: float, compressed: bool) -> Callable[[Path], Path]:
    """An image that ends early: at a byte, counted from its end if negative, or at a fraction of its length."""

    def make(folder: Path) -> Path:
        path = save(folder, ending, compressed=compressed)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(where if where < 0 or where >= 1 or not where else where * len(raw))])
        return path

    return make


def nifti(change: Callable[[bytearray], Any], image: Volume = GOOD) -> Callable[[Path], Path]:
    """An image as .nii with some bytes of its header changed."""

    def make(folder: Path) -> Path:
        raw = bytearray(save(folder, ".nii", image).read_bytes())
        change(raw)
        return put(folder, "image.nii", raw)

    return make


def pack(form: str, place: int, *values: Any) -> Callable[[Path], Path]:
    return nifti(lambda raw: struct.pack_into(f"<{form}", raw, place, *values))


def several(kind: int, count: int, size: int, slope: float) -> Callable[[Path], Path]:
    """A complete .nii image of another voxel type with so many values, of so many bytes each, in a voxel."""

    def change(raw: bytearray) -> None:
        struct.pack_into("<8h", raw, 40, 5, *GRID.size, 1, count, 1, 1)
        struct.pack_into("<2h", raw, 70, kind, 8 * size)
        struct.pack_into("<2f", raw, 112, slope, 0.0)
        raw[352:] = bytes(math.prod(GRID.size) * count * size)

    return nifti(change)


def header(ending: str, field: str, line: str) -> Callable[[Path], Path]:
    """An image as NRRD or MetaImage with one header line changed, added or (if empty) removed."""

    def make(folder: Path) -> Path:
        path = save(folder, ending)
        lines = path.read_bytes().split(b"\n")
        found = [number for number, one in enumerate(lines[:30]) if one.startswith(field.encode())]
        place = found[0] if found else 3
        lines[place : place + len(found)] = [line.encode()] if line else []
        path.write_bytes(b"\n".join(lines))
        return path

    return make


def sform(rows: list[float], qform: int = 0) -> Callable[[Path], Path]:
    """An image as .nii with another sform and another qform code."""

    def change(raw: bytearray) -> None:
        struct.pack_into("<2h", raw, 252, qform, 1)
        struct.pack_into("<12f", raw, 280, *rows)

    return nifti(change)


def content(name: str, raw: bytes) -> Callable[[Path], Path]:
    return lambda folder: put(folder, name, raw)


def image(ending: str, source: Volume | Callable[[], Volume | sitk.Image]) -> Callable[[Path], Path]:
    return lambda folder: save(folder, ending, source if isinstance(source, Volume) else source())


# --- files ----------------------------------------------------------------------------------------


def truncated() -> Iterator[Case]:
    for ending, compressed, places in (
        (".nii", False, (1, 3, 347, 351, 0.5, -1)),
        (".nii.gz", True, (1, 10, 60, 0.5, -9, -4, -1)),
        (".nrrd", False, (1, 4, 60, 0.5, -1)),
        (".nrrd", True, (200, 0.6, 0.9)),
        (".mha", False, (1, 60, 0.5, -1)),
        (".mha", True, (0.3, 0.9, -1)),
    ):
        for place in places:
            name = f"{ending} {'compressed ' if compressed else ''}at {place}"
            yield Case("truncated", name, "INPUT_UNREADABLE", cut(ending, place, compressed))
    for ending in FORMATS:
        yield Case("truncated", f"{ending} empty", "INPUT_EMPTY", content(f"image{ending}", b""))
    for place in (100, 132, 140, 200, 400, 0.5, -1):
        yield Case("truncated", f"enhanced DICOM at {place}", "INPUT_UNREADABLE", cut_dicom(place, True))
        yield Case("truncated", f"DICOM slice at {place}", "INPUT_UNREADABLE", cut_dicom(place, False))


def damaged() -> Iterator[Case]:
    def spoilt(ending: str, share: float) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = save(folder, ending, compressed=True)
            raw = bytearray(path.read_bytes())
            place = int(share * len(raw))
            raw[place : place + 40] = bytes(40)
            path.write_bytes(raw)
            return path

        return make

    for ending in (".nii.gz", ".nrrd", ".mha"):
        for share in (0.5, 0.7, 0.9):
            name = f"{ending} at {share} of its compressed data"
            yield Case("damaged", name, "INPUT_UNREADABLE", spoilt(ending, share))


def cut_dicom(where: float, enhanced: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        if enhanced:
            builders.write_enhanced(folder / "e.dcm", GOOD, list(range(5)))
            path = folder / "e.dcm"
        else:
            path = series(folder, Volume(GOOD.voxels[:1], Geometry((24, 32, 1), *_rest())))[0]
        raw = path.read_bytes()
        path.write_bytes(raw[: int(where if where < 0 or where >= 1 else where * len(raw))])
        return path

    return make


def _rest() -> tuple[Any, ...]:
    return GRID.spacing, GRID.origin, GRID.direction


def wrong_magic() -> Iterator[Case]:
    for ending in (*FORMATS, ".dcm", ".png", ".txt", ""):
        for name, raw in (
            ("text", b"no image at all " * 60),
            ("zeros", bytes(2000)),
            ("PNG", b"\x89PNG\r\n\x1a\n" + bytes(900)),
            ("gzip of noise", b"\x1f\x8b\x08" + b"x" * 500),
            ("NRRD and no more", b"NRRD"),
        ):
            yield Case("wrong magic", f"{ending or 'no ending'} {name}", "INPUT_UNREADABLE", content(f"a{ending}", raw))
    yield Case("wrong magic", "gzip of text", "INPUT_UNREADABLE", content("a.nii.gz", gzip.compress(b"text" * 500)))
    yield Case("wrong magic", "zip as .nii.gz", "INPUT_UNREADABLE", content("a.nii.gz", b"PK\x03\x04" + bytes(900)))
    for ours, real in ((".nii", ".nii.gz"), (".nii.gz", ".nii"), (".nrrd", ".mha"), (".mha", ".nrrd"),
                       (".nii", ".mha")):  # fmt: skip
        yield Case("wrong magic", f"{real} called {ours}", "INPUT_UNREADABLE", renamed(real, ours))
    yield Case("wrong magic", "ANALYZE 7.5", "INPUT_UNREADABLE", pack("4s", 344, b"\0\0\0\0"))
    yield Case("wrong magic", "DICM and no more", "INPUT_UNREADABLE", content("a.dcm", bytes(128) + b"DICM"))
    yield Case("wrong magic", "DICM and noise", "INPUT_UNREADABLE",
               content("a", bytes(128) + b"DICM" + np.random.default_rng(1).bytes(5000)))  # fmt: skip


def renamed(real: str, ours: str) -> Callable[[Path], Path]:
    return lambda folder: save(folder, real, compressed=True).rename(folder / f"renamed{ours}")


def bombs() -> Iterator[Case]:
    """Small files that unpack to large ones, quickly made by concatenating gzip members."""
    zeros = gzip.compress(bytes(1 << 24), 6)

    def after(folder: Path) -> Path:
        whole = save(folder, ".nii").read_bytes()
        return put(folder, "image.nii.gz", gzip.compress(whole) + zeros * 200)

    def declared(sizes: tuple[int, ...], members: int) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            raw = bytearray(save(folder, ".nii").read_bytes()[:352])
            struct.pack_into("<8h", raw, 40, 3, *sizes, 1, 1, 1, 1)
            struct.pack_into("<3f", raw, 80, 1, 1, 1)
            struct.pack_into("<2h", raw, 252, 1, 0)
            return put(folder, "bomb.nii.gz", gzip.compress(bytes(raw)) + zeros * members)

        return make

    def meta(folder: Path) -> Path:
        raw = save(folder, ".mha", compressed=True).read_bytes()
        head, _, _ = raw.partition(b"ElementDataFile = LOCAL\n")
        head = re.sub(rb"CompressedDataSize = \d+\n", b"", head)
        return put(folder, "bomb.mha", head + b"ElementDataFile = LOCAL\n" + zlib.compress(bytes(1 << 27), 1))

    def nrrd(folder: Path) -> Path:
        raw = save(folder, ".nrrd", compressed=True).read_bytes()
        return put(folder, "bomb.nrrd", raw.partition(b"\n\n")[0] + b"\n\n" + zeros * 200)

    yield Case("gzip bomb", "3 GiB after the voxels", WORKS, after)
    yield Case("gzip bomb", "4 GiB declared and there", "INPUT_TOO_LARGE", declared((2048, 1024, 1024), 256))
    yield Case("gzip bomb", "64 MiB declared, 3 GiB there", "INPUT_CONSTANT", declared((512, 512, 128), 200))
    yield Case("gzip bomb", "64 MiB declared, 48 MiB there", "INPUT_UNREADABLE", declared((512, 512, 128), 3))
    yield Case("gzip bomb", "MetaImage", "INPUT_UNREADABLE", meta)
    yield Case("gzip bomb", "NRRD", "INPUT_CONSTANT", nrrd)


def huge() -> Iterator[Case]:
    yield Case("huge size", "NIfTI 32767 cubed", "INPUT_TOO_LARGE", pack("4h", 40, 3, 32767, 32767, 32767))
    yield Case("huge size", "NIfTI of seven dimensions", "INPUT_TOO_LARGE", pack("8h", 40, 7, *[32767] * 7))
    yield Case("huge size", "NIfTI negative", "INPUT_UNREADABLE", pack("4h", 40, 3, 24, -32, 5))
    yield Case("huge size", "NIfTI zero", "INPUT_UNREADABLE", pack("4h", 40, 3, 24, 0, 5))
    yield Case("huge size", "NIfTI of eight dimensions", "INPUT_UNREADABLE", pack("h", 40, 8))
    yield Case("huge size", "NIfTI larger than the file", "INPUT_UNREADABLE", pack("4h", 40, 3, 240, 320, 50))
    for name, sizes in (("huge", "99999999999 32 5"), ("wrapped", "4294967296 4294967296 5"), ("beyond", "9" * 400)):
        yield Case("huge size", f"NRRD {name}", code_of(sizes), header(".nrrd", "sizes", f"sizes: {sizes}"))
        yield Case("huge size", f"MetaImage {name}", code_of(sizes), header(".mha", "DimSize", f"DimSize = {sizes}"))
    yield Case("huge size", "NRRD of 3000 dimensions", "INPUT_UNREADABLE",
               header(".nrrd", "dimension", "dimension: 3000"))  # fmt: skip
    yield Case("huge size", "NRRD zero", "INPUT_UNREADABLE", header(".nrrd", "sizes", "sizes: 24 0 5"))
    yield Case("huge size", "MetaImage channels", "INPUT_TOO_LARGE",
               header(".mha", "ElementNumberOfChannels", "ElementNumberOfChannels = 99999999"))  # fmt: skip
    yield Case("huge size", "MetaImage of 300000 dimensions and of three", "INPUT_UNREADABLE",
               header(".mha", "NDims", "NDims = 300000\nNDims = 3"))  # fmt: skip
    for name, sizes in (("negative", "24 32 -5"), ("larger than the file", "24 32 6")):
        yield Case("huge size", f"MetaImage {name}", "INPUT_UNREADABLE",
                   header(".mha", "DimSize", f"DimSize = {sizes}"))  # fmt: skip
    yield Case("huge size", "DICOM rows and columns", "INPUT_UNREADABLE", dicom(Rows=65535, Columns=65535))
    yield Case("huge size", "DICOM frames", "INPUT_UNREADABLE", enhanced(NumberOfFrames=2_000_000_000))
    yield Case("huge size", "DICOM frames of no number", "INPUT_UNREADABLE", damaged_text(b"5 ", b"1x"))
    yield Case("huge size", "DICOM rows, compressed", "INPUT_UNREADABLE",
               transcoded("RLE", Rows=65535, Columns=65535))  # fmt: skip


def code_of(sizes: str) -> str:
    return "INPUT_TOO_LARGE" if len(sizes) < 400 else "INPUT_UNREADABLE"


def offsets() -> Iterator[Case]:
    for value in (1e30, float("nan"), float("inf"), -5.0, 1e9, 4e9):
        yield Case("overflowing offset", f"NIfTI {value}", "INPUT_UNREADABLE", pack("f", 108, value))
    for value in (2**62, 2**63 - 1, -(2**63)):
        yield Case("overflowing offset", f"NIfTI-2 {value}", "INPUT_UNREADABLE", nifti2(value))
    yield Case("overflowing offset", "NIfTI-2", "INPUT_UNREADABLE", nifti2(544))
    for value in (10**18, -7, 4000, 10**40):
        yield Case("overflowing offset", f"NRRD byte skip {value}", "INPUT_UNREADABLE",
                   header(".nrrd", "byte skip", f"byte skip: {value}"))  # fmt: skip
        yield Case("overflowing offset", f"NRRD line skip {value}", "INPUT_UNREADABLE",
                   header(".nrrd", "line skip", f"line skip: {value}"))  # fmt: skip
        yield Case("overflowing offset", f"MetaImage HeaderSize {value}", "INPUT_UNREADABLE",
                   header(".mha", "HeaderSize", f"HeaderSize = {value}"))  # fmt: skip
    yield Case("overflowing offset", "NRRD from the end", WORKS, header(".nrrd", "byte skip", "byte skip: -1"))
    for size in (0, 10, 10**6, 10**15, -5):
        yield Case("overflowing offset", f"MetaImage compressed in {size} bytes", "INPUT_UNREADABLE",
                   packed_in(size))  # fmt: skip
    yield Case("overflowing offset", "MetaImage text", "INPUT_UNREADABLE",
               header(".mha", "BinaryData", "BinaryData = False"))  # fmt: skip


def packed_in(size: int) -> Callable[[Path], Path]:
    """A compressed MetaImage that declares another size of its compressed data, or none."""

    def make(folder: Path) -> Path:
        path = save(folder, ".mha", compressed=True)
        line = b"CompressedDataSize = %d\n" % size if size else b""
        path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", line, path.read_bytes()))
        return path

    return make


def nifti2(offset: int) -> Callable[[Path], Path]:
    """The good image as NIfTI-2 that declares an offset of its voxels."""

    def make(folder: Path) -> Path:
        raw = save(folder, ".nii").read_bytes()
        head = bytearray(544)
        struct.pack_into("<i8s2h8q", head, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, *GRID.size, 1, 1, 1, 1)
        struct.pack_into("<8d", head, 104, *struct.unpack_from("<8f", raw, 76))
        struct.pack_into("<q2d", head, 168, offset, 1, 0)
        struct.pack_into("<2i6d12d", head, 344, *struct.unpack_from("<2h6f12f", raw, 252))
        head[500:504] = struct.pack("<i", raw[123])
        return put(folder, "image.nii", bytes(head) + raw[352:])

    return make


def pointing(ending: str, place: str) -> Callable[[Path], Path]:
    """A header whose voxels lie in another file."""
    name = "ElementDataFile = " if ending == ".mhd" else "data file: "
    return header(ending, name.rstrip(" "), name + place)


def pointing_elsewhere() -> Iterator[Case]:
    for ending in (".nhdr", ".mhd"):
        for place in ("absent.raw", ".", "%03d.raw 1 5 1", "LIST", "a\0b", ""):
            yield Case("voxels elsewhere", f"{ending} {place!r}", "INPUT_UNREADABLE", pointing(ending, place))


def pipes() -> Iterator[Case]:
    """Only regular files may be opened."""

    def at(ending: str, place: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            os.mkfifo(folder / "pipe")
            return pointing(ending, place)(folder)

        return make

    for ending in (".nhdr", ".mhd"):
        for place in ("pipe", "/dev/zero"):
            yield Case("voxels elsewhere", f"{ending} {place!r}", "INPUT_UNREADABLE", at(ending, place))
    yield Case("voxels elsewhere", ".nhdr in capitals", "INPUT_UNREADABLE", shouted)
    yield Case("voxels elsewhere", "a pipe as image", "INPUT_UNREADABLE", fifo)
    yield Case("voxels elsewhere", "/dev/zero as image", "INPUT_UNREADABLE", lambda folder: Path("/dev/zero"))


def shouted(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return header(".nhdr", "data file", "DATA FILE: pipe")(folder)


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.nii.gz")
    return folder / "a.nii.gz"


# --- voxels ---------------------------------------------------------------------------------------


def values() -> Iterator[Case]:
    for ending in FORMATS:
        for value in (np.nan, np.inf):
            source = with_voxels(lambda voxels, bad=value: voxels.__setitem__((2, 3, 4), bad))
            yield Case("NaN or infinite", f"{ending} {value}", "INPUT_VALUES", image(ending, source))
    yield Case("NaN or infinite", "all NaN", "INPUT_VALUES", image(".nii.gz", with_voxels(lambda v: v.fill(np.nan))))
    odd = np.ones((3, 5, 7), np.float32)
    odd[-1, -1, -1] = np.nan
    last = Volume(odd, builders.geometry(size=(7, 5, 3)))
    yield Case("NaN or infinite", "the last of an odd number", "INPUT_VALUES", image(".nii", last))
    double = with_voxels(lambda voxels: voxels.__setitem__((0, 0, 0), -np.inf), np.float64)
    yield Case("NaN or infinite", "double precision", "INPUT_VALUES", image(".nii", double))
    yield Case("NaN or infinite", "overflowing NIfTI slope", "INPUT_VALUES", pack("2f", 112, 3e38, 0))
    for slope in (np.inf, np.nan, 0):  # these mean no scaling; NiBabel writes NaN
        yield Case("NaN or infinite", f"NIfTI slope {slope}", WORKS, pack("2f", 112, slope, 0))
    enormous = with_voxels(lambda voxels: voxels.__setitem__((2, 3, 4), 1e300), np.float64)
    yield Case("NaN or infinite", "larger than single precision", "INPUT_VALUES", image(".nrrd", enormous))
    yield Case("NaN or infinite", "DICOM slope", "INPUT_UNREADABLE", dicom(RescaleSlope="1e400", RescaleIntercept="0"))


def constant() -> Iterator[Case]:
    for ending in (".nii.gz", ".nrrd", ".mha"):
        for value in (0, 7):
            source = with_voxels(lambda voxels, same=value: voxels.fill(same), np.int16)
            yield Case("constant", f"{ending} {value}", "INPUT_CONSTANT", image(ending, source))
    yield Case("constant", "NIfTI slope that makes it so", "INPUT_CONSTANT", pack("2f", 112, 1e-6, 5e9))
    yield Case("constant", "DICOM", "INPUT_CONSTANT", dicom(PixelData=bytes(24 * 32 * 2)))


def kinds() -> Iterator[Case]:
    frame = GOOD.to_sitk
    joined: dict[str, tuple[Callable[[], sitk.Image], str]] = {
        "2D": (lambda: frame()[:, :, 2], "INPUT_DIMENSION"),
        "4D": (lambda: sitk.JoinSeries([frame()] * 3), "INPUT_DIMENSION"),
        "4D of one": (lambda: sitk.JoinSeries([frame()]), WORKS),
        "colour": (lambda: sitk.Cast(sitk.Compose([frame()] * 3), sitk.sitkVectorUInt8), "INPUT_PIXEL_TYPE"),
        "vector": (lambda: sitk.Cast(sitk.Compose([frame()] * 2), sitk.sitkVectorFloat32), "INPUT_PIXEL_TYPE"),
    }
    for name, (source, code) in joined.items():
        for ending in (".nii.gz", ".nrrd", ".mha"):
            if (name, ending) != ("4D of one", ".nrrd"):  # ITK cannot write it
                yield Case("2D, 4D, colour, complex", f"{name} {ending}", code, image(ending, source))
    complex_image = Case("2D, 4D, colour, complex", "complex", "INPUT_PIXEL_TYPE",
                         image(".nii", lambda: sitk.Cast(frame(), sitk.sitkComplexFloat32)))  # fmt: skip
    yield complex_image
    for name, kind, count, size in (
        ("vector", 4, 3, 2), ("RGB", 128, 1, 3), ("RGBA", 2304, 1, 4),
        ("complex", 32, 1, 8), ("long complex", 1792, 1, 16),
    ):  # fmt: skip
        for slope in (1.0, 2.0):  # by which voxels are scaled
            yield Case("2D, 4D, colour, complex", f"NIfTI {name}, scaled by {slope}", "INPUT_PIXEL_TYPE",
                       several(kind, count, size, slope))  # fmt: skip
    yield Case("2D, 4D, colour, complex", "NIfTI of an unknown type", "INPUT_UNREADABLE", pack("2h", 70, 999, 16))
    yield Case("2D, 4D, colour, complex", "NIfTI of 80 bit", "INPUT_UNREADABLE", pack("2h", 70, 1536, 128))
    yield Case("2D, 4D, colour, complex", "NRRD block", "INPUT_UNREADABLE", header(".nrrd", "type", "type: block"))
    for name, line in (("of an unknown type", "ElementType = MET_OTHER"), ("of other than NDims", "NDims = 2")):
        yield Case("2D, 4D, colour, complex", f"MetaImage {name}", "INPUT_UNREADABLE",
                   header(".mha", line.split()[0], line))  # fmt: skip
    yield Case("2D, 4D, colour, complex", "MetaImage without NDims", "INPUT_UNREADABLE", header(".mha", "NDims", ""))
    yield Case("damaged", "DICOM of more bits than it states", "INPUT_UNREADABLE", dicom(BitsStored=8, HighBit=7))
    yield Case("damaged", "DICOM of fewer bits than it has room for", WORKS, dicom(BitsStored=10, HighBit=9))
    yield Case("2D, 4D, colour, complex", "DICOM colour", "INPUT_PIXEL_TYPE",
               dicom(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8,
                     BitsStored=8, HighBit=7, PixelData=bytes(range(256)) * 9))  # fmt: skip


def contents() -> Iterator[Case]:
    """Intact files with other contents, which is known only once they have been read."""
    labels = builders.labels_at(builders.points(builders.geometry()))
    drawn = Volume(labels, builders.geometry())
    three = Volume((labels > 0).astype(np.int16) + (labels > 60), builders.geometry())
    for name, source in (("levels", drawn), ("classes", three), ("mask", Volume((labels > 0) * 1.0, drawn.geometry))):
        for ending in (".nii.gz", ".nrrd", ".mha"):
            yield Case("label map", f"{name} {ending}", "INPUT_PIXEL_TYPE", image(ending, source))
    yield Case("CT", "DICOM", "INPUT_MODALITY", dicom(Modality="CT"))
    yield Case("CT", "computed radiography", "INPUT_MODALITY", dicom(Modality="CR"))
    yield Case("CT", "NIfTI in Hounsfield units", "INPUT_MODALITY", image(".nii.gz", hounsfield))
    yield Case("CT", "NRRD in Hounsfield units", "INPUT_MODALITY", image(".nrrd", hounsfield))
    yield Case("non-spine MRI", "a ball", ANY, image(".nii.gz", ball))
    yield Case("non-spine MRI", "noise", ANY, image(".nii.gz", noise))


def shapes() -> Iterator[Case]:
    yield Case("slices and rows", "one slice", ANY, image(".nii.gz", lambda: GOOD.to_sitk()[:, :, 2:3]))
    yield Case("slices and rows", "one row", "INPUT_DIMENSION", image(".nii.gz", lambda: GOOD.to_sitk()[:, 15:16]))
    yield Case("slices and rows", "one column", "INPUT_DIMENSION", image(".nrrd", lambda: GOOD.to_sitk()[12:13]))
    yield Case("slices and rows", "one voxel", "INPUT_DIMENSION", image(".mha", lambda: GOOD.to_sitk()[:1, :1, :1]))
    yield Case("slices and rows", "1,000 slices", ANY, image(".nii.gz", thousand))
    yield Case("slices and rows", "very long rows", "INPUT_SPACING", image(".nii.gz", long_rows))


def hounsfield() -> Volume:
    voxels = np.where(GOOD.voxels > 250, GOOD.voxels, -1000 + GOOD.voxels // 20).astype(np.int16)
    return Volume(voxels, GRID)


def ball() -> Volume:
    inside = np.linalg.norm(builders.points(GRID), axis=-1) < 30
    return Volume((inside * 400 + np.random.default_rng(1).normal(50, 9, inside.shape)).astype(np.float32), GRID)


def noise() -> Volume:
    return Volume(np.random.default_rng(1).rayleigh(90, GOOD.voxels.shape).astype(np.float32), GRID)


def thousand() -> Volume:
    grid = Geometry((16, 16, 1000), (2.0, 2.0, 0.5), (0.0, 0.0, 0.0), GRID.direction)
    return Volume(np.random.default_rng(1).rayleigh(90, (1000, 16, 16)).astype(np.float32), grid)


def long_rows() -> Volume:
    grid = Geometry((24, 3000, 2), GRID.spacing, GRID.origin, GRID.direction)
    return Volume(np.random.default_rng(1).rayleigh(90, (2, 3000, 24)).astype(np.float32), grid)


# --- geometry -------------------------------------------------------------------------------------


def units() -> Iterator[Case]:
    yield Case("unit mistake", "NIfTI in metres", "INPUT_SPACING", nifti(lambda raw: raw.__setitem__(123, 1)))
    yield Case("unit mistake", "NIfTI in micrometres", "INPUT_SPACING", nifti(lambda raw: raw.__setitem__(123, 3)))
    for name, factor in (("metres", 1e-3), ("micrometres", 1e3), ("centimetres", 0.01), ("inches", 1 / 25.4)):
        spacing = tuple(value * factor * (0.4 if name == "inches" else 1) for value in GRID.spacing)
        for ending in (".nii.gz", ".nrrd", ".mha"):
            yield Case("unit mistake", f"{name} {ending}", "INPUT_SPACING", image(ending, on(spacing=spacing)))
    yield Case("unit mistake", "DICOM in metres", "INPUT_SPACING", dicom(PixelSpacing=[0.003, 0.0024]))


def spacings() -> Iterator[Case]:
    for value in (0.0, -2.4, float("nan"), float("inf"), 1e-30, 1e30):
        yield Case("spacing", f"NIfTI {value}", "INPUT_SPACING", pack("f", 80, value))
        yield Case("spacing", f"MetaImage {value}", "INPUT_SPACING",
                   header(".mha", "ElementSpacing", f"ElementSpacing = {value} 3 3.5"))  # fmt: skip
        along = f"(0,{abs(value)},0)"
        yield Case("spacing", f"NRRD {value}", WORKS if value < 0 else "INPUT_SPACING",
                   header(".nrrd", "space directions", f"space directions: {along} (0,0,-3) (-3.5,0,0)"))  # fmt: skip
    yield Case("spacing", "NRRD of zero instead of directions", "INPUT_SPACING",
               header(".nrrd", "space directions", "spacings: 0 3 3.5"))  # fmt: skip
    for name, line, code in (("of words", "ElementSpacing = x y z", "INPUT_UNREADABLE"),
                             ("in small letters", "elementspacing = 2.4 3 3.5", "INPUT_SPACING"),
                             ("without", "", "INPUT_SPACING")):  # fmt: skip
        yield Case("spacing", f"MetaImage {name}", code, header(".mha", "ElementSpacing", line))
    for name, pixel in (("zero", [0, 2.4]), ("negative", [-3, 2.4]), ("absurd", [900, 900]), ("no", None)):
        yield Case("spacing", f"DICOM {name} pixel", "INPUT_SPACING", dicom(PixelSpacing=pixel))
    yield Case("spacing", "NIfTI of two minds", "INPUT_SPACING", pack("3f", 80, 2.4, 2.0, 3.5))
    yield Case("spacing", "NIfTI of another sform", "INPUT_SPACING", sform([0, 0, -3.5, 0, 3, 0, 0, 0, 0, -3, 0, 0]))
    yield Case("spacing", "coarse", "INPUT_SPACING", image(".nrrd", on(spacing=(5.0, 5.0, 5.0))))
    yield Case("spacing", "axial stack", "INPUT_NOT_SAGITTAL", image(".nii.gz", on(spacing=(1.0, 6.0, 1.0))))
    yield Case("spacing", "coronal stack", "INPUT_NOT_SAGITTAL", image(".nii.gz", on(spacing=(6.0, 1.0, 1.0))))


def directions() -> Iterator[Case]:
    mirrored = np.asarray(GRID.direction) * [-1, 1, 1]
    for ending in FORMATS:
        left = Volume(GOOD.voxels[:, :, ::-1].copy(), _mirrored(mirrored))
        yield Case("direction", f"left-handed {ending}", WORKS, image(ending, left))
    sheared = [0, 0, -3.5, 0, 2.4, 0.9, 0, 0, 0, -3.0, 0, 0]
    for qform in (0, 1):
        yield Case("direction", f"sheared NIfTI, qform {qform}", "INPUT_DIRECTION", sform(sheared, qform))
    yield Case("direction", "singular NIfTI", "INPUT_SPACING", sform([0.0] * 12))
    yield Case("direction", "NIfTI of NaN", "INPUT_DIRECTION", sform([float("nan")] * 12))
    yield Case("direction", "NIfTI quaternion of NaN", "INPUT_DIRECTION", pack("2h6f", 252, 1, 0, *[float("nan")] * 6))
    yield Case("direction", "NIfTI quaternion too long", "INPUT_DIRECTION", pack("2h6f", 252, 1, 0, 9, 9, 9, 0, 0, 0))
    yield Case("direction", "NIfTI without orientation", "INPUT_DIRECTION", pack("2h", 252, 0, 0))
    yield Case("direction", "NIfTI infinite origin", "INPUT_DIRECTION",
               pack("2h6f", 252, 1, 0, 0, 0, 0, float("inf"), 0, 0))  # fmt: skip
    yield Case("direction", "sheared NRRD", "INPUT_DIRECTION",
               header(".nrrd", "space directions", "space directions: (0,2.4,0) (0,0.9,-3) (-3.5,0,0)"))  # fmt: skip
    yield Case("direction", "NRRD of words", "INPUT_UNREADABLE",
               header(".nrrd", "space directions", "space directions: rubbish"))  # fmt: skip
    yield Case("direction", "NRRD of spacings instead", "INPUT_DIRECTION",
               header(".nrrd", "space directions", "spacings: 2.4 3 3.5"))  # fmt: skip
    yield Case("direction", "NRRD of an unknown space", "INPUT_DIRECTION",
               header(".nrrd", "space:", "space: scanner-xyz"))  # fmt: skip
    yield Case("direction", "NRRD without space", "INPUT_DIRECTION", header(".nrrd", "space:", ""))
    yield Case("direction", "NRRD without directions", "INPUT_DIRECTION", header(".nrrd", "space directions", ""))
    yield Case("direction", "NRRD origin of NaN", "INPUT_DIRECTION",
               header(".nrrd", "space origin", "space origin: (nan,nan,nan)"))  # fmt: skip
    for name, matrix in (("sheared", "0 1 0 0 0.3 -1 -1 0 0"), ("scaled", "0 2 0 0 0 -1 -1 0 0"),
                         ("of NaN", "nan nan nan 0 0 -1 -1 0 0")):  # fmt: skip
        yield Case("direction", f"{name} MetaImage", "INPUT_DIRECTION",
                   header(".mha", "TransformMatrix", f"TransformMatrix = {matrix}"))  # fmt: skip
    for name, line, code in (("of four numbers", "TransformMatrix = 0 1 0 0", "INPUT_UNREADABLE"),
                             ("in small letters", "transformmatrix = 0 1 0 0 0 -1 -1 0 0", "INPUT_DIRECTION"),
                             ("without", "", "INPUT_DIRECTION")):  # fmt: skip
        yield Case("direction", f"MetaImage {name}", code, header(".mha", "TransformMatrix", line))
    yield Case("direction", "MetaImage offset of NaN", "INPUT_DIRECTION",
               header(".mha", "Offset", "Offset = nan nan nan"))  # fmt: skip
    yield Case("direction", "sheared DICOM", "INPUT_DIRECTION", lambda folder: series(folder, shift=0.8)[0].parent)
    yield Case("direction", "DICOM without position", "INPUT_DIRECTION", dicom(ImagePositionPatient=None))
    yield Case("direction", "DICOM without orientation", "INPUT_DIRECTION", dicom(ImageOrientationPatient=None))
    yield Case("direction", "DICOM parallel axes", "INPUT_DIRECTION", dicom(ImageOrientationPatient=[0, 1, 0, 0, 1, 0]))
    yield Case("direction", "DICOM zero axes", "INPUT_DIRECTION", dicom(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]))


def _mirrored(direction: np.ndarray) -> Geometry:
    first = GRID.points(np.array([GRID.size[0] - 1, 0, 0]))
    return Geometry(GRID.size, GRID.spacing, tuple(first.tolist()), direction)  # type: ignore[arg-type]


# --- DICOM ----------------------------------------------------------------------------------------


def series(folder: Path, source: Volume = GOOD, **options: Any) -> list[Path]:
    return builders.write_dicom_series(folder / "study", source, **options)


def changed(path: Path, **elements: Any) -> None:
    """A DICOM file with elements replaced, added or (None) removed."""
    import pydicom

    data = pydicom.dcmread(path)
    for key, value in elements.items():
        if value is None:
            delattr(data, key)
        elif key in ("RescaleSlope", "RescaleIntercept") and isinstance(value, str):  # pydicom would check a DS
            data.add_new(pydicom.datadict.tag_for_keyword(key), "LO", value)
        else:
            setattr(data, key, value)
    data.save_as(path)


def dicom(**elements: Any) -> Callable[[Path], Path]:
    """The good series with elements of every slice changed."""

    def make(folder: Path) -> Path:
        for path in series(folder):
            changed(path, **elements)
        return folder / "study"

    return make


def enhanced(places: list[float] | None = None, **elements: Any) -> Callable[[Path], Path]:
    """The good volume as an enhanced multi-frame file with elements of its data set changed."""

    def make(folder: Path) -> Path:
        builders.write_enhanced(folder / "e.dcm", GOOD, list(range(5)), places)
        if elements:
            changed(folder / "e.dcm", **elements)
        return folder / "e.dcm"

    return make


def one_turned(folder: Path) -> Path:
    """The enhanced file with a direction of its own for the last frame, beside that of all."""
    import pydicom

    path = enhanced()(folder)
    data, own = pydicom.dcmread(path), pydicom.Dataset()
    own.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PerFrameFunctionalGroupsSequence[-1].PlaneOrientationSequence = [own]
    data.save_as(path)
    return path


def damaged_text(old: bytes, new: bytes) -> Callable[[Path], Path]:
    """The enhanced file with the first occurrence of some bytes in its data set replaced."""

    def make(folder: Path) -> Path:
        path = enhanced()(folder)
        raw = path.read_bytes()
        place = raw.index(old, 132)
        path.write_bytes(raw[:place] + new + raw[place + len(old) :])
        return path

    return make


def transcoded(syntax: str, **elements: Any) -> Callable[[Path], Path]:
    """The good series in another transfer syntax."""

    def make(folder: Path) -> Path:
        import pydicom
        from pydicom import uid

        for path in series(folder):
            if syntax in ("JPEG", "JPEG2000"):
                _recompress(path, syntax)
                continue
            data = pydicom.dcmread(path)
            if syntax == "RLE":
                data.compress(uid.RLELossless)
                for key, value in elements.items():
                    setattr(data, key, value)
                data.save_as(path)
                continue
            _save_as(path, data, syntax)
        return folder / "study"

    return make


def _recompress(path: Path, method: str) -> None:
    """Compress a slice losslessly with GDCM, keeping its other elements."""
    import pydicom

    image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path.with_suffix(".dcm")))
    writer.SetUseCompression(True)
    writer.SetCompressor(method)
    writer.Execute(image)
    packed = pydicom.dcmread(path.with_suffix(".dcm"))
    data = pydicom.dcmread(path)
    for key in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation", "BitsAllocated"):
        data[key] = packed[key]
    data.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    data.save_as(path)
    path.with_suffix(".dcm").unlink()


def foreign_syntax(uid: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import pydicom

        for path in series(folder):
            data = pydicom.dcmread(path)
            data.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
            if uid.startswith("1.2.840.10008.1.2.4"):
                data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
                data["PixelData"].is_undefined_length = True
            data.save_as(path, implicit_vr=False, little_endian=True)
        return folder / "study"

    return make


def folders() -> Iterator[Case]:
    def beside(name: str, raw: bytes) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            found = series(folder)[0].parent
            put(found, name, raw)
            return found

        return make

    def only(name: str, raw: bytes) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / "study").mkdir()
            return put(folder / "study", name, raw).parent

        return make

    def two(**options: Any) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            builders.write_dicom_series(folder / "study" / "a", GOOD, 4, "T2 sag")
            builders.write_dicom_series(folder / "study" / "b", GOOD, 5, "T1 sag", **options)
            return folder / "study"

        return make

    def reach(action: Callable[[list[Path]], Any]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            found = series(folder)
            action(found)
            return folder / "study"

        return make

    def sub(folder: Path) -> Path:
        (folder / "a" / "b").mkdir(parents=True)
        return folder

    def copy(found: list[Path]) -> None:
        shutil.copy(found[2], found[2].with_name("copy"))

    def corrected(found: list[Path]) -> None:
        copy(found)
        changed(found[2], ImageComments="corrected")

    def capture(name: str, **elements: Any) -> Callable[[list[Path]], None]:
        def add(found: list[Path]) -> None:
            path = found[2].with_name(name)
            shutil.copy(found[2], path)
            changed(path, SOPInstanceUID="1.2.9", ImagePositionPatient=None, ImageOrientationPatient=None, **elements)

        return add

    def cut_last(found: list[Path]) -> None:
        found[-1].write_bytes(found[-1].read_bytes()[:-300])

    def damaged_alone(found: list[Path]) -> None:
        cut_last(found)
        for path in found[:-1]:
            path.unlink()

    report = b"DICM\x02\x00\x02\x00UI\x1e\x00" + b"1.2.840.10008.5.1.4.1.1.88.11".ljust(30, b"\0")
    yield Case("empty and mixed folders", "empty", "INPUT_EMPTY", sub)
    yield Case("empty and mixed folders", "text only", "INPUT_EMPTY", only("a.txt", b"text"))
    yield Case("empty and mixed folders", "report only", "INPUT_EMPTY", only("a", bytes(128) + report))
    yield Case("empty and mixed folders", "absent", "INPUT_NOT_FOUND", lambda folder: folder / "absent")
    yield Case("empty and mixed folders", "absent image", "INPUT_NOT_FOUND", lambda folder: folder / "absent.nii.gz")
    yield Case("empty and mixed folders", "text beside", WORKS, beside("a.txt", b"text"))
    yield Case("empty and mixed folders", "report beside", WORKS, beside("a", bytes(128) + report))
    yield Case("empty and mixed folders", "DICOMDIR of noise beside", WORKS, beside("DICOMDIR", bytes(900)))
    yield Case("empty and mixed folders", "two series", "INPUT_SERIES", two())
    yield Case("empty and mixed folders", "MR and CT", WORKS, two(Modality="CT"))
    yield Case("empty and mixed folders", "no such series", "INPUT_SERIES",
               lambda folder: {"image": str(two()(folder)), "series": "77"})  # fmt: skip
    yield Case("empty and mixed folders", "the series asked for", WORKS,
               lambda folder: {"image": str(two()(folder)), "series": "t1 SAG"})  # fmt: skip
    yield Case("missing and duplicate slices", "one missing", "INPUT_SLICES", reach(lambda found: found[2].unlink()))
    yield Case("missing and duplicate slices", "one twice", WORKS, reach(copy))
    yield Case("missing and duplicate slices", "one in two versions", "INPUT_SLICES", reach(corrected))
    for name in ("AA", "ZZ"):
        yield Case("missing and duplicate slices", f"a picture of another modality, {name}", WORKS,
                   reach(capture(name, Modality="OT")))  # fmt: skip
        yield Case("missing and duplicate slices", f"a picture of the screen, {name}", WORKS,
                   reach(capture(name, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")))  # fmt: skip
        yield Case("missing and duplicate slices", f"a slice without a place, {name}", "INPUT_DIRECTION",
                   reach(capture(name)))  # fmt: skip
    yield Case("missing and duplicate slices", "mosaic", "INPUT_SLICES",
               dicom(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))  # fmt: skip
    yield Case("missing and duplicate slices", "last one damaged", "INPUT_UNREADABLE", reach(cut_last))
    yield Case("missing and duplicate slices", "a damaged one alone", "INPUT_UNREADABLE", reach(damaged_alone))
    yield Case("missing and duplicate slices", "one of other pixels", "INPUT_SLICES",
               reach(lambda found: changed(found[1], PixelSpacing=[1.0, 1.0])))  # fmt: skip
    yield Case("missing and duplicate slices", "one without pixel size", "INPUT_SPACING",
               reach(lambda found: changed(found[1], PixelSpacing=None)))  # fmt: skip
    yield Case("missing and duplicate slices", "one without position", "INPUT_DIRECTION",
               reach(lambda found: changed(found[1], ImagePositionPatient=None)))  # fmt: skip
    yield Case("missing and duplicate slices", "one of another size", "INPUT_SLICES",
               reach(lambda found: changed(found[1], Rows=16)))  # fmt: skip
    yield Case("missing and duplicate slices", "one turned", "INPUT_SLICES",
               reach(lambda found: changed(found[1], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])))  # fmt: skip
    yield Case("missing and duplicate slices", "one moved", "INPUT_SLICES",
               reach(lambda found: changed(found[1], ImagePositionPatient=[1e6, 0, 0])))  # fmt: skip


def frames() -> Iterator[Case]:
    yield Case("enhanced multi-frame", "whole", WORKS, enhanced())
    for syntax, undefined in (("explicit", True), ("implicit", True), ("implicit", False), ("big endian", False)):
        name = f"{syntax}, {'un' if undefined else ''}defined lengths"
        yield Case("enhanced multi-frame", name, WORKS, rewritten(syntax, undefined))
    part = {"ConcatenationUID": "1.2.7", "InConcatenationNumber": 1}
    yield Case("enhanced multi-frame", "one part of one", WORKS, enhanced(**part, InConcatenationTotalNumber=1))
    yield Case(
        "enhanced multi-frame", "one part of two", "INPUT_SLICES", enhanced(**part, InConcatenationTotalNumber=2)
    )
    yield Case("enhanced multi-frame", "with a gap", "INPUT_SLICES", enhanced([0, 1, 3, 4, 5]))
    yield Case("enhanced multi-frame", "without places", "INPUT_DIRECTION",
               enhanced(PerFrameFunctionalGroupsSequence=None))  # fmt: skip
    yield Case("enhanced multi-frame", "more frames than places", "INPUT_DIRECTION",
               enhanced(NumberOfFrames=4))  # fmt: skip
    yield Case("enhanced multi-frame", "one turned", "INPUT_DIRECTION", one_turned)
    yield Case("enhanced multi-frame", "without pixels", "INPUT_UNREADABLE", enhanced(PixelData=None))
    huge_length = struct.pack("<I", 0x7FFFFFF0)
    for name, tag in (("SOP class", b"\x08\0\x16\0UI"), ("frames", b"\x28\0\x08\0IS")):
        yield Case("enhanced multi-frame", f"{name} longer than the file", "INPUT_UNREADABLE",
                   damaged_text(tag, tag[:4] + b"OB\0\0" + huge_length))  # fmt: skip
    for name, tag in (("groups", b"\x00\x52\x30\x92SQ\0\0"), ("pixels", b"\xe0\x7f\x10\0OW\0\0")):
        for length in (0x7FFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF, 10):
            yield Case("enhanced multi-frame", f"{name} of {length:#x} bytes", "INPUT_UNREADABLE",
                       longer(tag, length))  # fmt: skip
    yield Case("enhanced multi-frame", "10,000 sequences in each other", "INPUT_UNREADABLE", nested)


def rewritten(syntax: str, undefined: bool) -> Callable[[Path], Path]:
    """The enhanced file in another transfer syntax, with sequences and items of declared or undefined length."""

    def make(folder: Path) -> Path:
        import pydicom

        path = enhanced()(folder)
        data = pydicom.dcmread(path)
        for element in data.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = undefined
                for item in element.value:
                    item.is_undefined_length_sequence_item = undefined
        _save_as(path, data, syntax)
        return path

    return make


def _save_as(path: Path, data: Any, syntax: str) -> None:
    import pydicom

    names = {"explicit": "ExplicitVRLittleEndian", "implicit": "ImplicitVRLittleEndian",
             "big endian": "ExplicitVRBigEndian", "deflated": "DeflatedExplicitVRLittleEndian"}  # fmt: skip
    data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, names[syntax])
    if syntax == "big endian":
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        data["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, data, implicit_vr=syntax == "implicit", little_endian=syntax != "big endian",
                     enforce_file_format=True)  # fmt: skip


def longer(tag: bytes, length: int) -> Callable[[Path], Path]:
    """The enhanced file with an element that declares another length."""

    def make(folder: Path) -> Path:
        path = enhanced()(folder)
        raw = bytearray(path.read_bytes())
        struct.pack_into("<I", raw, raw.index(tag) + len(tag), length)
        path.write_bytes(raw)
        return path

    return make


def nested(folder: Path) -> Path:
    """Sequences nested deeper than any call stack."""
    path = enhanced()(folder)
    raw = path.read_bytes()
    place = raw.index(b"\x00\x52\x29\x92SQ")
    deep = (b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 10_000
    return put(folder, "e.dcm", raw[:place] + deep + raw[place:])


def syntaxes() -> Iterator[Case]:
    for syntax in ("implicit", "big endian", "RLE", "JPEG", "JPEG2000"):
        yield Case("transfer syntaxes", syntax, WORKS, transcoded(syntax))
    yield Case("transfer syntaxes", "deflated", "INPUT_UNREADABLE", transcoded("deflated"))
    for name, uid in (("MPEG-2", "1.2.840.10008.1.2.4.100"), ("HTJ2K", "1.2.840.10008.1.2.4.201"),
                      ("JPEG of noise", "1.2.840.10008.1.2.4.70"), ("JPEG 2000 of noise", "1.2.840.10008.1.2.4.90"),
                      ("unknown", "1.2.3.4.5")):  # fmt: skip
        yield Case("transfer syntaxes", name, "INPUT_UNREADABLE", foreign_syntax(uid))

    def spoilt(method: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            for path in sorted(transcoded(method)(folder).iterdir()):
                raw = bytearray(path.read_bytes())
                begin = raw.index(b"\xe0\x7f\x10\0O") + 40
                raw[begin : begin + 60] = bytes(60)
                path.write_bytes(raw)
            return folder / "study"

        return make

    yield Case("transfer syntaxes", "spoilt JPEG", "INPUT_UNREADABLE", spoilt("JPEG"))
    yield Case("transfer syntaxes", "spoilt JPEG 2000", "INPUT_UNREADABLE", spoilt("JPEG2000"))


# --- paths ----------------------------------------------------------------------------------------


def paths() -> Iterator[Case]:
    def called(name: str) -> Callable[[Path], Path]:
        return lambda folder: save(folder).rename(folder / name)

    def deep(folder: Path) -> dict[str, Any]:
        place = folder.joinpath(*["a folder of a long name, thirty c"] * 10)
        place.mkdir(parents=True)
        path = save(folder).rename(place / "image.nii.gz")
        assert len(str(path)) > 300
        return {"image": str(path), "output": str(place / "out" / "result.nrrd")}

    def looped(folder: Path) -> Path:
        (folder / "a.nii.gz").symlink_to(folder / "b.nii.gz")
        (folder / "b.nii.gz").symlink_to(folder / "a.nii.gz")
        return folder / "a.nii.gz"

    def latin(folder: Path) -> Path:
        return series(folder)[0].parent.rename(folder / os.fsdecode("Rücken".encode("latin-1")))

    def folder_loop(folder: Path) -> Path:
        study = series(folder)[0].parent
        (study / "loop").symlink_to(folder)
        (study / "self").symlink_to(study / "self")
        return study

    for name in (
        "wirbelsäule 脊椎 🦴.nii.gz",
        "a b'c\"d;$(x)&.nii.gz",
        "-o.nii.gz",
        "line\nbreak.nii.gz",
        "IMAGE.NII.GZ",
    ):
        yield Case("paths", f"named {name!r}", WORKS, called(name))
    yield Case("paths", "300 characters", WORKS, deep)
    yield Case("paths", "a name of 300 characters", "INPUT_NOT_FOUND", lambda folder: folder / ("a" * 300 + ".nii.gz"))
    yield Case("paths", "5000 characters", "INPUT_NOT_FOUND", lambda folder: folder / ("a/" * 2500 + "b.nii.gz"))
    yield Case("paths", "not UTF-8", WORKS, called(os.fsdecode(b"\xff\xe4.nii.gz")))
    yield Case("paths", "not UTF-8, DICOM", WORKS, latin)
    yield Case("paths", "a NUL in it", "INPUT_NOT_FOUND", lambda folder: Path(f"{folder}/a\0b.nii.gz"))
    yield Case("paths", "half a character", "INPUT_NOT_FOUND", lambda folder: Path(f"{folder}/\ud800.nii.gz"))
    yield Case("paths", "below a file", "INPUT_NOT_FOUND", lambda folder: save(folder) / "b.nii.gz")
    yield Case("paths", "link to itself", "INPUT_NOT_FOUND", looped)
    yield Case("paths", "folder with links to itself", WORKS, folder_loop)
    yield Case("paths", "folder called image", "INPUT_EMPTY", lambda folder: _folder(folder / "a.nii.gz"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def outputs() -> Iterator[Case]:
    def to(output: Callable[[Path], Path | str], **entries: Any) -> Callable[[Path], dict[str, Any]]:
        return lambda folder: {"image": str(save(folder)), "output": str(output(folder)), **entries}

    def link(folder: Path) -> Path:
        (folder / "loop.nrrd").symlink_to(folder / "loop.nrrd")
        return folder / "loop.nrrd"

    write = "OUTPUT_WRITE"
    for name, output, code in (
        ("link to itself", link, write),
        ("special file", lambda folder: "/dev/full", "OUTPUT_FORMAT"),
        ("read-only system", lambda folder: "/proc/result.nrrd", write),
        ("below a file", lambda folder: save(folder, ".mha") / "result.nrrd", write),
        ("a folder", lambda folder: _folder(folder / "result.nrrd"), write),
        ("the image itself", lambda folder: folder / "image.nii.gz", write),
        ("a name of 300 characters", lambda folder: folder / ("a" * 300 + ".nrrd"), write),
        ("a NUL in it", lambda folder: f"{folder}/a\0b.nrrd", write),
        ("half a character", lambda folder: f"{folder}/\ud800.nrrd", write),
        ("not UTF-8", lambda folder: folder / os.fsdecode(b"\xff.nrrd"), write),
        ("no ending", lambda folder: folder / "result", "OUTPUT_FORMAT"),
        ("an ending only", lambda folder: folder / ".nrrd", "OUTPUT_FORMAT"),
        ("another ending", lambda folder: folder / "result.png", "OUTPUT_FORMAT"),
    ):
        yield Case("output", name, code, to(output))
    yield Case("output", "table of another ending", "OUTPUT_FORMAT",
               lambda folder: {"image": str(save(folder)), "table": str(folder / "table.xls")})  # fmt: skip
    yield Case("output", "preview below a file", write,
               lambda folder: {"image": str(save(folder)), "preview": f"{folder}/image.nii.gz/a.png"})  # fmt: skip


# --- models ---------------------------------------------------------------------------------------


def models() -> Iterator[Case]:
    """Cases in whose folder ``model.safetensors`` and its card already are."""

    def spoilt(change: Callable[[Path], Any]) -> Callable[[Path], dict[str, Any]]:
        def make(folder: Path) -> dict[str, Any]:
            change(folder / "model.safetensors")
            return {"image": str(save(folder)), "model": str(folder / "model.safetensors")}

        return make

    def keep(count: int) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(path.read_bytes()[:count])

    def flip(place: int) -> Callable[[Path], Any]:
        def change(path: Path) -> None:
            raw = bytearray(path.read_bytes())
            raw[place] ^= 1
            path.write_bytes(raw)

        return change

    def card(**entries: Any) -> Callable[[Path], Any]:
        def change(path: Path) -> None:
            beside = path.with_suffix(".json")
            beside.write_text(json.dumps(json.loads(beside.read_text()) | entries))

        return change

    def signed(raw: bytes) -> Callable[[Path], Any]:
        """Other weights, with their own hash in the card."""

        def change(path: Path) -> None:
            path.write_bytes(raw)
            card(sha256=hashlib.sha256(raw).hexdigest())(path)

        return change

    def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
        def outer(path: Path) -> None:
            found = safetensors.torch.load_file(path)
            change(found)
            signed(safetensors.torch.save(found))(path)

        return outer

    def all_as(kind: torch.dtype) -> Callable[[Path], Any]:
        return weights(lambda found: found.update({name: value.to(kind) for name, value in found.items()}))

    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(path)

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    for count in (0, 1, 8, 100, -1):
        yield Case("models", f"truncated at {count}", "MODEL_DAMAGED", spoilt(keep(count)))
    for place in (0, 20, -1):
        yield Case("models", f"tampered at {place}", "MODEL_DAMAGED", spoilt(flip(place)))
    huge_header = struct.pack("<Q", 1 << 60) + b"{}"
    beyond = json.dumps({"a": {"dtype": "F16", "shape": [2**40], "data_offsets": [0, 2**41]}}).encode()
    for name, raw in (
        ("a pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        ("a zip", b"PK\x03\x04" + bytes(100)),
        ("a header without end", huge_header),
        ("weights beyond the file", struct.pack("<Q", len(beyond)) + beyond),
        ("a header of noise", struct.pack("<Q", 50) + bytes(range(50))),
    ):
        yield Case("models", name, "MODEL_DAMAGED", spoilt(signed(raw)))
    foreign = safetensors.torch.save({"a": torch.zeros(2)})
    yield Case("models", "foreign weights", "MODEL_MISMATCH", spoilt(signed(foreign)))
    yield Case("models", "one missing", "MODEL_MISMATCH", spoilt(weights(lambda found: found.pop("head.bias"))))
    yield Case("models", "NaN", "MODEL_DAMAGED", spoilt(weights(lambda found: found["head.bias"].fill_(torch.nan))))
    for kind in (torch.int16, torch.bool, torch.float8_e4m3fn, torch.complex64):
        yield Case("models", f"weights as {kind}", "MODEL_MISMATCH", spoilt(all_as(kind)))
    entries: dict[str, dict[str, Any]] = {
        "absurd widths": {"network": {"widths": [10**400] * 5}},
        "negative widths": {"network": {"widths": [-4, 4, 8, 8, 8]}},
        "no network at all": {"network": {"widths": [0] * 5}},
        "text widths": {"network": {"widths": ["4", "4", "8", "8", "8"]}},
        "five classes": {"network": {"classes": 5, "widths": [4, 4, 8, 8, 8]}},
        "no pixel": {"pixel_mm": None},
        "NaN pixel": {"pixel_mm": float("nan")},
        "an unknown entry": {"more": 1},
        "nameless": {"name": None},
        "a name that leads elsewhere": {"name": "../../elsewhere"},
        "text as pixel": {"pixel_mm": "1.5"},
        "no list of classes": {"classes": "abcd"},
    }
    for name, changes in entries.items():
        yield Case("models", f"card with {name}", "MODEL_CARD", spoilt(card(**changes)))
    yield Case("models", "card of a wide network", "MODEL_MISMATCH",
               spoilt(card(network={"widths": [4_000, 8_000, 16_000, 32_000, 64_000]})))  # fmt: skip

    def without_card(action: Callable[[Path], Any]) -> Callable[[Path], dict[str, Any]]:
        def change(path: Path) -> None:
            path.with_suffix(".json").unlink()
            action(path.with_suffix(".json"))

        return spoilt(change)

    for name, text in (("empty", b""), ("deep", b"[" * 100_000), ("binary", b"\xff\xfe\0"), ("a list", b"[]"),
                       ("huge", bytes(1 << 22)), ("of an endless number", b'{"a": ' + b"9" * 6000)):  # fmt: skip
        yield Case("models", f"card {name}", "MODEL_CARD", without_card(lambda path, raw=text: path.write_bytes(raw)))
    yield Case("models", "no card", "MODEL_CARD", without_card(lambda path: None))
    yield Case("models", "card is a folder", "MODEL_CARD", without_card(lambda path: path.mkdir()))
    yield Case("models", "card is a pipe", "MODEL_CARD", without_card(lambda path: os.mkfifo(path)))
    yield Case("models", "a far too large file", "MODEL_DAMAGED", spoilt(lambda path: os.truncate(path, 1 << 33)))
    yield Case("models", "no file", "MODEL_NOT_FOUND", spoilt(lambda path: path.unlink()))
    yield Case("models", "a folder", "MODEL_NOT_FOUND", spoilt(folder))
    yield Case("models", "link to itself", "MODEL_NOT_FOUND", spoilt(link))
    for name in ("nobody", "../tiny", "/etc/passwd", "a" * 300, "a" * 300 + ".safetensors", "a\0b", "\ud800", " "):
        yield Case("models", f"called {name[:20]!r} {len(name)}", "MODEL_NOT_FOUND",
                   lambda folder, model=name: {"image": str(save(folder)), "model": model})  # fmt: skip


# --- requests -------------------------------------------------------------------------------------


def lines() -> Iterator[Line]:
    """Lines that the worker answers with USAGE."""
    request = '{{"command": "segment", "image": "a.nii.gz", "output": "b.nrrd", {}}}'
    for name, text in (
        ("half an object", "{"),
        ("a list", "[]"),
        ("a number", "7"),
        ("null", "null"),
        ("a word", "segment"),
        ("no command", "{}"),
        ("an unknown command", '{"command": "dance"}'),
        ("a command that is a list", '{"command": ["segment"]}'),
        ("nothing to do", '{"command": "segment"}'),
        ("no output", '{"command": "segment", "image": "a"}'),
        ("an empty output", '{"command": "segment", "image": "a", "output": ""}'),
        ("a number as image", '{"command": "segment", "image": 5, "output": "b"}'),
        ("a list as image", '{"command": "segment", "image": ["a"], "output": "b"}'),
        ("a text for yes", request.format('"levels": "yes"')),
        ("a number for yes", request.format('"levels": 1')),
        ("a list as id", request.format('"id": [1]')),
        ("an unknown entry", request.format('"__class__": "c"')),
        ("an entry without name", request.format('"": "c"')),
        ("a deep list", "[" * 100_000),
        ("a deep object", '{"a":' * 100_000),
        ("an endless number", request.format('"id": ' + "9" * 6000)),
        ("a number that is none", "NaN"),
        ("two objects", '{"command": "warm"} {"command": "warm"}'),
        ("half a character as entry", request.format('"\\ud800": "c"')),
        ("half a character as id", request.format('"id": "\\ud800"')),
        ("half a character as device", request.format('"device": "\\ud800"')),
    ):
        yield Line(name, text.encode())
    yield Line("bytes", bytes(range(11, 256)))
    yield Line("a NUL", b"\0")
    yield Line("wrong UTF-8", b'{"command": "\xff\xfe"}')


def requests() -> Iterator[Case]:
    """Well-formed requests that cannot be served."""
    for name, entry in (("level", {"lowest": "X9"}), ("device", {"device": "tpu"})):
        code = "DEVICE" if name == "device" else "USAGE"
        yield Case("malformed requests", f"an unknown {name}", code,
                   lambda folder, more=entry: {"image": str(save(folder)), **more})  # fmt: skip
    yield Case("malformed requests", "an image of no name", "INPUT_EMPTY", lambda folder: {"image": str(folder) + "/."})


IMAGES = (
    truncated, damaged, wrong_magic, huge, offsets, pointing_elsewhere, values, constant, kinds, shapes, units,
    spacings, directions, folders, frames, syntaxes,
)  # fmt: skip
"""Cases that every system can make, in little memory, and that reading alone decides."""


def images() -> list[Case]:
    """The cases that `read_volume` refuses with their code, or (`WORKS`) reads like the plain image."""
    return [case for make in IMAGES for case in make() if case.code != ANY]


def corpus() -> list[Case]:
    """Every case with files; lines that are not valid requests are in `lines`."""
    makers = (*IMAGES, bombs, pipes, contents, paths, outputs, models, requests)
    return [case for make in makers for case in make()]
