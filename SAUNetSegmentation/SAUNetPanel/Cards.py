"""Error cards: what went wrong in plain words, what to do, and the button that does it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slicer.i18n import tr as _

from SAUNetLib.errors import REDISTRIBUTABLE

VOLUME_FILE = "volume.nrrd"
"""Name of the file that the engine reads, which appears in its messages."""


@dataclass(frozen=True)
class Card:
    """What an error card shows.

    Attributes:
        code: the engine's or the panel's; it does not change.
        title: one line.
        cause: plain words.
        remedy: what the user can do.
        action: name of the entry of `actions` that applies the remedy, or empty.
    """

    code: str
    title: str
    cause: str
    remedy: str
    action: str = ""


class PanelError(Exception):
    """A failure of the panel itself, given by its code in `cards` or by a finished card."""

    def __init__(self, code: str | Card, cause: str = "") -> None:
        self.card = code if isinstance(code, Card) else cardOf({"code": code, "cause": cause})
        super().__init__(f"{self.card.title}: {self.card.cause} {self.card.remedy}")

    @property
    def code(self) -> str:
        """The card's code."""
        return self.card.code


def actions() -> Mapping[str, str]:
    """Texts of the buttons that apply a remedy."""
    return {
        "cpu": _("Use the processor"),
        "pick": _("Choose a volume"),
        "harden": _("Harden transform"),
        "install": _("Install"),
        "check": _("Check computer"),
        "model": _("Standard model"),
        "retry": _("Try again"),
        "log": _("Show the log"),
        "crop": _("Open Crop Volume"),
        "extensions": _("Open Extensions"),
        "pytorch": _("Open PyTorch Utils"),
    }


def cardOf(event: Mapping[str, Any]) -> Card:
    """The card for an error event. The engine's own cause contains the figures, so it is shown if there is one."""
    code = str(event.get("code") or "INTERNAL")
    advice = inPanelWords(str(event.get("remedy") or ""))
    make = _cards().get(code)
    if make is None:
        card = Card(code, str(event.get("title") or _("Unexpected failure")), "", advice, "log")
    else:
        title, cause, remedy, *action = make
        if code == "INPUT_PIXEL_TYPE":  # a colour image or a label map: the engine knows which
            remedy = advice or remedy
        card = Card(code, title, cause, remedy, *action)
    stated = inPanelWords(str(event.get("cause") or "").strip())
    return replace(card, cause=stated[:1].upper() + stated[1:]) if stated else card


def inPanelWords(text: str) -> str:
    """Replace command-line options and the private file in an engine message, which is English, by panel names."""
    names = {
        VOLUME_FILE: "the volume",
        "--lowest": _("Advanced: Lowest vertebra"),
        "--model": _("Advanced: Model"),
        "--device": _("Advanced: Device"),
        "--series": _("Volume"),
    }
    for option, name in names.items():
        text = text.replace(option, name)
    return text


def codes() -> frozenset[str]:
    """All codes that have a card."""
    return frozenset(_cards())


def _cards() -> dict[str, tuple[str, ...]]:
    return {**_engineCards(), **_panelCards()}


