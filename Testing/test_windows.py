"""What is done for Windows and macOS alone, as far as another system can show it."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from SAUNetLib import batch_source, worker
from SAUNetLib.anatomy import encodings
from SAUNetLib.batch import find_sources, run_batch
from SAUNetLib.batch_journal import Batch, RunStart
from SAUNetLib.cli import main
from SAUNetLib.command import run_command, tool
from SAUNetLib.errors import InputError, UsageError
from SAUNetLib.formats import atomic, itk, temporary
from SAUNetLib.formats.atomic import check_writable, same_place, write_beside, write_together
from SAUNetLib.formats.dicom import list_series
from SAUNetLib.formats.segmentations import read_segmentation, write_segmentation
from SAUNetLib.formats.volumes import read_volume, write_volume
from SAUNetLib.pipeline import segment_file
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.training.phantom.build import DIRECTION
from SAUNetLib.volume import Geometry, Volume

UMLAUT = "Müller 李"


@pytest.fixture
def image(tmp_path):
    """A file in a folder whose name is not ASCII."""
    folder = tmp_path / UMLAUT
    folder.mkdir()
    voxels = np.random.default_rng(1).integers(0, 900, (5, 40, 30)).astype(np.int16)
    path = folder / f"{UMLAUT}.nrrd"
    write_volume(Volume(voxels, Geometry((30, 40, 5), (0.9, 0.9, 4.0), (1.0, 2.0, 3.0), DIRECTION)), path)
    return path


@pytest.fixture
def windows(tmp_path, monkeypatch):
    """The module as on Windows, whose short names are links here; returns the names that ITK was given."""
    links = tmp_path / "short"
    links.mkdir()

    def short(path: str, buffer: ctypes.Array, _size: int) -> int:
        if not links.is_dir():  # a drive without short names
            return 0
        link = links / f"NAME~{len(list(links.iterdir()))}{Path(path).suffix[:4].upper()}"
        link.symlink_to(path)
        buffer.value = str(link)
        return len(buffer.value)

    kernel = SimpleNamespace(GetShortPathNameW=short)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    here = SimpleNamespace(platform="win32", stderr=sys.stderr, version_info=sys.version_info)
    for module in (itk, temporary):
        monkeypatch.setattr(module, "sys", here)
    monkeypatch.setattr(temporary, "process_lives", lambda _pid: True)
    monkeypatch.setattr(temporary, "_closes_folders", lambda: True)
    given = []
    for name, place in (("ReadImage", 0), ("WriteImage", 1)):
        plain = getattr(sitk, name)

        def spy(*args, plain=plain, place=place, **kwargs):
            given.append(args[place])
            return plain(*args, **kwargs)

        monkeypatch.setattr(sitk, name, spy)
    return given


def test_itk_gets_the_short_name_of_a_file(image, windows):
    volume = read_volume(image)
    assert volume.voxels.shape == (5, 40, 30) and volume.name == image.name
    assert len(windows) == 1 and windows[0].isascii()


@pytest.mark.parametrize("name", ["scan.nii.gz", "Müller.nii.gz"])
def test_a_name_keeps_the_ending_that_the_nifti_library_asks_for(image, windows, name):
    """A short name has three letters behind its only dot."""
    path = image.with_name(name)
    write_volume(read_volume(image), path)
    windows.clear()
    assert read_volume(path).voxels.shape == (5, 40, 30)
    assert len(windows) == 1 and windows[0].isascii() and windows[0].endswith(".nii.gz")


def test_itk_writes_into_the_folder_s_short_name(image, windows):
    source = read_volume(image)
    path = image.with_name("Ergebnis für ihn.mha")
    write_volume(source, path)
    assert all(name.isascii() for name in windows)
    assert sorted(one.name for one in image.parent.iterdir()) == sorted((path.name, image.name))
    np.testing.assert_array_equal(read_volume(path).voxels, source.voxels)


def test_where_a_drive_keeps_no_short_names_a_copy_is_read(image, windows, tmp_path):
    (tmp_path / "short").rmdir()
    assert read_volume(image).voxels.shape == (5, 40, 30)
    assert windows[0].isascii() and Path(windows[0]).name == "image.nrrd"
    assert not Path(windows[0]).exists()


@pytest.fixture
def no_short_names(windows, tmp_path, monkeypatch):
    """A drive that keeps none; returns the names that ITK was given, and none of them is left at the end."""
    (tmp_path / "short").rename(tmp_path / "none")
    windows.clear()
    yield windows
    assert windows and all(name.isascii() and not Path(name).parent.exists() for name in windows)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_what_itk_cannot_write_in_its_place_gets_there_all_the_same(image, no_short_names, ending):
    source = read_volume(image)
    path = image.with_name(f"Ergebnis für ihn{ending}")
    write_volume(source, path)
    labels = Segmentation(np.full((5, 40, 30), 44, np.uint8), source.geometry, encodings()["levels"], {}, ())
    write_segmentation(labels, path.with_name(f"labels{ending}"))
    assert sorted(one.name for one in image.parent.iterdir()) == sorted((path.name, f"labels{ending}", image.name))
    np.testing.assert_array_equal(read_volume(path).voxels, source.voxels)
    assert (read_segmentation(path.with_name(f"labels{ending}")).labels == 44).all()


@pytest.mark.parametrize("places", [("PUBLIC",), ("PUBLIC", "PROGRAMDATA")])
def test_the_folder_for_copies_has_a_plain_name_too(image, no_short_names, tmp_path, monkeypatch, places):
    """Of several common folders the last one is there."""
    for name in ("PUBLIC", "PROGRAMDATA"):
        monkeypatch.delenv(name, raising=False)
    for name in places:
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / places[-1]).mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(image.parent))
    kept, made = temporary._folder_in, []
    monkeypatch.setattr(temporary, "_folder_in", lambda place: made.append(kept(place)) or made[-1])
    write_volume(read_volume(image), image.with_suffix(".mha"))
    assert len(made) == 2 and {one.parent for one in made} == {tmp_path / places[-1]}
    assert len({one.name for one in made}) == 2 and list((tmp_path / places[-1]).iterdir()) == []


def test_a_copy_that_a_virus_scanner_looks_at_is_read_and_goes_away_later(image, no_short_names, monkeypatch):
    remove, tries = shutil.rmtree, []

    def held(*args, **more):
        if len(tries) < 3:
            raise PermissionError(13, "used by another process")
        remove(*args, **more)

    monkeypatch.setattr(shutil, "rmtree", held)
    clock = SimpleNamespace(sleep=tries.append, monotonic=lambda: 0.0, time=lambda: 0.0)
    monkeypatch.setattr(temporary, "time", clock)
    assert read_volume(image).voxels.shape == (5, 40, 30) and len(tries) == 3


def test_a_copy_that_has_no_room_is_told(image, windows, tmp_path, monkeypatch):
    (tmp_path / "short").rename(tmp_path / "none")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(InputError, match=r"No space left on device.*Free some space for temporary files"):
        read_volume(image)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("links", [True, False])
def test_voxels_in_a_file_of_their_own_are_read_with_their_header(
    image, no_short_names, tmp_path, monkeypatch, ending, links
):
    """Also in a plain folder where the header names a file that ITK cannot open."""
    volume = read_volume(image)
    plain = tmp_path / f"plain{ending}"
    for header in (image.with_suffix(ending), plain):
        sitk.WriteImage(volume.to_sitk(), str(header), useCompression=False)
    plain.write_bytes(plain.read_bytes().replace(b"plain.raw", f"{UMLAUT}.raw".encode()))
    plain.with_suffix(".raw").rename(plain.with_name(f"{UMLAUT}.raw"))
    if not links:
        monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no right to make links")))
    no_short_names.clear()
    for header in (image.with_suffix(ending), plain):
        np.testing.assert_array_equal(read_volume(header).voxels, volume.voxels)
    assert all(Path(name).name == f"image{ending}" for name in no_short_names)


def test_plain_names_stay_as_they_are(windows, tmp_path):
    assert temporary.short_name(tmp_path) == tmp_path


WORKER = """
import os, sys
from SAUNetLib import worker
sys.platform = {platform!r}
worker.leave_stdin_alone()
print(os.read(0, 1), "numpy" in sys.modules)
"""


@pytest.mark.parametrize(("platform", "loaded"), [("win32", True), (sys.platform, False)])
def test_no_library_waits_for_the_worker_s_requests(platform, loaded):
    """Windows' libraries look at stdin when NumPy is loaded; the pipe is open, and nothing comes."""
    if sys.platform == "win32" and not loaded:
        pytest.skip("the first case is this system's")
    command = [sys.executable, "-c", WORKER.format(platform=platform)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            said = child.stdout.readline()
        finally:
            child.kill()
    assert said == f"b'' {loaded}\n"


@pytest.fixture
def case_blind(monkeypatch):
    """A file system that finds names in other letters, too."""
    stat, access = os.stat, os.access

    def spelt(path):
        try:
            stat(path)
        except FileNotFoundError:
            found = Path("/")
            for part in Path(path).parts[1:]:
                names = [one.name for one in found.iterdir()] if found.is_dir() else []
                found /= next((name for name in names if name.casefold() == part.casefold()), part)
            return found
        return path

    monkeypatch.setattr(os, "stat", lambda path, **options: stat(spelt(path), **options))
    monkeypatch.setattr(os, "access", lambda path, mode, **options: access(spelt(path), mode, **options))


def test_the_image_itself_is_known_in_other_letters(case_blind, tmp_path, tiny_engine):
    image = tmp_path / "IMG.NII.GZ"
    image.write_bytes(b"an image")
    with pytest.raises(UsageError, match="is the input itself"):
        segment_file(image, tmp_path / "IMG.nii.gz", tiny_engine)
    assert image.read_bytes() == b"an image" and list(tmp_path.iterdir()) == [image]


def test_an_archive_s_results_are_known_in_other_letters(case_blind, tmp_path):
    results = tmp_path / "Results"
    results.mkdir()
    for folder in (tmp_path, results):
        (folder / "scan.nii.gz").touch()
    assert [source.place for source in find_sources(tmp_path, tmp_path / "results")] == ["scan.nii.gz"]
    with pytest.raises(UsageError, match="lies in the output folder"):
        run_batch(results, tmp_path.with_name(tmp_path.name.upper()))
    Batch(first=RunStart(str(results), "", 0)).check_archive(tmp_path / "results", tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("scan.csv", "SCAN.csv", True),
        ("new/a.csv", "New/A.csv", True),
        ("folder/a.csv", "Folder/a.csv", True),
        ("new/a.csv", "newer/a.csv", False),
        ("there.csv", "There.csv", True),
        ("there.csv", "linked.csv", False),
    ],
)
def test_two_names_are_one_place(case_blind, tmp_path, one, other, same):
    (tmp_path / "there.csv").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked.csv").hardlink_to(tmp_path / "there.csv")
    assert same_place(tmp_path / one, tmp_path / other) is same


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take both for one")
def test_where_letters_count_two_files_are_two_places(tmp_path):
    (tmp_path / "there.csv").touch()
    assert not same_place(tmp_path / "there.csv", tmp_path / "There.csv")


