"""Check what the engine needs on this computer, and install it with the user's consent, never at import."""

import ctypes
import hashlib
import html
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from packaging.requirements import Requirement
from packaging.version import InvalidVersion
from slicer.i18n import tr as _

from SAUNetLib import __version__
from SAUNetLib.bundle import PACKAGES
from SAUNetLib.errors import ModelError, OutOfMemoryError, SAUNetError, UsageError, unforeseen
from SAUNetLib.formats import temporary
from SAUNetLib.model_card import ModelCard, find_model, keep_model, model_names

from . import Console
from .Bundle import openBundle
from .Cards import PanelError
from .Report import withoutPaths
from .Signal import Signal

TORCH = PACKAGES[0] + (",!=2.13.*" if sys.platform == "win32" else "")
"""2.2 is the last version for Intel Macs; to Slicer's package for macOS, every Mac is an Intel Mac.

2.13 contains licence files whose paths are too long for Windows below Slicer's folder: it is left half installed.
"""
OTHERS = PACKAGES[1:]
"""The engine's packages without PyTorch, which comes through the PyTorch extension."""
SLICERS_OWN = ("numpy", "scipy", "SimpleITK", "pillow", "pydicom", "requests", "packaging")
"""Packages that Slicer brings and relies on: an installation must not change them.

pip and setuptools may change: the PyTorch extension's light-the-torch needs an older pip than Slicer 5.12 brings, and
some versions of PyTorch an older setuptools.
"""
NOT_WRITABLE = ("[Errno 13]", "[Errno 30]", "[WinError 5]")
"""Codes in pip's errors if Slicer's folder is write-protected; the text after them is in the system's language."""
LEAST_DISK = 6 * 10**9
FIRST_GUESS = (5.0, 1.5)
"""Seconds to start, and per million voxels, on one processor core; used until the first run has been timed.

Measured on 2026-11-23 on one core: 0.3 to 1.4 s per million voxels on two phantoms and on the sample volume.
"""
_SETTING = "SAUNetSegmentation/secondsPerMegavoxel/"


@dataclass(frozen=True)
class CheckRow:
    """One row of the table that `Dependencies.check` makes: what was checked, whether it is fine (None: for information
    only), and details."""

    name: str
    fine: bool | None
    detail: str


