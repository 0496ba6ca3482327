"""Reading volumes: every format and axis order gives the same voxels and place; every bad input its own code.

What is wrong with a single file or series is in the corpus of bad inputs; here is what needs more than its code.
"""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from bad_inputs import FORMATS, GOOD, WORKS, Case, changed, images, nifti, save

from SAUNetLib import process
from SAUNetLib.errors import InputError, UsageError
from SAUNetLib.formats import dicom, headers, itk
from SAUNetLib.formats.dicom import list_series
from SAUNetLib.formats.dicom_files import is_dicom, unreadable
from SAUNetLib.formats.segmentations import write_segmentation
from SAUNetLib.formats.volumes import read_volume, write_volume
from SAUNetLib.volume import Geometry, Volume

GRID = builders.geometry()


@pytest.fixture(scope="module")
def image() -> Volume:
    return builders.volume(GRID)


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


@pytest.mark.parametrize("case", images(), ids=lambda case: case.title)
def test_the_corpus_of_bad_inputs(tmp_path: Path, case: Case, capfd: pytest.CaptureFixture) -> None:
    """On every system; test_bad_input.py adds pipes, devices, bombs and odd names, and what the engine refuses."""
    made = case.make(tmp_path)
    path, series = (made["image"], made.get("series")) if isinstance(made, dict) else (made, None)
    capfd.readouterr()
    if case.code == WORKS:
        found = sitk.Resample(read_volume(path, series).to_sitk(), GOOD.to_sitk(), sitk.Transform(),
                              sitk.sitkNearestNeighbor)  # fmt: skip
        assert np.array_equal(sitk.GetArrayFromImage(found), GOOD.voxels)
    else:
        assert refusal(path, series).code == case.code
    assert capfd.readouterr() == ("", ""), "what libraries print is nothing for users"


@pytest.mark.parametrize("ending", FORMATS)
def test_formats_agree(tmp_path: Path, ending: str) -> None:
    for order, flips, oblique in (((0, 1, 2), (False,) * 3, 0), ((2, 0, 1), (True, False, True), 11)):
        volume = builders.volume(builders.geometry(order, flips, oblique), oblique)
        path = save(tmp_path, ending, volume, compressed=True, name="wirbelsäule 脊椎")
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
        read = read_volume(save(tmp_path, ending, volume, compressed=True))
        assert read.geometry.same_grid(volume.geometry)
        assert np.array_equal(read.voxels, volume.voxels)


@pytest.mark.parametrize("size", [(20, 24, 1), (20, 24, 60)])
def test_one_slice_and_many(tmp_path: Path, size: tuple[int, int, int]) -> None:
    volume = builders.volume(builders.geometry(size=size, spacing=(2, 2, 1.5)))
    read = read_volume(save(tmp_path, ".nii.gz", volume))
    assert read.geometry.size == size
    assert np.array_equal(read.voxels, volume.voxels)


def test_rescaled_nifti(tmp_path: Path, image: Volume) -> None:
    path = nifti(lambda raw: struct.pack_into("<2f", raw, 112, 2.0, -10.0), image)(tmp_path)
    assert np.allclose(read_volume(path).voxels, image.voxels * 2.0 - 10.0)


@pytest.mark.parametrize(
    ("size", "kind", "told"),
    [
        ((512, 512, 1000), (16, 32), "voxels (0.977 GiB); the limit is 0.5 GiB. Save it with 16 bits"),
        ((2048, 1024, 1024), (4, 16), "voxels (4.000 GiB); the limit is 0.5 GiB. Crop"),
        ((2048, 1024, 1024), (16, 32), "voxels (8.000 GiB); the limit is 0.5 GiB. Crop"),
    ],
)
def test_a_volume_that_is_too_large_is_refused_with_the_limit_and_what_helps(
    tmp_path: Path, image: Volume, size: tuple[int, int, int], kind: tuple[int, int], told: str
) -> None:
    def declare(raw: bytearray) -> None:
        struct.pack_into("<4h", raw, 40, 3, *size)
        struct.pack_into("<2h", raw, 70, *kind)

    failure = refusal(nifti(declare, image)(tmp_path))
    assert failure.code == "INPUT_TOO_LARGE" and told in f"{failure.cause} {failure.remedy}"


def test_another_file_of_the_same_stem(tmp_path: Path, image: Volume) -> None:
    """ITK takes the voxels of image.nii when asked for image.nii.gz."""
    save(tmp_path, ".nii", Volume(image.voxels[::-1].copy(), GRID))
    assert np.array_equal(read_volume(save(tmp_path, ".nii.gz", image)).voxels, image.voxels)


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nii.Gz", ".nii.GZ", ".Nii", ".NRRD", ".Mha"])
def test_endings_in_any_case(tmp_path: Path, image: Volume, ending: str) -> None:
    written = tmp_path / f"x{ending}"
    write_volume(image, written)
    assert np.array_equal(read_volume(written).voxels, image.voxels)