def _engineCards() -> dict[str, tuple[str, ...]]:
    """Title, cause, remedy and action for every code of SAUNetLib.errors."""
    again = _("Try again; if it happens again, copy the report and send it to the maintainers.")
    reinstall = _("Install the model again, or use the standard model.")
    check = _("Check how the series was loaded, or choose another volume.")
    other = _("Choose another volume.")
    return {
        "INTERNAL": (_("Unexpected failure"), _("The engine met an unexpected case."), again, "log"),
        "USAGE": (_("Request not understood"), _("The engine did not understand the panel's request."), again, "log"),
        "OUTPUT_FORMAT": (_("Unknown format"), _("The file extension is not known."),
                          _("Choose a name that ends in .nii.gz, .nii, .nrrd, .mha, .seg.nrrd or .stl.")),
        "OUTPUT_WRITE": (_("The result could not be written"), _("The temporary folder cannot be written to."),
                         _("Free some space on the disk that holds the temporary folder, then try again."), "retry"),
        "DEVICE": (_("Device not available"), _("The chosen device is not available."),
                   _("Use the processor, or set the device to Automatic."), "cpu"),
        "NOT_INSTALLED": (_("A package is missing"), _("The engine needs a package that is not installed."),
                          _("Install what is missing."), "install"),
        "INPUT_NOT_FOUND": (_("The volume did not reach the engine"), _("Its temporary file has disappeared."),
                            _("Try again."), "retry"),
        "INPUT_EMPTY": (_("Nothing to read"), _("The volume is empty."), other, "pick"),
        "INPUT_UNREADABLE": (_("Not a readable image"), _("The volume cannot be read."), check, "pick"),
        "INPUT_DIMENSION": (_("Not a 3D volume"), _("The volume does not have three dimensions."),
                            _("Choose a 3D volume. Of a sequence, the displayed frame is used."), "pick"),
        "INPUT_PIXEL_TYPE": (_("Not a greyscale image"), _("The volume is not greyscale."),
                             _("Choose a greyscale volume."), "pick"),
        "INPUT_VALUES": (_("Invalid voxel values"),
                         _("The volume contains NaN, infinite or implausibly large values."),
                         _("Replace them in the module Simple Filters, or load the series again."), "pick"),
        "INPUT_CONSTANT": (_("Blank image"), _("All voxels have the same value."), other, "pick"),
        "INPUT_SPACING": (_("Impossible voxel size"), _("The volume's voxel size cannot be correct."),
                          _("Correct the spacing in the module Volumes, or load the series again."), "pick"),
        "INPUT_DIRECTION": (_("Axes not perpendicular"), _("The volume's axes are sheared."),
                            _("Harden the acquisition transform, or resample the volume to perpendicular axes."),
                            "pick"),
        "INPUT_NOT_SAGITTAL": (_("Not a sagittal series"), _("The slices run in another direction."),
                               _("Choose the sagittal series of the same study."), "pick"),
        "INPUT_MODALITY": (_("Not an MRI"), _("The series has another modality."),
                           _("Choose a magnetic resonance series."), "pick"),
        "INPUT_SERIES": (_("Several series"), _("More than one series was given."), _("Choose one series."), "pick"),
        "INPUT_SLICES": (_("Missing or unevenly spaced slices"), _("Slices are missing or unevenly spaced."),
                         _("Load the complete series again, or choose another one."), "pick"),
        "INPUT_TOO_LARGE": (_("Too large"), _("The volume has too many voxels."),
                            _("Crop the volume to the spine."), "crop"),
        "INPUT_LABELS": (_("Unknown label values"), _("The label map contains unknown values."), check, "pick"),
        "INPUT_GEOMETRY": (_("Images on different grids"), _("The two images do not have the same grid."), check,
                           "pick"),
        "MODEL_NOT_FOUND": (_("No such model"), _("The model is not installed."), reinstall, "model"),
        "MODEL_DAMAGED": (_("The model file is damaged"), _("The model file differs from the published one."),
                          reinstall, "model"),
        "MODEL_CARD": (_("The model card is missing or invalid"), _("The model cannot be identified."), reinstall,
                       "model"),
        "MODEL_MISMATCH": (_("Model and card do not match"), _("The weights are not those the card describes."),
                           reinstall, "model"),
        "MEMORY": (_("Not enough memory"), _("Neither the device nor the computer has enough memory."),
                   _("Close other programs, or crop the volume to the spine."), "crop"),
        "CANCELLED": (_("Cancelled"), _("The run was cancelled."), _("Nothing was changed; start again when ready.")),
    }  # fmt: skip


