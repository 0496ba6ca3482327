"""The menu of the button *Export...*: a label map node, files, surfaces; and what the user should know about them."""

from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

from .Cards import PanelError
from .Result import elided, exportNotes
from .SceneNodes import fileName

_Exported = tuple[str, Callable[[], list[str]]]
"""Name of what was exported (empty if nothing was), and a function that returns notes on it for the user."""


class ExportMenu:
    """Exports the panel's result.

    Args:
        button: gets the menu.
        panel: the `Widget`, whose result is exported and which shows the outcome.
    """

    def __init__(self, button: Any, panel: Any) -> None:
        self._panel, self._nodes, self._dialogs = panel, panel.logic.nodes, panel.dialogs
        self.menu = qt.QMenu(button)  # PythonQt keeps no reference to a menu
        for text, action in (
            (_("Label map node"), self.onExportNode),
            (_("Label map file..."), self.onExportLabelMap),
            (_("Segmentation file (.seg.nrrd)..."), self.onExportSegmentation),
            (_("STL file per segment..."), self.onExportSurfaces),
        ):
            self.menu.addAction(text).connect("triggered(bool)", action)
        button.setMenu(self.menu)

    def onExportNode(self) -> None:
        """Export the result as a label map node in the scene."""
        node = self._panel.result()

        def export() -> _Exported:
            labelMap, merged = self._nodes.exportLabelMapNode(node)
            return labelMap.GetName(), lambda: exportNotes(node, merged)

        self._export(export)

    def onExportLabelMap(self) -> None:
        """Export the result as a label map file."""
        filters = "NIfTI (*.nii.gz *.nii);;NRRD (*.nrrd);;MetaImage (*.mha)"
        self._exportFile(_("Export label map"), filters, self._nodes.exportLabelMap)

    def onExportSegmentation(self) -> None:
        """Export the result as a segmentation file with names, colours and codes."""
        filters = _("Segmentation") + " (*.seg.nrrd)"
        self._exportFile(_("Export segmentation"), filters, self._nodes.exportSegmentation)

    def onExportSurfaces(self) -> None:
        """Export the result as one STL file per segment."""
        node = self._panel.result()  # while the dialog is open, a run may end and another result be shown
        folder = self._dialogs.chooseFolder(_("Export STL files"))
        if folder is not None:

            def export() -> _Exported:
                files = self._nodes.exportSurfaces(node, folder, self._replaceFiles)
                return f"{len(files)} STL" if files else "", list

            self._export(export)

    def _exportFile(self, title: str, filters: str, write: Any) -> None:
        node = self._panel.result()
        path = self._dialogs.saveFile(title, fileName(node.GetName()), filters)
        if path is not None:

            def export() -> _Exported:
                merged = write(node, path)
                return path.name, lambda: exportNotes(node, merged)

            self._export(export)

    def _export(self, export: Callable[[], _Exported]) -> None:
        self._panel.onCardClosed()  # of an earlier export
        qt.QApplication.setOverrideCursor(qt.Qt.WaitCursor)  # large results take half a minute
        try:
            done, notes = export()
            said = self._notes(notes) if done else []
        except PanelError as error:
            self._panel.showCard(error.card)
            return
        except MemoryError:  # a label map of all segments takes as much memory as the image
            self._panel.showCard(PanelError("EXPORT_MEMORY").card)
            return
        finally:
            qt.QApplication.restoreOverrideCursor()
        if done:
            for note in said:  # also in the log: a run's progress overwrites them here
                self._panel.addLog(note)
            self._panel.say("\n".join([_("Exported: {name}").format(name=elided(done)), *said]))

    def _replaceFiles(self, names: list[str]) -> bool:
        """Ask in the middle of an export, without the wait cursor: Slicer is waiting for the user."""
        qt.QApplication.restoreOverrideCursor()
        try:
            return self._dialogs.replaceFiles(names)
        finally:
            qt.QApplication.setOverrideCursor(qt.Qt.WaitCursor)

    @staticmethod
    def _notes(notes: Callable[[], list[str]]) -> list[str]:
        try:
            return notes()
        except MemoryError:  # the file is complete all the same
            return [_("There is not enough memory to check what the export leaves out.")]
