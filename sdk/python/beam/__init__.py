"""Run Python functions on the machines of a mesh.

    from beam import function

    @function(cpu=1)
    def square(i: int) -> int:
        return i ** 2

    if __name__ == "__main__":
        print(square.remote(12))

Names are loaded when they are first used: importing the package costs next to
nothing, in programs and in containers.
"""

from typing import TYPE_CHECKING, Any, Dict, List

if TYPE_CHECKING:
    from beam import env as env
    from beam._context import Context as Context
    from beam._errors import AuthError as AuthError
    from beam._errors import BeamError as BeamError
    from beam._errors import BuildError as BuildError
    from beam._errors import CapacityError as CapacityError
    from beam._errors import ConflictError as ConflictError
    from beam._errors import DeadlineError as DeadlineError
    from beam._errors import InvalidError as InvalidError
    from beam._errors import NotFoundError as NotFoundError
    from beam._errors import OutOfMemoryError as OutOfMemoryError
    from beam._errors import PythonMismatchError as PythonMismatchError
    from beam._errors import RemoteError as RemoteError
    from beam._errors import RemoteTraceback as RemoteTraceback
    from beam._errors import TaskCancelledError as TaskCancelledError
    from beam._errors import TaskTimeoutError as TaskTimeoutError
    from beam._errors import TooLargeError as TooLargeError
    from beam._errors import UnreachableError as UnreachableError
    from beam._errors import UnsupportedError as UnsupportedError
    from beam._function import function as Function
    from beam._function import function as function
    from beam._image import Image as Image
    from beam._image import ImageBuildResult as ImageBuildResult
    from beam._policies import QueueDepthAutoscaler as QueueDepthAutoscaler
    from beam._policies import TaskPolicy as TaskPolicy
    from beam._task import Task as Task
    from beam._types import GpuType as GpuType
    from beam._types import PythonVersion as PythonVersion
    from beam._types import TaskStatus as TaskStatus

__version__ = "0.1.0"

_HOME: Dict[str, str] = {
    "Context": "_context",
    "Function": "_function",
    "function": "_function",
    "Image": "_image",
    "ImageBuildResult": "_image",
    "Task": "_task",
    "GpuType": "_types",
    "PythonVersion": "_types",
    "QueueDepthAutoscaler": "_policies",
    "TaskPolicy": "_policies",
    "TaskStatus": "_types",
    "AuthError": "_errors",
    "BeamError": "_errors",
    "BuildError": "_errors",
    "CapacityError": "_errors",
    "ConflictError": "_errors",
    "DeadlineError": "_errors",
    "InvalidError": "_errors",
    "NotFoundError": "_errors",
    "OutOfMemoryError": "_errors",
    "PythonMismatchError": "_errors",
    "RemoteError": "_errors",
    "RemoteTraceback": "_errors",
    "TaskCancelledError": "_errors",
    "TaskTimeoutError": "_errors",
    "TooLargeError": "_errors",
    "UnreachableError": "_errors",
    "UnsupportedError": "_errors",
}

# Names of the reference document that later versions serve.
_LATER = frozenset(
    "endpoint asgi realtime schedule task_queue Pod PodInstance Service Sandbox SandboxInstance SandboxProcess "
    "SandboxProcessManager SandboxProcessResponse SandboxProcessStream SandboxFileSystem SandboxFileInfo "
    "SandboxConnectionError SandboxProcessError SandboxFileSystemError Volume CloudBucket CloudBucketConfig Queue "
    "SimpleQueue Map Output Bot BotLocation BotContext BotEventType Client Deployment schema experimental "
    "integrations".split()
)

__all__ = sorted(["env", *_HOME])


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOME:
        module = importlib.import_module("beam." + _HOME[name])
        value = getattr(module, "function" if name == "Function" else name)
    elif name == "env":
        value = importlib.import_module("beam.env")
    elif name in _LATER:
        # Not an AttributeError: "from beam import x" would replace its text.
        raise ImportError(
            "beam.%s is not served by this version\nhint: what is: %s" % (name, ", ".join(n for n in __all__ if not n.endswith("Error")))
        )
    else:
        raise AttributeError("module 'beam' has no attribute %r" % name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted(list(globals()) + __all__)
