"""Check the header of a NIfTI, NRRD or MetaImage file before ITK reads the file.

ITK fills missing voxels with zeros, replaces a spacing of zero by one, turns a negative one into a flip, and falls back
to another orientation where the first is sheared, all silently. A clinical result cannot rest on that.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ..errors import InputError, check_memory
from ..volume import MOST_VOXELS, ORTHONORMAL_TOLERANCE, REPLACE, SHRINK, STRAIGHTEN, not_greyscale, orthonormal

MOST_BYTES = 2 * MOST_VOXELS
MOST_AFTER = 64 << 20
"""Most bytes after the voxels that are read to reach the end of a stream."""
CHUNK = 1 << 20
LARGEST_HEADER = 1 << 16
"""Bytes; a larger file is taken to hold its voxels, not to be a header alone."""
NRRD_HEADER_BYTES, NRRD_HEADER_LINES = 1 << 20, 10_000
"""Limits of an NRRD header, in which a segment takes about nine lines. ITK's time grows with the square of the lines:
10,000 take it a second."""
_EMPTY_LINE = re.compile(rb"(?:\r\n|\r(?!\n)|\n){2}")
ITK_SHEAR = 1e-4
"""Shear above which ITK refuses an sform if there is no quaternion to fall back to."""

_NIFTI_BYTES = {
    2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1536: 16, 1792: 16,
    2048: 32, 2304: 4,
}  # fmt: skip
_NIFTI_SEVERAL = {32: "complex", 128: "colour", 1792: "complex", 2048: "complex", 2304: "colour"}
"""NIfTI's voxel types with several values. ITK's reader corrupts memory if these, or vectors, are scaled, and with some
even if they are not."""
_META_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "LONG_LONG": 8,
    "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
_NRRD_BYTES = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "long long int": 8, "signed long long": 8, "signed long long int": 8, "int64": 8,
    "int64_t": 8, "ulonglong": 8, "unsigned long long": 8, "unsigned long long int": 8, "uint64": 8, "uint64_t": 8,
    "float": 4, "double": 8,
}  # fmt: skip
_NRRD_SPACES = {"LPS", "RAS", "LAS", "LEFT-POSTERIOR-SUPERIOR", "RIGHT-ANTERIOR-SUPERIOR", "LEFT-ANTERIOR-SUPERIOR"}


def check_file(path: Path, ending: str) -> int:
    """Reject a file whose content does not match its extension and header. The voxels are not kept.

    Returns:
        Bytes of its voxels.

    Raises:
        InputError: INPUT_EMPTY, INPUT_UNREADABLE, INPUT_TOO_LARGE, INPUT_SPACING, INPUT_DIRECTION or INPUT_VALUES.
        OutOfMemoryError: MEMORY.
    """
    try:
        if path.stat().st_size == 0:
            raise InputError("INPUT_EMPTY", f"{path.name} is an empty file", "Copy or export the image again")
        if ending.startswith(".nii"):
            return _check_nifti(path)
        return _check_nrrd(path) if ending in (".nrrd", ".nhdr") else _check_meta(path)
    except (OSError, EOFError, ValueError, zlib.error) as failure:
        check_memory(failure)
        raise damaged(path, _why(failure)) from failure


def voxel_file(path: Path, ending: str) -> Path:
    """The file that holds an image's voxels: the one that its header names if it exists, else the image."""
    try:
        if ending.startswith(".nii") or not path.is_file() or path.stat().st_size > LARGEST_HEADER:
            return path  # a pipe might block
        nrrd_header = ending in (".nrrd", ".nhdr")
        stored = _nrrd_data(path).get("datafile") if nrrd_header else _meta_header(path)[0]["ElementDataFile"]
        return path if stored is None or stored.upper() == "LOCAL" else _check_beside(path, stored)
    except (OSError, ValueError, InputError):  # reported when the image is read
        return path


def damaged(path: Path, why: str) -> InputError:
    """The error for a file that is not a complete image, with a short reason."""
    return InputError("INPUT_UNREADABLE", f"{path.name} cannot be read: {why}", "Copy or export the image again")


def _why(failure: Exception) -> str:
    if isinstance(failure, PermissionError):
        return "the operating system denies access"
    if isinstance(failure, FileNotFoundError):
        return "the file with its voxels is missing"
    if isinstance(failure, EOFError):
        return "its compressed data end too early"
    return "its compressed data are damaged" if isinstance(failure, zlib.error | gzip.BadGzipFile) else "it is damaged"


