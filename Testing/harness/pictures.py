"""Draws the module's icon and takes the screenshots of the panel, from its real .ui file on the stand-in.

Run as a program (`python -m harness.pictures` in Testing); the pictures in Resources/ are what it made.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from harness import fixtures, process_events

ROOT = Path(__file__).resolve().parents[2]
ICONS = ROOT / "SAUNetSegmentation" / "Resources" / "Icons"
SCREENSHOTS = ROOT / "Resources" / "Screenshots"
WIDTH = 350


def draw_icon(size: int = 128) -> QtGui.QPixmap:
    """Four vertebrae with their discs, and the canal behind them."""
    picture = QtGui.QPixmap(size, size)
    picture.fill(QtCore.Qt.transparent)
    painter = QtGui.QPainter(picture)
    painter.setRenderHint(QtGui.QPainter.Antialiasing)
    painter.scale(size / 128, size / 128)
    painter.setPen(QtGui.QPen(QtGui.QColor(20, 40, 60), 2.5))
    canal = QtGui.QPainterPath(QtCore.QPointF(92, 6))
    canal.cubicTo(82, 45, 82, 80, 100, 122)
    painter.strokePath(canal, QtGui.QPen(QtGui.QColor(255, 213, 64), 13, QtCore.Qt.SolidLine, QtCore.Qt.RoundCap))
    for level in range(4):
        painter.save()
        painter.translate(46 + 5 * np.cos(level - 1.6), 17 + 31 * level)
        painter.rotate(-9 + 6 * level)
        if level < 3:
            painter.setBrush(QtGui.QColor(70, 160, 220))
            painter.drawRoundedRect(QtCore.QRectF(-25, 11, 50, 9), 4, 4)
        painter.setBrush(QtGui.QColor(241, 214, 145))
        painter.drawRoundedRect(QtCore.QRectF(-27, -11, 54, 22), 6, 6)
        painter.restore()
    painter.end()
    return picture


def draw_thumbnail() -> QtGui.QImage:
    """A sagittal slice of a phantom for the module Sample Data, 260 x 280."""
    from SAUNetLib.training.phantom import PhantomOptions, make_phantom
    from SAUNetLib.volume import SagittalStack

    stack = SagittalStack.of(make_phantom(PhantomOptions(seed=1, slices=3)).volume)
    values = stack.slices[1].astype(np.float32)
    values = np.ascontiguousarray((np.clip(values / np.percentile(values, 99.5), 0, 1) * 255).astype(np.uint8))
    image = QtGui.QImage(values.data, values.shape[1], values.shape[0], values.shape[1], QtGui.QImage.Format_Grayscale8)
    scaled = image.scaled(260, 280, QtCore.Qt.KeepAspectRatioByExpanding, QtCore.Qt.SmoothTransformation)
    return scaled.copy((scaled.width() - 260) // 2, (scaled.height() - 280) // 2, 260, 280)


def set_style(dark: bool) -> None:
    """Set one of Slicer's two styles, which are roughly Fusion with these palettes."""
    palette = QtGui.QPalette()
    if dark:
        roles = QtGui.QPalette
        for role, value in ((roles.Window, 50), (roles.Base, 30), (roles.AlternateBase, 45), (roles.Button, 55),
                            (roles.ToolTipBase, 40), (roles.Mid, 85), (roles.Dark, 30), (roles.Light, 90)):  # fmt: skip
            palette.setColor(role, QtGui.QColor(value, value, value))
        for role in (roles.WindowText, roles.Text, roles.ButtonText, roles.ToolTipText, roles.BrightText):
            palette.setColor(role, QtGui.QColor(240, 240, 240))
            palette.setColor(roles.Disabled, role, QtGui.QColor(130, 130, 130))
        palette.setColor(roles.PlaceholderText, QtGui.QColor(150, 150, 150))
        palette.setColor(roles.Highlight, QtGui.QColor(42, 100, 160))
        palette.setColor(roles.Link, QtGui.QColor(110, 170, 240))
    QtWidgets.QApplication.setPalette(palette if dark else QtWidgets.QApplication.style().standardPalette())


def take(panel, name: str) -> None:
    """Save a picture of the panel, as high as its content."""
    top = panel.top._native
    top.setFixedWidth(WIDTH)
    top.adjustSize()
    top.show()
    slicer.app.processEvents()
    top.resize(WIDTH, top.layout().totalMinimumSize().height())
    slicer.app.processEvents()
    top.resize(WIDTH, max(top.layout().heightForWidth(WIDTH), top.minimumSizeHint().height()))
    slicer.app.processEvents()
    top.grab().save(str(SCREENSHOTS / f"{name}.png"))


def take_all(style: str, folder: Path) -> None:
    """Take the screenshots of all states in one style."""
    from SAUNetLib.stages import done

    set_style(style == "dark")
    slicer.mrmlScene.Clear()
    fixtures.add_volume()
    panel = fixtures.make_panel(fixtures.fake_engine(folder))
    panel.ui.resultSection.collapsed = True
    take(panel, f"idle-{style}")
    panel.ui.resultSection.collapsed = False
    panel.ui.segmentButton.click()
    panel.wait()
    take(panel, f"done-{style}")
    panel.ui.resultSection.collapsed = True
    panel.ui.editSection.collapsed = False
    take(panel, f"correct-{style}")
    panel.ui.editSection.collapsed = True
    for section in (panel.ui.advancedSection, panel.ui.setupSection, panel.ui.aboutSection):
        section.collapsed = False
    panel.ui.checkButton.click()
    take(panel, f"sections-{style}")
    panel.widget.cleanup()
    panel.top._native.close()

    slicer.mrmlScene.Clear()
    fixtures.add_volume()
    panel = fixtures.make_panel(fixtures.fake_engine(folder, "wait", "levels"))
    panel.ui.resultSection.collapsed = True
    panel.ui.segmentButton.click()
    process_events(lambda: panel.widget._share >= done("levels", 0))
    panel.widget._started -= 20
    panel.widget._showProgress()
    take(panel, f"running-{style}")
    panel.ui.segmentButton.click()
    panel.wait()
    from SAUNetPanel.Cards import VOLUME_FILE, cardOf

    slicer.util.getNode("T2 sag").SetName("T2 ax")
    cause = f"{VOLUME_FILE} is an axial stack: its slices lie 4.4 mm apart along the wrong axis."
    panel.widget.showCard(cardOf({"code": "INPUT_NOT_SAGITTAL", "cause": cause}))
    take(panel, f"error-{style}")
    panel.widget.cleanup()
    panel.top._native.close()


def main() -> None:
    """Draw and take everything."""
    ICONS.mkdir(exist_ok=True)
    SCREENSHOTS.mkdir(exist_ok=True)
    draw_icon().save(str(ICONS / "SAUNetSegmentation.png"))
    draw_thumbnail().save(str(ICONS / "SpineLumbarT2.png"))
    with tempfile.TemporaryDirectory() as folder:
        for style in ("light", "dark"):
            take_all(style, Path(folder))


if __name__ == "__main__":
    main()
