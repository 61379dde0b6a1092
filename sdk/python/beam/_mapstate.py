"""What a map knows, without I/O: items to send, events that came, values due.

Used by ``_map`` (threads) and ``_aio`` (asyncio). Not locked: the input side and
the event side are each used by one thread or task.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Dict, List, Tuple, Union

from beam import _connect, _console, _outcome, _pickle
from beam._errors import BeamError

OPEN = "beammesh.v1.CallService/Open"
PUT = "beammesh.v1.CallService/Put"
CANCEL = "beammesh.v1.CallService/Cancel"
RESULTS = "beammesh.v1.CallService/Results"

# Bounds of one Put.
MAX_ITEMS = 256
MAX_BYTES = 1 << 20
# How long a Put waits for credit; the node's own limit is 30 s.
WAIT_MS = 20_000
# Three missed keepalives.
IDLE = 30.0
# How long a broken connection is tried again, counted from the last event.
RESUME = 60.0
# Values may be ahead of the consumer by this many times the first credit.
AHEAD = 4


class Failed:
    """A value that is an exception to raise."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Inputs:
    """Items on their way to the node, within its credit."""

    def __init__(self, map_id: str, credit: int) -> None:
        self.credit = credit
        self.window = max(1, credit) * AHEAD
        self.taken = 0  # values the consumer has had
        self.exhausted = False
        self.map_id = map_id
        self._next = 0
        self._held: Deque[bytes] = deque()

    def room(self) -> bool:
        """Whether one more input may be consumed."""
        pending = len(self._held)
        return self.credit > pending and self._next + pending - self.taken < self.window

    def add(self, item: Any) -> None:
        """Take one input; a tuple is spread over the parameters."""
        args = item if isinstance(item, tuple) else (item,)
        what = "input %d" % (self._next + len(self._held))
        self._held.append(_pickle.arguments(args, {}, what, MAX_BYTES))

    def due(self) -> bool:
        """Whether a Put is to be sent now."""
        return bool(self._held) or self.exhausted or self.credit == 0

    def batch(self) -> Dict[str, Any]:
        """The next Put; repeat it as it is when its connection broke."""
        items: List[bytes] = []
        size = 0
        while self._held and self.credit and len(items) < MAX_ITEMS and size + len(self._held[0]) <= MAX_BYTES:
            size += len(self._held[0])
            items.append(self._held.popleft())
            self.credit -= 1  # what comes meanwhile must fit beside them
        put: Dict[str, Any] = {"mapId": self.map_id, "firstIndex": self._next}
        if items:
            put["items"] = [_connect.b64(item) for item in items]
        if self.exhausted and not self._held:
            put["last"] = True
        elif not items:
            put["waitMs"] = WAIT_MS
        self._next += len(items)
        return put

    def answered(self, put: Dict[str, Any], answer: Dict[str, Any]) -> bool:
        """Take a Put's answer; False after the last one."""
        self.credit = int(answer.get("credit", 0))
        return not put.get("last")


class Events:
    """Events as they come, values as they are due."""

    def __init__(self, ordered: bool, return_exceptions: bool) -> None:
        self.next_event = 0
        self.ended = False
        self.ready: Deque[Union[Failed, Tuple[Any]]] = deque()
        self.items = 0
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._due = 0  # the next index in order
        self._early: Dict[int, Union[Failed, Tuple[Any]]] = {}
        self._lines = _console.Lines()

    def feed(self, message: Dict[str, Any]) -> None:
        """Take one ResultEvent; repeated ones are recognised by their number."""
        if message.get("keepalive"):
            return
        number = int(message.get("event", 0))
        if number < self.next_event:
            return
        if number > self.next_event:
            raise BeamError("the node left out events %d to %d of a map" % (self.next_event, number - 1))
        self.next_event += 1
        index = int(message.get("index", 0))
        if "log" in message:
            log = message["log"]
            self._lines.feed(index, int(log.get("fd", 1) or 1), _connect.unb64(log.get("data")))
        elif "outcome" in message:
            self._lines.end(index)
            self._outcome(index, message["outcome"])
        elif message.get("end"):
            self.ended = True

    def take(self) -> Any:
        """The next ready value; raises where it is a failure."""
        value = self.ready.popleft()
        if isinstance(value, Failed):
            if not self._return_exceptions:
                raise value.error
            return value.error
        return value[0]

    def _outcome(self, index: int, outcome: Dict[str, Any]) -> None:
        self.items += 1
        for note in outcome.get("notes") or []:
            _console.once("Note: %s" % note)
        value: Union[Failed, Tuple[Any]]
        try:
            value = (_outcome.value_of(outcome),)
        except Exception as exc:
            value = Failed(exc)
        if not self._ordered:
            self.ready.append(value)
            return
        self._early[index] = value
        while self._due in self._early:
            self.ready.append(self._early.pop(self._due))
            self._due += 1


def open_request(stub_id: str, headless: bool, callback_url: str, max_in_flight: Any) -> Dict[str, Any]:
    """The Open message."""
    asked: Dict[str, Any] = {"stubId": stub_id}
    if headless:
        asked["headless"] = True
    if callback_url:
        asked["callbackUrl"] = callback_url
    if max_in_flight is not None:
        asked["maxInFlight"] = max_in_flight
    return asked
