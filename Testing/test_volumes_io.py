"""Reading volumes: every format and axis order gives the same voxels and place; every bad input its own code."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import SimpleITK as sitk

from SAUNetLib.errors import InputError
from SAUNetLib.formats.volumes import list_series, read_volume
from SAUNetLib.volume import Geometry, Volume

FORMATS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
GRID = builders.geometry()


@pytest.fixture(scope="module")
def image() -> Volume:
    return builders.volume(GRID)


def save(volume: Volume, path: Path, compressed: bool = True) -> Path:
    sitk.WriteImage(volume.to_sitk(), str(path), compressed and path.suffix != ".nii")
    return path


def refusal(path: Path, series: str | None = None) -> InputError:
    """The failure that a path must give, checked to be fit for a user."""
    with pytest.raises(InputError) as caught:
        read_volume(path, series)
    failure = caught.value
    assert failure.exit_status == 3
    assert failure.cause.endswith(".") and failure.remedy.endswith(".")
    assert "\n" not in str(failure)
    assert "Secret" not in str(failure) and "SECRET" not in str(failure)
    return failure


def patched(tmp_path: Path, volume: Volume, change: Callable[[bytearray], None]) -> Path:
    """The volume as NIfTI with some bytes of its header changed."""
    raw = bytearray(save(volume, tmp_path / "whole.nii").read_bytes())
    change(raw)
    path = tmp_path / "changed.nii"
    path.write_bytes(raw)
    return path


def rewritten(tmp_path: Path, volume: Volume, ending: str, old: str, new: str) -> Path:
    """The volume as NRRD or MetaImage with one header line changed."""
    raw = save(volume, tmp_path / f"whole{ending}", False).read_bytes()
    lines = raw.split(b"\n")
    place = next(number for number, line in enumerate(lines) if line.startswith(old.encode()))
    lines[place : place + 1] = [new.encode()] if new else []
    path = tmp_path / f"changed{ending}"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_formats_agree(tmp_path: Path, ending: str) -> None:
    for order, flips, oblique in (((0, 1, 2), (False,) * 3, 0), ((2, 0, 1), (True, False, True), 11)):
        volume = builders.volume(builders.geometry(order, flips, oblique), oblique)
        path = save(volume, tmp_path / f"wirbelsäule 脊椎{ending}")
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
        read = read_volume(path)
        assert np.array_equal(read.voxels, volume.voxels)
        assert read.geometry.same_grid(volume.geometry)
        assert read.name == path.name
        assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_every_axis_order_keeps_its_place(tmp_path: Path, ending: str) -> None:
    for order, flips in builders.axis_orders()[:: 1 if ending == ".nii.gz" else 7]:
        volume = builders.volume(builders.geometry(order, flips, 6, size=(9, 11, 4)), 6)
        read = read_volume(save(volume, tmp_path / f"v{ending}"))
        assert read.geometry.same_grid(volume.geometry)
        assert np.array_equal(read.voxels, volume.voxels)


@pytest.mark.parametrize("size", [(20, 24, 1), (20, 24, 60)])
def test_one_slice_and_many(tmp_path: Path, size: tuple[int, int, int]) -> None:
    volume = builders.volume(builders.geometry(size=size, spacing=(2, 2, 1.5)))
    read = read_volume(save(volume, tmp_path / "v.nii.gz"))
    assert read.geometry.size == size
    assert np.array_equal(read.voxels, volume.voxels)


def test_one_time_point_is_a_volume(tmp_path: Path, image: Volume) -> None:
    path = tmp_path / "v.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([image.to_sitk()]), str(path))
    assert np.array_equal(read_volume(path).voxels, image.voxels)


def test_rescaled_nifti(tmp_path: Path, image: Volume) -> None:
    path = patched(tmp_path, image, lambda raw: struct.pack_into("<2f", raw, 112, 2.0, -10.0))
    assert np.allclose(read_volume(path).voxels, image.voxels * 2.0 - 10.0)


def test_another_file_of_the_same_stem(tmp_path: Path, image: Volume) -> None:
    """ITK takes the voxels of v.nii when asked for v.nii.gz."""
    save(Volume(image.voxels[::-1].copy(), GRID), tmp_path / "v.nii")
    assert np.array_equal(read_volume(save(image, tmp_path / "v.nii.gz")).voxels, image.voxels)


def test_real_volumes(shared_data: Path) -> None:
    read = read_volume(shared_data / "real_volumes" / "t2_lumbar.nii.gz")
    assert read.geometry.size == (38, 257, 201)
    assert np.allclose(read.geometry.spacing, 1)


def test_missing_and_empty(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.nii.gz").code == "INPUT_NOT_FOUND"
    (tmp_path / "empty.nii.gz").touch()
    assert refusal(tmp_path / "empty.nii.gz").code == "INPUT_EMPTY"
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").code == "INPUT_EMPTY"
    (tmp_path / "empty" / "letter.txt").write_text("no image")
    assert refusal(tmp_path / "empty").code == "INPUT_EMPTY"


@pytest.mark.parametrize("ending", [*FORMATS, ".txt", ".png", ".dcm", ""])
@pytest.mark.parametrize("content", [b"no image at all " * 60, b"\0" * 900, b"\x1f\x8b\x08" + b"x" * 500, b"NRRD"])
def test_what_is_no_image(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"file{ending}"
    path.write_bytes(content)
    assert refusal(path).code == "INPUT_UNREADABLE"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [True, False])
def test_truncated(tmp_path: Path, image: Volume, ending: str, compressed: bool, capfd: pytest.CaptureFixture) -> None:
    raw = save(image, tmp_path / f"whole{ending}", compressed).read_bytes()
    for part in (0.01, 0.4, 0.99):
        path = tmp_path / f"cut{ending}"
        path.write_bytes(raw[: int(len(raw) * part)])
        assert refusal(path).code == "INPUT_UNREADABLE"
    assert capfd.readouterr() == ("", "")


def test_damaged_compression(tmp_path: Path, image: Volume) -> None:
    for ending in (".nii.gz", ".nrrd", ".mha"):
        raw = bytearray(save(image, tmp_path / f"whole{ending}").read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
        (tmp_path / f"bad{ending}").write_bytes(raw)
        assert refusal(tmp_path / f"bad{ending}").code == "INPUT_UNREADABLE"


def test_missing_data_file(tmp_path: Path, image: Volume) -> None:
    for ending in (".nhdr", ".mhd"):
        path = save(image, tmp_path / f"v{ending}", False)
        (tmp_path / "v.raw").unlink()
        assert refusal(path).code == "INPUT_UNREADABLE"


def test_absurd_sizes_cost_no_memory(tmp_path: Path, image: Volume) -> None:
    """A header that promises gigabytes is refused before any is allocated, a gzip file of zeros while it is counted."""
    huge = patched(tmp_path, image, lambda raw: struct.pack_into("<3h", raw, 42, 30000, 30000, 30000))
    cut = tmp_path / "cut.nii.gz"
    header = bytearray(save(image, tmp_path / "v.nii").read_bytes()[:352])
    struct.pack_into("<3h", header, 42, 600, 600, 600)
    cut.write_bytes(gzip.compress(bytes(header) + bytes(10_000_000)))
    nrrd = rewritten(tmp_path, image, ".nrrd", "sizes:", "sizes: 30000 30000 30000")
    meta = rewritten(tmp_path, image, ".mha", "DimSize", "DimSize = 30000 30000 30000")
    for path, code in ((huge, "INPUT_TOO_LARGE"), (cut, "INPUT_UNREADABLE"), (nrrd, "INPUT_TOO_LARGE"),
                       (meta, "INPUT_TOO_LARGE")):  # fmt: skip
        assert refusal(path).code == code


def test_gzip_bomb_in_bounded_memory(tmp_path: Path, image: Volume) -> None:
    """128 MB of zeros behind a header that declares 432 MB: counted without holding more than some chunks."""
    header = bytearray(save(image, tmp_path / "v.nii").read_bytes()[:352])
    struct.pack_into("<3h", header, 42, 600, 600, 600)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(8):
            file.write(bytes(1 << 24))
    script = (
        "import sys, tracemalloc; from pathlib import Path; from SAUNetLib.formats import headers\n"
        "from SAUNetLib.errors import InputError; tracemalloc.start()\n"
        "try: headers.check_file(Path(sys.argv[1]), '.nii.gz')\n"
        "except InputError as failure: print(failure.code, tracemalloc.get_traced_memory()[1] < 20e6)\n"
    )
    command, root = [sys.executable, "-c", script, tmp_path / "bomb.nii.gz"], Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=root, check=True)
    assert done.stdout.split() == ["INPUT_UNREADABLE", "True"]


def test_dimensions_and_voxel_types(tmp_path: Path, image: Volume) -> None:
    frame = image.to_sitk()
    cases = {
        "flat.nii.gz": (frame[:, :, 3], "INPUT_DIMENSION"),
        "flat.mha": (frame[:, :, 3], "INPUT_DIMENSION"),
        "flat.nrrd": (frame[:, :, 3], "INPUT_DIMENSION"),
        "series.nii.gz": (sitk.JoinSeries([frame] * 3), "INPUT_DIMENSION"),
        "series.mha": (sitk.JoinSeries([frame] * 3), "INPUT_DIMENSION"),
        "colour.nii.gz": (sitk.Cast(sitk.Compose([frame] * 3), sitk.sitkVectorUInt8), "INPUT_PIXEL_TYPE"),
        "colour.nrrd": (sitk.Compose([frame] * 3), "INPUT_PIXEL_TYPE"),
        "colour.mha": (sitk.Compose([frame] * 3), "INPUT_PIXEL_TYPE"),
        "complex.nii.gz": (sitk.Cast(frame, sitk.sitkComplexFloat32), "INPUT_PIXEL_TYPE"),
    }
    for name, (content, code) in cases.items():
        sitk.WriteImage(content, str(tmp_path / name))
        assert refusal(tmp_path / name).code == code, name


def test_values(tmp_path: Path, image: Volume) -> None:
    voxels = image.voxels.astype(np.float32)
    for ending, bad in itertools.product(FORMATS, (np.nan, -np.inf)):  # ITK reads a NIfTI file's NaN as zero
        voxels[3, 4, 5] = bad
        assert refusal(save(Volume(voxels, GRID), tmp_path / f"v{ending}")).code == "INPUT_VALUES"
    odd = np.ones((3, 5, 7), np.float32)
    odd[-1, -1, -1] = np.nan
    assert refusal(save(Volume(odd, builders.geometry(size=(7, 5, 3))), tmp_path / "odd.nii")).code == "INPUT_VALUES"
    double = save(Volume(voxels.astype(np.float64), GRID), tmp_path / "double.nii.gz")
    assert refusal(double).code == "INPUT_VALUES"
    assert refusal(save(Volume(np.full_like(voxels, 7), GRID), tmp_path / "v.nii.gz")).code == "INPUT_CONSTANT"


@pytest.mark.parametrize("value", [0.0, -1.2, float("nan"), float("inf")])
def test_spacing_in_nifti(tmp_path: Path, image: Volume, value: float) -> None:
    path = patched(tmp_path, image, lambda raw: struct.pack_into("<f", raw, 80, value))
    assert refusal(path).code == "INPUT_SPACING"


@pytest.mark.parametrize("unit", [1, 3])
def test_units_are_respected(tmp_path: Path, image: Volume, unit: int) -> None:
    """Metres and microns are scaled by ITK; what is then absurd is refused, what is then right is read."""
    assert refusal(patched(tmp_path, image, lambda raw: raw.__setitem__(123, unit))).code == "INPUT_SPACING"
    factor = {1: 1e-3, 3: 1e3}[unit]
    grid = Geometry(GRID.size, tuple(x * factor for x in GRID.spacing), tuple(x * factor for x in GRID.origin),
                    GRID.direction)  # type: ignore[arg-type]  # fmt: skip
    path = patched(tmp_path, Volume(image.voxels, grid), lambda raw: raw.__setitem__(123, unit))
    assert np.allclose(read_volume(path).geometry.spacing, GRID.spacing, rtol=1e-4)


def test_sheared_and_unplaced_nifti(tmp_path: Path, image: Volume) -> None:
    def sform(raw: bytearray, rows: list[float], qform: int = 0) -> None:
        struct.pack_into("<2h", raw, 252, qform, 1)
        struct.pack_into("<12f", raw, 280, *rows)

    sheared = [0, 0, 3.5, 0, -1.2, 0.4, 0, 0, 0, -1.5, 0, 0]
    for qform in (0, 1):  # ITK would take the other orientation without a word
        path = patched(tmp_path, image, lambda raw, q=qform: sform(raw, sheared, q))
        assert refusal(path).code == "INPUT_DIRECTION"
    longer = [0, 0, 3.5, 0, -1.5, 0, 0, 0, 0, -1.5, 0, 0]
    assert refusal(patched(tmp_path, image, lambda raw: sform(raw, longer))).code == "INPUT_SPACING"
    assert refusal(patched(tmp_path, image, lambda raw: sform(raw, [0.0] * 12))).code == "INPUT_SPACING"
    unplaced = patched(tmp_path, image, lambda raw: struct.pack_into("<2h", raw, 252, 0, 0))
    assert refusal(unplaced).code == "INPUT_DIRECTION"


def test_a_nifti_file_s_two_forms_must_agree(tmp_path: Path, image: Volume) -> None:
    """Which of them ITK takes depends on their codes and on a shear of a thousandth."""

    def forms(codes: tuple[int, int], moved: float = 0.0, sheared: float = 0.0, quaternion: float | None = None):  # type: ignore[no-untyped-def]
        def change(raw: bytearray) -> None:
            rows = np.array(struct.unpack_from("<12f", raw, 280)).reshape(3, 4)
            rows[0, 3] += moved
            rows[:, 0] += sheared * rows[:, 1]
            struct.pack_into("<2h", raw, 252, *codes)
            struct.pack_into("<12f", raw, 280, *rows.ravel())
            if quaternion is not None:
                struct.pack_into("<f", raw, 256, quaternion)

        return patched(tmp_path, image, change)

    for sform in (1, 2, 3, 4):
        failure = refusal(forms((1, sform), moved=40))
        assert failure.code == "INPUT_DIRECTION" and "40 mm apart" in failure.cause
        for quaternion in (9.0, np.nan):
            assert refusal(forms((1, sform), quaternion=quaternion)).code == "INPUT_DIRECTION"
        assert read_volume(forms((1, sform), moved=0.2)).geometry.size == GRID.size
    assert "sheared" in refusal(forms((0, 1), sheared=5e-4)).cause
    assert read_volume(forms((1, 1), sheared=5e-4)).geometry.same_grid(GRID)
    for order, flips in builders.axis_orders():
        grid = builders.geometry(order, flips, 23, size=(9, 11, 4))
        assert read_volume(save(builders.volume(grid, 23), tmp_path / "turned.nii")).geometry.same_grid(grid)


def test_reading_in_threads_keeps_stderr(tmp_path: Path, image: Volume, capfd: pytest.CaptureFixture) -> None:
    path = save(image, tmp_path / "v.nrrd")
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read_volume, [path] * 64))) == 64
    os.write(2, b"still heard")
    assert capfd.readouterr().err == "still heard"


NRRD_CASES = {
    "space directions: (0,1.2,0) (0,0.4,-1.5) (-3.5,0,0)": "INPUT_DIRECTION",
    "space directions: (0,0,0) (0,0,-1.5) (-3.5,0,0)": "INPUT_SPACING",
    "space directions: (0,nan,0) (0,0,-1.5) (-3.5,0,0)": "INPUT_SPACING",
    "spacings: 1.2 1.5 3.5": "INPUT_DIRECTION",
    "spacings: 0 1.5 3.5": "INPUT_SPACING",
    "space directions: rubbish": "INPUT_UNREADABLE",
    "": "INPUT_DIRECTION",
}
META_CASES = {
    "TransformMatrix": {
        "TransformMatrix = 0 1 0 0 0.3 -1 -1 0 0": "INPUT_DIRECTION",
        "TransformMatrix = 0 2 0 0 0 -1 -1 0 0": "INPUT_DIRECTION",
        "TransformMatrix = 0 1 0 0": "INPUT_UNREADABLE",
        "transformmatrix = 0 1 0 0 0 -1 -1 0 0": "INPUT_DIRECTION",
        "": "INPUT_DIRECTION",
    },
    "ElementSpacing": {
        "ElementSpacing = 0 1.5 3.5": "INPUT_SPACING",
        "ElementSpacing = -1.2 1.5 3.5": "INPUT_SPACING",
        "ElementSpacing = x y z": "INPUT_UNREADABLE",
        "elementspacing = 1.2 1.5 3.5": "INPUT_SPACING",
        "": "INPUT_SPACING",
    },
    "NDims": {"NDims = 2": "INPUT_UNREADABLE", "": "INPUT_UNREADABLE"},
    "ElementDataFile": {"ElementDataFile = a\0b": "INPUT_UNREADABLE", "ElementDataFile = LIST": "INPUT_UNREADABLE"},
    "ElementType": {"ElementType = MET_OTHER": "INPUT_UNREADABLE"},
    "DimSize": {"DimSize = 48 64 -7": "INPUT_UNREADABLE", "DimSize = 48 64 8": "INPUT_UNREADABLE"},
}


@pytest.mark.parametrize("line", NRRD_CASES)
def test_nrrd_headers(tmp_path: Path, image: Volume, line: str) -> None:
    assert refusal(rewritten(tmp_path, image, ".nrrd", "space directions", line)).code == NRRD_CASES[line]


def test_nrrd_of_an_unknown_space(tmp_path: Path, image: Volume) -> None:
    path = rewritten(tmp_path, image, ".nrrd", "space: ", "space: scanner-xyz")
    assert refusal(path).code == "INPUT_DIRECTION"


def test_meta_headers(tmp_path: Path, image: Volume) -> None:
    for field, cases in META_CASES.items():
        for line, code in cases.items():
            assert refusal(rewritten(tmp_path, image, ".mha", field, line)).code == code, line


def test_axial_stack(tmp_path: Path, image: Volume) -> None:
    grid = builders.geometry(spacing=(1.2, 6.0, 1.2))
    assert refusal(save(Volume(image.voxels, grid), tmp_path / "v.nii.gz")).code == "INPUT_NOT_SAGITTAL"


# --- DICOM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [(False, False, False), (True, True, False), (False, False, True)])
@pytest.mark.parametrize("oblique", [0.0, 13.0])
def test_dicom_series(tmp_path: Path, flips: tuple[bool, bool, bool], oblique: float) -> None:
    volume = builders.volume(builders.geometry(flips=flips, oblique=oblique), oblique)
    builders.write_dicom_series(tmp_path / "Secret Name" / "deep", volume)
    read = read_volume(tmp_path)
    assert read.name == "series 4 (T2 sag)"
    wanted = volume.to_sitk()
    found = sitk.Resample(read.to_sitk(), wanted, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert np.array_equal(sitk.GetArrayFromImage(found), volume.voxels)
    assert np.linalg.det(read.geometry.direction) == pytest.approx(1)


def test_dicom_file_stands_for_its_series(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    builders.write_dicom_series(tmp_path, image, 5, "T1 sag")
    assert read_volume(paths[2]).geometry.size == image.geometry.size
    assert read_volume(paths[2]).name == "series 4 (T2 sag)"


def test_dicom_choice(tmp_path: Path, image: Volume) -> None:
    other = builders.volume(GRID, seed=1)
    builders.write_dicom_series(tmp_path / "a", image, 10, "T2 säg", SpecificCharacterSet="ISO_IR 100")
    builders.write_dicom_series(tmp_path / "b", other, 9, "T1 sag")
    builders.write_dicom_series(tmp_path / "c", image, 2, "CT", Modality="CT")
    listed = list_series(tmp_path)
    assert [one.number for one in listed] == ["2", "9", "10"]
    assert [one.problem.code if one.problem else "" for one in listed] == ["INPUT_MODALITY", "", ""]
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SERIES"
    assert "9: T1 sag, 7 slices; 10: T2 säg, 7 slices" in failure.cause and "CT" not in failure.cause
    assert "--series NUMBER" in failure.remedy
    for series in ("9", "t1 SAG", listed[1].uid):
        assert np.array_equal(read_volume(tmp_path, series).voxels, other.voxels)
    assert refusal(tmp_path, "77").code == "INPUT_SERIES"
    assert refusal(tmp_path, "2").code == "INPUT_MODALITY"


def test_dicom_same_number_twice(tmp_path: Path, image: Volume) -> None:
    for folder in "ab":
        builders.write_dicom_series(tmp_path / folder, image)
    failure = refusal(tmp_path, "4")
    assert failure.code == "INPUT_SERIES" and "UID" in failure.remedy
    uid = list_series(tmp_path)[1].uid
    assert uid in failure.cause
    assert read_volume(tmp_path, uid).geometry.size == image.geometry.size


def test_dicom_localizer_is_not_offered(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path / "a", image)
    for path, plane in zip(builders.write_dicom_series(tmp_path / "b", image, 1, "localizer"), itertools.cycle("sac")):
        change_dicom(path, ImageOrientationPatient={"s": [0, 1, 0, 0, 0, -1], "a": [1, 0, 0, 0, 1, 0],
                                                    "c": [1, 0, 0, 0, 0, -1]}[plane])  # fmt: skip
    assert read_volume(tmp_path).name == "series 4 (T2 sag)"
    assert refusal(tmp_path, "1").code == "INPUT_SLICES"
    assert refusal(tmp_path / "b").code == "INPUT_SLICES"


def change_dicom(path: Path, **elements: object) -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.dcmread(path)
    for key, value in elements.items():
        if value is None:
            delattr(data, key)
        else:
            setattr(data, key, value)
    data.save_as(path)


def test_dicom_missing_slices(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    paths[3].unlink()
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SLICES" and "about 1 of its slices" in failure.cause


def test_dicom_duplicate_slices(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    (tmp_path / "copy").write_bytes(paths[3].read_bytes())
    assert refusal(tmp_path).code == "INPUT_SLICES"


def test_dicom_uneven_slices(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    place = GRID.points(np.array([0, 0, 3.3]))
    change_dicom(paths[3], ImagePositionPatient=place.tolist())
    assert refusal(tmp_path).code == "INPUT_SLICES"
    change_dicom(paths[3], ImagePositionPatient=GRID.points(np.array([0, 0, 3.01])).tolist())
    assert read_volume(tmp_path).geometry.spacing[2] == pytest.approx(GRID.spacing[2])


def test_dicom_mixed_sizes(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    change_dicom(paths[3], PixelSpacing=[1.0, 1.0])
    assert refusal(tmp_path).code == "INPUT_SLICES"


def test_dicom_sheared(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path, image, shift=0.5)
    assert refusal(tmp_path).code == "INPUT_DIRECTION"


def test_dicom_without_place_or_pixel_size(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    change_dicom(paths[1], PixelSpacing=None)
    assert refusal(tmp_path).code == "INPUT_SPACING"
    change_dicom(paths[1], ImagePositionPatient=None)
    assert refusal(tmp_path).code == "INPUT_DIRECTION"


def test_dicom_damaged_file_is_not_a_missing_end(tmp_path: Path, image: Volume) -> None:
    """A last slice that cannot be read would otherwise leave a shorter, even series."""
    paths = builders.write_dicom_series(tmp_path, image)
    paths[-1].write_bytes(paths[-1].read_bytes()[:-500])
    assert refusal(tmp_path).code == "INPUT_UNREADABLE"
    for path in paths[:-1]:
        path.unlink()
    assert refusal(tmp_path).code == "INPUT_UNREADABLE"
    assert refusal(paths[-1]).code == "INPUT_UNREADABLE"


@pytest.mark.parametrize("content", [b"", bytes(100)])
def test_dicom_file_that_did_not_arrive_is_not_a_missing_end(tmp_path: Path, image: Volume, content: bytes) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    for name in ("DICOMDIR", "VERSION", "notes.txt", ".hidden"):  # what else lies on a CD
        (tmp_path / name).write_bytes(content)
    assert read_volume(tmp_path).geometry.size == GRID.size
    whole = paths[-1].read_bytes()
    for name in (paths[-1].name, "slice.dcm", "1.2.840.1"):
        paths[-1].unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path).code == "INPUT_UNREADABLE"
        (tmp_path / name).unlink()
    paths[-1].write_bytes(whole)
    assert read_volume(tmp_path).geometry.size == GRID.size


def test_dicom_padded_with_zeros(tmp_path: Path, image: Volume) -> None:
    for path in builders.write_dicom_series(tmp_path, image):
        path.write_bytes(path.read_bytes() + bytes(512))
    assert np.array_equal(read_volume(tmp_path).voxels, image.voxels)


def test_dicom_without_pixels_beside_images(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path, image)
    spectra = builders.dicom_dataset(SOPClassUID="1.2.840.10008.5.1.4.1.1.4.2", SeriesInstanceUID="1.9")
    spectra.save_as(tmp_path / "spectra.dcm", enforce_file_format=True)
    assert read_volume(tmp_path).geometry.size == GRID.size
    assert "without an image" in refusal(tmp_path / "spectra.dcm").cause


def test_dicom_number_that_is_no_number(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path, image)
    for path in tmp_path.iterdir():
        path.write_bytes(
            path.read_bytes().replace(b"\x20\x00\x11\x00IS\x02\x004 ", b"\x20\x00\x11\x00IS\x02\x00\xc2\xb2")
        )
    assert [one.number for one in list_series(tmp_path)] == ["²"]


def test_dicom_reports_beside_images_are_ignored(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path, image)
    report = builders.dicom_dataset(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", SamplesPerPixel=None,
                                    PhotometricInterpretation=None)  # fmt: skip
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    (tmp_path / "notes.txt").write_text("notes")
    assert read_volume(tmp_path).geometry.size == image.geometry.size
    (tmp_path / "sub").mkdir()
    report.save_as(tmp_path / "sub" / "report.dcm", enforce_file_format=True)
    assert refusal(tmp_path / "sub").code == "INPUT_EMPTY"


def test_dicom_colour(tmp_path: Path, image: Volume) -> None:
    pixels = np.repeat((image.voxels // 4).astype(np.uint8)[..., np.newaxis], 3, axis=-1)
    paths = builders.write_dicom_series(tmp_path, image, SamplesPerPixel=3, PhotometricInterpretation="RGB",
                                        PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7)  # fmt: skip
    for path, part in zip(paths, pixels, strict=True):
        change_dicom(path, PixelData=part.tobytes())
    assert refusal(tmp_path).code == "INPUT_PIXEL_TYPE"


def test_dicom_rescaled_slice_by_slice(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    for k, path in enumerate(paths):
        change_dicom(path, RescaleSlope=1 + k / 4, RescaleIntercept=0)
    factors = 1 + np.arange(len(paths)) / 4
    read = read_volume(tmp_path)
    assert np.allclose(read.voxels, image.voxels * factors[:, np.newaxis, np.newaxis])


def test_dicom_one_slice(tmp_path: Path) -> None:
    volume = builders.volume(builders.geometry(size=(48, 64, 1)))
    path = builders.write_dicom_series(tmp_path, volume)[0]
    read = read_volume(tmp_path)
    assert np.array_equal(read.voxels, volume.voxels)
    assert read.geometry.same_grid(volume.geometry)
    change_dicom(path, SliceThickness=None)
    assert refusal(tmp_path).code == "INPUT_SPACING"
    change_dicom(path, SliceThickness=3.5, SpacingBetweenSlices=0)
    assert "0 mm apart" in refusal(tmp_path).cause  # ITK makes no image of it


@pytest.mark.parametrize("order", [list(range(7)), list(range(6, -1, -1)), [0, 2, 4, 6, 1, 3, 5]])
def test_dicom_enhanced(tmp_path: Path, image: Volume, order: list[int]) -> None:
    builders.write_enhanced(tmp_path / "enhanced.dcm", image, order)
    for path in (tmp_path, tmp_path / "enhanced.dcm"):
        read = read_volume(path)
        assert read.name == "series 9 (3D T2)"
        found = sitk.Resample(read.to_sitk(), image.to_sitk(), sitk.Transform(), sitk.sitkNearestNeighbor)
        assert np.array_equal(sitk.GetArrayFromImage(found), image.voxels)


def test_dicom_enhanced_with_a_gap(tmp_path: Path, image: Volume) -> None:
    builders.write_enhanced(tmp_path / "e.dcm", image, list(range(7)), [0, 1, 2, 4, 5, 6, 7])
    assert refusal(tmp_path / "e.dcm").code == "INPUT_SLICES"


def change_frames(path: Path, change: Callable[[int, Any], None]) -> None:
    """Change the item of each frame of an enhanced file."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.dcmread(path)
    for number, item in enumerate(data.PerFrameFunctionalGroupsSequence):
        change(number, item)
    data.save_as(path)