def check_written(path: Path, ending: str) -> None:
    """Check a file of our own as `check_file` does: neither ITK nor gzip reports every failed write.

    An NRRD file is left unchecked where pynrrd is missing, as in Slicer before the engine's packages are installed.

    Raises:
        OSError: it is incomplete.
    """
    try:
        if ending == ".nrrd" and not _EMPTY_LINE.search(_begin(path)):
            raise damaged(path, "its NRRD header does not end")
        check_file(path, ending)
    except ModuleNotFoundError:
        return
    except InputError as failure:
        if failure.code != "INPUT_DIRECTION":  # a complete file may be sheared, too
            raise OSError(0, "the file was not written completely") from failure


def check_steps(steps: np.ndarray, name: str, tolerance: float = ORTHONORMAL_TOLERANCE) -> np.ndarray:
    """The lengths in mm of the steps from voxel to voxel, one per column of a (3, n) matrix.

    Raises:
        InputError: INPUT_SPACING for steps of invalid length; INPUT_DIRECTION for steps that are not perpendicular.
    """
    lengths = np.linalg.norm(steps, axis=0)
    _check_spacing(lengths, name)
    if not orthonormal(steps / lengths, tolerance):
        raise InputError(
            "INPUT_DIRECTION",
            f"the axes of {name} are sheared",
            STRAIGHTEN,
        )
    return lengths


def _check_spacing(spacing: Iterable[float], name: str) -> None:
    values = list(spacing)
    if not all(math.isfinite(value) and value > 0 for value in values):
        shown = " x ".join(f"{value:.4g}" for value in values)
        raise InputError("INPUT_SPACING", f"{name} has voxels of {shown} mm", "Correct the voxel size in its header")


def _unplaced(path: Path) -> InputError:
    return InputError(
        "INPUT_DIRECTION",
        f"{path.name} does not state the orientation of the image in the patient",
        "Export it again from the DICOM series with its orientation",
    )


def _check_size(size: Iterable[int], voxel_bytes: int, path: Path) -> int:
    """Bytes of the voxels that a header declares."""
    counts = [int(count) for count in size]
    if any(count < 1 for count in counts) or not counts:
        raise damaged(path, "its header declares an impossible size")
    voxels = math.prod(counts)
    total = voxels * voxel_bytes
    if total > MOST_BYTES:
        raise InputError(
            "INPUT_TOO_LARGE",
            f"{path.name} declares {' x '.join(map(str, counts))} voxels ({total / 2**30:.3f} GiB); "
            f"the limit is {MOST_BYTES / 2**30:.2g} GiB",
            SHRINK if voxels > MOST_VOXELS else "Save it with 16 bits per voxel",
        )
    return total


def _check_length(path: Path, held: int, wanted: int) -> None:
    if held < wanted:
        raise damaged(path, f"it holds {held} of the {wanted} bytes that its header declares")


def _parts(file: IO[bytes], wanted: int) -> Iterator[bytes]:
    """The first `wanted` bytes of a stream, in chunks to save memory."""
    while wanted and (part := file.read(min(CHUNK, wanted))):
        wanted -= len(part)
        yield part
    # A gzip stream verifies its checksum at its end, which damage may have moved beyond that of the voxels.
    more = MOST_AFTER
    while more > 0 and (part := file.read(CHUNK)):
        more -= len(part)


