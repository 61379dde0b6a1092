"""What a decorator can be told about retries and scaling.

Apart from the other types because dataclasses take a third of the time that
importing the package takes in a container.
"""

from __future__ import annotations

from dataclasses import dataclass

from beam._errors import InvalidError


@dataclass
class TaskPolicy:
    """Limits of one task; what is not 0 overrides timeout and retries.

    ttl is how many seconds the task may wait and run in all, at most a day.

    >>> TaskPolicy(max_retries=2).max_retries
    2
    """

    max_retries: int = 0
    timeout: int = 0
    ttl: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ttl <= 86400:
            raise InvalidError("ttl=%r is not between 0 and 86400 seconds" % self.ttl, "0 means the default")
        if self.max_retries < 0:
            raise InvalidError("max_retries=%r is negative" % self.max_retries)


@dataclass
class QueueDepthAutoscaler:
    """How many containers may run: one per tasks_per_container calls in flight
    (0 = no limit), between min_containers and max_containers."""

    max_containers: int = 1
    tasks_per_container: int = 1
    min_containers: int = 0

    def __post_init__(self) -> None:
        if self.max_containers < 1 or self.tasks_per_container < 0 or self.min_containers < 0:
            raise InvalidError("negative or zero sizes in QueueDepthAutoscaler")