def _panelCards() -> dict[str, tuple[str, ...]]:
    """Title, cause, remedy and action for errors that only the panel can have."""
    again = _("Try again; if it happens again, copy the report and send it to the maintainers.")
    return {
        "NO_VOLUME": (_("No volume"), _("There is no volume to work on."),
                      _("Load a sagittal spine MRI and choose it."), "pick"),
        "VOLUME_KIND": (_("Not a greyscale volume"), _("Label maps, colour and vector volumes cannot be segmented."),
                        _("Choose the original greyscale volume."), "pick"),
        "VOLUME_EMPTY": (_("The volume is empty"), _("The volume has no voxels."),
                         _("Load it again, or choose another one."), "pick"),
        "VOLUME_GONE": (_("The volume is gone"), _("The volume was removed during segmentation."),
                        _("Load the volume again, then start again."), "pick"),
        "TRANSFORM_NONLINEAR": (_("The volume is under a non-linear transform"),
                                _("The result could not be placed over the volume as displayed."),
                                _("Harden the transform. This resamples the volume; only reloading it undoes this."),
                                "harden"),
        "TRANSFORM_FRAME": (_("The frame is under a non-linear transform"),
                            _("The result could not be placed over the frame as displayed, and a hardened frame is"
                              " lost when another one is displayed."),
                            _("In the module Data, right-click the volume and choose Clone, then choose the copy"
                              " above. The copy is under no transform. If it should lie where the frame lies, put it"
                              " under the same transform, which can then be hardened here.")),
        "ENGINE_START": (_("The engine did not start"), _("Slicer's Python could not be started."),
                         _("Check this computer in the section Setup."), "check"),
        "ENGINE_DIED": (_("The engine stopped unexpectedly"), _("It stopped before it had finished."), again, "log"),
        "ENGINE_KILLED": (_("The engine was stopped"), _("It was stopped from outside, usually for lack of memory."),
                          _("Close other programs, or crop the volume to the spine, then try again."), "retry"),
        "RESULT_UNREADABLE": (_("The result cannot be read"), _("The engine's result file is missing or incomplete."),
                              again, "retry"),
        "RESULT_GEOMETRY": (_("The result does not fit the volume"),
                            _("The volume's geometry was changed during segmentation."),
                            _("Start again and leave the volume unchanged until segmentation has finished."), "retry"),
        "FOLDER": (_("No temporary folder"), _("The volume could not be written to the temporary folder."),
                   _("Free some space on the disk that holds the temporary folder, then try again."), "retry"),
        "EXPORT_FAILED": (_("The export failed"), _("The file could not be written."),
                          _("Close the program that has the file open, choose another folder, or free some space on"
                            " the disk.")),
        "EXPORT_EMPTY": (_("Nothing to export"), _("All segments are empty."),
                         _("Choose another result, or segment the volume again.")),
        "EXPORT_MEMORY": (_("Not enough memory"), _("The export needs more memory than is free."),
                          _("Close other programs, then export again.")),
        "INSTALL_FAILED": (_("The installation failed"), _("A package could not be installed."),
                           _("See the log. Without an internet connection, use Install from file... in the"
                             " section Setup."), "log"),
        "INSTALL_WRITE": (_("Slicer's folder cannot be written to"),
                          _("It is write-protected, or some of its files are in use."),
                          _("Close all other Slicer windows, restart Slicer and press Install before anything else. If"
                            " that does not help, install Slicer in a folder of your own, or ask the administrator of"
                            " this computer to press Install."), "log"),
        "PYTORCH_IN_USE": (_("PyTorch is in use"),
                           _("Another extension has loaded an older PyTorch. Windows cannot replace it while in use."),
                           _("Restart Slicer, then press Install before anything else.")),
        "PYTORCH_BROKEN": (_("PyTorch is damaged"), _("Its installation is not complete."),
                           _("In the module PyTorch Utils press Uninstall PyTorch, restart Slicer, then press Install"
                             " in this module's section Setup."), "pytorch"),
        "VISUAL_C": (_("A Windows component is missing or outdated"), _("PyTorch cannot load its libraries."),
                     _("Install or update Microsoft's Visual C++ Redistributable ({address}) and restart the computer."
                       " If that does not help, press Uninstall PyTorch in the module PyTorch Utils, restart Slicer,"
                       " then press Install in this module's section Setup.").format(address=REDISTRIBUTABLE),
                     "pytorch"),
        "BUNDLE": (_("Not a bundle for this computer"),
                   _("The file is not a complete bundle for this version of Slicer."),
                   _("Create one with the command saunet bundle for this version of Slicer and this platform.")),
        "BUNDLE_UNPACK": (_("The bundle could not be unpacked"),
                          _("The file cannot be opened, or the temporary folder is full."),
                          _("Check that the file is still there, and free some space on the disk that holds the"
                            " temporary folder.")),
        "BUNDLE_PLATFORM": (_("No bundle for this computer"),
                            _("Bundles are not available for its system or processor."),
                            _("Connect this computer to the internet and press Install, or use another computer.")),
        "PYTORCH": (_("The PyTorch extension is missing"),
                    _("Slicer's PyTorch extension installs the right build of torch."),
                    _("Install the extension PyTorch in the Extensions Manager, restart Slicer, then try again."),
                    "extensions"),
    }  # fmt: skip