def _check_nifti(path: Path) -> int:
    with open(path, "rb") as plain:
        compressed = plain.read(2) == b"\x1f\x8b"
    if compressed != path.name.lower().endswith(".gz"):
        raise damaged(
            path, "its content does not match its file extension" if compressed else "it is not compressed with gzip"
        )
    opener: Any = gzip.open if compressed else open
    with opener(path, "rb") as file:
        head = file.read(348)
        header = _nifti_header(head, path)
        count = max(1, min(7, header["dim"][0]))
        total = _check_size(header["dim"][1 : count + 1], _NIFTI_BYTES.get(header["datatype"], 0) or 1, path)
        if header["datatype"] not in _NIFTI_BYTES:
            raise damaged(path, f"its voxel type {header['datatype']} is unknown")
        is_vector = max(header["dim"][5 : count + 1], default=1) > 1
        if several := _NIFTI_SEVERAL.get(header["datatype"], "vector" if is_vector else ""):
            raise not_greyscale(path.name, several)
        if count >= 3:
            _check_nifti_grid(header, path)
        file.seek(max(348, int(header["offset"])))  # ITK reads no voxels from within the header
        floats = {16: "f4", 64: "f8"}.get(header["datatype"])
        number = np.dtype(header["order"] + floats) if floats else None
        read = 0
        for part in _parts(file, total):
            read += len(part)
            if number is None:
                continue
            # ITK's reader replaces NaN and infinite values by zero.
            values = np.frombuffer(part, number, len(part) // number.itemsize)
            if not np.isfinite(values).all():
                raise InputError(
                    "INPUT_VALUES",
                    f"{path.name} holds NaN or infinite values",
                    REPLACE,
                )
        _check_length(path, read, total)
    return total


def _nifti_header(head: bytes, path: Path) -> dict[str, Any]:
    """The fields of a NIfTI-1 header that describe the voxels and their position, in either byte order."""
    if head[4:7] == b"n+2":
        raise damaged(path, "NIfTI-2 files are not supported, NIfTI-1 files are")
    order = next((o for o in "<>" if len(head) >= 348 and struct.unpack(f"{o}i", head[:4])[0] == 348), "")
    if not order or head[344:347] != b"n+1":
        raise damaged(path, "it is not a NIfTI file")
    places = {"dim": (40, "8h"), "datatype": (70, "h"), "pixdim": (76, "8f"), "offset": (108, "f"),
              "qform": (252, "h"), "sform": (254, "h"), "quatern": (256, "6f"), "srow": (280, "12f")}  # fmt: skip
    values = {key: struct.unpack_from(order + form, head, place) for key, (place, form) in places.items()}
    header: dict[str, Any] = {key: value[0] if len(value) == 1 else value for key, value in values.items()}
    if not (1 <= header["dim"][0] <= 7 and math.isfinite(header["offset"]) and 0 <= header["offset"] < 1 << 30):
        raise damaged(path, "its NIfTI header is damaged")
    return header | {"order": order}


def _check_nifti_grid(header: dict[str, Any], path: Path) -> None:
    spacing = np.array(header["pixdim"][1:4], float)
    _check_spacing(spacing, path.name)
    if header["qform"] <= 0 and header["sform"] <= 0:
        raise _unplaced(path)
    # Which of the two forms ITK uses depends on their codes and accuracy: both must be valid, and agree.
    quaternion = _quaternion_form(header) if header["qform"] > 0 else None
    if quaternion is not None and not np.isfinite(quaternion).all():
        raise _unplaced(path)
    if header["sform"] <= 0:
        return
    form = np.array(header["srow"], float).reshape(3, 4)
    if not np.isfinite(form).all():
        raise _unplaced(path)
    lengths = check_steps(form[:, :3], path.name, ITK_SHEAR if quaternion is None else ORTHONORMAL_TOLERANCE)
    if not np.allclose(lengths, spacing, rtol=0.01):
        stated, derived = (" x ".join(f"{value:.4g}" for value in values) for values in (spacing, lengths))
        raise InputError(
            "INPUT_SPACING",
            f"{path.name} states two voxel sizes: {stated} (pixdim) and {derived} mm (sform)",
            "Correct the voxel size in its header, or export it again from the DICOM series",
        )
    if quaternion is not None:
        corners = np.array([(*np.multiply(header["dim"][1:4], corner), 1) for corner in np.ndindex(2, 2, 2)])
        apart = np.linalg.norm((form - quaternion) @ corners.T, axis=0).max()
        if apart > spacing.min() / 2:
            raise InputError(
                "INPUT_DIRECTION",
                f"{path.name} states two positions in the patient, {apart:.3g} mm apart (qform and sform)",
                "Correct the wrong one, set its code to 0, or export it again from the DICOM series",
            )


def _quaternion_form(header: dict[str, Any]) -> np.ndarray:
    """Voxel to RAS mm (3, 4) by a header's quaternion; NaN if that is invalid (nifti1.h, method 2)."""
    b, c, d = header["quatern"][:3]
    rest = 1 - (b * b + c * c + d * d)
    if not rest >= -0.01:
        return np.full((3, 4), np.nan)
    a = math.sqrt(max(rest, 0.0))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    steps = np.array(header["pixdim"][1:4]) * (1, 1, -1 if header["pixdim"][0] < 0 else 1)
    return np.column_stack([turn * steps, header["quatern"][3:]])


def _check_nrrd(path: Path) -> int:
    """The length of uncompressed voxels is left to ITK: its NRRD reader refuses data that are too short."""
    header, size, voxel_bytes = _nrrd_header(path)
    total = _check_size(size, voxel_bytes, path)
    data_fields = _nrrd_data(path)
    if "datafile" in data_fields:
        _check_beside(path, data_fields["datafile"])
    try:
        skipped = [int(data_fields.get(key, "0")) for key in ("lineskip", "byteskip")]
    except ValueError as failure:
        raise damaged(path, "its NRRD header is damaged") from failure
    if min(skipped) < -1:
        raise damaged(path, "its NRRD header is damaged")
    if str(header.get("encoding")).lower() in ("gz", "gzip") and not any(skipped):
        _check_nrrd_stream(path, data_fields.get("datafile"), total)
    _check_unit(" ".join(header.get("space units", ())), path)
    if len(size) < 3 or (len(size) > 3 and "space" not in header):
        return total  # not a volume in space: `Volume.from_sitk` reports what it is
    if "spacings" in header:
        _check_spacing([value for value in np.asarray(header["spacings"], float) if not np.isnan(value)], path.name)
    if str(header.get("space", "")).upper() not in _NRRD_SPACES or "space directions" not in header:
        raise _unplaced(path)
    directions = np.array([row for row in header["space directions"] if row is not None], float)
    directions = directions[~np.isnan(directions).all(axis=-1)]
    origin = header.get("space origin", np.zeros(3))
    if directions.shape != (3, 3) or not np.isfinite(np.asarray(origin, float)).all():
        raise _unplaced(path)
    check_steps(directions.T, path.name)
    return total


def _check_nrrd_stream(path: Path, beside: str | None, total: int) -> None:
    """Check length and checksum of gzip-compressed voxels; ITK does not: damage would silently enter the image."""
    with open(path if beside is None else path.parent / beside, "rb") as file:
        while beside is None and file.readline().strip():
            pass
        begin = file.tell()
        if file.read(2) != b"\x1f\x8b":  # ITK accepts uncompressed data here
            _check_length(path, os.fstat(file.fileno()).st_size - begin, total)
            return
        file.seek(begin)
        with gzip.open(file) as stream:
            held = sum(len(part) for part in _parts(cast(IO[bytes], stream), total))
        _check_length(path, held, total)


def _check_unit(units: str, path: Path) -> None:
    """Refuse a header with a unit other than mm: ITK would take its lengths for mm."""
    if unknown := sorted(set(units.lower().split()) - {"mm", "millimeter", "millimeters", "?", "???", "none"}):
        raise InputError("INPUT_SPACING", f"the lengths in {path.name} are in {unknown[0]}", "Export it again in mm")


def _nrrd_header(path: Path) -> tuple[dict[str, Any], list[int], int]:
    """The fields of an NRRD header, the sizes of its axes and the bytes of a voxel."""
    # Slicer lacks it and exports results without it, see `check_written`; that must not count as a damaged file.
    from nrrd import read_header

    head = _nrrd_head(path)
    if not head.startswith(b"NRRD"):
        raise damaged(path, "it is not an NRRD file")
    try:
        with np.errstate(all="ignore"):
            header = dict(read_header(io.BytesIO(head)))
        size, kind = [int(count) for count in header["sizes"]], header["type"]
    except Exception as failure:  # pynrrd fails on nonsense with any kind of exception
        check_memory(failure)
        raise damaged(path, "its NRRD header is damaged") from failure
    if kind not in _NRRD_BYTES:
        raise damaged(path, "its voxel type is unknown")
    return header, size, _NRRD_BYTES[kind]


def _begin(path: Path) -> bytes:
    """What may be the header of an NRRD file, and what follows it."""
    with open(path, "rb") as file:
        return file.read(NRRD_HEADER_BYTES)


def _nrrd_head(path: Path) -> bytes:
    """The header of an NRRD file, up to its first empty line; as in ITK, a lone carriage return also ends a line."""
    begin = _begin(path)
    more = path.stat().st_size > len(begin)
    end = _EMPTY_LINE.search(begin)  # before replacing: most of it is voxels
    head = begin[: end.start() if end else None].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if begin.startswith(b"NRRD") and ((more and not end) or head.count(b"\n") >= NRRD_HEADER_LINES):
        raise damaged(path, "its NRRD header does not end, or is far too long")
    return head + b"\n"


def _nrrd_data(path: Path) -> dict[str, str]:
    """The fields that locate the voxels, read like ITK: pynrrd is case-sensitive and drops non-ASCII characters."""
    fields = re.findall(
        rb"^(data ?file|line ?skip|byte ?skip):([^\n]*)", _nrrd_head(path), re.MULTILINE | re.IGNORECASE
    )
    return {key.lower().replace(b" ", b"").decode(): os.fsdecode(value).strip() for key, value in fields}


def _check_beside(path: Path, stored: str) -> Path:
    """The voxel file that a header names; a regular file, as pipes, devices and folders might block or never end."""
    if stored.upper().startswith("LIST") or "%" in stored:
        raise damaged(path, "its voxels are spread over several files")
    beside = path.parent / stored
    if not beside.is_file():
        raise damaged(path, "the file with its voxels is missing")
    return beside


def _check_meta(path: Path) -> int:
    fields, begin = _meta_header(path)
    try:
        size = [int(count) for count in fields["DimSize"].split()]
        if int(fields["NDims"]) != len(size):
            raise ValueError("NDims and DimSize differ")
        voxel_bytes = _META_BYTES[fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")]
        voxel_bytes *= int(fields.get("ElementNumberOfChannels", "1"))
        spacing = [float(value) for value in fields.get("ElementSpacing", fields.get("ElementSize", "")).split()]
        place = [float(value) for key in ("Offset", "Position", "Origin") for value in fields.get(key, "").split()]
        matrix = fields.get("TransformMatrix", fields.get("Rotation", fields.get("Orientation", ""))).split()
        steps = np.array(matrix, float).reshape(len(size), -1).T  # empty if it states no axes
    except (KeyError, ValueError) as failure:
        raise damaged(path, "its MetaImage header is damaged") from failure
    total = _check_size(size, voxel_bytes, path)
    _check_unit(fields.get("DistanceUnits", ""), path)
    if len(size) == 3:
        _check_spacing(spacing or (math.nan,) * 3, path.name)
        if steps.shape != (3, 3) or not np.isfinite(steps).all() or not np.isfinite(place).all():
            raise _unplaced(path)
        if np.abs(check_steps(steps, path.name) - 1).max() > ORTHONORMAL_TOLERANCE:
            raise _unplaced(path)
    _check_meta_data(path, fields, begin, total)
    return total


def _meta_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage header, spelt as in ITK, and the offset of the data after it."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        for _ in range(1000):
            line = file.readline(1 << 16)
            if line.isspace():  # ITK writes one after a value that it cannot print, such as another format's metadata
                continue
            key, equals, value = line.decode("utf-8", "surrogateescape").partition("=")
            key = key.strip()
            if not equals or not key:
                break
            if key in fields and key != "Comment":  # with two sizes ITK allocates by one, writes by the other
                raise damaged(path, f"its MetaImage header states {key[:40]} twice")
            fields[key] = value.strip()
            if key == "ElementDataFile":
                return fields, file.tell()
    raise damaged(path, "it is not a MetaImage file" if "NDims" not in fields else "its MetaImage header is damaged")


def _check_meta_data(path: Path, fields: dict[str, str], begin: int, total: int) -> None:
    stored = fields["ElementDataFile"]
    if stored.upper() != "LOCAL":
        path, begin = _check_beside(path, stored), 0
    if fields.get("BinaryData", "True").lower() == "false":
        return  # text: ITK reads number by number
    skip = int(fields.get("HeaderSize", "0") or 0)
    compressed = fields.get("CompressedData", "False").lower() == "true"
    if skip < -1 or (compressed and skip):
        raise damaged(path, "its MetaImage header is damaged")
    with open(path, "rb") as file:
        file.seek(max(begin, skip))
        if compressed:
            _check_meta_stream(path, file, int(fields.get("CompressedDataSize", "0") or 0), total)
        else:
            _check_length(path, path.stat().st_size - file.tell(), total)


def _check_meta_stream(path: Path, file: IO[bytes], packed: int, total: int) -> None:
    """Check that a stream ends with the declared voxels and bytes; ITK would pass on uninitialised memory."""
    unpack, held, begin = zlib.decompressobj(wbits=47), 0, file.tell()
    while held <= total and not unpack.eof and (part := unpack.unconsumed_tail or file.read(CHUNK)):
        held += len(unpack.decompress(part, CHUNK))
    _check_length(path, held, total)
    used = file.tell() - begin - len(unpack.unused_data)
    if held > total or not unpack.eof or packed != used:
        raise damaged(path, "its compressed data do not end with its voxels")
