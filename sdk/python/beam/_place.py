"""Where a function lives: the folder to send, and how the container imports it."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable, Dict, NamedTuple

from beam import _pickle
from beam._errors import InvalidError


class Place(NamedTuple):
    """root is sent; handler is imported with root/below first on sys.path."""

    root: str
    handler: str
    below: str
    extra: Dict[str, bytes]  # files that go along: a pickled notebook function


def locate(func: Callable[..., Any]) -> Place:
    """Find func's place: the working directory where it holds the file, else
    the folder that the file's module is imported from."""
    file = getattr(getattr(func, "__code__", None), "co_filename", "")
    name = getattr(func, "__qualname__", "")
    cwd = os.path.realpath(os.getcwd())
    if "<" in name:
        raise InvalidError(
            "%s is defined inside another function" % name, "containers import it by name: move it to the top level"
        )
    if not file or not os.path.isfile(file):
        # Typed into a notebook or at the prompt: it travels as a pickle.
        pickled = "%s.pkl" % name
        return Place(cwd, "%s:%s" % (pickled, name), "", {pickled: _pickle.dumps(func)})
    path = os.path.realpath(file)
    module = getattr(func, "__module__", "") or ""
    main = module == "__main__"
    if main:
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec is not None and spec.name != "__main__" else os.path.splitext(os.path.basename(path))[0]
    base = _base(path, module)
    if main:
        _pickle.name_main(module)
    inside = base == cwd or base.startswith(cwd.rstrip(os.sep) + os.sep)
    root = cwd if inside else base
    below = os.path.relpath(base, root)
    return Place(root, "%s:%s" % (module, name), "" if below == "." else below.replace(os.sep, "/"), {})


def _base(path: str, module: str) -> str:
    """The sys.path entry that module is found under."""
    parts = module.split(".")
    without = os.path.splitext(path)[0].split(os.sep)
    if without[-1] == "__init__":
        without.pop()
    if without[-len(parts) :] != parts:
        raise InvalidError(
            "cannot tell how to import %s: its module is called %s" % (path, module),
            "use a file name that is a Python name, such as app.py",
        )
    return os.sep.join(without[: -len(parts)]) or os.sep
