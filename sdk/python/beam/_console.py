"""The one place that writes for people: progress on stderr, the program's own
output where the program would have put it.

BEAM_QUIET=1 silences progress; BEAM_PHASES=1 shows where a call's time went also
where stderr is no terminal (BEAM_PHASES=0 never does).
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Dict, Optional, Set, Tuple

_mu = threading.Lock()
_said: Set[str] = set()
# Where the remote program's stdout goes; beam.run --json moves it to stderr.
stdout_fd = 1


def step(text: str) -> None:
    """A progress line of the reference document: ``=> Syncing files``."""
    if os.environ.get("BEAM_QUIET") not in (None, "", "0"):
        return
    _write(sys.stderr, "=> " + text + "\n")


def once(text: str) -> None:
    """A step that is said once per process."""
    with _mu:
        if text in _said:
            return
        if len(_said) < 1000:
            _said.add(text)
    step(text)


def phases_wanted() -> bool:
    """Whether to print where a call's time went."""
    asked = os.environ.get("BEAM_PHASES", "")
    if asked:
        return asked != "0"
    try:
        return bool(sys.stderr.isatty())
    except Exception:
        return False


def phases(outcome: Dict[str, Any]) -> None:
    """One line: node, attempt, and each phase with its time."""
    if not phases_wanted() or not outcome:
        return
    parts = []
    for phase in outcome.get("phases") or []:
        took = int(phase.get("durationMs", 0))
        text = "%s %s ms" % (phase.get("name", "?"), took or "<1")
        if phase.get("detail"):
            text += " (%s)" % phase["detail"]
        parts.append(text)
    where = outcome.get("nodeName") or outcome.get("nodeId") or "?"
    how = "warm" if outcome.get("warm") else "new container"
    attempt = int(outcome.get("attempt", 1) or 1)
    if attempt > 1:
        how += ", attempt %d" % attempt
    step("Ran on %s (%s)%s" % (where, how, ": " + ", ".join(parts) if parts else ""))


def output(fd: int, text: str) -> None:
    """What the remote program printed, as it came."""
    _write(sys.stderr if fd == 2 or stdout_fd == 2 else sys.stdout, text)


def _write(stream: Any, text: str) -> None:
    if stream is None:  # pythonw and the like
        return
    try:
        with _mu:
            stream.write(text)
            stream.flush()
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        with _mu:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
    except (BrokenPipeError, ValueError):
        pass  # nobody reads it


class Lines:
    """Keeps the output of calls that run side by side in whole lines.

    On a terminal each line starts with its item's index. What a call holds back
    is bounded: a line above 64 KiB is passed on in pieces.
    """

    LIMIT = 64 << 10

    def __init__(self, prefix: Optional[bool] = None) -> None:
        if prefix is None:
            try:
                prefix = sys.stdout.isatty() and sys.stderr.isatty()
            except Exception:
                prefix = False
        self._prefix = prefix
        self._held: Dict[Tuple[int, int], bytes] = {}

    def feed(self, index: int, fd: int, data: bytes) -> None:
        """More bytes that item index wrote on fd."""
        held = self._held.pop((index, fd), b"") + data
        whole, newline, rest = held.rpartition(b"\n")
        if len(rest) > self.LIMIT:
            whole, newline, rest = held, b"\n", b""
        if rest:
            self._held[(index, fd)] = rest
        if newline:
            self._emit(index, fd, whole)

    def end(self, index: int) -> None:
        """Item index ended: pass on what it left without a line end."""
        for fd in (1, 2):
            rest = self._held.pop((index, fd), b"")
            if rest:
                self._emit(index, fd, rest)

    def _emit(self, index: int, fd: int, whole: bytes) -> None:
        start = "[%d] " % index if self._prefix else ""
        text = "".join(start + line + "\n" for line in whole.decode("utf-8", "replace").split("\n"))
        output(fd, text)
