"""Small public types: GPU names, Python versions, statuses; and how sizes are read."""

from __future__ import annotations

from enum import Enum
from typing import Any, Dict, List, Union

from beam._errors import InvalidError


class _Text(str, Enum):
    def __str__(self) -> str:
        return str(self.value)


class GpuType(_Text):
    """Well-known GPU names. Any other string works too: what counts is which
    GPUs the mesh has.

    >>> str(GpuType.A100_80)
    'A100-80'
    """

    NoGPU = ""
    Any = "any"
    T4 = "T4"
    L4 = "L4"
    L40 = "L40"
    L40S = "L40S"
    A10 = "A10"
    A10G = "A10G"
    A16 = "A16"
    A30 = "A30"
    A40 = "A40"
    A100 = "A100"
    A100_40 = "A100-40"
    A100_80 = "A100-80"
    A4000 = "A4000"
    A5000 = "A5000"
    A6000 = "A6000"
    RTX4000Ada = "RTX4000Ada"
    RTX4090 = "RTX4090"
    RTX5090 = "RTX5090"
    RTX6000 = "RTX6000"
    RTX6000Ada = "RTX6000Ada"
    RTXPro6000 = "RTXPro6000"
    H100 = "H100"
    H200 = "H200"
    GH200 = "GH200"
    B200 = "B200"
    B300 = "B300"
    V100 = "V100"
    V100_32 = "V100-32"
    GAUDI2 = "GAUDI2"


class PythonVersion(_Text):
    """Python versions for Image; Python3 is the base image's own."""

    Python3 = "python3"
    Python38 = "python3.8"
    Python39 = "python3.9"
    Python310 = "python3.10"
    Python311 = "python3.11"
    Python312 = "python3.12"
    Python313 = "python3.13"


class TaskStatus(_Text):
    """Where a task stands."""

    Pending = "PENDING"
    Running = "RUNNING"
    Complete = "COMPLETE"
    Error = "ERROR"
    Cancelled = "CANCELLED"
    Timeout = "TIMEOUT"
    Retry = "RETRY"
    Expired = "EXPIRED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen.

        >>> TaskStatus.Running.ended
        False
        """
        return self not in (TaskStatus.Pending, TaskStatus.Running, TaskStatus.Retry)


def cpu_millicores(cpu: Union[int, float, str]) -> int:
    """Cores as thousandths; 0.1 to 64 cores.

    >>> cpu_millicores(2), cpu_millicores("500m"), cpu_millicores(0.125)
    (2000, 500, 125)
    """
    hint = "write cores as 0.5 or 2, or thousandths as \"500m\""
    if isinstance(cpu, bool):
        raise InvalidError("cpu=%r is no number of cores" % cpu, hint)
    try:
        if isinstance(cpu, str):
            text = cpu.strip()
            millis = float(text[:-1]) if text.endswith("m") else float(text) * 1000
        else:
            millis = float(cpu) * 1000
    except (TypeError, ValueError):
        raise InvalidError("cpu=%r is no number of cores" % (cpu,), hint) from None
    if not 100 <= millis <= 64000:
        raise InvalidError("cpu=%r is not between 0.1 and 64 cores" % (cpu,), hint)
    return int(round(millis))


_UNITS = {"": 1.0, "m": 1.0, "mb": 1.0, "mi": 1.0, "mib": 1.0, "g": 1000.0, "gb": 1000.0, "gi": 1024.0, "gib": 1024.0}


def memory_mib(memory: Union[int, str]) -> int:
    """Memory in MiB.

    >>> memory_mib(128), memory_mib("1Gi"), memory_mib("1.5g"), memory_mib("512MiB")
    (128, 1024, 1500, 512)
    """
    import math
    import re

    hint = 'write MiB as a number, or "512Mi", "2Gi", "1.5GB"'
    if isinstance(memory, bool) or not isinstance(memory, (int, str)):
        raise InvalidError("memory=%r is no amount of memory" % (memory,), hint)
    if isinstance(memory, int):
        amount: float = memory
    else:
        match = re.match(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$", memory)
        if not match or match.group(2).lower() not in _UNITS:
            raise InvalidError("memory=%r is no amount of memory" % memory, hint)
        amount = float(match.group(1)) * _UNITS[match.group(2).lower()]
    if amount <= 0:
        raise InvalidError("memory=%r must be above 0" % (memory,), hint)
    return math.ceil(amount)


def gpu_names(gpu: Union[None, str, "List[Any]"]) -> str:
    """GPU names in order of preference, as one comma list.

    >>> gpu_names(["H100", GpuType.A100_80]), gpu_names(GpuType.NoGPU), gpu_names("RTX7090")
    ('H100,A100-80', '', 'RTX7090')
    """
    if gpu is None:
        return ""
    listed = list(gpu) if isinstance(gpu, (list, tuple)) else [gpu]
    names = []
    for one in listed:
        if not isinstance(one, str):
            raise InvalidError("gpu=%r is no name" % (gpu,), 'write gpu="H100" or gpu=["H100", "A100-80"]')
        text = str(one).strip()
        if text:
            names.append(text)
    return ",".join(names)


def env_entries(env: Union[None, str, "List[str]", Dict[str, str]], what: str = "env") -> "List[str]":
    """Variables as NAME=value, split at the first "=".

    >>> env_entries({"A": "1"}), env_entries("B=2=3"), env_entries(["C="])
    (['A=1'], ['B=2=3'], ['C='])
    """
    if not env:
        return []
    if isinstance(env, dict):
        entries = ["%s=%s" % (key, value) for key, value in env.items()]
    else:
        entries = [env] if isinstance(env, str) else list(env)
    for entry in entries:
        name, equals, _ = entry.partition("=") if isinstance(entry, str) else ("", "", "")
        if not equals or not name or "\0" in entry:
            raise InvalidError("%s entry %r is not NAME=value" % (what, entry))
    return entries
