"""The asyncio twins of remote and map: the same state, other transports.

Connections belong to the event loop that made them; idle ones are kept.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import Any, AsyncIterator, Dict, List, Optional, Sequence, Tuple

from beam import _client, _config, _connect, _console, _http, _invoke, _map, _mapstate
from beam._connect import Message
from beam._errors import BeamError, DeadlineError, UnreachableError

Connection = Tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pool:
    """One event loop's idle connections."""

    def __init__(self) -> None:
        self.idle: Dict[_config.Config, List[Connection]] = {}
        self.keeper = self._keep()

    async def _keep(self) -> AsyncIterator[None]:
        # asyncio.run closes the loop's open generators before the loop itself:
        # the one moment to close what we keep.
        try:
            yield
        finally:
            for kept in self.idle.values():
                for connection in kept:
                    connection[1].close()
            self.idle.clear()


_pools: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool]" = weakref.WeakKeyDictionary()


async def _kept(config: _config.Config) -> List[Connection]:
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        pool = _pools[loop] = _Pool()
        await pool.keeper.__anext__()
    return pool.idle.setdefault(config, [])


class Exchange:
    """One request's response."""

    def __init__(self, kept: List[Connection], connection: Connection) -> None:
        self.parser = _http.ResponseParser()
        self._kept = kept
        self._connection: Optional[Connection] = connection

    async def read_some(self, timeout: Optional[float]) -> bytes:
        """The next piece of the body; b"" when more is to come or it is over."""
        assert self._connection is not None
        reader, writer = self._connection
        expired: List[bool] = []

        def expire() -> None:
            expired.append(True)
            writer.transport.abort()

        # Not asyncio.wait_for: before Python 3.12 it can swallow a cancellation.
        timer = asyncio.get_running_loop().call_later(timeout, expire) if timeout is not None else None
        try:
            data = await reader.read(_http.CHUNK)
        except OSError as exc:
            if not expired:
                raise _http.ConnectionLost(str(exc), clean=self.parser.fresh) from exc
            data = b""
        finally:
            if timer is not None:
                timer.cancel()
        if expired:
            raise DeadlineError("the node did not answer in time", "see 'beam node status' there")
        if not data:
            self.parser.eof()
            return b""
        return self.parser.feed(data)

    def release(self) -> None:
        """Keep the connection when the response was read to its end, else close it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self.parser.done and self.parser.reusable and len(self._kept) < _http.MAX_IDLE:
            self._kept.append(connection)
        else:
            connection[1].close()


async def _open(config: _config.Config, kept: List[Connection]) -> Tuple[Connection, bool]:
    while kept:
        connection = kept.pop()
        if not connection[0].at_eof() and not connection[1].is_closing():
            return connection, True
        connection[1].close()
    tls: Any = None
    if config.tls:
        import ssl

        tls = ssl.create_default_context()
    opening = asyncio.ensure_future(asyncio.open_connection(config.host, config.port, ssl=tls, limit=_http.CHUNK))
    try:
        done, _ = await asyncio.wait({opening}, timeout=_http.CONNECT_TIMEOUT)
        if not done:
            raise OSError("timed out")
        connection = opening.result()
    except OSError as exc:
        raise _http.no_answer(config.host, config.port, exc) from exc
    finally:
        opening.cancel()
    _http.keep_alive(connection[1].get_extra_info("socket"))
    return connection, False


async def _request(config: _config.Config, method: str, body: bytes, stream: bool, timeout: Optional[float], again: bool) -> Tuple[Exchange, bytes]:
    sent = _client.headers(_client.need_token(config), stream)
    head = _http.request_head("POST", "/" + method, _http.host_header(config.host, config.port), sent, len(body))
    idle = await _kept(config)
    while True:
        connection, kept = await _open(config, idle)
        exchange = Exchange(idle, connection)
        try:
            connection[1].write(head + body)
            await connection[1].drain()
            first = b""
            while exchange.parser.status == 0:
                first += await exchange.read_some(timeout)
            return exchange, first
        except (_http.ConnectionLost, OSError) as exc:
            exchange.release()
            clean = exc.clean if isinstance(exc, _http.ConnectionLost) else exchange.parser.fresh
            if kept and clean and again:
                continue
            raise _client.lost(config, exc) from exc
        except BaseException:
            exchange.release()
            raise


async def unary(config: _config.Config, method: str, message: Message, timeout: float = _client.UNARY_TIMEOUT) -> Message:
    """Call a method and wait for its answer."""
    exchange, body = await _request(config, method, _connect.encode(message), False, timeout, True)
    try:
        while not exchange.parser.done:
            body += await exchange.read_some(timeout)
            if len(body) > _connect.MAX_MESSAGE:
                raise BeamError("the node's answer is above %d MiB" % (_connect.MAX_MESSAGE >> 20))
    except _http.ConnectionLost as exc:
        raise _client.lost(config, exc) from exc
    finally:
        exchange.release()
    if exchange.parser.status != 200:
        raise _connect.unary_error(exchange.parser.status, body)
    return _connect.decode(body)


async def stream(config: _config.Config, method: str, message: Message, idle: Optional[float] = None, again: bool = False) -> AsyncIterator[Message]:
    """The messages of a server stream; close the generator when done early."""
    exchange, data = await _request(config, method, _connect.envelope(message), True, idle, again)
    decoder = _connect.StreamDecoder()
    try:
        if exchange.parser.status != 200:
            while not exchange.parser.done:
                data += await exchange.read_some(idle)
            raise _connect.unary_error(exchange.parser.status, data)
        while True:
            for one in decoder.feed(data):
                yield one
            if exchange.parser.done:
                break
            data = await exchange.read_some(idle)
    except _http.ConnectionLost as exc:
        raise _client.lost(config, exc) from exc
    finally:
        exchange.release()
    if decoder.error is not None:
        raise decoder.error
    if not decoder.ended:
        raise _client.lost(config, Exception("the stream ended early"))


async def remote(function: Any, args: Any, kwargs: Any) -> Any:
    """See RemoteFunction.async_remote."""
    loop = asyncio.get_running_loop()
    # Building and sending the code happens once, with blocking calls.
    stub = await loop.run_in_executor(None, function.stub)
    call: _invoke.Invocation = function._invocation(stub, args, kwargs)
    call.begin()
    config = stub.client.config
    messages = stream(config, _invoke.METHOD, call.request)
    try:
        async for message in messages:
            call.feed(message)
        call.finish()
        return call.value()
    except UnreachableError as exc:
        raise call.broken(exc) from exc
    except asyncio.CancelledError:
        if not call.headless and not call.done:
            _console.step("Interrupted: %s" % call.leave())
        raise
    finally:
        # Closing the stream is what cancels a task that is not headless.
        await messages.aclose()  # type: ignore[attr-defined]


async def map(function: Any, inputs: Any, ordered: bool, return_exceptions: bool, max_in_flight: Optional[int]) -> AsyncIterator[Any]:
    """See RemoteFunction.async_map."""
    from beam import _state

    if _state.importing:
        return
    _map.check_in_flight(max_in_flight)
    stub = await asyncio.get_running_loop().run_in_executor(None, function.stub)
    config = stub.client.config
    _console.step("Running function: <%s>" % stub.handler)
    opened = await unary(config, _mapstate.OPEN, _mapstate.open_request(stub.stub_id, stub.headless, stub.callback_url, max_in_flight))
    map_id = str(opened.get("mapId", ""))
    sending = _mapstate.Inputs(map_id, int(opened.get("credit", 0)))
    events = _mapstate.Events(ordered, return_exceptions)
    cv = asyncio.Condition()
    feeders = [asyncio.ensure_future(_consume(inputs, sending, cv)), asyncio.ensure_future(_send(config, sending, cv))]
    reader = _Reader(config, map_id, events)
    try:
        while True:
            while events.ready:
                value = events.take()
                async with cv:
                    sending.taken += 1
                    cv.notify_all()
                yield value
            if events.ended:
                _console.step("Function complete <%s>: %d items" % (map_id, events.items))
                return
            await _first(asyncio.ensure_future(reader.read()), feeders)
    finally:
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)
        await reader.close()
        if not events.ended and not stub.headless:
            try:
                await unary(config, _mapstate.CANCEL, {"mapId": map_id}, timeout=5.0)
            except BeamError:
                pass  # the node cancels by itself when its reader is gone


async def _first(reading: "asyncio.Future[None]", feeders: Sequence["asyncio.Future[None]"]) -> None:
    """Wait for reading, or raise what made a feeder fail."""
    try:
        while True:
            running = [feeder for feeder in feeders if not feeder.done()]
            for feeder in feeders:
                if feeder.done():
                    feeder.result()
            await asyncio.wait([reading, *running], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                return
    finally:
        if not reading.done():
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


class _Reader:
    """Reads results until some value is ready; resumes broken streams."""

    def __init__(self, config: _config.Config, map_id: str, events: _mapstate.Events) -> None:
        self._config, self._map_id, self._events = config, map_id, events
        self._messages: Any = None

    async def read(self) -> None:
        since, pause = time.monotonic(), 0.1
        while not self._events.ended and not self._events.ready:
            if self._messages is None:
                asked = {"mapId": self._map_id, "fromEvent": self._events.next_event}
                self._messages = stream(self._config, _mapstate.RESULTS, asked, idle=_mapstate.IDLE, again=True)
            try:
                message = await self._messages.__anext__()
                self._events.feed(message)
                since, pause = time.monotonic(), 0.1
            except StopAsyncIteration:
                await self.close()
            except (UnreachableError, DeadlineError):
                await self.close()
                if time.monotonic() - since > _mapstate.RESUME:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)

    async def close(self) -> None:
        messages, self._messages = self._messages, None
        if messages is not None:
            await messages.aclose()


async def _consume(inputs: Any, sending: _mapstate.Inputs, cv: asyncio.Condition) -> None:
    source = _items(inputs)
    try:
        while True:
            async with cv:
                await cv.wait_for(sending.room)
            try:
                item = await source.__anext__()
            except StopAsyncIteration:
                break
            async with cv:
                sending.add(item)
                cv.notify_all()
        async with cv:
            sending.exhausted = True
            cv.notify_all()
    finally:
        await source.aclose()  # type: ignore[attr-defined]


async def _items(inputs: Any) -> AsyncIterator[Any]:
    if hasattr(inputs, "__aiter__"):
        async for item in inputs:
            yield item
    else:
        for item in inputs:
            yield item


async def _send(config: _config.Config, sending: _mapstate.Inputs, cv: asyncio.Condition) -> None:
    more = True
    while more:
        async with cv:
            await cv.wait_for(sending.due)
            put = sending.batch()
        answer = await _put(config, put)
        async with cv:
            more = sending.answered(put, answer)
            cv.notify_all()


async def _put(config: _config.Config, put: Message) -> Message:
    since, pause = time.monotonic(), 0.1
    while True:
        try:
            return await unary(config, _mapstate.PUT, put)
        except (UnreachableError, DeadlineError):
            if time.monotonic() - since > _mapstate.RESUME:
                raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