class Dependencies:
    """Check and install.

    Signals:
        log (str): a line for the log.
    """

    def __init__(self) -> None:
        self.log = Signal()

    def missing(self) -> list[str]:
        """The requirement specifiers that are not met, including torch."""
        return [specifier for specifier in (TORCH, *OTHERS) if not isMet(specifier)]

    def models(self) -> list[str]:
        """Names of the models that are installed: the user's own and the shipped ones."""
        return model_names()

    # -- check -------------------------------------------------------------------------------------------------------

    def check(self, volumeNode: Any = None) -> list[CheckRow]:
        """Check what this computer has, without importing torch."""
        torch = versionOf("torch")
        build = _torchBuild(torch) if torch else _("not installed")
        free = min(shutil.disk_usage(folder).free for folder in (tempfile.gettempdir(), sys.prefix))
        rows = [
            CheckRow("Slicer", slicerVersion() >= (5, 10), f"{slicer.app.majorVersion}.{slicer.app.minorVersion}"),
            CheckRow("Python", sys.version_info >= (3, 11), platform.python_version()),
            CheckRow("SAUNet", True, __version__),
            CheckRow("PyTorch", torch is not None and isMet(TORCH), f"{(torch or '').split('+')[0]} {build}".strip()),
        ]
        for specifier in OTHERS:
            name = Requirement(specifier).name
            rows.append(CheckRow(name, isMet(specifier), versionOf(name) or _("not installed")))
        return [
            *rows,
            CheckRow(_("Graphics card"), None, graphicsCard() or _("none; the processor is used")),
            CheckRow(_("Memory"), None, f"{totalMemory() / 2**30:.0f} GB" if totalMemory() else _("unknown")),
            self.modelRow(),
            CheckRow(_("Free disk"), free >= LEAST_DISK or not self.missing(), f"{free / 1e9:.0f} GB"),
            *([CheckRow(_("Estimated time"), None, self.estimate(volumeNode))] if volumeNode is not None else []),
        ]

    def checkHtml(self, volumeNode: Any = None) -> str:
        """The check as a table, headed by what is missing or not suitable."""
        rows = self.check(volumeNode)
        missing = ", ".join(row.name for row in rows if row.fine is False)
        found = _("Missing or not suitable: {names}").format(names=missing) if missing else _("Everything is there.")
        marks = {True: "\u2713", False: "\u2717", None: "\u00b7"}
        cells = (
            f"<tr><td>{marks[row.fine]}</td><td>{html.escape(row.name)}&nbsp;&nbsp;</td><td>{html.escape(row.detail)}</td></tr>"
            for row in rows
        )
        return f"<b>{html.escape(found)}</b><table cellspacing='3'>{''.join(cells)}</table>"

    def modelRow(self) -> CheckRow:
        """Check whether the model is installed and intact."""
        try:
            path = find_model()
            card = ModelCard.read(path)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except (SAUNetError, OSError):
            return CheckRow(_("Model"), False, _("not installed"))
        if sha256 != card.sha256:
            return CheckRow(_("Model"), False, _("damaged: its SHA-256 does not match"))
        return CheckRow(_("Model"), True, f"{card.name} {card.version} ({sha256[:12]})")

    def remember(self, volumeNode: Any, device: str, seconds: float) -> None:
        """Keep how long a run took, for `estimate`."""
        settings = slicer.app.userSettings()
        settings.setValue(_SETTING + device.split(" ")[0], seconds / max(megavoxels(volumeNode), 0.1))
        settings.setValue(_SETTING + "last", device.split(" ")[0])

    def estimate(self, volumeNode: Any) -> str:
        """Estimated time for the volume, from the last run on this computer; a guess before the first run."""
        settings = slicer.app.userSettings()
        device = settings.value(_SETTING + "last")
        rate = settings.value(_SETTING + str(device)) if device else None
        if not rate:
            guess = FIRST_GUESS[0] + FIRST_GUESS[1] * megavoxels(volumeNode)
            return _("about {seconds} s (a guess before the first run)").format(seconds=round(guess))
        return _("{seconds} s").format(seconds=max(1, round(float(rate) * max(megavoxels(volumeNode), 0.1))))

    # -- install -----------------------------------------------------------------------------------------------------

    def installMissing(self, ask: Callable[[str], bool]) -> bool:
        """Install what is missing; returns False if nothing is missing or the user does not consent.

        Raises:
            PanelError: PYTORCH, PYTORCH_IN_USE, INSTALL_FAILED or INSTALL_WRITE; after the installation, VISUAL_C,
                PYTORCH_BROKEN or MEMORY if PyTorch cannot be imported.
        """
        missing = self.missing()
        if not missing:
            return False
        if TORCH in missing:
            _pytorchUtils()  # raises before the user is asked for consent
            _checkTorchReplaceable()
        text = _("These packages will be installed into Slicer's Python:\n\n{packages}\n\nThis can take a few minutes.")
        if not ask(text.format(packages="\n".join(missing))):
            return False
        self.log.emit(_("Installing {packages}").format(packages=", ".join(missing)))
        others = [specifier for specifier in missing if specifier != TORCH]
        failure = None
        with self._watched() as constraints:
            if TORCH in missing:
                failure = _installTorch(constraints)
            if others:
                _pipInstall(others, constraints)
        if failure is not None:
            self.log.emit(f"{type(failure).__name__}: {failure}")
            code = unforeseen(failure, "").code
            raise PanelError(code if code in ("VISUAL_C", "MEMORY") else "PYTORCH_BROKEN") from failure
        return self._verified()

    def installBundle(self, path: Path, ask: Callable[[str], bool]) -> bool:
        """Install packages and model from a bundle, without internet access; returns False without consent.

        Raises:
            PanelError: BUNDLE, BUNDLE_PLATFORM, BUNDLE_UNPACK, PYTORCH_IN_USE, INSTALL_FAILED or INSTALL_WRITE.
        """
        with self._privateFolder() as folder:
            manifest = openBundle(path, folder, slicerVersion())
            wheels = folder / "wheels"
            text = _("This will be installed from {name}:\n\nPackages: {count}\nModels: {models}")
            files = [entry["name"] for entry in manifest["files"]]
            models = [name for name in files if name.endswith(".safetensors")]
            packages = [name for name in files if name.endswith(".whl")]
            missing = self.missing()
            if TORCH in missing:
                _checkTorchReplaceable()
            if not ask(text.format(count=len(packages) if missing else 0, models=len(models), name=path.name)):
                return False
            if missing:
                with self._watched() as constraints:
                    _pip(["--no-index", "--find-links", str(wheels), "-c", str(constraints), *missing])
            for name in models:
                self._keep(folder / name)
            return self._verified()

    @contextmanager
    def _privateFolder(self) -> Any:
        """A temporary folder for an installation; failing to remove it does not undo the installation."""
        try:
            folder = temporary.make_folder()
        except OSError as error:
            raise PanelError("INSTALL_FAILED", _("No temporary folder could be made.")) from error
        try:
            yield folder
        finally:
            try:
                temporary.remove_folder(folder)
            except OSError as error:
                self.log.emit(_("The temporary folder could not be removed yet: {error}").format(error=error))

    def _keep(self, weights: Path) -> None:
        """Add a bundle's model to the user's own; one that must not replace one of those is left out and logged.

        Raises:
            PanelError: BUNDLE (its card is not valid), INSTALL_FAILED (it cannot be written) or MEMORY.
        """
        try:
            keep_model(weights, ModelCard.read(weights))
        except ModelError as error:
            raise PanelError("BUNDLE", error.cause) from error
        except OutOfMemoryError as error:
            raise PanelError("MEMORY") from error
        except UsageError as error:
            if error.code != "USAGE":
                raise PanelError("INSTALL_FAILED", withoutPaths(error.cause)) from error
            self.log.emit(error.cause)

    @contextmanager
    def _watched(self) -> Any:
        """Yield a constraints file that pins Slicer's own packages; turn failures into error cards."""
        pins, errors = {name: versionOf(name) for name in SLICERS_OWN}, [""]

        def take(line: str) -> None:
            if line.strip():
                self.log.emit(line.rstrip()[:2000])
            if line.startswith("ERROR: "):
                errors.append(withoutPaths(line.removeprefix("ERROR: ").strip())[:500])

        try:
            with self._privateFolder() as folder, Console.heard(take):  # the only place where Slicer shows pip's output
                constraints = folder / "constraints.txt"
                constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items() if version))
                yield constraints
        except PanelError:
            raise
        except Exception as error:  # pip, the PyTorch extension and Slicer's dialogs fail in many ways
            self.log.emit(f"{type(error).__name__}: {error}")
            code = "INSTALL_WRITE" if any(number in errors[-1] for number in NOT_WRITABLE) else "INSTALL_FAILED"
            raise PanelError(code, errors[-1]) from error
        finally:
            changed = [name for name, version in pins.items() if versionOf(name) != version]
            if changed:
                self.log.emit(_("Warning: the installation changed {names}").format(names=", ".join(changed)))

    def _verified(self) -> bool:
        missing = self.missing()
        if missing:
            cause = _("These are still missing: {packages}.").format(packages=", ".join(missing))
            raise PanelError("INSTALL_FAILED", cause)
        return True


