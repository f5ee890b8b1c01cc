"""Ctrl-C and SIGTERM: finish the step, save, then end with the signal's exit code."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Self


class Interrupted(Exception):
    """A signal ended a run between two steps; `code` is the exit code for the shell."""

    def __init__(self, signum: int, folder: Path, saved: bool):
        note = f"go on with: groundthink train --resume {folder}" if saved else "nothing was saved"
        super().__init__(f"interrupted by {signal.Signals(signum).name}; {note}")
        self.code = 128 + signum
        self.folder = folder


class StopSignal:
    """While entered, `signum` is the signal that came (0: none); a second Ctrl-C raises."""

    def __init__(self) -> None:
        self.signum = 0
        self._before = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
