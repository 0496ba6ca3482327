"""A signal for objects that are not Qt objects."""

import traceback
from collections.abc import Callable
from typing import Any


class Signal:
    """Calls every connected function, in the order in which they were connected."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Any]] = []

    def connect(self, receiver: Callable[..., Any]) -> None:
        """Call the receiver at every emission from now on."""
        self._receivers.append(receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> None:
        """Stop calling the receiver; does nothing if it was not connected."""
        if receiver in self._receivers:
            self._receivers.remove(receiver)

    def emit(self, *values: Any) -> None:
        """Call the receivers with these values.

        A receiver's exception is printed to the Python console, as Qt's are; the others and the emitter continue.
        """
        for receiver in tuple(self._receivers):
            try:
                receiver(*values)
            except Exception:
                traceback.print_exc()