@pytest.mark.parametrize("ending", [".Mhd", ".NHdr"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("stored", ["x.raw", "below/x.raw", "../x y.raw", "{folder}/x.raw", "R\u00f6ntgen.raw"])
def test_a_header_of_any_case_is_read_with_the_voxels_that_it_names(
    tmp_path: Path, image: Volume, ending: str, compressed: bool, stored: str
) -> None:
    folder = tmp_path / "image"
    (folder / "below").mkdir(parents=True)
    header = folder / f"x{ending}"
    sitk.WriteImage(image.to_sitk(), str(folder / f"x{ending.lower()}"), useCompression=compressed)
    (voxels,) = folder.glob("x*raw*")
    stored = stored.format(folder=folder)
    text = (folder / f"x{ending.lower()}").read_bytes().replace(voxels.name.encode(), stored.encode())
    header.write_bytes(text)
    voxels.rename(folder / stored)
    assert np.array_equal(read_volume(header).voxels, image.voxels)
    assert header.read_bytes() == text


def test_real_volumes(shared_data: Path) -> None:
    read = read_volume(shared_data / "real_volumes" / "t2_lumbar.nii.gz")
    assert read.geometry.size == (38, 257, 201)
    assert np.allclose(read.geometry.spacing, 1)


def test_gzip_bomb_in_bounded_memory(tmp_path: Path, image: Volume) -> None:
    """128 MB of zeros behind a header that declares 432 MB: counted without holding more than some chunks."""
    header = bytearray(save(tmp_path, ".nii", image).read_bytes()[:352])
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


@pytest.mark.parametrize("unit", [1, 3])
def test_units_are_respected(tmp_path: Path, image: Volume, unit: int) -> None:
    """Metres and microns are scaled by ITK; what is then right is read."""
    factor = {1: 1e-3, 3: 1e3}[unit]
    grid = Geometry(GRID.size, tuple(x * factor for x in GRID.spacing), tuple(x * factor for x in GRID.origin),
                    GRID.direction)  # type: ignore[arg-type]  # fmt: skip
    path = nifti(lambda raw: raw.__setitem__(123, unit), Volume(image.voxels, grid))(tmp_path)
    assert np.allclose(read_volume(path).geometry.spacing, GRID.spacing, rtol=1e-4)


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

        return nifti(change, image)(tmp_path)

    for sform in (1, 2, 3, 4):
        failure = refusal(forms((1, sform), moved=40))
        assert failure.code == "INPUT_DIRECTION" and "40 mm apart" in failure.cause
        for quaternion in (9.0, np.nan):
            assert refusal(forms((1, sform), quaternion=quaternion)).code == "INPUT_DIRECTION"
        assert read_volume(forms((1, sform), moved=0.45 * min(GRID.spacing))).geometry.size == GRID.size
        assert refusal(forms((1, sform), moved=0.6 * min(GRID.spacing))).code == "INPUT_DIRECTION"
    assert "sheared" in refusal(forms((0, 1), sheared=5e-4)).cause
    assert read_volume(forms((1, 1), sheared=5e-4)).geometry.same_grid(GRID)
    for order, flips in builders.axis_orders():
        grid = builders.geometry(order, flips, 23, size=(9, 11, 4))
        assert read_volume(save(tmp_path, ".nii", builders.volume(grid, 23))).geometry.same_grid(grid)


def test_a_nifti_file_s_two_voxel_sizes_must_agree_to_a_hundredth(tmp_path: Path, image: Volume) -> None:
    """Also where they differ by less than a tenth of a millimetre."""
    for factor, works in ((1.005, True), (1.02, False)):
        path = nifti(lambda raw, factor=factor: struct.pack_into("<f", raw, 80, 1.2 * factor), image)(tmp_path)
        if works:
            assert read_volume(path).geometry.size == GRID.size
        else:
            failure = refusal(path)
            assert failure.code == "INPUT_SPACING" and "two voxel sizes" in failure.cause


def test_reading_in_threads_keeps_stderr(tmp_path: Path, image: Volume, capfd: pytest.CaptureFixture) -> None:
    path = save(tmp_path, ".nrrd", image)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read_volume, [path] * 64))) == 64
    os.write(2, b"still heard")
    assert capfd.readouterr().err == "still heard"


@pytest.mark.parametrize("shown", [True, False])
def test_reading_leaves_itk_s_warnings_to_the_caller(tmp_path: Path, image: Volume, shown: bool) -> None:
    path = save(tmp_path, ".nrrd", image)
    (tmp_path / "torn.nii").write_bytes(b"nothing")
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    try:
        read_volume(path)
        with pytest.raises(InputError):
            read_volume(tmp_path / "torn.nii")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read_volume, [path] * 16))
        assert sitk.ProcessObject.GetGlobalWarningDisplay() is shown
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


@pytest.mark.parametrize("ours", [True, False])
def test_stderr_is_silenced_only_in_processes_of_ours(ours: bool, monkeypatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(process, "ours", ours)
    with itk.unheard():
        os.write(2, b"heard")
    assert capfd.readouterr().err == ("" if ours else "heard")


@pytest.mark.parametrize("ours", [True, False])
def test_a_process_may_have_no_stderr(tmp_path: Path, image: Volume, monkeypatch, ours: bool) -> None:
    """As one without a console on Windows."""
    monkeypatch.setattr(process, "ours", ours)
    monkeypatch.setattr(sys, "stderr", None)
    assert np.array_equal(read_volume(save(tmp_path, ".nrrd", image)).voxels, image.voxels)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("ours", [True, False])
def test_a_process_forked_meanwhile_reads_and_is_heard(monkeypatch, capfd: pytest.CaptureFixture, ours: bool) -> None:
    monkeypatch.setattr(process, "ours", ours)
    inside, end, before = threading.Event(), threading.Event(), sitk.ProcessObject.GetGlobalWarningDisplay()

    def read() -> None:
        with itk.unheard():
            inside.set()
            end.wait()

    thread = threading.Thread(target=read)
    thread.start()
    inside.wait()
    if (child := os.fork()) == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)  # it may wait for a thread that it does not have
            os.write(2, b"heard")
            assert sitk.ProcessObject.GetGlobalWarningDisplay() is before
            with itk.unheard():
                os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    end.set()
    thread.join()
    assert (os.waitstatus_to_exitcode(status), capfd.readouterr().err) == (0, "heard")


def test_itk_warns_of_nothing_meanwhile() -> None:
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    with itk.unheard():
        assert not sitk.ProcessObject.GetGlobalWarningDisplay()
    assert sitk.ProcessObject.GetGlobalWarningDisplay() is before


def test_nrrd_voxels_have_the_bytes_that_pynrrd_gives_them(tmp_path: Path, image: Volume, monkeypatch) -> None:
    known = {kind: np.dtype(code).itemsize for kind, code in nrrd.reader._TYPEMAP_NRRD2NUMPY.items() if kind != "block"}
    assert known == headers._NRRD_BYTES
    path = save(tmp_path, ".nrrd", image)
    monkeypatch.delattr(nrrd.reader, "_TYPEMAP_NRRD2NUMPY")  # private: a later pynrrd may have another name for it
    assert headers.check_file(path, ".nrrd") == image.voxels.nbytes
    path.write_bytes(path.read_bytes().replace(b"type: ", b"type: un", 1))
    with pytest.raises(InputError, match="voxel type is unknown"):
        headers.check_file(path, ".nrrd")


def test_no_nrrd_file_is_damaged_where_pynrrd_is_broken(tmp_path: Path, image: Volume, monkeypatch) -> None:
    path = save(tmp_path, ".nrrd", image)
    monkeypatch.setitem(sys.modules, "nrrd", types.ModuleType("nrrd"))  # as a file nrrd.py in the folder of a script
    with pytest.raises(ImportError):
        headers.check_file(path, ".nrrd")


def test_voxels_that_something_unpacked_beside_their_header_are_read_and_their_length_checked(
    tmp_path: Path, image: Volume
) -> None:
    path = tmp_path / "a.nhdr"
    sitk.WriteImage(image.to_sitk(), str(path), useCompression=True)
    (voxels,) = tmp_path.glob("*.gz")
    voxels.write_bytes(gzip.decompress(voxels.read_bytes()))
    assert np.array_equal(read_volume(path).voxels, image.voxels)
    voxels.write_bytes(voxels.read_bytes()[:-1])
    with pytest.raises(InputError, match="holds"):
        read_volume(path)


