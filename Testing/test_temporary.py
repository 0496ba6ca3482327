"""Temporary folders: closed to others, gone with their processes, and removed whatever Windows has against it."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from SAUNetLib.formats import temporary

WINDOWS = SimpleNamespace(platform="win32", version_info=sys.version_info)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The system's place for temporary files, here for one test."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_is_private_and_those_of_the_dead_are_removed(place):
    own = temporary.make_folder()
    assert os.name == "nt" or stat.S_IMODE(own.stat().st_mode) == 0o700
    os.utime(own, (time.time() - 20 * 3600,) * 2)  # of a run that takes most of a day
    ancient = place / f"saunet-{os.getpid()}-0123456789ab"  # its process's number is in use again
    dead, earlier = place / "saunet-999999999-0123456789ab", place / "saunet-panel-999999999-ab_d12xy"
    killed, days_old = place / "saunet-batch-999999999-ab_d12xy", place / f"saunet-batch-{os.getpid()}-ab_d12xy"
    foreign = [
        place / name
        for name in (
            "saunet-notes",
            "saunet-2026-reports1",
            f"saunet-{10**20}-0123456789ab",
            "saunet-fuzz-1",
            "saunet-2026-results",
            "saunet-99999-out",
        )
    ]
    for folder in (ancient, dead, earlier, killed, days_old, *foreign):
        folder.mkdir()
    for folder in (ancient, days_old):
        os.utime(folder, (0, 0))
    (dead / "volume.nrrd").write_bytes(b"x")
    assert sorted(temporary.remove_leftovers()) == sorted([dead, earlier, killed, ancient])
    assert sorted(place.iterdir()) == sorted([own, days_old, *foreign])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_copy_for_itk_that_outlived_its_process_is_removed(place, tmp_path):
    """As where Windows ends a worker while it reads a file that ITK cannot open by its name."""
    image = tmp_path / "scan.Nii.Gz"
    image.write_bytes(b"a patient")
    code = f"""
import os, signal
from pathlib import Path
from SAUNetLib.formats import itk
Path.symlink_to = lambda *_: (_ for _ in ()).throw(OSError())
with itk.readable(Path({str(image)!r}), ".nii.gz"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"TMPDIR": str(place)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    (left,) = place.iterdir()
    assert [file.read_bytes() for file in left.iterdir()] == [b"a patient"]
    assert temporary.remove_leftovers() == [left] and not left.exists()


def test_on_windows_leftovers_are_looked_for_where_copies_come_to_lie(place, tmp_path, monkeypatch):
    common, foreign = tmp_path / "Public", tmp_path / "M\u00fcller"
    for folder in (common, foreign):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(foreign))
    monkeypatch.setattr(temporary, "short_name", lambda path: path)
    monkeypatch.setattr(temporary, "process_lives", lambda pid: pid == os.getpid())
    monkeypatch.setenv("PUBLIC", str(common))
    monkeypatch.delenv("PROGRAMDATA", raising=False)
    monkeypatch.setattr(temporary, "sys", WINDOWS)
    for closes, where in ((True, common), (False, foreign)):
        monkeypatch.setattr(temporary, "_closes_folders", lambda closes=closes: closes)
        folder = temporary.make_folder()
        assert folder.parent == where  # where Python closes no folder, others could look into it
        dead = folder.rename(folder.with_name("saunet-999999999-0123456789ab"))
        assert temporary.remove_leftovers() == [dead]


@pytest.mark.parametrize("version, closes", [((3, 11, 9), False), ((3, 11, 10), True), ((3, 12, 3), False),
                                             ((3, 12, 4), True), ((3, 13, 0), True)])  # fmt: skip
def test_pythons_that_close_folders_on_windows(monkeypatch, version, closes):
    monkeypatch.setattr(temporary, "sys", SimpleNamespace(version_info=version))
    assert temporary._closes_folders() is closes


def test_a_folder_with_a_file_that_is_still_open_is_removed_a_moment_later(monkeypatch):
    real, tries, clock = shutil.rmtree, [], [0.0]

    def busy(folder, **rest):
        tries.append(folder)
        if len(tries) < 3:
            raise PermissionError("the process cannot access the file because it is being used by another process")
        real(folder, **rest)

    def sleep(seconds):
        clock[0] += seconds

    monkeypatch.setattr(temporary, "shutil", SimpleNamespace(rmtree=busy))
    monkeypatch.setattr(temporary, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    folder = temporary.make_folder()
    with pytest.raises(PermissionError):
        temporary.remove_folder(folder)  # elsewhere this does not happen, and one try is enough
    monkeypatch.setattr(temporary, "sys", WINDOWS)
    temporary.remove_folder(folder)
    assert len(tries) == 3 and not folder.exists()
    tries.clear()
    folder.mkdir()
    with pytest.raises(PermissionError):
        temporary.remove_folder(folder, 0.0)


@pytest.mark.parametrize("as_of_311", [True, False])
def test_what_cannot_be_removed_is_an_error_of_the_system(monkeypatch, as_of_311):
    """rmtree tells of a folder that it cannot read with another function than of a file that it cannot remove."""
    refused = PermissionError(13, "Permission denied")

    def rmtree(path, onexc=None, onerror=None):
        handler = onerror or onexc
        handler(os.open, str(path), (PermissionError, refused, None) if onerror else refused)

    version = (3, 11, 9) if as_of_311 else (3, 12, 4)
    monkeypatch.setattr(temporary, "sys", SimpleNamespace(platform="linux", version_info=version))
    monkeypatch.setattr(temporary, "shutil", SimpleNamespace(rmtree=rmtree))
    folder = temporary.make_folder()
    with pytest.raises(PermissionError) as raised:
        temporary.remove_folder(folder)
    assert raised.value is refused


def test_a_file_that_is_marked_as_read_only_is_removed_all_the_same(monkeypatch):
    folder = temporary.make_folder()
    file = folder / "volume.nrrd"
    file.write_bytes(b"x")
    file.chmod(0o400)
    real = os.unlink

    def unlink(path, *rest, **more):
        if not os.lstat(path, **more).st_mode & stat.S_IWUSR:  # as Windows does
            raise PermissionError(13, "Access is denied")
        real(path, *rest, **more)

    monkeypatch.setattr(os, "unlink", unlink)
    temporary.remove_folder(folder)
    assert not folder.exists()


@pytest.mark.parametrize("handle, error, code, lives", [(7, 0, 259, True), (7, 0, 0, False), (None, 87, 0, False),
                                                        (None, 5, 0, True)])  # fmt: skip
def test_living_processes_on_windows(monkeypatch, handle, error, code, lives):
    closed = []

    class Kernel:
        def __init__(self):
            self.OpenProcess = lambda rights, inherit, pid: handle
            self.CloseHandle = closed.append

        def GetExitCodeProcess(self, handle, pointer):
            pointer._obj.value = code

    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: Kernel(), raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    monkeypatch.setattr(temporary, "sys", WINDOWS)
    assert temporary.process_lives(4242) is lives and len(closed) == (handle is not None)


def test_the_folder_of_a_block_goes_with_it():
    with temporary.temporary_folder() as folder:
        (folder / "sub").mkdir()
        assert folder.is_dir() and Path(tempfile.gettempdir()) == folder.parent
    assert not folder.exists()
