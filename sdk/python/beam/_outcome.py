"""What came of a call: its value, or the exception to raise here."""

from __future__ import annotations

import json
import pickle
from typing import Any, Dict, Optional

from beam import _connect
from beam._errors import BeamError, PythonMismatchError, RemoteError, RemoteTraceback, make_error

Outcome = Dict[str, Any]


def value_of(outcome: Outcome, result: Optional[str] = None) -> Any:
    """The value of an Outcome message, or raise what happened.

    result is base64, for answers that carry it beside the outcome.
    """
    failure = failure_of(outcome)
    if failure is not None:
        raise failure
    data = _connect.unb64(result or outcome.get("result"))
    return load(data, str(outcome.get("resultFormat", "")))


def load(data: bytes, format_: str = "pickle") -> Any:
    """Decode a result."""
    if not data:
        return None
    if format_ == "json":
        return json.loads(data)
    try:
        return pickle.loads(data)
    except Exception as exc:
        error = RemoteError(
            "the function returned, but its result cannot be loaded here: %s: %s" % (type(exc).__name__, exc),
            "install the package that the result's class is from, or return plain data",
        )
        error.kind = "unpicklable_result"
        raise error from exc


def failure_of(outcome: Outcome) -> Optional[BaseException]:
    """The exception for an outcome that is not COMPLETE; None for one that is."""
    if outcome.get("status", "COMPLETE") == "COMPLETE" and not outcome.get("error"):
        return None
    told = outcome.get("exception") or {}
    if told:
        return _user_exception(outcome, told)
    error = outcome.get("error") or {}
    code = str(error.get("code") or _CODE_OF_STATUS.get(str(outcome.get("status")), "failed"))
    message = str(error.get("message") or "the task ended as %s" % outcome.get("status"))
    made = make_error(code, message, str(error.get("hint") or ""))
    return _with_task(made, outcome)


_CODE_OF_STATUS = {"CANCELLED": "cancelled", "TIMEOUT": "job_timeout"}


def _user_exception(outcome: Outcome, told: Dict[str, Any]) -> BaseException:
    kind = str(told.get("kind") or "exception")
    trace = str(told.get("traceback") or "")
    hint = str(told.get("hint") or "")
    cause = RemoteTraceback(trace, str(outcome.get("taskId") or "")) if trace else None
    if kind == "exception":
        original = _unpickled(_connect.unb64(told.get("pickle")))
        if original is not None:
            original.__cause__ = cause
            return original
        text = str(told.get("message") or "")
        message = "%s: %s" % (told.get("type") or "Exception", text) if text else str(told.get("type") or "Exception")
    else:
        message = str(told.get("message") or kind)
    error: BeamError
    if kind == "python_mismatch":
        error = PythonMismatchError(message, hint)
    else:
        error = RemoteError(message, hint)
        error.kind = kind
        error.remote_traceback = trace
    error.__cause__ = cause
    return _with_task(error, outcome)


def _unpickled(data: bytes) -> Optional[Exception]:
    # Only ordinary exceptions come back as themselves: a remote SystemExit or
    # KeyboardInterrupt must not end the program here.
    if not data:
        return None
    try:
        loaded = pickle.loads(data)
    except Exception:
        return None
    return loaded if isinstance(loaded, Exception) else None


def _with_task(error: BaseException, outcome: Outcome) -> BaseException:
    if isinstance(error, RemoteError):
        error.task_id = str(outcome.get("taskId") or "")
    return error