def test_a_label_map_that_did_not_get_onto_the_disk_whole_is_noticed_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    write_segmentation(builders.segmentation(builders.geometry(size=(8, 10, 3))), path)
    whole = path.read_bytes()
    headers.check_written(path, ".nrrd")
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(OSError, match="not written completely"):
            headers.check_written(path, ".nrrd")


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(("lines", "text", "read"), [
    (9 * 1000, b"v", True), (9 * 200, b"v" * 500, True), (10**4, b"v", False), (1, b"v" * 2**20, False),
])  # fmt: skip
def test_an_nrrd_header_that_would_take_itk_for_ever_is_refused(
    tmp_path: Path, image: Volume, ending: str, line_end: bytes, lines: int, text: bytes, read: bool
) -> None:
    """That of a thousand segments is read."""
    path = save(tmp_path, ending, image)
    head, empty, voxels = path.read_bytes().partition(b"\n\n")
    head = b"\n".join([head.rstrip(b"\n"), *(b"key%d:=%s" % (number, text) for number in range(lines))])
    path.write_bytes((head + (empty or b"\n")).replace(b"\n", line_end) + voxels)
    if read:
        assert headers.check_file(path, ending) == image.voxels.nbytes
    else:
        failure = refusal(path)
        assert failure.code == "INPUT_UNREADABLE" and "header" in failure.cause


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
    assert f"7 slices, UID {uid}, in b" in failure.cause
    assert read_volume(tmp_path, uid).geometry.size == image.geometry.size


