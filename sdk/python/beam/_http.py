"""HTTP/1.1 as far as a Connect client needs it: the protocol without I/O, and
persistent connections over blocking sockets. (``_aio`` has asyncio's.)

A Transport is safe for use from several threads: each exchange has a connection
of its own, idle ones are kept for the next.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import IO, Any, Dict, Iterator, List, Optional, Union

from beam._errors import BeamError, DeadlineError, UnreachableError

MAX_HEAD = 64 << 10
MAX_IDLE = 8  # kept connections
CONNECT_TIMEOUT = 5.0
CHUNK = 256 << 10
_LINE_END = -2  # what is left of a chunk when only its line end is

Body = Union[bytes, IO[bytes]]


class ConnectionLost(Exception):
    """The connection broke; ``clean`` when no byte of an answer had come."""

    def __init__(self, what: str, clean: bool = False) -> None:
        super().__init__(what)
        self.clean = clean


class ResponseParser:
    """Takes the bytes of one response, gives those of its body."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Dict[str, str] = {}
        self.done = False
        self.reusable = True
        self._buffer = bytearray()
        self._left: Optional[int] = None  # of the body or chunk; None = until close
        self._chunked = False
        self._trailer = False

    @property
    def fresh(self) -> bool:
        """Whether no byte came yet."""
        return self.status == 0 and not self._buffer

    def feed(self, data: bytes) -> bytes:
        """More bytes from the connection; gives what they add to the body."""
        self._buffer += data
        while self.status == 0:
            if not self._head():
                return b""
        return self._chunks() if self._chunked else self._plain()

    def eof(self) -> None:
        """The connection was closed by the other side."""
        if self.done:
            return
        if self.status and not self._chunked and self._left is None:
            self.done = True
            return
        raise ConnectionLost("the connection was closed", clean=self.fresh)

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ConnectionLost("response head above %d bytes" % MAX_HEAD)
            return False
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ConnectionLost("no HTTP response")
        status = int(rest[:3])
        headers: Dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if 100 <= status < 200:
            return True  # informational: the real one follows
        self.status, self.headers = status, headers
        connection = headers.get("connection", "").lower()
        self.reusable = "close" not in connection and version != "HTTP/1.0"
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunked, self._left = True, 0
        elif status in (204, 304):
            self._left = 0
        elif "content-length" in headers:
            if not headers["content-length"].isdigit():
                raise ConnectionLost("bad content-length")
            self._left = int(headers["content-length"])
        else:
            self.reusable = False
        return True

    def _plain(self) -> bytes:
        take = len(self._buffer) if self._left is None else min(self._left, len(self._buffer))
        out = bytes(self._buffer[:take])
        del self._buffer[:take]
        if self._left is not None:
            self._left -= take
            self.done = self._left == 0
        return out

    def _chunks(self) -> bytes:
        out: List[bytes] = []
        while not self.done:
            left = self._left or 0
            if left > 0:
                part = bytes(self._buffer[:left])
                if not part:
                    break
                del self._buffer[: len(part)]
                out.append(part)
                self._left = left - len(part) or _LINE_END
            elif left == _LINE_END:
                if len(self._buffer) < 2:
                    break
                del self._buffer[:2]
                self._left = 0
            else:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    if len(self._buffer) > 4096:
                        raise ConnectionLost("bad chunk")
                    break
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 2]
                if self._trailer:
                    self.done = not line
                    continue
                try:
                    self._left = int(line.split(b";")[0], 16)
                except ValueError:
                    raise ConnectionLost("bad chunk size") from None
                self._trailer = self._left == 0
        return b"".join(out)


def request_head(method: str, target: str, host: str, headers: Dict[str, str], length: int) -> bytes:
    """The bytes before a request's body."""
    lines = ["%s %s HTTP/1.1" % (method, target), "host: " + host, "content-length: %d" % length]
    for name, value in headers.items():
        if "\r" in value or "\n" in value:
            raise ValueError("line break in header " + name)
        lines.append("%s: %s" % (name, value))
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def host_header(host: str, port: int) -> str:
    return "[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port)


def no_answer(host: str, port: int, cause: BaseException) -> UnreachableError:
    """No node there."""
    why = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return UnreachableError(
        "no node answers at %s (%s)" % (host_header(host, port), why),
        "start one with 'beam node up', or set GATEWAY_HOST and GATEWAY_PORT to a node that runs",
    )