@pytest.fixture
def win32(monkeypatch):
    """What asks for the system is told that it is Windows."""
    monkeypatch.setattr(sys, "platform", "win32")
    if not hasattr(signal, "SIGBREAK"):
        monkeypatch.setattr(signal, "SIGBREAK", signal.SIGHUP, raising=False)


@pytest.fixture
def held(monkeypatch):
    """A function that lets a file be in use by another program: its name, what is refused, how often."""

    def hold(name, refused="replace", times=1):
        plain, count = getattr(Path, refused), iter(range(times))

        def act(self, *rest):
            if name in (self.name, *(Path(one).name for one in rest)) and next(count, None) is not None:
                raise PermissionError(13, "The process cannot access the file")
            return plain(self, *rest)

        monkeypatch.setattr(Path, refused, act)

    return hold


def write_texts(folder, *names):
    with write_together():
        for name in names:
            with write_beside(folder / name, ".csv") as temporary:
                temporary.write_text("after")


@pytest.mark.parametrize("names", [("a.csv",), ("a.csv", "b.csv")])
@pytest.mark.parametrize("there", [True, False])
def test_a_virus_scanner_that_looks_at_a_new_file_costs_no_result(win32, held, tmp_path, names, there):
    if there:
        (tmp_path / names[-1]).write_text("before")
    held(names[-1], times=2)
    write_texts(tmp_path, *names)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "after")


