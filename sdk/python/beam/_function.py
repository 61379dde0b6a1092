"""The function decorator and what it makes."""

from __future__ import annotations

import threading
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
    overload,
)

from beam import _pickle, _state, env
from beam._errors import UnreachableError
from beam._settings import Settings

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from beam import _client, _invoke
    from beam._image import Image
    from beam._policies import QueueDepthAutoscaler, TaskPolicy
    from beam._task import Task

    P = ParamSpec("P")
else:
    P = TypeVar("P")
R = TypeVar("R")


class Stub:
    """A function as one node knows it."""

    def __init__(self, client: _client.Client, stub_id: str, handler: str, callback_url: str, headless: bool) -> None:
        self.client = client
        self.stub_id = stub_id
        self.handler = handler
        self.callback_url = callback_url
        self.headless = headless


class RemoteFunction(Generic[P, R]):
    """A function that can run on the mesh; made by @function.

    Calling it runs it on the mesh; inside a container it runs right there.
    The keyword argument ``callback_url`` of a call overrides the decorator's and
    does not reach the function, unless the function itself has such a parameter.
    """

    def __init__(self, func: Callable[P, R], settings: Settings) -> None:
        self.__beam_function__ = func
        self._settings = settings
        self._mu = threading.Lock()
        self._stubs: Dict[Any, Stub] = {}
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, name, getattr(func, name, None))
        self.__wrapped__ = func

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if env.is_remote():
            return self.__beam_function__(*args, **kwargs)
        return self.remote(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, in this process."""
        return self.__beam_function__(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in a container of the mesh and give its value.

        Its output is printed as it comes. An exception that it raises is raised
        here. Ctrl-C cancels it there; a second one leaves at once.
        """
        if _state.importing:
            return None  # type: ignore[return-value]
        from beam import _interrupt

        _interrupt.warn_in_loop("remote")
        value: R = self.call(args, kwargs).value()
        return value

    def call(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> _invoke.Invocation:
        """Run the function to its end; for beam.run, which wants the task's id too."""
        from beam import _interrupt, _invoke

        stub = self.stub()
        call = self._invocation(stub, args, kwargs)
        call.begin()
        with stub.client.stream(_invoke.METHOD, call.request) as stream:
            with _interrupt.Interruptible(call.leave, lambda: self._stop(call, stream), stream.abort):
                try:
                    for message in stream:
                        call.feed(message)
                except UnreachableError as exc:
                    raise call.broken(exc) from exc
                call.finish()
                return call

    async def async_remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """remote for asyncio; cancelling it cancels the task."""
        if _state.importing:
            return None  # type: ignore[return-value]
        from beam import _aio

        value: R = await _aio.remote(self, args, kwargs)
        return value

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> "Task[R]":
        """Start the function and return at once; it outlives this program."""
        from beam import _invoke
        from beam._task import Task

        if _state.importing:
            return Task("")
        stub = self.stub()
        call = self._invocation(stub, args, kwargs, headless=True)
        call.begin()
        with stub.client.stream(_invoke.METHOD, call.request) as stream:
            for message in stream:
                call.feed(message)
                if call.task_id:
                    return Task(call.task_id)
        raise UnreachableError("the node did not say which task it made", "try again")

    def map(
        self,
        inputs: Iterable[Any],
        *,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        max_in_flight: Optional[int] = None,
    ) -> Iterator[R]:
        """Run the function for each input, side by side; gives the values.

        Inputs are consumed lazily, from a thread, as the mesh takes them; a tuple is
        spread over the parameters. Values come in the order of the inputs, or with
        order_outputs=False as they are ready. A failed input raises its exception
        and cancels the rest, or with return_exceptions=True it is given in place of
        a value. At most max_in_flight calls are under way (the node's default is
        1,000). Leaving the loop early cancels what still runs.
        """
        if _state.importing:
            return iter(())
        from beam import _interrupt, _map

        _interrupt.warn_in_loop("map")

        return _map.run(self, inputs, order_outputs, return_exceptions, max_in_flight)

    def async_map(
        self,
        inputs: Any,
        *,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        max_in_flight: Optional[int] = None,
    ) -> AsyncIterator[R]:
        """map for asyncio; inputs may be an async iterable too."""
        from beam import _aio

        if _state.importing:
            inputs = ()
        return _aio.map(self, inputs, order_outputs, return_exceptions, max_in_flight)

    @property
    def aio(self) -> "Aio[P, R]":
        """The asyncio twins under their plain names: ``await f.aio.remote(3)``."""
        return Aio(self)

    def stub(self) -> Stub:
        """Make the image, the code and the function known to the node, once."""
        from beam import _client

        client = _client.shared()
        stub = self._stubs.get(client.config)
        if stub is not None:
            return stub
        with self._mu:
            stub = self._stubs.get(client.config)
            if stub is None:
                stub = self._stubs[client.config] = self._register(client)
            return stub

    def _register(self, client: _client.Client) -> Stub:
        from beam import _client, _console, _place, _sync

        settings = self._settings
        place = _place.locate(self.__beam_function__)
        # Before anything is built or sent: what can be refused at once.
        settings.request(place, "", "", "")
        image = settings.image.build()
        object_id = _sync.sync(client, place.root, place.extra)
        asked = settings.request(place, object_id, image.image_id, image.python_version)
        answer = _client.check(client.unary("gateway.GatewayService/GetOrCreateStub", asked), "register function")
        if answer.get("warnMsg"):
            _console.once("Note: %s" % answer["warnMsg"])
        return Stub(client, str(answer.get("stubId", "")), place.handler, settings.callback_url, settings.headless)

    def _invocation(self, stub: Stub, args: Sequence[Any], kwargs: Dict[str, Any], headless: bool = False) -> _invoke.Invocation:
        from beam import _invoke

        kwargs = dict(kwargs)
        callback_url = ""
        if "callback_url" in kwargs and not self._has_parameter("callback_url"):
            callback_url = str(kwargs.pop("callback_url") or "")
        payload = _pickle.arguments(args, kwargs)
        return _invoke.Invocation(stub.stub_id, payload, stub.handler, headless or stub.headless, callback_url)

    def _has_parameter(self, name: str) -> bool:
        code = getattr(self.__beam_function__, "__code__", None)
        return code is not None and name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    def _stop(self, call: _invoke.Invocation, stream: _client.Stream) -> None:
        from beam import _interrupt, _invoke

        if call.headless or not call.task_id:
            stream.abort()
            return
        self.stub().client.unary(_invoke.STOP, {"taskIds": [call.task_id]}, timeout=_interrupt.LIMIT)

    def __reduce__(self) -> Tuple[Any, ...]:
        # By name, as functions are pickled.
        return (_pickle.lookup, (_pickle.module_of(self), getattr(self, "__qualname__")))

    def __repr__(self) -> str:
        return "<function %s on the mesh>" % getattr(self, "__qualname__")


class Aio(Generic[P, R]):
    """The asyncio twins of a RemoteFunction."""

    def __init__(self, function: RemoteFunction[P, R]) -> None:
        self._function = function

    async def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See RemoteFunction.async_remote."""
        return await self._function.async_remote(*args, **kwargs)

    def map(self, inputs: Any, **options: Any) -> AsyncIterator[R]:
        """See RemoteFunction.async_map."""
        return self._function.async_map(inputs, **options)


@overload
def function(func: Callable[P, R]) -> RemoteFunction[P, R]: ...


@overload
def function(
    *,
    app: str = "",
    name: Optional[str] = None,
    cpu: Union[int, float, str] = 0.125,
    memory: Union[int, str] = 128,
    gpu: Union[None, str, List[Any]] = None,
    gpu_count: int = 0,
    image: "Optional[Image]" = None,
    timeout: int = 3600,
    retries: int = 3,
    retry_for: Optional[Sequence[Type[BaseException]]] = None,
    callback_url: Optional[str] = None,
    volumes: Optional[Sequence[Any]] = None,
    secrets: Optional[Sequence[str]] = None,
    env: Optional[Dict[str, str]] = None,
    task_policy: Optional[TaskPolicy] = None,
    on_start: Optional[Callable[[], Any]] = None,
    headless: bool = False,
    keep_warm_seconds: float = 0,
    max_pending_tasks: int = 100,
    autoscaler: Optional[QueueDepthAutoscaler] = None,
    inputs: Any = None,
    outputs: Any = None,
    checkpoint_enabled: bool = False,
    block_network: bool = False,
    allow_list: Optional[Sequence[str]] = None,
    strict: bool = False,
) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...


def function(
    func: Optional[Callable[..., Any]] = None,
    *,
    app: str = "",
    name: Optional[str] = None,
    cpu: Union[int, float, str] = 0.125,
    memory: Union[int, str] = 128,
    gpu: Union[None, str, List[Any]] = None,
    gpu_count: int = 0,
    image: "Optional[Image]" = None,
    timeout: int = 3600,
    retries: int = 3,
    retry_for: Optional[Sequence[Type[BaseException]]] = None,
    callback_url: Optional[str] = None,
    volumes: Optional[Sequence[Any]] = None,
    secrets: Optional[Sequence[str]] = None,
    env: Optional[Dict[str, str]] = None,
    task_policy: Optional[TaskPolicy] = None,
    on_start: Optional[Callable[[], Any]] = None,
    headless: bool = False,
    keep_warm_seconds: float = 0,
    max_pending_tasks: int = 100,
    autoscaler: Optional[QueueDepthAutoscaler] = None,
    inputs: Any = None,
    outputs: Any = None,
    checkpoint_enabled: bool = False,
    block_network: bool = False,
    allow_list: Optional[Sequence[str]] = None,
    strict: bool = False,
) -> Any:
    """Make a function that can run in containers of the mesh.

    >>> from beam import function
    >>> @function(cpu=1, memory="256Mi")
    ... def square(i: int) -> int:
    ...     return i ** 2
    >>> square.local(12)
    144

    Args:
        app: the group it is listed under; the folder's name by default.
        name: its name, for deployments.
        cpu: cores, as 0.5 or "500m"; 0.1 to 64.
        memory: MiB, or such as "2Gi".
        gpu: a GPU's name, "any", or several in order of preference.
        gpu_count: how many; 1 when gpu is given.
        image: what the container starts from; Image() by default.
        timeout: seconds that a call may take; -1 for no limit.
        retries: how often a call runs again when its container crashed.
        retry_for: exception classes that make a call run again (that very class).
        callback_url: is posted to when a call ends.
        volumes, secrets: not served by this version.
        env: variables of the container.
        task_policy: overrides timeout and retries.
        on_start: runs once per container process; its value is
            ``context.on_start_value`` in a function with a parameter ``context``.
        headless: calls go on when their caller is gone.
        keep_warm_seconds: how long an idle container is kept; -1 for ever.
        max_pending_tasks: calls that may wait; more are refused.
        autoscaler: how many containers may run side by side.
        inputs, outputs, checkpoint_enabled: not served by this version.
        block_network, allow_list: no network, or these networks only.
        strict: refuse rather than run with fewer cores than asked for.

    Raises:
        InvalidError: a parameter that cannot be; it is a ValueError.
    """
    settings = Settings(
        app=app,
        name=name,
        cpu=cpu,
        memory=memory,
        gpu=gpu,
        gpu_count=gpu_count,
        image=image,
        timeout=timeout,
        retries=retries,
        retry_for=retry_for,
        callback_url=callback_url,
        volumes=volumes,
        secrets=secrets,
        env=env,
        task_policy=task_policy,
        on_start=on_start,
        headless=headless,
        keep_warm_seconds=keep_warm_seconds,
        max_pending_tasks=max_pending_tasks,
        autoscaler=autoscaler,
        inputs=inputs,
        outputs=outputs,
        checkpoint_enabled=checkpoint_enabled,
        block_network=block_network,
        allow_list=allow_list,
        strict=strict,
    )
    if func is not None:
        return RemoteFunction(func, settings)
    return lambda decorated: RemoteFunction(decorated, settings)
