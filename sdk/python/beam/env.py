"""Where this code runs.

>>> from beam import env
>>> env.is_local(), env.is_remote()
(True, False)
"""

from __future__ import annotations

import os
from typing import Callable, TypeVar, Union

from beam import _state

T = TypeVar("T")


def is_remote() -> bool:
    """Whether this runs in a container of the mesh."""
    return bool(os.environ.get("CONTAINER_ID"))


def is_local() -> bool:
    """Whether this runs outside of the mesh's containers."""
    return not is_remote()


def called_on_import() -> bool:
    """Whether a container is importing the user's file right now."""
    return _state.importing


def try_env(name: str, default: T) -> Union[T, str, int, float, bool]:
    """An environment variable in the type of its default, else the default.

    >>> try_env("NOT_SET_ANYWHERE", 3)
    3
    """
    text = os.environ.get(name)
    if text is None:
        return default
    if isinstance(default, bool):
        return text.strip().lower() in ("1", "true", "yes", "on")
    kind: Callable[[str], Union[int, float, str]] = str
    if isinstance(default, int):
        kind = int
    elif isinstance(default, float):
        kind = float
    try:
        return kind(text)
    except ValueError:
        return default


def local_entrypoint(func: Callable[[], T]) -> Callable[[], T]:
    """Call func when its file is run as a program here, never in a container."""
    if func.__module__ == "__main__" and is_local():
        func()
    return func