def test_what_cannot_be_put_back_at_once_is_put_back_a_moment_later(win32, held, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE_S", 0.25)
    (tmp_path / "a.csv").write_text("before")
    held("c.csv", times=99)
    held("b.csv", "unlink")
    keep = atomic._put_back
    monkeypatch.setattr(atomic, "_put_back", lambda before: held("a.csv") or keep(before))
    with pytest.raises(UsageError, match=r"c\.csv could not be written.* no other program has the file open"):
        write_texts(tmp_path, "a.csv", "b.csv", "c.csv")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.csv": "before"}


def test_what_cannot_be_put_back_is_kept_and_told(win32, held, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE_S", 0.0)
    (tmp_path / "a.csv").write_text("before")
    held("c.csv", times=99)
    held("b.csv", "unlink", 99)
    keep = atomic._put_back
    monkeypatch.setattr(atomic, "_put_back", lambda before: held("a.csv", times=99) or keep(before))
    with pytest.raises(UsageError) as caught:
        write_texts(tmp_path, "a.csv", "b.csv", "c.csv")
    (kept,) = (path for path in tmp_path.iterdir() if path.name not in ("a.csv", "b.csv"))
    assert kept.read_text() == "before" and f"a.csv is already the new file, its earlier version is {kept.name}" in str(
        caught.value
    )
    assert "b.csv is already the new file. Check" in str(caught.value)


def test_elsewhere_what_is_not_permitted_is_told_at_once(held, tmp_path, monkeypatch):
    if sys.platform == "win32":
        pytest.skip("there it is tried again")
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: pytest.fail("it waits"))
    held("a.csv", times=99)
    with pytest.raises(UsageError):
        write_texts(tmp_path, "a.csv")


class ClosedPipe(io.RawIOBase):
    """A pipe that nobody reads, as Windows tells of it."""

    def writable(self):
        return True

    def write(self, _):
        raise OSError(22, "Invalid argument")


def closed_pipe():
    return io.TextIOWrapper(io.BufferedWriter(ClosedPipe()), encoding="cp1252")


@pytest.mark.parametrize("command", ["segment", "dataset check", "models"])
def test_json_is_json_in_any_encoding(tiny_model, tmp_path, monkeypatch, command):
    """As in a file to which Windows redirects stdout."""
    name = f"{UMLAUT} \U0001f9b4"
    stdout = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, encoding="cp1252"))
    if command == "segment":
        assert main([command, f"{name}.nii", "--output", str(tmp_path / "x.nii"), "--json"]) == 3
    elif command == "models":
        shutil.copy(tiny_model, tmp_path)
        card = json.loads(tiny_model.with_suffix(".json").read_text(encoding="utf-8")) | {"description": name}
        (tmp_path / tiny_model.name).with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
        monkeypatch.setenv("SAUNET_MODELS", str(tmp_path))
        assert main([command, "--json"]) == 0
    else:
        (tmp_path / f"{name}_labels.nii.gz").touch()
        assert main([*command.split(), str(tmp_path), "--json"]) == 3
    assert name in str(json.loads(stdout.getvalue()))


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_has_seen_enough_is_no_bug(win32, capsys, monkeypatch, name):
    monkeypatch.setattr(sys, name, closed_pipe())
    assert run_command(tool(lambda options: print("a table", file=getattr(sys, name), flush=True), None), []) == 0


