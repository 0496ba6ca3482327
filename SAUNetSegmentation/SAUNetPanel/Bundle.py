"""Read a bundle (wheels and model in one zip file, for an offline computer), which SAUNetLib.bundle writes."""

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SAUNetLib.bundle import FORMAT, MANIFEST, PLATFORMS, this_platform

from .Cards import PanelError

LARGEST = 16 * 2**30
LARGEST_MANIFEST = 2**20
_NAME = re.compile(r"(wheels/[\w.+!-]+\.whl|models/[\w.-]+\.(safetensors|json))", re.ASCII)


def openBundle(path: Path, folder: Path, slicerVersion: tuple[int, int]) -> dict[str, Any]:
    """Unpack a bundle into a folder and check the SHA-256 of every file while it is written.

    Returns:
        The manifest.

    Raises:
        PanelError: BUNDLE (it is damaged, or was made for another Slicer or platform), BUNDLE_PLATFORM (there is none
            for this computer) or BUNDLE_UNPACK (it cannot be opened, or the folder is full).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open(MANIFEST) as file:
                manifest = json.loads(file.read(LARGEST_MANIFEST))
            _check(manifest, slicerVersion)
            for entry in manifest["files"]:
                _unpack(archive, entry, folder)
    except PanelError:
        raise
    except OSError as error:
        raise PanelError("BUNDLE_UNPACK", error.strerror or "") from error
    except Exception as error:  # malformed files make zipfile and json raise exceptions of many kinds
        raise PanelError("BUNDLE") from error
    return manifest


def _check(manifest: dict[str, Any], slicerVersion: tuple[int, int]) -> None:
    here = this_platform()
    if here not in PLATFORMS:
        cause = _("Bundles are available for {names}; this is {found}.").format(names=", ".join(PLATFORMS), found=here)
        raise PanelError("BUNDLE_PLATFORM", cause)
    if manifest["format"] != FORMAT:
        raise PanelError("BUNDLE", _("It was made with another version of SAUNet."))
    wanted = ".".join(map(str, slicerVersion))
    if manifest["slicer"] != wanted:
        cause = _("It was made for Slicer {made}; this is {found}.").format(made=manifest["slicer"], found=wanted)
        raise PanelError("BUNDLE", cause)
    if manifest["platform"] != here:
        cause = _("It was made for {made}; this is {found}.").format(made=manifest["platform"], found=here)
        raise PanelError("BUNDLE", cause)
    if sum(int(entry["size"]) for entry in manifest["files"]) > LARGEST:
        raise ValueError("too large")


def _unpack(archive: zipfile.ZipFile, entry: dict[str, Any], folder: Path) -> None:
    if not _NAME.fullmatch(entry["name"]):
        raise ValueError(f"unexpected file {entry['name']}")
    target = folder.joinpath(*entry["name"].split("/"))
    target.parent.mkdir(exist_ok=True)
    digest, left = hashlib.sha256(), int(entry["size"])
    with archive.open(entry["name"]) as source, open(target, "wb") as file:
        while block := source.read(2**20):
            left -= len(block)
            if left < 0:
                raise ValueError("longer than stated")
            digest.update(block)
            file.write(block)
    if left or digest.hexdigest() != entry["sha256"]:
        raise PanelError("BUNDLE", _("It is damaged: the SHA-256 of {name} does not match.").format(name=target.name))
