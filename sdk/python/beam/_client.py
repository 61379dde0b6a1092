"""RPCs to a node: unary calls, server streams and uploads, for threads.

    client = Client(config.resolve())
    client.unary("gateway.GatewayService/HeadObject", {"hash": digest})
    with client.stream("function.FunctionService/FunctionInvoke", request) as messages:
        for message in messages: ...

Safe for use from several threads. Failures are BeamErrors.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import IO, Any, Dict, Iterator, Optional, Type

from beam import _config, _connect, _http
from beam._connect import Message
from beam._errors import AuthError, BeamError, UnreachableError, make_error

# How long a node may take for a unary answer; some wait for a peer.
UNARY_TIMEOUT = 60.0


def headers(token: str, stream: bool) -> Dict[str, str]:
    """What goes with every call."""
    return {
        "content-type": "application/connect+json" if stream else "application/json",
        "connect-protocol-version": "1",
        "accept-encoding": "identity",
        "authorization": "Bearer " + token,
        "user-agent": "beammesh-python",
    }


def need_token(config: _config.Config) -> str:
    """The token, or an error that says how to get one."""
    if not config.token:
        raise AuthError(
            "no token",
            "'beam token create' on a node prints one: set BEAM_TOKEN, or keep it with 'beam config create'",
        )
    return config.token


def lost(config: _config.Config, exc: BaseException) -> UnreachableError:
    """The connection broke in the middle."""
    where = _http.host_header(config.host, config.port)
    return UnreachableError("the connection to the node at %s broke: %s" % (where, exc), "is the node still up?")


class Stream:
    """The messages of a server stream; iterate once, close when done early."""

    def __init__(self, client: "Client", exchange: _http.Exchange) -> None:
        self._client = client
        self._exchange = exchange

    def __iter__(self) -> Iterator[Message]:
        decoder = _connect.StreamDecoder()
        try:
            for part in self._exchange.chunks():
                for message in decoder.feed(part):
                    yield message
        except _http.ConnectionLost as exc:
            raise lost(self._client.config, exc) from exc
        if decoder.error is not None:
            raise decoder.error
        if not decoder.ended:
            raise lost(self._client.config, Exception("the stream ended early"))

    def abort(self) -> None:
        """End the stream from another thread; its reader gets UnreachableError."""
        self._exchange.abort()

    def close(self) -> None:
        self._exchange.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], exc: Optional[BaseException], tb: Optional[TracebackType]
    ) -> None:
        self.close()


class Client:
    """One node, one token."""

    def __init__(self, config: _config.Config) -> None:
        self.config = config
        self._transport = _http.Transport(config.host, config.port, config.tls)

    def unary(self, method: str, message: Message, timeout: float = UNARY_TIMEOUT, again: bool = True) -> Message:
        """Call a method and wait for its answer."""
        try:
            exchange = self._transport.request(
                "POST",
                "/" + method,
                headers(need_token(self.config), stream=False),
                _connect.encode(message),
                timeout=timeout,
                again=again,
            )
            body = exchange.read(_connect.MAX_MESSAGE)
        except _http.ConnectionLost as exc:
            raise lost(self.config, exc) from exc
        if exchange.status != 200:
            raise _connect.unary_error(exchange.status, body)
        try:
            return _connect.decode(body)
        except ValueError as exc:
            raise BeamError("the node's answer to %s is no JSON" % method, "is that the port of a node?") from exc

    def stream(self, method: str, message: Message, idle: Optional[float] = None, again: bool = False) -> Stream:
        """Open a server stream; idle bounds the wait between two messages."""
        try:
            exchange = self._transport.request(
                "POST",
                "/" + method,
                headers(need_token(self.config), stream=True),
                _connect.envelope(message),
                timeout=idle,
                again=again,
            )
            if exchange.status != 200:
                raise _connect.unary_error(exchange.status, exchange.read(_connect.MAX_MESSAGE))
        except _http.ConnectionLost as exc:
            raise lost(self.config, exc) from exc
        return Stream(self, exchange)

    def put(self, url: str, extra: Dict[str, str], file: IO[bytes], size: int) -> None:
        """Upload a file to a URL that the node gave."""
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        host = parts.hostname or self.config.api_host
        port = parts.port or (443 if parts.scheme == "https" else 80 if parts.hostname else self.config.api_port)
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        transport = _http.Transport(host, port, parts.scheme == "https")
        sent = {"content-type": "application/zip", **{k.lower(): v for k, v in extra.items()}}
        sent.pop("content-length", None)
        sent.pop("host", None)
        try:
            exchange = transport.request("PUT", target, sent, file, size, timeout=UNARY_TIMEOUT)
            body = exchange.read(1 << 20)
        except _http.ConnectionLost as exc:
            raise UnreachableError("the upload to %s broke: %s" % (_http.host_header(host, port), exc), "try again") from exc
        finally:
            transport.close()
        if not 200 <= exchange.status < 300:
            raise _connect.unary_error(exchange.status, body)


def check(answer: Message, what: str) -> Message:
    """Raise what an answer with ok=false reports."""
    if not answer.get("ok"):
        text = answer.get("errMsg") or answer.get("errorMsg") or "the node refused"
        raise make_error("internal", "%s: %s" % (what, text))
    return answer


_mu = threading.Lock()
_shared: Dict[Any, Client] = {}


def shared() -> Client:
    """The client for what the environment says now."""
    config = _config.resolve()
    with _mu:
        client = _shared.get(config)
        if client is None:
            if len(_shared) >= 16:
                _shared.clear()
            client = _shared[config] = Client(config)
    return client