def keep_alive(sock: Any) -> None:
    """Notice a vanished node within about half a minute, also while waiting."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Exchange:
    """One request's response. Close it, or read it to its end."""

    def __init__(self, transport: "Transport", sock: Any, parser: ResponseParser, first: bytes) -> None:
        self._transport = transport
        self._sock: Optional[Any] = sock
        self._parser = parser
        self._first = first

    @property
    def status(self) -> int:
        return self._parser.status

    def chunks(self) -> Iterator[bytes]:
        """Pieces of the body as they come."""
        try:
            if self._first:
                first, self._first = self._first, b""
                yield first
            while not self._parser.done:
                sock = self._sock
                if sock is None:
                    raise ConnectionLost("closed")
                part = self._parser.feed(receive(sock, self._parser))
                if part:
                    yield part
        except BaseException:  # GeneratorExit too: the rest will not be read
            self.close()
            raise
        self._release()

    def read(self, limit: int) -> bytes:
        """The whole body."""
        parts: List[bytes] = []
        size = 0
        for part in self.chunks():
            parts.append(part)
            size += len(part)
            if size > limit:
                self.close()
                raise BeamError("the node's answer is above %d MiB" % (limit >> 20))
        return b"".join(parts)

    def abort(self) -> None:
        """Break the exchange from another thread: a waiting reader gets an error."""
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """Give the connection up; may be called twice."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _release(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._transport.put_back(sock, self._parser.reusable)


def receive(sock: Any, parser: ResponseParser) -> bytes:
    """Bytes from the socket; b"" only when the response ends by closing."""
    try:
        data: bytes = sock.recv(CHUNK)
    except socket.timeout:
        raise DeadlineError("the node did not answer in time", "see 'beam node status' there") from None
    except OSError as exc:
        raise ConnectionLost(str(exc), clean=parser.fresh) from exc
    if not data:
        parser.eof()
    return data


class Transport:
    """Requests to one host and port."""

    def __init__(self, host: str, port: int, tls: bool = False) -> None:
        self.host, self.port, self.tls = host, port, tls
        self._mu = threading.Lock()
        self._idle: List[Any] = []
        self._pid = os.getpid()
        self._closed = False

    def request(
        self,
        method: str,
        target: str,
        headers: Dict[str, str],
        body: Body = b"",
        length: int = -1,
        timeout: Optional[float] = None,
        again: bool = True,
    ) -> Exchange:
        """Send a request and wait for the head of the response.

        timeout bounds each wait for bytes. A kept connection that turns out to
        be closed is replaced once; with again=False only when nothing of the
        request can have been taken.
        """
        if isinstance(body, bytes):
            length = len(body)
        head = request_head(method, target, host_header(self.host, self.port), headers, length)
        while True:
            sock = self._take()
            kept = sock is not None
            if sock is None:
                sock = self._connect()
            parser = ResponseParser()
            try:
                sock.settimeout(timeout)
                self._send(sock, head, body)
                first = b""
                while parser.status == 0:
                    first += parser.feed(receive(sock, parser))
            except ConnectionLost as exc:
                sock.close()
                if kept and exc.clean and again and isinstance(body, bytes):
                    continue
                raise
            except BaseException:
                sock.close()
                raise
            exchange = Exchange(self, sock, parser, first)
            if parser.done:
                exchange._release()
            return exchange

    def _send(self, sock: Any, head: bytes, body: Body) -> None:
        try:
            if isinstance(body, bytes):
                sock.sendall(head + body if len(body) < CHUNK else head)
                if len(body) >= CHUNK:
                    sock.sendall(body)
                return
            sock.sendall(head)
            while True:
                part = body.read(CHUNK)
                if not part:
                    return
                sock.sendall(part)
        except socket.timeout:
            raise DeadlineError("the node took no data in time", "see 'beam node status' there") from None
        except OSError as exc:
            raise ConnectionLost(str(exc), clean=True) from exc

    def _connect(self) -> Any:
        try:
            sock: Any = socket.create_connection((self.host, self.port), CONNECT_TIMEOUT)
            if self.tls:
                import ssl

                try:
                    sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host)
                except BaseException:
                    sock.close()
                    raise
        except OSError as exc:
            raise no_answer(self.host, self.port, exc) from exc
        keep_alive(sock)
        return sock

    def _take(self) -> Optional[Any]:
        with self._mu:
            if self._pid != os.getpid():  # a forked child must not share connections
                self._pid, self._idle = os.getpid(), []
            while self._idle:
                sock = self._idle.pop()
                # Readable while idle means closed by the node.
                if not _readable(sock):
                    return sock
                sock.close()
        return None

    def put_back(self, sock: Any, reusable: bool) -> None:
        """Keep a connection whose response was read to its end."""
        with self._mu:
            if reusable and not self._closed and len(self._idle) < MAX_IDLE and self._pid == os.getpid():
                self._idle.append(sock)
                return
        sock.close()

    def close(self) -> None:
        """Close the kept connections, and those in use when they are done."""
        with self._mu:
            self._closed = True
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()


def _readable(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
