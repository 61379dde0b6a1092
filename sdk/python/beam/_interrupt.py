"""Ctrl-C while a remote call runs: the first cancels it there, the second leaves.

The first SIGINT does not break the reading of the stream: it starts a thread that
cancels, and the stream then ends by itself with the task's last word. So nothing
is half read, and the user sees what became of the task.

Python runs a signal's handler in the main thread between two of its steps. A
signal that comes right before a step that blocks, such as reading the stream, is
handled when that ends, which may be never. So a thread hears of signals too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Callable, Optional, Type

from beam import _console

# TERM, 5 s of grace, KILL, and the way back; then we stop waiting.
LIMIT = 15.0


class _Watcher:
    """The thread that hears of signals, by the pipe that CPython writes them to."""

    def __init__(self) -> None:
        self.pid = os.getpid()  # a child that was forked has no such thread
        self.current: "Optional[Interruptible]" = None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        threading.Thread(target=self._run, name="beam-signals", daemon=True).start()

    def _run(self) -> None:
        while True:
            heard = os.read(self._read, 64)
            current = self.current
            if current is not None and signal.SIGINT in heard:
                current.begin()

    def watch(self, call: "Interruptible") -> bool:
        before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if before not in (-1, self._write):  # somebody else's, such as asyncio's
            signal.set_wakeup_fd(before)
            return False
        self.current = call
        return True

    def unwatch(self) -> None:
        self.current = None
        signal.set_wakeup_fd(-1)


_watcher: Optional[_Watcher] = None


class Interruptible:
    """While it is entered, Ctrl-C in the main thread cancels remotely.

    cancel is called once, from a thread; it may print. abort is called when the
    task has not ended LIMIT seconds later. Elsewhere than in the main thread, or
    where the program has its own SIGINT handler, nothing changes.
    """

    def __init__(self, what: Callable[[], str], cancel: Callable[[], None], abort: Callable[[], None]) -> None:
        self.interrupted = False
        self._what = what
        self._cancel = cancel
        self._abort = abort
        self._installed = False
        self._watched: Optional[_Watcher] = None
        self._signals = 0
        self._lock = threading.Lock()
        self._before: Any = None
        self._timer: Optional[threading.Timer] = None
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._before = signal.signal(signal.SIGINT, self._on_sigint)
                self._installed = True
                global _watcher
                if _watcher is None or _watcher.pid != os.getpid():
                    _watcher = _Watcher()
                if _watcher.watch(self):
                    self._watched = _watcher
        return self

    def _on_sigint(self, number: int, frame: Optional[FrameType]) -> None:
        self._signals += 1
        if self._signals > 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.begin()

    def begin(self) -> None:
        """Cancel, once, from a thread of its own."""
        with self._lock:
            if self.interrupted:
                return
            self.interrupted = True
            # Not here: this runs between any two steps of the main thread, which
            # may hold the locks that printing and the connection need.
            self._thread = threading.Thread(target=self._cancel_now, name="beam-cancel", daemon=True)
            self._thread.start()

    def _cancel_now(self) -> None:
        self._timer = threading.Timer(LIMIT, self._abort)
        self._timer.daemon = True
        self._timer.start()
        _console.step("Interrupted: %s (Ctrl-C again to leave at once)" % self._what())
        try:
            self._cancel()
        except Exception as exc:
            _console.step("Could not cancel: %s" % exc)
            self._abort()

    def __exit__(
        self, kind: Optional[Type[BaseException]], exc: Optional[BaseException], tb: Optional[TracebackType]
    ) -> None:
        if self._watched is not None:
            self._watched.unwatch()
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
        if self._thread is not None and kind is not KeyboardInterrupt:
            self._thread.join(LIMIT)
        if self._timer is not None:
            self._timer.cancel()
        if self.interrupted and kind is not KeyboardInterrupt:
            # However the task ended: the user asked to stop.
            raise KeyboardInterrupt from (exc if isinstance(exc, Exception) else None)


def warn_in_loop(name: str) -> None:
    """Warn when a blocking call is made from a running event loop."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or "ipykernel" in sys.modules:
        return
    if asyncio._get_running_loop() is not None:
        import warnings

        warnings.warn(
            "%s() blocks the running event loop: use 'await %s'" % (name, "f.async_" + name), RuntimeWarning, stacklevel=4
        )
