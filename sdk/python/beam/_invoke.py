"""One call: the messages of its stream, for threads and for asyncio alike."""

from __future__ import annotations

from typing import Any, Dict, Optional

from beam import _connect, _console, _outcome
from beam._errors import RemoteError, UnreachableError

METHOD = "function.FunctionService/FunctionInvoke"
STOP = "gateway.GatewayService/StopTasks"


class Invocation:
    """Takes the stream's messages and ends with a value or an exception."""

    def __init__(self, stub_id: str, payload: bytes, handler: str, headless: bool, callback_url: str = "") -> None:
        self.task_id = ""
        self.headless = headless
        self.done = False
        self._handler = handler
        self._exit_code = 0
        self._result: Optional[str] = None
        self._outcome: Dict[str, Any] = {}
        self._failure: Optional[BaseException] = None
        self.request: Dict[str, Any] = {"stubId": stub_id, "args": _connect.b64(payload)}
        if headless:
            self.request["headless"] = True
        if callback_url:
            self.request["callbackUrl"] = callback_url

    def begin(self) -> None:
        """Say that the call starts."""
        _console.step("Running function: <%s>" % self._handler)

    def feed(self, message: Dict[str, Any]) -> None:
        """Take one message."""
        if message.get("taskId"):
            self.task_id = str(message["taskId"])
        if message.get("output"):
            _console.output(int(message.get("fd", 1) or 1), str(message["output"]))
        if message.get("done"):
            self.done = True
            self._exit_code = int(message.get("exitCode", 0))
            self._result = message.get("result")
            self._outcome = message.get("outcome") or {}

    def finish(self) -> None:
        """Say how it ended, after the stream ended."""
        if not self.done:
            raise UnreachableError("the node ended the stream before the task was over", self.hint())
        for note in self._outcome.get("notes") or []:
            _console.once("Note: %s" % note)
        self._outcome.setdefault("taskId", self.task_id)
        self._failure = _outcome.failure_of(self._outcome)
        if self._failure is None and self._exit_code != 0 and "status" not in self._outcome:
            error = RemoteError("the function failed with exit code %d" % self._exit_code, "its output is above")
            error.task_id = self.task_id
            self._failure = error
        _console.step("Function %s <%s>" % ("complete" if self._failure is None else "failed", self.task_id))
        _console.phases(self._outcome)

    def value(self) -> Any:
        """The call's value; or raise what happened."""
        if self._failure is not None:
            raise self._failure
        return _outcome.value_of(self._outcome, self._result)

    @property
    def node(self) -> str:
        """Name of the node that it ran on, where known."""
        return str(self._outcome.get("nodeName") or self._outcome.get("nodeId") or "")

    def broken(self, exc: UnreachableError) -> UnreachableError:
        """The error for a stream that broke, with how to find the task again."""
        if not self.task_id:
            return exc
        return UnreachableError(exc.message, self.hint())

    def hint(self) -> str:
        if self.headless:
            return "the task runs on: Task(%r).result(wait=True) gets its result" % self.task_id
        return "the node cancels task %s when it finds its client gone" % (self.task_id or "?")

    def leave(self) -> str:
        """What the first Ctrl-C does, in words."""
        if self.headless:
            return "task %s runs on; stop it with 'beam task stop %s'" % (self.task_id, self.task_id)
        return "cancelling task %s" % self.task_id
