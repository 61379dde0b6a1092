"""The Connect protocol with JSON messages, without I/O.

Unary: POST /package.Service/Method, the message as application/json; 200 and
the answer, or another status and ``{"code", "message", "details"}``.

Server stream: application/connect+json both ways, each message in an envelope
(1 byte flags, 4 bytes big endian length). The last envelope has flag 2 and holds
``{"error"?, "metadata"?}``.

Messages are dicts with protobuf's JSON names; bytes travel as base64 and 64-bit
integers may come as strings.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any, Dict, List, Optional

from beam._errors import BeamError, make_error

Message = Dict[str, Any]

_ENVELOPE = struct.Struct(">BI")
_END = 2
_COMPRESSED = 1
# A result may have 16 MiB, which base64 makes 22; with room for the rest.
MAX_MESSAGE = 48 << 20

_STATUS_CODES = {
    "canceled": "cancelled",
    "invalid_argument": "invalid_argument",
    "out_of_range": "invalid_argument",
    "deadline_exceeded": "timeout",
    "not_found": "not_found",
    "already_exists": "conflict",
    "aborted": "conflict",
    "failed_precondition": "conflict",
    "permission_denied": "forbidden",
    "resource_exhausted": "no_capacity",
    "unimplemented": "unsupported",
    "unavailable": "unreachable",
    "unauthenticated": "unauthenticated",
}


def encode(message: Message) -> bytes:
    """A message as JSON."""
    return json.dumps(message, separators=(",", ":")).encode("utf-8")


def decode(body: bytes) -> Message:
    """JSON as a message; {} for an empty body."""
    message = json.loads(body) if body else {}
    if not isinstance(message, dict):
        raise ValueError("message is no object")
    return message


def b64(data: bytes) -> str:
    """bytes as they travel in JSON."""
    return base64.b64encode(data).decode("ascii")


def unb64(text: Optional[str]) -> bytes:
    """bytes from JSON; both alphabets, padded or not, as protobuf allows."""
    if not text:
        return b""
    if "-" in text or "_" in text:
        text = text.replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4))


def envelope(message: Message) -> bytes:
    """A message in its stream envelope."""
    body = encode(message)
    return _ENVELOPE.pack(0, len(body)) + body


class StreamDecoder:
    """Cuts a stream's bytes into messages.

    ``feed`` gives the messages that are complete; after the end envelope ``ended``
    is true and ``error`` holds what it reported.
    """

    def __init__(self) -> None:
        self.ended = False
        self.error: Optional[BeamError] = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Message]:
        self._buffer += data
        out: List[Message] = []
        at = 0
        while not self.ended and len(self._buffer) - at >= _ENVELOPE.size:
            flags, size = _ENVELOPE.unpack_from(self._buffer, at)
            if size > MAX_MESSAGE or flags & _COMPRESSED:
                raise make_error("internal", "the node sent a message that we cannot read (flags %d, %d bytes)" % (flags, size))
            end = at + _ENVELOPE.size + size
            if len(self._buffer) < end:
                break
            message = decode(bytes(self._buffer[at + _ENVELOPE.size : end]))
            at = end
            if flags & _END:
                self.ended = True
                if message.get("error"):
                    self.error = error_of(message["error"])
            else:
                out.append(message)
        del self._buffer[:at]
        return out


def unary_error(status: int, body: bytes) -> BeamError:
    """The exception for an answer that is not 200."""
    try:
        told = decode(body)
        if told.get("code"):
            return error_of(told)
    except ValueError:
        pass
    text = body[:200].decode("utf-8", "replace").strip()
    code = {401: "unauthenticated", 403: "forbidden", 404: "unsupported", 413: "too_large", 429: "no_capacity"}
    hint = "is that the port of a node? GATEWAY_HOST and GATEWAY_PORT say where to look" if status in (404, 405) else ""
    return make_error(code.get(status, "internal"), "HTTP status %d%s" % (status, ": " + text if text else ""), hint)


def error_of(error: Message) -> BeamError:
    """The exception for a Connect error object, from our own detail if it has one."""
    code = _STATUS_CODES.get(str(error.get("code", "")), "internal")
    message, hint = str(error.get("message", "")), ""
    for detail in error.get("details") or []:
        if isinstance(detail, dict) and str(detail.get("type", "")).endswith("beammesh.v1.ErrorDetail"):
            fields = _detail(detail)
            code, message, hint = fields.get("code") or code, fields.get("message") or message, fields.get("hint") or ""
            break
    return make_error(code, message or code, hint)


def _detail(detail: Message) -> Dict[str, str]:
    debug = detail.get("debug")
    if isinstance(debug, dict):
        return {key: str(value) for key, value in debug.items()}
    try:
        return _strings(unb64(str(detail.get("value", ""))))
    except (ValueError, IndexError, binascii.Error):
        return {}


def _strings(data: bytes) -> Dict[str, str]:
    # ErrorDetail in protobuf: 1 code, 2 message, 3 hint, all strings.
    names = {1: "code", 2: "message", 3: "hint"}
    out: Dict[str, str] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 != 2:
            break
        size, at = _varint(data, at)
        if key >> 3 in names:
            out[names[key >> 3]] = data[at : at + size].decode("utf-8", "replace")
        at += size
    return out


def _varint(data: bytes, at: int) -> "tuple[int, int]":
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
