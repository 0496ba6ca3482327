"""Texts about the extension: the report for the maintainers and the About section."""

import html
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from SAUNetLib import __version__
from SAUNetLib.anatomy import encodings, named_structure
from SAUNetLib.errors import SAUNetError
from SAUNetLib.model_card import ModelCard, find_model

from .Cards import Card
from .Result import elided, segmentsOf

PAPER = (
    "Y. Zhang, L. Yuan, Y. Wang, J. Zhang: SAU-Net: Efficient 3D Spine MRI Segmentation Using Inter-Slice Attention,"
    " Medical Imaging with Deep Learning, 2020"
)
HOMEPAGE = "https://github.com/SAUNet/SlicerSAUNet"
_START = r"(?:file:/+|(?<![\w.])[A-Za-z]:[\\/]|\\\\|(?<!http:)(?<!https:)(?<![\w./])~?/)(?!\s)"
_QUOTED = re.compile(rf"(?P<quote>['\"])(?:{_START}).*?(?P=quote)(?!\w)")
# Names of Windows and cloud folders contain spaces, commas and brackets: remove everything up to the last separator,
# even if some words of the line go with it.
_FOLDER = r"(?:(?!\.\w{1,9}[\s,;:'\")])[^\"<>|*?:\\/\n]){0,80}[\\/]+"
_FILE = r"(?:[^\"<>|*?:\\/\n]{0,80}?\.[A-Za-z]\w{0,8}(?:\.gz)?(?!\w)|[^\s'\":;,<>|\\/]*)"
_PATH = re.compile(rf"{_START}(?:{_FOLDER})*{_FILE}")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


def reportText(card: Card | None, log: Iterable[str], names: Iterable[str], about: Mapping[str, str]) -> str:
    """Versions, error code and log, without paths, the user's name and these names."""
    lines = [
        f"SAUNet {__version__}",
        f"Slicer {slicer.app.majorVersion}.{slicer.app.minorVersion} (revision {slicer.app.revision})",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        *(f"{key}: {about[key]}" for key in ("model", "model_sha256", "device", "options") if key in about),
        *([f"{card.code}: {card.title}. {card.cause}"] if card else []),
        "",
        *log,
    ]
    names = list(names)
    return "\n".join(withoutNames(line, names) for line in lines) + "\n"


def privateNames() -> list[str]:
    """Names in the scene that may identify a patient, including the forms shortened by the panel.

    These are names of volumes, segmentations, and segments that are not named after a structure.
    """
    volumes, segmentations = map(slicer.util.getNodesByClass, ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode"))
    names = [node.GetName() or "" for node in (*volumes, *segmentations)]
    known = [encoding.structures for encoding in encodings().values()]
    for node in segmentations:
        called = (segment.GetName() or "" for _segmentId, segment in segmentsOf(node.GetSegmentation()))
        names += [name for name in called if not any(named_structure(name, meanings) for meanings in known)]
    return [*names, *map(elided, names)]


def withoutPaths(line: str) -> str:
    """A line without paths, and without the user part of URLs."""
    return _PATH.sub("[path]", _QUOTED.sub(r"\g<quote>[path]\g<quote>", _LOGIN.sub("", line)))


def withoutNames(line: str, names: Iterable[str]) -> str:
    """A line without paths, these names and the user's; names of at most two ASCII letters are kept."""
    line = withoutPaths(line)
    private = {name for name in [*names, Path.home().name] if len(name) > 2 or (name and not name.isascii())}
    for name in sorted(private, key=len, reverse=True):
        line = re.sub(re.escape(name), "[name]", line, flags=re.IGNORECASE)
    return line


def aboutText() -> str:
    """Versions, model, licence, citation and the warning, as rich text."""
    card = modelCard()
    parts = [
        f"<b>SAU-Net Spine Segmentation {html.escape(__version__)}</b>",
        "<b>" + _("Not for diagnostic use.") + "</b> " + _("Research software; check every result."),
    ]
    if card:
        parts.append(_("Model: {name} {version}. {text}").format(
            name=html.escape(card.name), version=html.escape(card.version), text=html.escape(card.description)
        ))  # fmt: skip
        parts.append(_("Licence of the model: {licence}. {attribution}").format(
            licence=html.escape(card.licence), attribution=html.escape(card.attribution)
        ))  # fmt: skip
    parts.append(_("Licence of the software: Apache 2.0."))
    parts.append(_("To cite: {paper}.").format(paper=html.escape(PAPER)))
    parts.append(f'<a href="{HOMEPAGE}">{HOMEPAGE}</a>')
    limits = "".join(f"<li>{html.escape(limit)}</li>" for limit in (card.limits if card else ()))
    if limits:
        parts.append("<b>" + _("Known limits of the model") + f"</b><ul style='margin-left:-22px'>{limits}</ul>")
    return "".join(f"<p>{part}</p>" for part in parts)


def modelCard() -> ModelCard | None:
    """The standard model's card; None where it is not installed."""
    try:
        return ModelCard.read(find_model())
    except SAUNetError:
        return None