def slicerVersion() -> tuple[int, int]:
    """Slicer's version, such as (5, 12)."""
    return int(slicer.app.majorVersion), int(slicer.app.minorVersion)


def versionOf(name: str) -> str | None:
    """The installed version of a package; it is not imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def isMet(requirement: str) -> bool:
    """Whether the installed version meets a requirement, or the requirement's marker excludes this computer."""
    wanted = Requirement(requirement)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    installed = versionOf(wanted.name)
    try:  # what is installed may well be a pre-release: a nightly build of a later version
        return installed is not None and wanted.specifier.contains(installed, prereleases=True)
    except InvalidVersion:
        return False


def _torchBuild(version: str) -> str:
    tag = version.partition("+")[2]
    if tag.startswith("cu"):
        return _("(NVIDIA)")
    return _("(processor)") if tag == "cpu" else ""


def graphicsCard() -> str:
    """Name and memory of the graphics card that PyTorch could use; empty where there is none."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "Apple (MPS)"
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    return Console.output([program, "--query-gpu=name,memory.total", "--format=csv,noheader"]).strip().split("\n")[0]


def totalMemory() -> int:
    """Main memory in bytes; 0 if the system does not state it."""
    if os.name == "nt":
        return _totalMemoryOnWindows()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _totalMemoryOnWindows() -> int:
    """From Windows' structure MEMORYSTATUSEX: two 32-bit fields, then the total in 64 bits, then six more."""
    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    done = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status[1]) if done else 0


def megavoxels(volumeNode: Any) -> float:
    """Millions of voxels of a volume node."""
    image = volumeNode.GetImageData() if volumeNode is not None else None
    return image.GetNumberOfPoints() / 1e6 if image is not None else 0.0


def _pytorchUtils() -> Any:
    """The PyTorch extension's module.

    Raises:
        PanelError: PYTORCH, the extension is not installed.
    """
    try:
        import PyTorchUtils
    except ImportError as error:
        raise PanelError("PYTORCH") from error
    return PyTorchUtils


def _checkTorchReplaceable() -> None:
    """Refuse to install another torch while Windows locks the libraries of one that this Slicer has loaded.

    Raises:
        PanelError: PYTORCH_IN_USE.
    """
    if sys.platform == "win32" and "torch" in sys.modules:
        raise PanelError("PYTORCH_IN_USE")


def _installTorch(constraints: Path) -> Exception | None:
    """Let the PyTorch extension install the build for this computer; it takes constraints only from pip's variable.

    Returns:
        Why PyTorch cannot be imported, which the extension tries as soon as it is installed; None if it can.

    Raises:
        PanelError: PYTORCH, the extension is not installed; INSTALL_FAILED.
    """
    logic = _pytorchUtils().PyTorchUtilsLogic()
    before = os.environ.get("PIP_CONSTRAINT")
    os.environ["PIP_CONSTRAINT"] = constraints.as_uri()  # pip splits the variable at spaces; a URL has none
    try:
        done = logic.installTorch(torchVersionRequirement=TORCH.removeprefix("torch"))
    except Exception as error:
        if not isMet(TORCH):
            raise
        return error
    finally:
        del os.environ["PIP_CONSTRAINT"]
        if before is not None:
            os.environ["PIP_CONSTRAINT"] = before
    if done is None:
        raise PanelError("INSTALL_FAILED")
    return None


def _pipInstall(requirements: list[str], constraints: Path) -> None:
    try:
        import slicer.packaging as packaging
    except ImportError:  # Slicer 5.10
        _pip(["-c", str(constraints), *requirements])
        return
    packaging.pip_ensure(requirements, constraints=constraints, prompt_install=False, requester="SAUNet")


def _pip(arguments: list[str]) -> None:
    slicer.util.pip_install(arguments)