def test_dicom_enhanced_with_a_maker_s_own_positions(tmp_path: Path, image: Volume) -> None:
    """Philips repeats place and direction of each frame in a private sequence, the place half a voxel off."""
    from pydicom.dataset import Dataset

    def repeat(number: int, item: Any) -> None:
        own = Dataset()
        own.ImagePositionPatient = [7.0, 7.0, 7.0 + number]
        own.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        own.PixelSpacing = [9, 9]
        item.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [own])

    builders.write_enhanced(tmp_path / "e.dcm", image, list(range(7)))
    wanted = read_volume(tmp_path)
    change_frames(tmp_path / "e.dcm", repeat)
    assert read_volume(tmp_path).geometry.same_grid(wanted.geometry)


def test_dicom_enhanced_rescaled_frame_by_frame(tmp_path: Path, image: Volume) -> None:
    from pydicom.dataset import Dataset

    slopes, intercepts = 2 - np.arange(7) / 8, np.arange(7) * 3.0

    def rescale(number: int, item: Any) -> None:
        own = Dataset()
        own.RescaleSlope, own.RescaleIntercept, own.RescaleType = slopes[number], intercepts[number], "US"
        item.PixelValueTransformationSequence = [own]

    builders.write_enhanced(tmp_path / "e.dcm", image, list(range(7)))
    plain = read_volume(tmp_path).voxels
    change_frames(tmp_path / "e.dcm", rescale)
    order = slice(None) if np.array_equal(plain, image.voxels) else slice(None, None, -1)
    wanted = image.voxels * slopes[:, None, None] + intercepts[:, None, None]
    assert np.allclose(read_volume(tmp_path).voxels, wanted[order])


