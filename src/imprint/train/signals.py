"""SIGTERM and Ctrl-C ask a run to stop; it does so between two steps, after a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from imprint.dist.collectives import any_process


class StopRequest:
    """Remembers that this process was asked to stop, while entered.

    The second Ctrl-C is taken at its word: it interrupts at once. Outside the main thread nothing can be installed, and
    signals keep their meaning.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def anywhere(self) -> bool:
        """Tell whether any process of the run was asked; all processes must call it at the same step."""
        return any_process(self.received is not None)
