"""What can go wrong, as one small tree.

    BeamError                    .code .hint .exit_status
    ├── InvalidError             invalid_argument; also a ValueError
    │   ├── TooLargeError        too_large: above a stated limit
    │   ├── UnsupportedError     unsupported: valid, but not served
    │   └── PythonMismatchError  python_mismatch: client and image differ in minor
    ├── NotFoundError            not_found
    ├── AuthError                unauthenticated, forbidden, expired
    ├── ConflictError            conflict
    ├── CapacityError            no_capacity, disk_full
    ├── DeadlineError            timeout: we gave up waiting
    ├── UnreachableError         unreachable: no node answered
    ├── BuildError               build_failed: an image step failed
    └── RemoteError              failed, node_lost, internal: the call failed there
        ├── TaskTimeoutError     job_timeout: it ran past its own limit
        ├── TaskCancelledError   cancelled
        └── OutOfMemoryError     out_of_memory: the kernel ended it

``code`` is the same word on the command line and over HTTP. An exception of the
user's own code is raised again as itself when it can be pickled, with the
remote traceback as its cause; otherwise as RemoteError.

>>> error = make_error("no_capacity", "no node has an H100", "box2 has RTX4090")
>>> type(error).__name__, error.code, error.exit_status
('CapacityError', 'no_capacity', 6)
>>> print(error)
no node has an H100
hint: box2 has RTX4090
"""

from __future__ import annotations

from typing import Dict, Optional, Type


class BeamError(Exception):
    """Base of everything that this package raises by itself."""

    code = "internal"
    exit_status = 1

    def __init__(self, message: str, hint: str = "", code: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code:
            self.code = code
            self.exit_status = EXIT_STATUS.get(code, 1)

    def __str__(self) -> str:
        return "%s\nhint: %s" % (self.message, self.hint) if self.hint else self.message


class InvalidError(BeamError, ValueError):
    """An argument or setting that cannot be."""

    code, exit_status = "invalid_argument", 2


class TooLargeError(InvalidError):
    """Above a stated limit."""

    code = "too_large"


class UnsupportedError(InvalidError):
    """Valid, but not served by this version."""

    code = "unsupported"


class PythonMismatchError(InvalidError):
    """The program here and the image differ in their Python minor."""

    code = "python_mismatch"


class NotFoundError(BeamError):
    """No such thing."""

    code, exit_status = "not_found", 3


class AuthError(BeamError):
    """No token, a bad one, or one without the right."""

    code, exit_status = "unauthenticated", 4


class ConflictError(BeamError):
    """It is in another state than the request needs."""

    code, exit_status = "conflict", 5


class CapacityError(BeamError):
    """No node can take it, or not now."""

    code, exit_status = "no_capacity", 6


class DeadlineError(BeamError):
    """We gave up waiting."""

    code, exit_status = "timeout", 7


class UnreachableError(BeamError):
    """No node answered."""

    code, exit_status = "unreachable", 8


class BuildError(BeamError):
    """A step of an image failed."""

    code = "build_failed"


class RemoteError(BeamError):
    """The call failed where it ran.

    ``kind`` tells apart exception, syntax_error, import_error, handler_missing,
    on_start_error, unpicklable_args and unpicklable_result ("" when the user's
    code is not to blame); ``remote_traceback`` is text.
    """

    code = "failed"

    def __init__(self, message: str, hint: str = "", code: Optional[str] = None) -> None:
        super().__init__(message, hint, code)
        self.task_id = ""
        self.kind = ""
        self.remote_traceback = ""


class TaskTimeoutError(RemoteError):
    """The task ran past its timeout."""

    code, exit_status = "job_timeout", 124


class TaskCancelledError(RemoteError):
    """The task was cancelled."""

    code, exit_status = "cancelled", 130


class OutOfMemoryError(RemoteError):
    """The task used more memory than it asked for."""

    code, exit_status = "out_of_memory", 137


class RemoteTraceback(Exception):
    """Shows the remote frames as the cause of an exception raised here.

    ``task_id`` is the task that raised it, "" where that is not known.
    """

    def __init__(self, text: str, task_id: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.task_id = task_id

    def __str__(self) -> str:
        return '\n"""\n%s"""' % self.text


EXIT_STATUS: Dict[str, int] = {
    "invalid_argument": 2,
    "too_large": 2,
    "unsupported": 2,
    "python_mismatch": 2,
    "not_found": 3,
    "unauthenticated": 4,
    "forbidden": 4,
    "expired": 4,
    "conflict": 5,
    "no_capacity": 6,
    "disk_full": 6,
    "timeout": 7,
    "unreachable": 8,
    "job_timeout": 124,
    "cancelled": 130,
    "out_of_memory": 137,
}

_CLASSES: Dict[str, Type[BeamError]] = {
    "invalid_argument": InvalidError,
    "too_large": TooLargeError,
    "unsupported": UnsupportedError,
    "python_mismatch": PythonMismatchError,
    "not_found": NotFoundError,
    "unauthenticated": AuthError,
    "forbidden": AuthError,
    "expired": AuthError,
    "conflict": ConflictError,
    "no_capacity": CapacityError,
    "disk_full": CapacityError,
    "timeout": DeadlineError,
    "unreachable": UnreachableError,
    "build_failed": BuildError,
    "failed": RemoteError,
    "node_lost": RemoteError,
    "job_timeout": TaskTimeoutError,
    "cancelled": TaskCancelledError,
    "out_of_memory": OutOfMemoryError,
}


def make_error(code: str, message: str, hint: str = "") -> BeamError:
    """The exception for a code of the wire; BeamError for codes we do not know."""
    return _CLASSES.get(code, BeamError)(message, hint, code)
