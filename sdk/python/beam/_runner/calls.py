"""Run one call: decode the arguments, call, encode what came of it.

What a handler may return: a value; a coroutine (run to its end on one event loop
that lives as long as the process); a generator or async generator, which is
run to its end and returned as a list.
"""

import json
import os
import pickle
import sys
import time
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Tuple

from beam._runner import reports
from beam._runner.frames import MAX_RESULT

# A pickled exception above this is not sent; its text is.
MAX_EXCEPTION = 1 << 20


class Caller:
    """Calls one handler again and again."""

    def __init__(self, function: Callable[..., Any], retry_for: FrozenSet[str] = frozenset()) -> None:
        self.function = function
        self.retry_for = retry_for
        self.on_start_value: Any = None
        self._loop: Any = None
        self._wants_context = _names_context(function)

    def call(self, header: Dict[str, Any], payload: bytes) -> Tuple[Dict[str, Any], bytes]:
        """Run the call of one frame; gives the result frame."""
        os.environ["TASK_ID"] = str(header.get("task_id", ""))
        format_ = header.get("format") or "pickle"
        started = time.monotonic()
        answer, body = self._call(header, format_, payload)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # user code closed or replaced it
        answer.update(
            type="result",
            task_id=header.get("task_id", ""),
            attempt=header.get("attempt", 0),
            duration_ms=int((time.monotonic() - started) * 1000),
        )
        return answer, body

    def _call(self, header: Dict[str, Any], format_: str, payload: bytes) -> Tuple[Dict[str, Any], bytes]:
        try:
            args, kwargs = _decode(format_, payload)
        except BaseException as exc:
            hint = "an argument needs something that the image lacks: its class or package must be importable there"
            error = reports.report("unpicklable_args", exc, hint)
            return {"status": "error", "format": format_, "error": error}, b""
        try:
            if self._wants_context and "context" not in kwargs:
                args, kwargs = self._with_context(args, kwargs)
            value = self.finish(self.function(*args, **kwargs))
        except BaseException as exc:  # sys.exit() and KeyboardInterrupt are results too
            return self._raised(exc, format_)
        return _encode(value, format_)

    def finish(self, value: Any) -> Any:
        """Run what a handler returned lazily to its end."""
        kind = type(value)
        if kind is GeneratorType:
            return list(value)
        if kind is AsyncGeneratorType:
            return self._run(_collect(value))
        if kind is CoroutineType or hasattr(kind, "__await__"):
            return self._run(value)
        return value

    def _run(self, awaitable: Any) -> Any:
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(awaitable)

    def _with_context(self, args: List[Any], kwargs: Dict[str, Any]) -> Tuple[List[Any], Dict[str, Any]]:
        import inspect

        from beam._context import Context

        context = Context.from_environ(self.on_start_value)
        signature = inspect.signature(self.function)
        place = list(signature.parameters).index("context")
        if signature.parameters["context"].kind is inspect.Parameter.KEYWORD_ONLY or place > len(args):
            return args, dict(kwargs, context=context)
        inserted = args[:place] + [context] + args[place:]
        try:
            signature.bind(*inserted, **kwargs)
        except TypeError:
            return args, kwargs  # the caller gave a context itself
        return inserted, kwargs

    def _raised(self, exc: BaseException, format_: str) -> Tuple[Dict[str, Any], bytes]:
        name = type(exc).__module__ + "." + type(exc).__qualname__
        status = "retry" if name in self.retry_for or reports.type_name(type(exc)) in self.retry_for else "error"
        message = ""
        if isinstance(exc, SystemExit):
            message = "the function called sys.exit(%s)" % ("" if exc.code is None else repr(exc.code))
        error = reports.report("exception", exc, message=message)
        body = b""
        if format_ == "pickle":
            try:
                body = dumps(exc)
            except Exception:
                body = b""
            if len(body) > MAX_EXCEPTION:
                body = b""
        return {"status": status, "format": format_, "error": error}, body


def dumps(value: Any) -> bytes:
    """Pickle by reference where that works, else with cloudpickle."""
    try:
        return pickle.dumps(value, protocol=5)
    except Exception:
        import cloudpickle  # type: ignore[import-untyped,unused-ignore]

        return bytes(cloudpickle.dumps(value, protocol=5))


def _decode(format_: str, payload: bytes) -> Tuple[List[Any], Dict[str, Any]]:
    if format_ == "json":
        given = json.loads(payload.decode("utf-8") or "{}")
    else:
        given = pickle.loads(payload)
    if not isinstance(given, dict):
        raise TypeError("arguments must be {args, kwargs}, not %s" % type(given).__name__)
    return list(given.get("args") or ()), dict(given.get("kwargs") or {})


def _encode(value: Any, format_: str) -> Tuple[Dict[str, Any], bytes]:
    try:
        if format_ == "json":
            body = json.dumps(value).encode("utf-8")
        else:
            body = dumps(value)
    except BaseException as exc:
        how = "JSON" if format_ == "json" else "a pickle"
        message = "the result, a %s, cannot be sent as %s: %s" % (
            reports.type_name(type(value)),
            how,
            reports.message_of(exc),
        )
        hint = "return plain data (numbers, strings, lists, dicts), not handles, locks, sockets or open files"
        error = reports.report("unpicklable_result", exc, hint, message)
        return {"status": "error", "format": format_, "error": error}, b""
    if len(body) > MAX_RESULT:
        message = "the result weighs %.1f MiB, the limit is %d MiB" % (len(body) / 1048576, MAX_RESULT >> 20)
        hint = "return less: a path, a summary, or several smaller parts by map"
        error = reports.clipped("unpicklable_result", "ResultTooLarge", message, hint=hint)
        return {"status": "error", "format": format_, "error": error}, b""
    return {"status": "ok", "format": format_}, body


def _names_context(function: Callable[..., Any]) -> bool:
    if type(function) is FunctionType and not hasattr(function, "__wrapped__"):
        code = function.__code__
        return "context" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    import inspect

    try:
        return "context" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


async def _collect(generator: Any) -> List[Any]:
    return [item async for item in generator]


def retry_names(text: Optional[str]) -> FrozenSet[str]:
    """The exception names of the comma list in RETRY_FOR."""
    return frozenset(name.strip() for name in (text or "").split(",") if name.strip())
