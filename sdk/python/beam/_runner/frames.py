"""The channel between runner and node: frames on a stream socket.

    uint32 big endian   length of the header
    uint32 big endian   length of the payload
    header              JSON object, at most 64 KiB
    payload             raw bytes, at most 32 MiB

The same framing as the Go package runtime/ctl. Not safe for use from several
threads: the main loop is the only user.
"""

import json
import os
import struct
from typing import Any, Dict, Tuple

MAX_HEADER = 64 << 10
MAX_PAYLOAD = 32 << 20
# What a result may weigh; the clients' message cap is the same 16 MiB.
MAX_RESULT = 16 << 20

_LENGTHS = struct.Struct(">II")


class ChannelClosed(Exception):
    """The other side closed the channel between two frames."""


class ProtocolError(Exception):
    """Bytes that are no frame, or a frame above its limits."""


class Channel:
    """Frames over a file descriptor that the channel then owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # Programs that user code starts must not hold the channel open.
        os.set_inheritable(fd, False)

    def read(self) -> Tuple[Dict[str, Any], bytes]:
        """Wait for the next frame."""
        first = self._exactly(_LENGTHS.size, between=True)
        header_len, payload_len = _LENGTHS.unpack(first)
        if header_len > MAX_HEADER or payload_len > MAX_PAYLOAD:
            raise ProtocolError("frame of %d + %d bytes is above the limit" % (header_len, payload_len))
        header = json.loads(self._exactly(header_len).decode("utf-8"))
        if not isinstance(header, dict):
            raise ProtocolError("frame header is no object")
        return header, self._exactly(payload_len)

    def write(self, header: Dict[str, Any], payload: bytes = b"") -> None:
        """Send one frame; raises ProtocolError before sending when too large."""
        head = json.dumps(header, separators=(",", ":")).encode("ascii")
        if len(head) > MAX_HEADER or len(payload) > MAX_PAYLOAD:
            raise ProtocolError("frame of %d + %d bytes is above the limit" % (len(head), len(payload)))
        start = _LENGTHS.pack(len(head), len(payload)) + head
        if len(payload) <= 64 << 10:
            self._all(start + payload)
        else:
            self._all(start)
            self._all(payload)

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _exactly(self, n: int, between: bool = False) -> bytes:
        parts = []
        left = n
        while left:
            try:
                part = os.read(self._fd, min(left, 1 << 20))
            except ConnectionResetError:
                part = b""
            if not part:
                if between and left == n:
                    raise ChannelClosed()
                raise ProtocolError("channel closed inside a frame")
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
