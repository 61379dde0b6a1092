"""Files that say ``from beta9 import function`` run unchanged in our containers."""

from typing import Any, List

import beam as _beam


def __getattr__(name: str) -> Any:
    return getattr(_beam, name)


def __dir__() -> List[str]:
    return dir(_beam)
