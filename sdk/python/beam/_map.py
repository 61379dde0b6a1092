"""map for threads: one thread consumes the inputs, one sends them, the caller's
own reads the results.

The consuming and the sending thread are apart so that a batch is what came while
the last one was on its way: a slow generator's items do not wait for company.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from typing import Any, Callable, Dict, Iterable, Iterator, Optional

from beam import _client, _console, _interrupt, _mapstate
from beam._errors import BeamError, DeadlineError, InvalidError, UnreachableError


def run(function: Any, inputs: Iterable[Any], ordered: bool, return_exceptions: bool, max_in_flight: Optional[int]) -> Iterator[Any]:
    """Check what was given; the map starts with the first value asked for."""
    check_in_flight(max_in_flight)
    return Results(function, iter(inputs), ordered, return_exceptions, max_in_flight)


def check_in_flight(max_in_flight: Optional[int]) -> None:
    """Refuse what the node would refuse."""
    if max_in_flight is not None and not 1 <= max_in_flight <= 10_000:
        raise InvalidError("max_in_flight=%r is not between 1 and 10,000" % max_in_flight)


class Results:
    """The iterator that map gives."""

    def __init__(self, function: Any, inputs: Iterator[Any], ordered: bool, return_exceptions: bool, max_in_flight: Optional[int]) -> None:
        self._function = function
        self._source = inputs
        self._max_in_flight = max_in_flight
        self._events = _mapstate.Events(ordered, return_exceptions)
        self._map_id = ""
        self._closed = False
        self._told = False  # that it is being cancelled
        self._stream: Optional[_client.Stream] = None
        self._messages: Optional[Iterator[Dict[str, Any]]] = None
        self._cv = threading.Condition()
        self._inputs: _mapstate.Inputs  # guarded by _cv
        self._client: _client.Client

    def __iter__(self) -> "Results":
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        try:
            if not self._map_id:
                self._open()
            while True:
                if self._feeder.error is not None:
                    raise self._feeder.error
                if self._events.ready:
                    break
                if self._events.ended:
                    _console.step("Function complete <%s>: %d items" % (self._map_id, self._events.items))
                    self._close(cancel=False)
                    raise StopIteration
                self._wait()
            value = self._events.take()
        except StopIteration:
            raise
        except BaseException:
            self._close(cancel=not self._events.ended)
            raise
        with self._cv:
            self._inputs.taken += 1
            self._cv.notify_all()
        return value

    def close(self) -> None:
        """Stop early: cancels what still runs. May be called twice."""
        self._close(cancel=not self._events.ended)

    def __del__(self) -> None:
        if not self._closed and self._map_id:
            self.close()

    def _open(self) -> None:
        stub = self._function.stub()
        self._client = stub.client
        _console.step("Running function: <%s>" % stub.handler)
        asked = _mapstate.open_request(stub.stub_id, stub.headless, stub.callback_url, self._max_in_flight)
        opened = self._client.unary(_mapstate.OPEN, asked)
        self._map_id = str(opened.get("mapId", ""))
        self._headless = stub.headless
        self._inputs = _mapstate.Inputs(self._map_id, int(opened.get("credit", 0)))
        _open_maps.add(self)
        # The threads hold the parts, not this object: dropping it ends the map.
        feeder = _Feeder(self._client, self._inputs, self._cv, self._source)
        self._feeder = feeder
        feeder.start()

    def _wait(self) -> None:
        def what() -> str:
            return "the map goes on" if self._headless else "cancelling the map's %d open calls" % self._open_calls()

        with _interrupt.Interruptible(what, self._cancel, self._abort) as guard:
            since = time.monotonic()
            pause = 0.1
            while not self._events.ended and (guard.interrupted or not self._events.ready) and self._feeder.error is None:
                try:
                    for message in self._reader():
                        before = self._events.next_event
                        self._events.feed(message)
                        if self._events.next_event > before:
                            since, pause = time.monotonic(), 0.1
                        if self._events.ended or (self._events.ready and not guard.interrupted):
                            return
                    self._drop_stream()
                except (UnreachableError, DeadlineError):
                    self._drop_stream()
                    if self._feeder.error is not None:
                        return
                    if guard.interrupted or time.monotonic() - since > _mapstate.RESUME:
                        raise
                    self._feeder.gone.wait(pause)
                    pause = min(pause * 2, 2.0)

    def _reader(self) -> Iterator[Dict[str, Any]]:
        if self._messages is None:
            asked = {"mapId": self._map_id, "fromEvent": self._events.next_event}
            self._stream = self._client.stream(_mapstate.RESULTS, asked, idle=_mapstate.IDLE, again=True)
            self._messages = iter(self._stream)
            self._feeder.on_error(self._stream.abort)
        return self._messages

    def _drop_stream(self) -> None:
        stream, self._stream, self._messages = self._stream, None, None
        if stream is not None:
            stream.close()

    def _open_calls(self) -> int:
        return max(0, self._feeder.sent - self._events.items)

    def _cancel(self) -> None:
        self._told = True
        self._feeder.stop()
        if self._headless:
            self._abort()
            return
        self._client.unary(_mapstate.CANCEL, {"mapId": self._map_id}, timeout=_interrupt.LIMIT)

    def _abort(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.abort()

    def _close(self, cancel: bool) -> None:
        if self._closed:
            return
        self._closed = True
        _open_maps.discard(self)
        if not self._map_id:
            return
        self._feeder.stop()
        self._drop_stream()
        if cancel and not self._headless:
            if not self._told and self._open_calls():
                _console.step("Cancelling the map's %d open calls" % self._open_calls())
            try:
                self._client.unary(_mapstate.CANCEL, {"mapId": self._map_id}, timeout=5.0)
            except BeamError:
                pass  # the node cancels by itself when its reader is gone


class _Feeder:
    """Consumes the inputs and sends them."""

    def __init__(self, client: _client.Client, inputs: _mapstate.Inputs, cv: threading.Condition, source: Iterator[Any]) -> None:
        self.error: Optional[BaseException] = None
        self.gone = threading.Event()  # stopped or failed
        self.sent = 0
        self._client = client
        self._inputs = inputs
        self._cv = cv
        self._source = source
        self._on_error: Callable[[], None] = lambda: None

    def start(self) -> None:
        threading.Thread(target=self._guard, args=(self._consume,), name="beam-map-inputs", daemon=True).start()
        threading.Thread(target=self._guard, args=(self._send,), name="beam-map-put", daemon=True).start()

    def on_error(self, wake: Callable[[], None]) -> None:
        """wake is called when a thread fails, at once if one has."""
        self._on_error = wake
        if self.error is not None:
            wake()

    def stop(self) -> None:
        """Consume and send nothing more."""
        self.gone.set()
        with self._cv:
            self._cv.notify_all()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:  # whatever the user's iterator raises
            if not self.gone.is_set():
                self.error = exc
                self.stop()
                self._on_error()
                try:  # the reader may still wait for its stream to open
                    self._client.unary(_mapstate.CANCEL, {"mapId": self._inputs.map_id}, timeout=5.0)
                except BeamError:
                    pass

    def _consume(self) -> None:
        try:
            while True:
                with self._cv:
                    self._cv.wait_for(lambda: self._inputs.room() or self.gone.is_set())
                if self.gone.is_set():
                    return
                try:
                    item = next(self._source)
                except StopIteration:
                    break
                with self._cv:
                    self._inputs.add(item)
                    self._cv.notify_all()
            with self._cv:
                self._inputs.exhausted = True
                self._cv.notify_all()
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _send(self) -> None:
        more = True
        while more:
            with self._cv:
                self._cv.wait_for(lambda: self._inputs.due() or self.gone.is_set())
                if self.gone.is_set():
                    return
                put = self._inputs.batch()
            answer = self._put(put)
            with self._cv:
                self.sent += len(put.get("items", ()))
                more = self._inputs.answered(put, answer)
                self._cv.notify_all()

    def _put(self, put: Dict[str, Any]) -> Dict[str, Any]:
        since = time.monotonic()
        pause = 0.1
        while True:
            try:
                return self._client.unary(_mapstate.PUT, put)
            except (UnreachableError, DeadlineError):
                if time.monotonic() - since > _mapstate.RESUME or self.gone.wait(pause):
                    raise
                pause = min(pause * 2, 2.0)


_open_maps: "weakref.WeakSet[Results]" = weakref.WeakSet()


@atexit.register
def _close_maps() -> None:
    for results in list(_open_maps):
        results.close()