def test_dicom_enhanced_file_by_file(tmp_path: Path, image: Volume) -> None:
    """A series in files of one frame each, and one in two files of interleaved slices."""
    for number, order in enumerate([[0, 2, 4, 6], [1, 3, 5]]):
        builders.write_enhanced(tmp_path / f"{number}.dcm", image, order)
    for path in (tmp_path, tmp_path / "0.dcm", tmp_path / "1.dcm"):
        assert read_volume(path).geometry.size == GRID.size
    builders.write_enhanced(tmp_path / "2.dcm", image, list(range(7)))  # the same slices once more
    assert refusal(tmp_path).code == "INPUT_SLICES"
    assert read_volume(tmp_path / "2.dcm").geometry.size == GRID.size
    for k in range(7):
        builders.write_enhanced(tmp_path / f"{k}.dcm", image, [k])
    assert read_volume(tmp_path).geometry.size == GRID.size
    assert np.array_equal(np.sort(read_volume(tmp_path).voxels, 0), np.sort(image.voxels, 0))


def test_dicom_links_do_not_loop(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path / "a", image)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(list_series(tmp_path)) == 1
    with pytest.raises(InputError) as caught:
        list_series(tmp_path / "absent")
    assert caught.value.code == "INPUT_NOT_FOUND"
