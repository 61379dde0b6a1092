"""What a decorator was given, checked, and as the node is asked for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Type, Union

from beam import _pickle, _types
from beam._errors import InvalidError, UnsupportedError
from beam._image import Image

if TYPE_CHECKING:
    from beam import _place
    from beam._policies import QueueDepthAutoscaler, TaskPolicy


class Settings:
    """The checked parameters of one decorated function."""

    def __init__(
        self,
        app: str,
        name: Optional[str],
        cpu: Union[int, float, str],
        memory: Union[int, str],
        gpu: Union[None, str, List[Any]],
        gpu_count: int,
        image: Optional[Image],
        timeout: int,
        retries: int,
        retry_for: Optional[Sequence[Type[BaseException]]],
        callback_url: Optional[str],
        volumes: Optional[Sequence[Any]],
        secrets: Optional[Sequence[str]],
        env: Optional[Dict[str, str]],
        task_policy: Optional[TaskPolicy],
        on_start: Optional[Callable[[], Any]],
        headless: bool,
        keep_warm_seconds: float,
        max_pending_tasks: int,
        autoscaler: Optional[QueueDepthAutoscaler],
        inputs: Any,
        outputs: Any,
        checkpoint_enabled: bool,
        block_network: bool,
        allow_list: Optional[Sequence[str]],
        strict: bool,
    ) -> None:
        self.app, self.name = app, name or ""
        self.cpu = _types.cpu_millicores(cpu)
        self.memory = _types.memory_mib(memory)
        self.gpu = _types.gpu_names(gpu)
        self.gpu_count = _count("gpu_count", gpu_count)
        if self.gpu and self.gpu_count == 0:
            self.gpu_count = 1
        if self.gpu_count and not self.gpu:
            raise InvalidError("gpu_count=%d without gpu" % gpu_count, 'name one: gpu="any"')
        if image is not None and not isinstance(image, Image):
            raise InvalidError("image=%r is no Image" % (image,), "write image=Image(...)")
        self.image = image or Image()
        self.timeout = _timeout(timeout)
        self.retries = _count("retries", retries)
        self.retry_for = list(retry_for or [])
        for kind in self.retry_for:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise InvalidError("retry_for entry %r is no exception class" % (kind,), "write retry_for=[TimeoutError]")
        self.callback_url = _url(callback_url)
        self.env = _types.env_entries(env)
        self.task_policy = task_policy
        self.on_start = on_start
        if on_start is not None and not callable(on_start):
            raise InvalidError("on_start=%r is no function" % (on_start,))
        self.headless = bool(headless)
        self.keep_warm_seconds = -1.0 if keep_warm_seconds == -1 else abs(float(keep_warm_seconds))
        self.max_pending_tasks = _count("max_pending_tasks", max_pending_tasks)
        self.autoscaler = autoscaler
        self.block_network = bool(block_network)
        self.allow_list = _networks(allow_list)
        if self.block_network and self.allow_list:
            raise InvalidError("block_network and allow_list exclude each other", "give one of them")
        self.strict = bool(strict)
        # Asked for at call time, so that a file that uses them can be imported.
        self.unserved = [
            what
            for what, given in (
                ("volumes", volumes),
                ("secrets", secrets),
                ("inputs", inputs),
                ("outputs", outputs),
                ("checkpoint_enabled", checkpoint_enabled),
            )
            if given
        ]

    def request(self, place: _place.Place, object_id: str, image_id: str, python: str) -> Dict[str, Any]:
        """The GetOrCreateStub message."""
        if self.unserved:
            raise UnsupportedError(
                "%s: not served by this version" % ", ".join(self.unserved),
                "leave it out for now: pass data as arguments, files beside your code, settings as env",
            )
        env = list(self.env)
        if place.below:
            env.append("BEAM_CODE_PATH=" + place.below)
        policy = self.task_policy
        asked: Dict[str, Any] = {
            "objectId": object_id,
            "imageId": image_id,
            "stubType": "function",
            "name": "function/" + place.handler,
            "appName": self.app or self.name or place.root.rstrip("/").rsplit("/", 1)[-1],
            "handler": place.handler,
            "pythonVersion": python,
            "clientPython": "%d.%d" % sys.version_info[:2],
            "cpu": self.cpu,
            "memory": self.memory,
            "gpu": self.gpu,
            "gpuCount": self.gpu_count,
            "retries": self.retries,
            "retryFor": [_pickle.module_of(kind) + "." + kind.__qualname__ for kind in self.retry_for],
            "timeout": self.timeout,
            "keepWarmSeconds": self.keep_warm_seconds,
            "workers": 1,
            "concurrentRequests": 1,
            "maxPendingTasks": self.max_pending_tasks,
            "onStart": self._on_start(place),
            "callbackUrl": self.callback_url,
            "authorized": True,
            "env": env,
            "headless": self.headless,
            "strict": self.strict,
            "blockNetwork": self.block_network,
            "allowList": self.allow_list,
        }
        if policy is not None:
            asked["taskPolicy"] = {"timeout": policy.timeout, "maxRetries": policy.max_retries, "ttl": policy.ttl}
        if self.autoscaler is not None:
            asked["autoscaler"] = {
                "type": "queue_depth",
                "maxContainers": self.autoscaler.max_containers,
                "tasksPerContainer": self.autoscaler.tasks_per_container,
                "minContainers": self.autoscaler.min_containers,
            }
        return {key: value for key, value in asked.items() if value not in ("", [], None)}

    def _on_start(self, place: _place.Place) -> str:
        if self.on_start is None:
            return ""
        from beam import _place

        where = _place.locate(getattr(self.on_start, "__beam_function__", self.on_start))
        if where.root != place.root or where.extra:
            raise InvalidError("on_start must be in a file below %s" % place.root)
        return where.handler


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidError("%s=%r is not a whole number from 0 on" % (name, value))
    return value


def _timeout(seconds: int) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds != -1 and seconds <= 0:
        raise InvalidError("timeout=%r is no number of seconds" % (seconds,), "-1 means no limit")
    return int(seconds)


def _url(url: Optional[str]) -> str:
    if url and not url.startswith(("http://", "https://")):
        raise InvalidError("callback_url=%r is no http or https URL" % url)
    return url or ""


def _networks(given: Optional[Sequence[str]]) -> List[str]:
    if not given:
        return []
    import ipaddress

    out = []
    for text in given:
        try:
            out.append(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise InvalidError("allow_list entry %r is no network" % text, "write it as 203.0.113.0/24") from None
    return out
