"""Stopping a run from outside: the first Ctrl-C asks for a checkpoint, the second one ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C or SIGTERM and left a resumable checkpoint; the text says how to go on."""


class StopRequest:
    """Inside the block, SIGINT and SIGTERM set `asked` instead of ending the process; a second signal ends it as usual.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
