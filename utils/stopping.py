"""Being asked to stop: clusters send SIGTERM some seconds before they kill."""

import signal
import threading
from types import FrameType, TracebackType


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop, and has saved what it had."""


class TerminationSignal:
    """Within the block, SIGTERM only sets `received`, so that the work at hand can be finished and saved.

    In other threads than the main one, which alone may handle signals, it changes nothing.
    """

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "TerminationSignal":
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self.received = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)
