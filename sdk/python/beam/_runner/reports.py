"""Exceptions as the data that travels to the caller."""

import os
import sys
from types import TracebackType
from typing import Any, Dict, Optional

# Bounds that keep a frame header (64 KiB of ASCII JSON) whole.
_MAX_TEXT = {"message": 4 << 10, "traceback": 20 << 10, "hint": 2 << 10, "type": 512}

_HERE = os.path.dirname(os.path.abspath(__file__))


def type_name(kind: type) -> str:
    """``module.Qualname``, without the module for builtins."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return kind.__module__ + "." + kind.__qualname__


def message_of(exc: BaseException) -> str:
    """str(exc), even where the class's own __str__ fails."""
    try:
        return str(exc)
    except Exception as bad:
        return "<%s.__str__ raised %s>" % (type(exc).__name__, type(bad).__name__)


def report(kind: str, exc: BaseException, hint: str = "", message: str = "") -> Dict[str, Any]:
    """Describe exc with the frames of user code only."""
    return clipped(kind, type_name(type(exc)), message or message_of(exc), format_traceback(exc), hint)


def clipped(kind: str, type_: str, message: str, traceback: str = "", hint: str = "") -> Dict[str, Any]:
    """An error object whose texts keep within their bounds."""
    fields = {"kind": kind, "type": type_, "message": message, "traceback": traceback, "hint": hint}
    return {key: _clip(text, _MAX_TEXT.get(key, 512)) for key, text in fields.items()}


def format_traceback(exc: BaseException) -> str:
    """The traceback text, without the runner's and the import machinery's frames."""
    import traceback

    seen = set()
    walk: Optional[BaseException] = exc
    while walk is not None and id(walk) not in seen:
        seen.add(id(walk))
        walk.__traceback__ = _user_frames(walk.__traceback__)
        walk = walk.__cause__ or walk.__context__
    try:
        return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except Exception:  # a __str__ or __repr__ of user code that fails
        return "".join(traceback.format_tb(exc.__traceback__)) + type_name(type(exc)) + "\n"


def _user_frames(tb: Optional[TracebackType]) -> Optional[TracebackType]:
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        ours = os.path.dirname(name) == _HERE
        machinery = name.startswith("<frozen importlib") or name == _importlib_file()
        if not ours and not machinery:
            return tb
        tb = tb.tb_next
    return None  # as for a SyntaxError in the handler's own file


def _importlib_file() -> str:
    module = sys.modules.get("importlib")
    return getattr(module, "__file__", None) or ""


def _clip(text: str, limit: int) -> str:
    # JSON writes a character beyond ASCII as up to 12 bytes: bound those.
    size = len(text) if text.isascii() else len(text.encode("ascii", "backslashreplace"))
    if size <= limit:
        return text
    keep = max(1, limit * len(text) // (size + 1) // 2 - 16)
    return text[:keep] + "\n... %d characters left out ...\n" % (len(text) - 2 * keep) + text[-keep:]