@pytest.mark.parametrize(("element", "what"), [("PatientID", "patients"), ("StudyInstanceUID", "studies")])
def test_dicom_of_several_patients_the_only_series_that_can_be_used_is_not_taken_unasked(
    tmp_path: Path, image: Volume, element: str, what: str
) -> None:
    axial = builders.volume(replace(GRID, direction=np.eye(3)))
    builders.write_dicom_series(tmp_path / "a", axial, number=3)
    paths = builders.write_dicom_series(tmp_path / "b" / "c", image, number=4)
    assert read_volume(tmp_path).geometry.size == GRID.size
    for path in paths:
        changed(path, **{element: "9.8.7"})
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SERIES" and f"of several {what}" in failure.cause and "in b/c" in failure.cause
    assert "9.8.7" not in failure.cause and failure.remedy == "Choose one with --series NUMBER."
    assert read_volume(tmp_path, "4").geometry.size == GRID.size
    for path in builders.write_dicom_series(tmp_path / "d", axial, number=4):
        changed(path, SeriesInstanceUID="1.2.3")
    assert refusal(tmp_path).remedy == "Choose one with --series UID."
    for path in (*tmp_path.glob("a/*"), *tmp_path.glob("d/*")):  # pictures of the screen, of whatever patient
        changed(path, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2")
    assert read_volume(tmp_path).geometry.size == GRID.size


def test_dicom_a_series_without_orientation_may_be_the_one_that_is_meant(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path / "a", first_slices(image, 3), number=1, description="localizer")
    paths = builders.write_dicom_series(tmp_path / "b", image, number=5)
    for path in paths:
        changed(path, ImageOrientationPatient=None)
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SERIES" and "series 5 (T2 sag) cannot be used" in failure.cause
    for path in paths:  # pictures of the screen, which no one means
        changed(path, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2")
    assert read_volume(tmp_path).name == "series 1 (localizer)"


@pytest.mark.parametrize(("element", "what"), [("PatientID", "patients"), ("StudyInstanceUID", "studies")])
def test_dicom_slices_of_two_patients_are_no_series(tmp_path: Path, image: Volume, element: str, what: str) -> None:
    """As where an anonymiser gives all series one UID."""
    paths = builders.write_dicom_series(tmp_path, image)
    changed(paths[0], **{element: ""})  # what is not stated says nothing
    assert read_volume(tmp_path).geometry.size == GRID.size
    for path in paths[4:]:
        changed(path, **{element: "9.8.7"})
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SERIES" and f"belong to several {what}" in failure.cause
    assert "9.8.7" not in str(failure) and "SECRET" not in str(failure) and "SECRET" not in repr(list_series(tmp_path))
    assert "SECRET" not in repr(list_series(tmp_path)[0].frames)


def test_dicom_series_without_a_uid_are_told_apart(tmp_path: Path, image: Volume) -> None:
    others = {"PatientID": "other"}, {"StudyInstanceUID": "9.8.7"}, {"SeriesNumber": 5}
    for folder, elements in zip("abcd", ({}, *others), strict=True):
        for path in builders.write_dicom_series(tmp_path / folder, image):
            changed(path, SeriesInstanceUID=None, **elements)
            path.rename(tmp_path / f"{path.name}-{folder}")
    listed = list_series(tmp_path)
    assert [(one.slices, one.problem) for one in listed] == [(len(image.voxels), None)] * 4
    assert len({one.key for one in listed}) == 4
    assert read_volume(tmp_path / "IM000-4-c").geometry.size == GRID.size


@pytest.mark.parametrize(
    "element", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"]
)
@pytest.mark.parametrize("number", [b"1e400", b"  nan", b"1e308"])
def test_dicom_one_number_that_is_none_spoils_no_other_series(
    tmp_path: Path, image: Volume, element: str, number: bytes
) -> None:
    one = builders.volume(builders.geometry(size=(48, 64, 1)))  # of which the thickness counts
    paths = builders.write_dicom_series(tmp_path, one if element == "SliceThickness" else image, number=3)
    builders.write_dicom_series(tmp_path, image, number=4)
    changed(paths[0], **{element: [7.125] * {"I": 3, "P": 2, "S": 1}[element[0]] * (1 + ("Or" in element))})
    paths[0].write_bytes(paths[0].read_bytes().replace(b"7.125", number))
    spoilt, whole = list_series(tmp_path)
    assert spoilt.problem is not None and whole.problem is None


def test_dicom_localizer_is_not_offered(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path / "a", image)
    for path, plane in zip(builders.write_dicom_series(tmp_path / "b", image, 1, "localizer"), itertools.cycle("sac")):
        changed(path, ImageOrientationPatient={"s": [0, 1, 0, 0, 0, -1], "a": [1, 0, 0, 0, 1, 0],
                                               "c": [1, 0, 0, 0, 0, -1]}[plane])  # fmt: skip
    assert read_volume(tmp_path).name == "series 4 (T2 sag)"
    assert refusal(tmp_path, "1").code == "INPUT_SLICES"
    assert refusal(tmp_path / "b").code == "INPUT_SLICES"


def test_dicom_axes_that_were_rounded_are_perpendicular_in_every_format(tmp_path: Path) -> None:
    turned = replace(GRID, direction=builders.euler((12, -7, 9)) @ np.asarray(GRID.direction))
    paths = builders.write_dicom_series(tmp_path / "study", builders.volume(turned))
    for path in paths:
        exact = np.asarray(turned.direction)[:, :2].T.ravel()
        changed(path, ImageOrientationPatient=[float(value) for value in np.round(exact, 3)])
    read = read_volume(tmp_path / "study")
    axes = np.asarray(read.geometry.direction)
    assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-9
    corners = np.array(list(itertools.product(*((0, n - 1) for n in turned.size))))
    assert np.abs(read.geometry.points(corners) - turned.points(corners)).max() < 0.1 * min(turned.spacing)
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_volume(read, tmp_path / f"a{ending}")
        again = read_volume(tmp_path / f"a{ending}").geometry
        assert np.abs(again.points(corners) - read.geometry.points(corners)).max() < 1e-3


@pytest.mark.parametrize(("shift", "works"), [(0.03, True), (-0.03, True), (0.08, False), (-0.08, False)])
def test_dicom_slices_may_be_shifted_by_a_fifth_of_a_pixel_either_way(
    tmp_path: Path, image: Volume, shift: float, works: bool
) -> None:
    """The last of seven by six times this many mm; a pixel measures 1.2 mm, the slices lie 3.5 mm apart."""
    builders.write_dicom_series(tmp_path, image, shift=shift)
    if works:
        assert read_volume(tmp_path).geometry.size == GRID.size
    else:
        assert refusal(tmp_path).code == "INPUT_DIRECTION"


def test_dicom_missing_slices(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    paths[3].unlink()
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SLICES" and "about 1 of its slices" in failure.cause


def test_dicom_uneven_slices(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    place = GRID.points(np.array([0, 0, 3.3]))
    changed(paths[3], ImagePositionPatient=place.tolist())
    assert refusal(tmp_path).code == "INPUT_SLICES"
    changed(paths[3], ImagePositionPatient=GRID.points(np.array([0, 0, 3.01])).tolist())
    assert read_volume(tmp_path).geometry.spacing[2] == pytest.approx(GRID.spacing[2])
    changed(paths[-1], ImagePositionPatient=GRID.points(np.array([0, 0, 2.5])).tolist())
    assert refusal(tmp_path).code == "INPUT_SLICES", "one too many, and no gap"


def test_dicom_slices_that_are_slightly_uneven_end_where_the_last_one_lies(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    changed(paths[-1], ImagePositionPatient=GRID.points(np.array([0, 0, 6.04])).tolist())
    assert read_volume(tmp_path).geometry.spacing[2] == pytest.approx(GRID.spacing[2] * 6.04 / 6)


@pytest.mark.parametrize("content", [b"", bytes(100)])
def test_dicom_file_that_did_not_arrive_is_not_a_missing_end(tmp_path: Path, image: Volume, content: bytes) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    for name in ("DICOMDIR", "VERSION", "notes.txt", ".hidden"):  # what else lies on a CD
        (tmp_path / name).write_bytes(content)
    assert read_volume(tmp_path).geometry.size == GRID.size
    whole = paths[-1].read_bytes()
    for name in (paths[-1].name, "slice.dcm"):
        paths[-1].unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path).code == "INPUT_UNREADABLE"
        (tmp_path / name).unlink()
    paths[-1].write_bytes(whole)
    assert read_volume(tmp_path).geometry.size == GRID.size


@pytest.mark.parametrize(
    "names",
    ["1.2.840.{}", "MR.1.2.{}", "IM{:06d}", "E12S3I{}", "4C5D6E7{}", "Doe_John_{:04d}", "export{:03d}", "a.{}.img",
     "T2_SAG_TSE_{}", "{}.MRDC", "{}"],
)  # fmt: skip
def test_dicom_an_empty_file_is_lost_if_it_is_named_as_the_images(tmp_path: Path, image: Volume, names: str) -> None:
    for number, path in enumerate(builders.write_dicom_series(tmp_path, image)):
        path.rename(tmp_path / names.format(number))
    for mark in ("transfer.log.1", "run_0", "finished1", "scan", "study2024"):
        (tmp_path / mark).write_bytes(b"")
    assert read_volume(tmp_path).geometry.size == GRID.size
    (tmp_path / names.format(6)).write_bytes(b"")
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_UNREADABLE" and names.format(6) in failure.cause
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert refusal(tmp_path).code in ("INPUT_UNREADABLE", "INPUT_EMPTY")


@pytest.mark.parametrize("content", [bytes(400_000), b"<html>error 503</html>" * 100])
def test_dicom_file_that_arrived_as_something_else_is_not_a_missing_end(
    tmp_path: Path, image: Volume, content: bytes
) -> None:
    """Zeros are what an interrupted copy leaves that had reserved the room."""
    paths = builders.write_dicom_series(tmp_path, image)
    last = paths[-1].with_suffix(".dcm")
    paths[-1].unlink()
    last.write_bytes(content)
    assert refusal(tmp_path).code == "INPUT_UNREADABLE"
    last.unlink()
    (tmp_path / "IM019-4").write_bytes(content)  # a name that says less
    told = content[:1] == b"\0"
    if told:
        assert refusal(tmp_path).code == "INPUT_UNREADABLE"
    else:
        assert read_volume(tmp_path).geometry.size[2] == GRID.size[2] - 1


def test_what_may_not_be_opened_is_no_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", closed)
        found = refusal(tmp_path / "closed" / "a.nii.gz")
    assert found.code == "INPUT_UNREADABLE" and "permissions" in found.remedy
    assert refusal(tmp_path / "none.nii.gz").code == "INPUT_NOT_FOUND"


def test_a_folder_that_may_not_be_listed_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study"
    folder.mkdir()

    def walk(top: Path, onerror: Any) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", str(top)))
        return iter(())

    monkeypatch.setattr("SAUNetLib.formats.dicom_files.os.walk", walk)
    found = refusal(folder)
    assert found.code == "INPUT_UNREADABLE" and "the folder study cannot be read" in found.cause
    assert "permissions" in found.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_study_with_a_folder_that_may_not_be_searched_is_no_bug(tmp_path: Path) -> None:
    """As after chmod -R 644; root itself may search every folder."""
    (tmp_path / "study" / "sub").mkdir(parents=True)
    (tmp_path / "study" / "sub" / "IM0001").write_bytes(b"DICM" * 100)
    (tmp_path / "study" / "sub").chmod(0o444)
    code = (
        "import sys\n"
        "from SAUNetLib.errors import InputError\n"
        "from SAUNetLib.formats.volumes import read_volume\n"
        "try:\n"
        "    read_volume(sys.argv[1])\n"
        "except InputError as error:\n"
        "    print(error.code, error.cause, error.remedy)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "study")]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to be like anybody else")
        none = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", none, "--inh-caps", none, *command]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    (tmp_path / "study" / "sub").chmod(0o755)
    assert done.stdout.startswith("INPUT_UNREADABLE the folder sub cannot be read"), done
    assert "permissions" in done.stdout


def test_many_lost_files_are_told_of_without_comparing_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda folder, mode: asked.append(folder) or folder.name != "shut")
    lost = [Path("study", folder, f"IM{number:04d}") for folder in ("a", "b") for number in range(2000)]
    assert "4000 DICOM files of the folder cannot be read, IM0000 and 3999 more" in str(unreadable(lost))
    assert asked == [Path("study", "a"), Path("study", "b")], "each folder is looked at once"
    assert "the folder shut cannot be read" in str(unreadable([*lost, Path("study", "shut", "IM0000")]))
    few, many = (builders.least_seconds(lambda count=count: unreadable(lost[:count])) for count in (500, 4000))
    assert many < 24 * few, "in proportion to their number: 8 times as many"


@pytest.mark.parametrize("harm", ["cut", "empty", "closed", "dangling"])
@pytest.mark.parametrize("apart", [1, 3])
def test_dicom_slices_in_several_folders_are_missed(
    tmp_path: Path, image: Volume, monkeypatch: pytest.MonkeyPatch, harm: str, apart: int
) -> None:
    """As CDs and archives split a series: what cannot be read of the last folder must not be left out unsaid."""
    ordered = builders.write_dicom_series(tmp_path / "all", image)
    study = tmp_path / "study"
    for number, path in enumerate(ordered):
        folder = study / f"{number // apart:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    assert read_volume(study).geometry.same_grid(image.geometry)
    last = study / f"{(len(ordered) - 1) // apart:03d}"
    for path in list(last.iterdir()):
        if harm == "cut":
            path.write_bytes(path.read_bytes()[:-300])
        elif harm == "empty":
            path.write_bytes(b"")
        elif harm == "dangling":
            path.unlink()
            path.symlink_to(tmp_path / "gone")
    if harm == "closed":  # to root nothing is
        scan = os.scandir

        def scandir(folder):
            if Path(folder) == last:
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
            return scan(folder)

        monkeypatch.setattr(os, "scandir", scandir)
    failure = refusal(study)
    assert failure.code == "INPUT_UNREADABLE" and "cannot be read" in failure.cause


def first_slices(image: Volume, count: int) -> Volume:
    box = tuple(slice(0, n) for n in (count, *image.voxels.shape[1:]))
    return replace(image, voxels=image.voxels[:count], geometry=image.geometry.part(box))


def test_dicom_a_damaged_localizer_harms_no_other_series(tmp_path: Path, image: Volume) -> None:
    small = first_slices(image, 3)
    paths = builders.write_dicom_series(tmp_path, small, number=1, description="localizer")
    builders.write_dicom_series(tmp_path, image, number=4)
    paths[2].write_bytes(paths[2].read_bytes()[:-300])
    (tmp_path / "notes").write_text("seen by Dr. X")
    assert read_volume(tmp_path, series="4").geometry.same_grid(image.geometry)
    assert read_volume(tmp_path).geometry.same_grid(image.geometry)
    assert paths[2].name in refusal(tmp_path, series="1").cause


@pytest.mark.parametrize("fault", ["cut", "missing", "twice", "no place"])
def test_dicom_where_the_main_series_is_damaged_its_localizer_is_not_taken_for_it(
    tmp_path: Path, image: Volume, fault: str
) -> None:
    builders.write_dicom_series(tmp_path, first_slices(image, 1), number=1, description="localizer")
    paths = sorted(builders.write_dicom_series(tmp_path, image, number=5, description="T2 sag"))
    if fault == "cut":
        paths[2].write_bytes(paths[2].read_bytes()[:-300])
    elif fault == "missing":
        paths[2].unlink()
    elif fault == "twice":
        (tmp_path / "copy").write_bytes(paths[2].read_bytes() + bytes(2))
    else:
        changed(paths[2], ImagePositionPatient=None)
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SERIES" and "series 5 (T2 sag) cannot be used" in failure.cause
    assert "1: localizer, 1 slices" in failure.cause and "--series" in failure.remedy
    assert read_volume(tmp_path, series="1").geometry.size[2] == 1


def test_dicom_a_series_most_of_whose_files_are_damaged_may_be_the_one_that_is_meant(
    tmp_path: Path, image: Volume
) -> None:
    """Two of its seven slices can be read; the other series, of five, was not taken unasked."""
    builders.write_dicom_series(tmp_path, first_slices(image, 5), number=1, description="other")
    paths = builders.write_dicom_series(tmp_path, image, number=5, description="T2 sag")
    for path in paths[1:-1]:
        path.write_bytes(path.read_bytes()[:-300])
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SERIES" and "series 5 (T2 sag) cannot be used" in failure.cause


@pytest.mark.parametrize("kind", ["slices", "enhanced"])
def test_dicom_a_series_of_which_nothing_can_be_read_is_told(tmp_path: Path, image: Volume, kind: str) -> None:
    """As an enhanced one, which is one file; the only other series was taken for the one that was meant."""
    builders.write_dicom_series(tmp_path / "a", first_slices(image, 3), number=1, description="localizer")
    if kind == "enhanced":
        (tmp_path / "b").mkdir()
        paths = [tmp_path / "b" / "all.dcm"]
        builders.write_enhanced(paths[0], image, list(range(len(image.voxels))))
    else:
        paths = builders.write_dicom_series(tmp_path / "b", image, number=9, description="3D T2")
    for path in paths:
        path.write_bytes(path.read_bytes()[:-300])
    assert [(one.number, one.slices, one.problem is None) for one in list_series(tmp_path)] == [
        ("1", 3, True), ("9", len(image.voxels), False),
    ]  # fmt: skip
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_SERIES" and "series 9 (3D T2) cannot be used" in failure.cause
    assert refusal(tmp_path, "9").code == "INPUT_UNREADABLE"
    assert read_volume(tmp_path, "1").geometry.size[2] == 3


def test_dicom_frames_without_places_are_counted(tmp_path: Path, image: Volume) -> None:
    """As one slice they were too few to be the series that is meant."""
    builders.write_dicom_series(tmp_path, first_slices(image, 3), number=1, description="localizer")
    builders.write_enhanced(tmp_path / "all.dcm", image, list(range(len(image.voxels))))
    data = pydicom.dcmread(tmp_path / "all.dcm")
    del data.PerFrameFunctionalGroupsSequence
    data.save_as(tmp_path / "all.dcm")
    assert [one.slices for one in list_series(tmp_path)] == [3, len(image.voxels)]
    assert "series 9 (3D T2) cannot be used" in refusal(tmp_path).cause


def test_dicom_files_of_one_uid_are_each_read_once(tmp_path: Path, image: Volume, monkeypatch) -> None:
    """Not each with each, as where an anonymiser gave all one."""
    for path in builders.write_dicom_series(tmp_path, image):
        changed(path, SOPInstanceUID="1.2.3")
    read = []
    content = dicom._content
    monkeypatch.setattr(dicom, "_content", lambda path: read.append(path) or content(path))
    assert read_volume(tmp_path).geometry.size == image.geometry.size
    assert sorted(read) == sorted(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="there it is a share")
def test_dicom_folder_with_two_slashes_before_it(tmp_path: Path, image: Volume) -> None:
    for folder in "ab":
        builders.write_dicom_series(tmp_path / folder, image)
    assert ", in b" in refusal(Path(f"/{tmp_path}")).cause


@pytest.mark.parametrize("shown", [6, 5])
def test_dicom_the_number_that_is_asked_for_tells_one_series(tmp_path: Path, image: Volume, shown: int) -> None:
    """Also beside series that cannot be used; and of several studies one sees which is which."""
    axial = builders.volume(replace(GRID, direction=np.eye(3)))
    builders.write_dicom_series(tmp_path / "2020", image, number=5)
    for folder, volume, number in (("2023/a", image, 6), ("2023/b", axial, 5 if shown == 5 else 7)):
        for path in builders.write_dicom_series(tmp_path / folder, volume, number=number):
            changed(path, StudyInstanceUID="9.8.7")
    failure = refusal(tmp_path)
    assert ", in 2020" in failure.cause and ", in 2023/a" in failure.cause
    assert failure.remedy == f"Choose one with --series {'UID' if shown == 5 else 'NUMBER'}."


def test_dicom_slices_lie_where_their_positions_say(tmp_path: Path, image: Volume) -> None:
    """Scanners state thickness and distance as they like."""
    paths = builders.write_dicom_series(tmp_path, image, SliceThickness=3.0, SpacingBetweenSlices=5.0)
    assert read_volume(tmp_path).geometry.same_grid(image.geometry)
    for path in paths[1:]:
        path.unlink()
    assert read_volume(tmp_path).geometry.spacing[2] == 5.0


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


@pytest.mark.parametrize("letters, description", [
    ("ISO_IR 144", "Позвоночник T2"), ("ISO_IR 100", "Wirbelsäule"), ("ISO_IR 192", "脊椎"), ("GB18030", "脊椎"),
    (["", "ISO 2022 IR 87"], "脊椎 T2"), (["", "ISO 2022 IR 149"], "척추"), ("ISO_IR 101", "Kręgosłup")])  # fmt: skip
def test_dicom_text_in_its_own_letters(tmp_path: Path, image: Volume, letters: Any, description: str) -> None:
    builders.write_dicom_series(tmp_path, image, SpecificCharacterSet=letters, SeriesDescription=description)
    assert [one.description for one in list_series(tmp_path)] == [description]
    assert read_volume(tmp_path, series=description).geometry.same_grid(image.geometry)


def test_dicom_text_in_utf_8_whatever_it_states(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(
        tmp_path, image, SpecificCharacterSet="ISO_IR 192", SeriesDescription="Wirbelsäule"
    )  # fmt: skip
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"ISO_IR 100"))
    assert [one.description for one in list_series(tmp_path)] == ["Wirbelsäule"]


def test_dicom_a_damaged_series_of_another_plane_is_no_reason_to_ask(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path, image, number=5)
    axial = builders.volume(replace(GRID, direction=np.eye(3)))
    broken = builders.write_dicom_series(tmp_path, axial, number=6)
    broken[2].write_bytes(broken[2].read_bytes()[:-300])
    assert read_volume(tmp_path).geometry.same_grid(image.geometry)


def test_dicom_file_given_alone_is_read_with_its_own_folder_only(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    below = tmp_path / "other"
    below.mkdir()
    (below / "broken.dcm").write_bytes(b"")
    for name in ("DONE", "__init__", "received_20240101"):  # marks, no lost images
        (tmp_path / name).write_bytes(b"")
    assert read_volume(paths[0]).geometry.same_grid(image.geometry)
    assert "broken.dcm" in refusal(tmp_path).cause
    for name in ("IM007-4", "im12-5"):
        (tmp_path / name).write_bytes(b"")
        assert name in refusal(paths[0]).cause
        (tmp_path / name).unlink()


def test_dicom_hidden_folders_are_left_out(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    (tmp_path / ".Trash-0").mkdir()
    changed(shutil.copy(paths[2], tmp_path / ".Trash-0"), SOPInstanceUID="1.2.9")
    (tmp_path / ".AppleDouble").mkdir()
    (tmp_path / ".AppleDouble" / "IM000.dcm").write_bytes(b"\0\5\x16\7" + bytes(78))
    assert read_volume(tmp_path).geometry.same_grid(image.geometry)


@pytest.mark.parametrize("name", [".e.dcm", "README"])
def test_dicom_a_file_that_a_folder_s_reading_leaves_out_is_read_where_it_is_given(
    tmp_path: Path, image: Volume, name: str
) -> None:
    builders.write_enhanced(tmp_path / name, image, list(range(7)))
    assert read_volume(tmp_path / name).geometry.size == GRID.size
    builders.write_dicom_series(tmp_path, first_slices(image, 3), number=4)
    assert read_volume(tmp_path / name).geometry.size == GRID.size


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


def test_dicom_rescaled_slice_by_slice(tmp_path: Path, image: Volume) -> None:
    paths = builders.write_dicom_series(tmp_path, image)
    for k, path in enumerate(paths):
        changed(path, RescaleSlope=1 + k / 4, RescaleIntercept=0)
    factors = 1 + np.arange(len(paths)) / 4
    read = read_volume(tmp_path)
    assert np.allclose(read.voxels, image.voxels * factors[:, np.newaxis, np.newaxis])


@pytest.mark.parametrize("syntax", ["explicit", "big endian"])
@pytest.mark.parametrize("upper", ["shifted", "overlay", "unstated overlay", "sign", "masked sign", "padding"])
def test_dicom_bits_above_those_that_are_stated(tmp_path: Path, image: Volume, syntax: str, upper: str) -> None:
    """GDCM cuts them off, whatever High Bit says."""
    signed = upper.endswith("sign")
    voxels = image.voxels.astype(np.int32) - (500 if signed else 0)
    voxels[:, :, :3] = 0
    stored = {"shifted": voxels << 4, "sign": voxels, "masked sign": voxels & 0xFFF}.get(upper, voxels | 0x4000)
    if upper == "padding":
        stored = np.where(voxels == 0, 0xF000, voxels)
    for path, pixels in zip(builders.write_dicom_series(tmp_path, image), stored, strict=True):
        data = pydicom.dcmread(path)
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 15 if upper == "shifted" else 11, int(signed)
        if upper == "overlay":
            data.add_new(0x60000102, "US", 14)
        if upper == "padding":
            data.add_new(0x00280120, "US", 0xF000)
        kind = ">u2" if syntax == "big endian" else "<u2"
        data.PixelData = (pixels & 0xFFFF).astype(kind).tobytes()
        data["PixelData"].VR = "OW"
        if syntax == "big endian":
            data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
            pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=False)
        else:
            data.save_as(path)
    if upper in ("shifted", "unstated overlay"):
        failure = refusal(tmp_path)
        assert failure.code == "INPUT_UNREADABLE" and "more than the 12 bits" in failure.cause
    else:
        assert np.array_equal(read_volume(tmp_path).voxels, voxels)


def test_dicom_unsigned_pixels_have_no_sign_to_copy(tmp_path: Path, image: Volume) -> None:
    """All bits above those that are stated are set: copies of a sign only where pixels are signed."""
    for path, pixels in zip(builders.write_dicom_series(tmp_path, image), image.voxels, strict=True):
        data = pydicom.dcmread(path)
        data.BitsStored, data.HighBit = 12, 11
        data.PixelData = (pixels.astype(np.uint16) | 0xF000).tobytes()
        data.save_as(path)
    failure = refusal(tmp_path)
    assert failure.code == "INPUT_UNREADABLE" and "more than the 12 bits" in failure.cause


@pytest.mark.parametrize("bits", [24, 32])
def test_dicom_of_32_bits(tmp_path: Path, image: Volume, bits: int) -> None:
    """Of fewer that are stored GDCM takes the last eight."""
    for path, pixels in zip(builders.write_dicom_series(tmp_path, image), image.voxels, strict=True):
        data = pydicom.dcmread(path)
        data.BitsAllocated, data.BitsStored, data.HighBit = 32, bits, bits - 1
        data.PixelData = (pixels.astype("<u4") * 3).tobytes()
        data.save_as(path)
    if bits == 32:
        assert np.array_equal(read_volume(tmp_path).voxels, image.voxels.astype(np.int64) * 3)
    else:
        failure = refusal(tmp_path)
        assert failure.code == "INPUT_PIXEL_TYPE" and "use 24 of 32 bits" in failure.cause


def test_dicom_one_slice(tmp_path: Path) -> None:
    volume = builders.volume(builders.geometry(size=(48, 64, 1)))
    path = builders.write_dicom_series(tmp_path, volume)[0]
    read = read_volume(tmp_path)
    assert np.array_equal(read.voxels, volume.voxels)
    assert read.geometry.same_grid(volume.geometry)
    changed(path, SliceThickness=None)
    assert refusal(tmp_path).code == "INPUT_SPACING"
    changed(path, SliceThickness=3.5, SpacingBetweenSlices=0)
    assert "0 mm apart" in refusal(tmp_path).cause  # ITK makes no image of it


@pytest.mark.parametrize("order", [list(range(7)), list(range(6, -1, -1)), [0, 2, 4, 6, 1, 3, 5]])
def test_dicom_enhanced(tmp_path: Path, image: Volume, order: list[int]) -> None:
    builders.write_enhanced(tmp_path / "enhanced.dcm", image, order)
    for path in (tmp_path, tmp_path / "enhanced.dcm"):
        read = read_volume(path)
        assert read.name == "series 9 (3D T2)"
        found = sitk.Resample(read.to_sitk(), image.to_sitk(), sitk.Transform(), sitk.sitkNearestNeighbor)
        assert np.array_equal(sitk.GetArrayFromImage(found), image.voxels)


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


@pytest.mark.parametrize("order", [list(range(7)), list(range(6, -1, -1))])
def test_dicom_enhanced_rescaled_frame_by_frame(tmp_path: Path, image: Volume, order: list[int]) -> None:
    from pydicom.dataset import Dataset

    slopes, intercepts = 2 - np.arange(7) / 8, np.arange(7) * 3.0

    def rescale(number: int, item: Any) -> None:
        own = Dataset()
        own.RescaleSlope, own.RescaleIntercept, own.RescaleType = slopes[number], intercepts[number], "US"
        item.PixelValueTransformationSequence = [own]

    builders.write_enhanced(tmp_path / "e.dcm", image, order)
    plain = read_volume(tmp_path).voxels
    change_frames(tmp_path / "e.dcm", rescale)
    upwards = slice(None) if np.array_equal(plain, image.voxels) else slice(None, None, -1)
    wanted = image.voxels * slopes[order][:, None, None] + intercepts[order][:, None, None]
    assert np.allclose(read_volume(tmp_path).voxels, wanted[upwards])
    raw = (tmp_path / "e.dcm").read_bytes()
    (tmp_path / "e.dcm").write_bytes(raw.replace(b"1.375", b"  nan"))
    assert refusal(tmp_path).code == "INPUT_VALUES", "and not another frame's scale"


def test_dicom_parts_of_one_image(tmp_path: Path, image: Volume) -> None:
    for number, order in enumerate([[0, 2, 4, 6], [1, 3, 5]]):
        builders.write_enhanced(tmp_path / f"{number}.dcm", image, order)
        changed(tmp_path / f"{number}.dcm", ConcatenationUID="1.2.7", InConcatenationNumber=number + 1,
                InConcatenationTotalNumber=2)  # fmt: skip
    assert read_volume(tmp_path).geometry.size == GRID.size
    (tmp_path / "1.dcm").unlink()
    for path in (tmp_path, tmp_path / "0.dcm"):
        failure = refusal(path)
        assert failure.code == "INPUT_SLICES" and "consists of 2 files, but only 1 of them is there" in failure.cause


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


def test_dicom_one_enhanced_frame_has_the_spacing_that_is_stated_before_the_thickness(
    tmp_path: Path, image: Volume
) -> None:
    builders.write_enhanced(tmp_path / "e.dcm", image, [3])
    data = pydicom.dcmread(tmp_path / "e.dcm")
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 4.25
    data.save_as(tmp_path / "e.dcm")
    assert read_volume(tmp_path).geometry.spacing[2] == pytest.approx(4.25)


def test_dicom_links_do_not_loop(tmp_path: Path, image: Volume) -> None:
    builders.write_dicom_series(tmp_path / "a", image)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(list_series(tmp_path)) == 1
    with pytest.raises(InputError) as caught:
        list_series(tmp_path / "absent")
    assert caught.value.code == "INPUT_NOT_FOUND"


@pytest.mark.parametrize(("unit", "known"), [("cm", False), ("um", False), ("m", False), ("mm", True), ("", True)])
def test_lengths_that_are_not_in_mm_are_refused(tmp_path: Path, image: Volume, unit: str, known: bool) -> None:
    """ITK takes them for mm, and a spine of 3 cm is as good as one of 30."""
    for name in ("a.nrrd", "a.mha"):
        path = tmp_path / name
        sitk.WriteImage(image.to_sitk(), str(path))
        old, new = {
            "a.nrrd": (b"\nencoding:", f'\nspace units: "{unit}" "{unit}" "{unit}"\nencoding:'.encode()),
            "a.mha": (b"\nElementSpacing", f"\nDistanceUnits = {unit}\nElementSpacing".encode()),
        }[name]
        if not unit:
            new = old
        content = path.read_bytes()
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        if known:
            assert read_volume(path).geometry.same_grid(image.geometry)
        else:
            failure = refusal(path)
            assert failure.code == "INPUT_SPACING" and f"in {unit}" in failure.cause


@pytest.mark.parametrize("key", ["dim[0]", "0008|0060", "two words", "ITK_FileNotes"])
def test_a_meta_image_may_carry_what_another_format_said(tmp_path, key):
    """ITK writes every entry of an image's dictionary into a MetaImage, as of one that was read from NIfTI or DICOM."""
    image = builders.picture((6, 20, 16)).to_sitk()
    image.SetMetaData(key, "3")
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").voxels, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_metadata_copied_by_hand_into_a_metaimage_is_no_damage(tmp_path: Path, image: Volume, ending: str) -> None:
    """A value that ITK cannot print is followed by a blank line, at which the header seemed to end."""
    write_volume(image, tmp_path / f"a{ending}")
    first = sitk.ReadImage(str(tmp_path / f"a{ending}"))
    copied = sitk.Cast(first, sitk.sitkFloat32)
    for key in first.GetMetaDataKeys():
        copied.SetMetaData(key, first.GetMetaData(key))
    sitk.WriteImage(copied, str(tmp_path / "b.mha"), True)
    if ending == ".nii.gz":
        assert b"]\n\n" in (tmp_path / "b.mha").read_bytes()
    np.testing.assert_allclose(read_volume(tmp_path / "b.mha").voxels, image.voxels)
    whole = (tmp_path / "b.mha").read_bytes()
    (tmp_path / "b.mha").write_bytes(b"\n" + whole.replace(b"DimSize", b" \t\r\nDimSize"))
    np.testing.assert_allclose(read_volume(tmp_path / "b.mha").voxels, image.voxels)


def test_an_image_is_not_written_under_a_segmentation_s_name(tmp_path):
    with pytest.raises(UsageError) as caught:
        write_volume(builders.picture((6, 20, 16)), tmp_path / "a.seg.nrrd")
    assert caught.value.code == "OUTPUT_FORMAT" and not list(tmp_path.iterdir())


# --- DICOM files without the mark -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["group", "implicit", "explicit"])
def test_dicom_files_without_the_mark_are_read(tmp_path, kind):
    """As old archives keep them: from the file's own group on, or without that, too."""
    image = builders.picture()
    image = replace(image, voxels=(1000 * (image.voxels + 9)).astype(np.int16))
    paths = builders.write_dicom_series(tmp_path / "mr", image)
    expected = read_volume(tmp_path / "mr").voxels
    for path in paths:
        if kind == "group":
            path.write_bytes(path.read_bytes()[132:])
            continue
        data = pydicom.dcmread(path)
        del data.file_meta
        data.preamble = None
        pydicom.dcmwrite(path, data, implicit_vr=kind == "implicit", little_endian=True, enforce_file_format=False)
    assert all(map(is_dicom, paths)) and all(path.read_bytes()[128:132] != b"DICM" for path in paths)
    assert np.array_equal(read_volume(tmp_path / "mr").voxels, expected)
    shutil.move(paths[0], tmp_path / "one")
    assert read_volume(tmp_path / "one").voxels.shape[0] == 1


@pytest.mark.parametrize("kind", ["implicit", "explicit", "no syntax", "no group"])
def test_dicom_an_end_slice_whose_first_group_is_missing_is_no_missing_slice(
    tmp_path: Path, image: Volume, kind: str
) -> None:
    """It is read where ITK can, and else told; so is one that is cut, whatever it lacks."""
    paths = builders.write_dicom_series(tmp_path, image)
    data = pydicom.dcmread(paths[-1])
    syntax = bytes(paths[-1].read_bytes())
    if kind in ("implicit", "explicit"):
        del data.file_meta
        data.preamble = None
        pydicom.dcmwrite(paths[-1], data, implicit_vr=kind == "implicit", little_endian=True, enforce_file_format=False)
    elif kind == "no group":
        buffer = io.BytesIO()
        del data.file_meta
        data.preamble = None
        pydicom.dcmwrite(buffer, data, implicit_vr=False, little_endian=True, enforce_file_format=False)
        paths[-1].write_bytes(bytes(128) + b"DICM" + buffer.getvalue())
    else:
        place = syntax.index(b"\x02\0\x10\0UI")
        length = 8 + int.from_bytes(syntax[place + 6 : place + 8], "little")
        paths[-1].write_bytes(syntax[:place] + syntax[place + length :])
    if kind == "no syntax":
        assert refusal(tmp_path).code == "INPUT_UNREADABLE"
    else:
        assert np.array_equal(read_volume(tmp_path).voxels, image.voxels)
    whole = paths[-1].read_bytes()
    for length in (140, 160, 200, 280, 400, len(whole) // 2):
        paths[-1].write_bytes(whole[:length])
        assert refusal(tmp_path).code == "INPUT_UNREADABLE", length


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\x08", b"\x08\0", b"\x08\0\x16\0", b"PK\x03\x04" + bytes(200), b"NRRD0004\n" + b" " * 200, bytes(352),
        np.arange(352, dtype="<u2").tobytes(), np.full(352, 8, "<u2").tobytes(), np.full(352, 2, "<u2").tobytes(),
        b"\x08\0\x16\0UI\xff\xff" + bytes(400), b"\x08\0\x05\0OB\0\0\xff\xff\xff\x7f" + bytes(400),
        b"\x08\0\x05\0CS\x02\0AA\x08\0\x05\0CS\x02\0AA" + bytes(200),
        b"\x08\0\x99\x99CS\x02\0AA\x08\0\x9a\x99CS\x02\0AA" + bytes(200),
    ],
)  # fmt: skip
def test_nothing_else_is_taken_for_dicom(tmp_path, head):
    (tmp_path / "a").write_bytes(head)
    assert not is_dicom(tmp_path / "a")
