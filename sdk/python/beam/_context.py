"""Context: what a handler may want to know about where it runs."""

import os
from dataclasses import dataclass
from typing import Any, Optional


@dataclass
class Context:
    """Facts about the running task, for handlers with a ``context`` parameter.

    >>> Context(task_id="t1").task_id
    't1'
    """

    container_id: Optional[str] = None
    stub_id: Optional[str] = None
    stub_type: Optional[str] = None
    callback_url: Optional[str] = None
    task_id: Optional[str] = None
    timeout: Optional[int] = None
    on_start_value: Optional[Any] = None
    bind_port: int = 0
    python_version: str = ""

    @classmethod
    def from_environ(cls, on_start_value: Any = None) -> "Context":
        """The context of the task that this process runs."""
        get = os.environ.get
        return cls(
            container_id=get("CONTAINER_ID"),
            stub_id=get("STUB_ID"),
            stub_type=get("STUB_TYPE"),
            callback_url=get("CALLBACK_URL"),
            task_id=get("TASK_ID"),
            timeout=_whole(get("TIMEOUT")),
            on_start_value=on_start_value,
            bind_port=_whole(get("BIND_PORT")) or 0,
            python_version=get("PYTHON_VERSION", ""),
        )


def _whole(text: Optional[str]) -> Optional[int]:
    try:
        return int(text) if text else None
    except ValueError:
        return None
