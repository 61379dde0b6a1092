"""Pickles that travel: cloudpickle, with the main script under its real name.

A class of ``python example.py`` says it is in module ``__main__``; in the container
the same file is module ``example``. So what ``__main__`` defines at its top level is
pickled by reference as ``example.Name``, and here ``example`` is made another name
of ``__main__``, so that results come back as the very same classes.
"""

from __future__ import annotations

import importlib
import io
import sys
from types import FunctionType
from typing import Any, Callable, Optional

from beam._errors import InvalidError, TooLargeError

MAX_ARGUMENTS = 16 << 20

_main_name: Optional[str] = None
_pickler: Optional[Callable[[Any], bytes]] = None


def name_main(name: str) -> None:
    """Say under which module name the container imports the main script."""
    global _main_name
    _main_name = name
    sys.modules.setdefault(name, sys.modules["__main__"])


def main_name() -> Optional[str]:
    """What name_main was told."""
    return _main_name


def lookup(module: str, qualname: str) -> Any:
    """The object behind a reference; what such pickles call when loaded.

    >>> lookup("json", "JSONDecoder.decode").__name__
    'decode'
    """
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def module_of(obj: Any) -> str:
    """obj's module, by its real name."""
    module = getattr(obj, "__module__", "") or ""
    if module == "__main__" and _main_name:
        return _main_name
    return module


def dumps(value: Any) -> bytes:
    """Pickle value for a container."""
    global _pickler
    if _pickler is None:
        _pickler = _make_pickler()
    return _pickler(value)


def _make_pickler() -> Callable[[Any], bytes]:
    import cloudpickle  # type: ignore[import-untyped,unused-ignore]

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc,name-defined,unused-ignore]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, (type, FunctionType)) and obj.__module__ == "__main__" and _main_name:
                reference = _reference(obj)
                if reference is not None:
                    return reference
            return super().reducer_override(obj)

    def dump(value: Any) -> bytes:
        with io.BytesIO() as file:
            Pickler(file, protocol=5).dump(value)
            return file.getvalue()

    return dump


def _reference(obj: Any) -> Any:
    found: Any = sys.modules["__main__"]
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return (lookup, (_main_name, obj.__qualname__)) if found is obj else None


def arguments(args: Any, kwargs: Any, what: str = "the arguments", limit: int = MAX_ARGUMENTS) -> bytes:
    """The payload of one call, or an error that names the argument to blame."""
    try:
        data = dumps({"args": tuple(args), "kwargs": dict(kwargs)})
    except Exception as exc:
        raise InvalidError(
            "%s cannot be pickled: %s" % (_culprit(args, kwargs) or what, exc),
            "pass plain data, and open files, connections and locks inside the function",
        ) from exc
    if len(data) > limit:
        raise TooLargeError(
            "%s weigh %.1f MiB, the limit is %d MiB" % (what, len(data) / 1048576, limit >> 20),
            "put the data into a file beside your code, or let the function fetch it",
        )
    return data


def _culprit(args: Any, kwargs: Any) -> str:
    named = [("argument %d" % i, value) for i, value in enumerate(args)]
    named += [("argument %s" % key, value) for key, value in kwargs.items()]
    for name, value in named:
        try:
            dumps(value)
        except Exception:
            return "%s (a %s)" % (name, type(value).__name__)
    return ""
