"""Task: a handle on a call that runs without its caller."""

from __future__ import annotations

from typing import Any, Dict, Generic, Optional, TypeVar

from beam import _client, _console, _outcome
from beam._errors import DeadlineError
from beam._types import TaskStatus

R = TypeVar("R")

_GET = "beammesh.v1.NodeService/GetTask"
_LOGS = "beammesh.v1.NodeService/TaskLogs"


class Task(Generic[R]):
    """A task by its id, from any process that has a token.

    >>> Task("908c76b1").id
    '908c76b1'
    """

    def __init__(self, id: str) -> None:
        self.id = id

    def status(self) -> TaskStatus:
        """Where the task stands."""
        return _status(self._get())

    def is_complete(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status().ended

    def result(self, wait: bool = False, timeout: Optional[float] = None, show_output: bool = False) -> Optional[R]:
        """The task's value, or raise its exception; None while it runs.

        With wait=True it is waited for, for at most timeout seconds
        (DeadlineError); show_output=True prints what it printed.
        """
        import time

        deadline = None if timeout is None else time.monotonic() + timeout
        shown = False
        while True:
            info = self._get()
            if _status(info).ended:
                if show_output and not shown:
                    self._follow(None, True)
                outcome = info.get("outcome") or {"status": info.get("status")}
                outcome.setdefault("taskId", self.id)
                value: Optional[R] = _outcome.value_of(outcome)
                return value
            if not wait:
                return None
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineError("task %s has not ended within %g s" % (self.id, timeout or 0), "it runs on: wait longer")
            # The log stream ends with the task: nothing to poll for.
            self._follow(left, show_output and not shown)
            shown = True

    def cancel(self) -> None:
        """Stop the task; one that has ended stays as it is."""
        client = _client.shared()
        _client.check(client.unary("gateway.GatewayService/StopTasks", {"taskIds": [self.id]}), "stop task")

    def _get(self) -> Dict[str, Any]:
        return _client.shared().unary(_GET, {"taskId": self.id})

    def _follow(self, limit: Optional[float], show: bool) -> None:
        import threading

        from beam import _connect
        from beam._errors import UnreachableError

        asked = {"taskId": self.id, "follow": True}
        if not show:
            asked["tailLines"] = 1
        stream = _client.shared().stream(_LOGS, asked)
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            stream.abort()

        timer = threading.Timer(limit or 0, expire)
        timer.daemon = True
        if limit is not None:
            timer.start()
        try:
            with stream as messages:
                for message in messages:
                    if show:
                        text = _connect.unb64(message.get("data")).decode("utf-8", "replace")
                        _console.output(int(message.get("fd", 1) or 1), text)
        except UnreachableError:
            if not expired.is_set():
                raise
        finally:
            timer.cancel()

    def __repr__(self) -> str:
        return "Task(%r)" % self.id


def _status(info: Dict[str, Any]) -> TaskStatus:
    try:
        return TaskStatus(info.get("status", "PENDING"))
    except ValueError:  # one that a newer node invented
        return TaskStatus.Error if info.get("outcome") else TaskStatus.Running