def test_another_invalid_argument_stays_a_bug(win32, capsys):
    def run(options):
        raise OSError(22, "Invalid argument")

    assert run_command(tool(run, None), []) == 1 and "INTERNAL" in capsys.readouterr().err


def test_the_worker_ends_where_nobody_reads_its_events():
    with pytest.raises(BrokenPipeError):
        worker.Worker(io.StringIO(), closed_pipe()).serve()


@pytest.mark.parametrize(("below", "refused"), [("", "write_bytes"), ("new/newer", "mkdir")])
def test_a_folder_that_takes_nothing_is_told_before_the_work(win32, tmp_path, monkeypatch, below, refused):
    """On Windows os.access knows of no rights; some folders, as C:, take folders and no files."""
    path = tmp_path / below / "a.csv"
    assert check_writable(path, (".csv",)) == ".csv" and list(tmp_path.iterdir()) == []
    other = "mkdir" if refused == "write_bytes" else "write_bytes"
    monkeypatch.setattr(Path, other, lambda self, *rest: pytest.fail("not asked for"))
    assert check_writable(path, (".csv",)) == ".csv" and list(tmp_path.iterdir()) == []

    def refuse(self, *rest):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(Path, refused, refuse)
    with pytest.raises(UsageError, match=f"the folder {tmp_path} cannot be written to"):
        check_writable(path, (".csv",))


