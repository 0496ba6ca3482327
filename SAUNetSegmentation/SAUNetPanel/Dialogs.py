"""What the panel asks the user in dialogs."""

import re
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _


class Dialogs:
    """Files, folders and decisions."""

    def saveFile(self, title: str, name: str, filters: str) -> Path | None:
        """A file to write to; a name without any filter's ending gets the chosen filter's."""
        dialog = qt.QFileDialog(slicer.util.mainWindow(), title)
        dialog.setAcceptMode(qt.QFileDialog.AcceptSave)
        dialog.setNameFilters(filters.split(";;"))
        dialog.selectFile(name)
        path, chosen = (dialog.selectedFiles()[0], dialog.selectedNameFilter()) if dialog.exec_() else ("", "")
        dialog.deleteLater()  # the main window, its parent, would keep it
        if not path:
            return None
        endings = re.findall(r"\*([\w.]+)", filters)
        if path.lower().endswith(tuple(endings)):
            return Path(path)
        ending = re.findall(r"\*([\w.]+)", chosen)[0]
        last = "." + ending.rpartition(".")[2]
        stem = path[: -len(last)] if path.lower().endswith(last) else path  # "spine.nrrd" becomes spine.seg.nrrd
        whole = Path(stem + ending)
        return whole if not whole.exists() or self.replaceFiles([whole.name]) else None

    def replaceFiles(self, names: list[str]) -> bool:
        """Ask whether files may be replaced, where no file dialog has asked."""
        if len(names) == 1:
            text = _("The file {name} already exists. Replace it?").format(name=names[0])
        else:
            text = _("{count} files already exist, among them {name}. Replace them?").format(
                count=len(names), name=names[0]
            )
        title = _("SAU-Net Spine Segmentation")
        return bool(slicer.util.confirmYesNoDisplay(text, title, textFormat=qt.Qt.PlainText))

    def openFile(self, title: str, filters: str) -> Path | None:
        """A file to read."""
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", filters)
        return Path(path) if path else None

    def chooseFolder(self, title: str) -> Path | None:
        """A folder."""
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title)
        return Path(path) if path else None

    def replaceEdited(self, name: str) -> str:
        """Ask what to do with a result that was edited by hand: ``replace``, ``keep`` or ``cancel``."""
        box = qt.QMessageBox(slicer.util.mainWindow())
        box.setWindowTitle(_("SAU-Net Spine Segmentation"))
        box.setTextFormat(qt.Qt.PlainText)  # a node's name may look like HTML
        box.setText(_("{name} was edited by hand.").format(name=name))
        box.setInformativeText(_("Keep it and add a new segmentation, or replace it?"))
        keep = box.addButton(_("Keep both"), qt.QMessageBox.AcceptRole)
        replace = box.addButton(_("Replace"), qt.QMessageBox.DestructiveRole)
        box.addButton(qt.QMessageBox.Cancel)
        box.setDefaultButton(keep)
        box.exec_()
        clicked: Any = box.clickedButton()
        box.deleteLater()
        return "keep" if clicked == keep else "replace" if clicked == replace else "cancel"

    def confirmInstall(self, text: str) -> bool:
        """Ask for consent to an installation."""
        return bool(slicer.util.confirmOkCancelDisplay(text, _("SAU-Net Spine Segmentation")))
