"""The keyboard focus among the panel's buttons, beside an editor that claims keys in the whole window."""

from typing import Any

import qt


class KeyboardFocus:
    """Keeps the focus where the user expects it.

    Args:
        uiWidget: the panel.
        editor: the editor in it.
    """

    def __init__(self, uiWidget: Any, editor: Any) -> None:
        self._uiWidget, self._editor = uiWidget, editor
        self._space = SpaceKey(editor)
        uiWidget.installEventFilter(self._space)
        self._focusAt: list[Any] = []  # the widget that got the disabled button's focus, if it had it

    def close(self) -> None:
        """Let go of the panel."""
        self._uiWidget.removeEventFilter(self._space)

    def enable(self, button: Any, enabled: bool) -> None:
        """Enable or disable the button; on enabling, return the keyboard focus that Qt took from it.

        The focus stays where it is if the user has moved it meanwhile.
        """
        focused = button.hasFocus()
        button.enabled = enabled
        if focused and not enabled:
            self._focusAt = [qt.QApplication.focusWidget()]
        elif enabled and self._focusAt:
            if self._focusAt == [qt.QApplication.focusWidget()]:
                button.setFocus()
            self._focusAt = []

    def onFolded(self, section: Any, closed: bool) -> None:
        """A section was closed or opened: Qt moves the focus from hidden widgets on, but no button may get it."""
        focused = focusedButton(self._uiWidget, self._editor)
        if closed and focused is not None and focused != section:
            focused.clearFocus()


class SpaceKey(qt.QObject):
    """Lets the space bar press the focused button even while the editor claims that key in the whole window.

    Buttons inside the editor are left to it. A mouse click gives no button the focus (`focusPolicy` in the .ui file):
    otherwise a Space meant for an effect would start a run.
    """

    def __init__(self, editor: Any) -> None:
        qt.QObject.__init__(self)
        self._editor = editor

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """Qt asks the focused widget and its parents before it looks for a shortcut."""
        if event.type() != qt.QEvent.ShortcutOverride or event.key() != qt.Qt.Key_Space:
            return False
        if focusedButton(watched, self._editor) is None:
            return False
        event.accept()
        return True


def focusedButton(uiWidget: Any, editor: Any) -> Any:
    """The panel's button that has the keyboard focus; None if no button has it, or one inside the editor."""
    focused = qt.QApplication.focusWidget()
    if focused is None or not focused.inherits("QAbstractButton"):
        return None
    return focused if uiWidget.isAncestorOf(focused) and not editor.isAncestorOf(focused) else None