@pytest.mark.parametrize("letter", '<>:"|?*')
def test_a_name_that_windows_does_not_take_is_told_before_the_work(win32, tmp_path, letter):
    """After a colon it would be another stream of a file that looks empty."""
    with pytest.raises(UsageError, match="is not a valid file name on Windows"):
        check_writable(tmp_path / f"a{letter}b.csv", (".csv",))


@pytest.mark.timeout(30)
def test_a_drive_that_is_not_there_is_told(tmp_path, monkeypatch):
    """It has no parent that is there."""
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    with pytest.raises(UsageError, match=f"the folder {re.escape(tmp_path.anchor)} cannot be"):
        check_writable(tmp_path / "a.csv", (".csv",))


def test_ctrl_break_cancels(win32, capsys):
    before = signal.signal(signal.SIGBREAK, lambda *_: None)
    try:
        assert run_command(tool(lambda options: signal.raise_signal(signal.SIGBREAK), None), []) == 6
    finally:
        signal.signal(signal.SIGBREAK, before)
    assert "error CANCELLED" in capsys.readouterr().err


@pytest.mark.parametrize(("letters", "long"), [(200, True), (9, False)])
def test_an_image_that_is_not_found_may_have_too_long_a_path(win32, tmp_path, letters, long):
    folder = tmp_path / ("a" * letters)
    for path in (folder / "scan.nii.gz", folder / ("b" * 30)):
        for read in (read_volume, list_series):
            with pytest.raises(InputError) as told:
                read(path)
            assert told.value.code == "INPUT_NOT_FOUND"
            assert ("may be too long for Windows" in told.value.cause) == long


@pytest.mark.parametrize(("letters", "why"), [(240, r"may be too long for Windows \(\d+ characters\)"), (9, "No such")])
def test_a_path_that_is_too_long_is_told_as_such(win32, tmp_path, monkeypatch, letters, why):
    """Windows says of it that it is not there."""

    def refuse(*_, **more):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match=f"could not be written: .*{why}"):
        write_texts(Path("/") / ("x" * letters), "a.csv")


def test_a_worker_s_trial_that_a_virus_scanner_looks_at_is_no_failure(win32, held, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE_S", 0.0)
    plain = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: held(self.name, "unlink", 99) or plain(self, data))
    assert batch_source._takes_files(tmp_path)


def test_a_worker_s_trial_that_fails_leaves_nothing(tmp_path, monkeypatch):
    plain = Path.write_bytes

    def write(self, data):
        plain(self, data[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    assert not batch_source._takes_files(tmp_path) and list(tmp_path.iterdir()) == []


def test_a_working_folder_that_was_removed_hides_no_failure(tmp_path, monkeypatch):
    failure = FileNotFoundError(2, "No such file or directory")
    monkeypatch.setattr(Path, "absolute", lambda self: pytest.fail("it is asked for"))
    assert sys.platform == "win32" or atomic._reason(Path("a.csv"), failure) == failure.strerror
