"""The real runner, as a subprocess with a socket pair on descriptor 3."""

from __future__ import annotations

import json
import os
import pickle
import signal
from typing import Any, Callable, Dict

import cloudpickle
import pytest
from fakenode.worker import Runner, lines

Start = Callable[..., Runner]


def args(*a: Any, **k: Any) -> bytes:
    return pickle.dumps({"args": a, "kwargs": k})


def ready(runner: Runner) -> Dict[str, Any]:
    header, payload = runner.read()
    assert header["type"] == "ready", header
    assert payload == b""
    return header


def failed(runner: Runner) -> Dict[str, Any]:
    header, _ = runner.read()
    assert header["type"] == "failed", header
    assert runner.wait() == 1
    error: Dict[str, Any] = header["error"]
    return error


def test_call_result_and_stop(start: Start, any_python: str) -> None:
    code = "import sys\ndef square(i):\n    print('i is', i)\n    print('oops', file=sys.stderr)\n    return i ** 2\n"
    runner = start({"example.py": code}, "example:square", python=any_python)
    assert ready(runner)["pid"] > 0
    header, body = runner.call(args(12), task_id="t-7")
    assert header["status"] == "ok" and header["task_id"] == "t-7" and header["attempt"] == 1
    assert header["format"] == "pickle" and header["duration_ms"] >= 0
    assert pickle.loads(body) == 144
    header, body = runner.call(args(i=3))
    assert pickle.loads(body) == 9
    runner.channel.write({"type": "stop"})
    assert runner.wait() == 0
    assert lines(runner.output[1]) == ["i is 12", "i is 3"]
    assert lines(runner.output[2]) == ["oops", "oops"]


def test_json_call(start: Start) -> None:
    runner = start({"app.py": "def add(a, b=1):\n    return {'sum': a + b}\n"}, "app:add")
    ready(runner)
    header, body = runner.call(json.dumps({"args": [2], "kwargs": {"b": 5}}).encode(), format_="json")
    assert header["format"] == "json" and json.loads(body) == {"sum": 7}


def test_exception_travels_with_user_frames_only(start: Start) -> None:
    code = "class Broken(Exception):\n    pass\ndef inner():\n    raise Broken('it is 3')\ndef f():\n    inner()\n"
    runner = start({"app.py": code}, "app:f")
    ready(runner)
    header, body = runner.call(args())
    assert header["status"] == "error"
    error = header["error"]
    assert (error["kind"], error["type"], error["message"]) == ("exception", "app.Broken", "it is 3")
    assert "inner()" in error["traceback"] and "_runner" not in error["traceback"]
    assert body


def test_retry_for_matches_the_exact_type(start: Start) -> None:
    code = "class A(Exception): pass\nclass B(A): pass\ndef f(n):\n    raise {0: A, 1: B, 2: ValueError}[n]('x')\n"
    runner = start({"app.py": code}, "app:f", env={"RETRY_FOR": "app.A, builtins.ValueError"})
    ready(runner)
    assert [runner.call(args(n))[0]["status"] for n in range(3)] == ["retry", "error", "retry"]


@pytest.mark.parametrize(
    "body, type_, part",
    [
        ("import sys; sys.exit(3)", "SystemExit", "sys.exit(3)"),
        ("raise KeyboardInterrupt()", "KeyboardInterrupt", ""),
    ],
)
def test_exits_of_user_code_are_errors(start: Start, body: str, type_: str, part: str) -> None:
    runner = start({"app.py": "def f():\n    %s\ndef g(): return 1\n" % body}, "app:f")
    ready(runner)
    error = runner.call(args())[0]["error"]
    assert error["type"] == type_ and part in error["message"]
    assert runner.call(args())[0]["status"] == "error"  # it still serves


def test_crash_ends_the_process(start: Start) -> None:
    runner = start({"app.py": "import os\ndef f():\n    print('so far')\n    os._exit(9)\n"}, "app:f")
    ready(runner)
    runner.channel.write({"type": "call", "task_id": "t", "attempt": 1, "format": "pickle"}, args())
    assert runner.read()[0]["type"] == "started"
    assert runner.wait() == 9
    assert runner.output[1] == b"so far\n"


def test_sigterm_ends_it_at_once(start: Start) -> None:
    runner = start({"app.py": "import time\ndef f():\n    time.sleep(600)\n"}, "app:f")
    ready(runner)
    runner.channel.write({"type": "call", "task_id": "t", "attempt": 1, "format": "pickle"}, args())
    assert runner.read()[0]["type"] == "started"
    os.kill(runner.process.pid, signal.SIGTERM)
    assert runner.wait() == -signal.SIGTERM  # init reports 128 + 15


def test_closed_channel_ends_it(start: Start) -> None:
    runner = start({"app.py": "def f(): pass\n"}, "app:f")
    ready(runner)
    runner.channel.close()
    assert runner.wait() == 0


def test_unpicklable(start: Start) -> None:
    code = "import threading\ndef lock(): return threading.Lock()\ndef big(n): return b'x' * n\n"
    runner = start({"app.py": code + "def f(n):\n    return big(n) if n else lock()\n"}, "app:f")
    ready(runner)
    error = runner.call(args(0))[0]["error"]
    assert error["kind"] == "unpicklable_result" and "lock" in error["message"] and error["hint"]
    error = runner.call(args(17 << 20))[0]["error"]
    assert error["kind"] == "unpicklable_result" and "16 MiB" in error["message"]
    bad = b"\x80\x05cnot_here\nThing\n."
    error = runner.call(bad)[0]["error"]
    assert error["kind"] == "unpicklable_args" and "not_here" in error["message"]
    assert pickle.loads(runner.call(args(2))[1]) == b"xx"


def test_lambda_results_use_cloudpickle(start: Start) -> None:
    runner = start({"app.py": "def f(n):\n    return lambda x: x + n\n"}, "app:f")
    ready(runner)
    assert cloudpickle.loads(runner.call(args(4))[1])(1) == 5


def test_large_arguments_and_results(start: Start) -> None:
    runner = start({"app.py": "def f(data): return data[::-1]\n"}, "app:f")
    ready(runner)
    data = os.urandom(8 << 20)
    assert pickle.loads(runner.call(args(data))[1]) == data[::-1]


def test_async_and_generators(start: Start) -> None:
    code = (
        "import asyncio\nloops = set()\n"
        "async def one():\n    loops.add(id(asyncio.get_running_loop()))\n    await asyncio.sleep(0)\n    return len(loops)\n"
        "def many(): yield from range(3)\n"
        "async def amany():\n    for i in range(3): yield i * 2\n"
        "def f(name): return globals()[name]()\n"
    )
    runner = start({"app.py": code}, "app:f")
    ready(runner)
    assert [pickle.loads(runner.call(args(n))[1]) for n in ("one", "one", "many", "amany")] == [1, 1, [0, 1, 2], [0, 2, 4]]


CONTEXT = """
def start(): return {'model': 1}
def f(a, context, b=0):
    return a, b, context.task_id, context.on_start_value, context.container_id, context.timeout
"""


def test_context_and_on_start(start: Start) -> None:
    runner = start({"app.py": CONTEXT}, "app:f", env={"ON_START": "app:start"})
    ready(runner)
    expected = (1, 2, "t9", {"model": 1}, "container-1", 3600)
    assert pickle.loads(runner.call(args(1, b=2), task_id="t9")[1]) == expected
    assert pickle.loads(runner.call(args(1, 2), task_id="t9")[1]) == expected
    assert pickle.loads(runner.call(args(a=1, b=2), task_id="t9")[1]) == expected


def test_neighbours_of_a_script_in_a_folder(start: Start) -> None:
    files = {"jobs/app.py": "import near\ndef f(): return near.VALUE\n", "jobs/near.py": "VALUE = 5\n"}
    runner = start(files, "jobs.app:f")
    ready(runner)
    assert pickle.loads(runner.call(args())[1]) == 5


@pytest.mark.parametrize(
    "code, env, kind, message, hint",
    [
        ("def f(:\n", {}, "syntax_error", "app.py, line 1", "mend"),
        ("import nosuchthing\n", {}, "import_error", "No module named 'nosuchthing'", 'python_packages=["nosuchthing"]'),
        ("1/0\n", {}, "import_error", "ZeroDivisionError", "import"),
        ("import sys; sys.exit(2)\n", {}, "import_error", "SystemExit", ""),
        ("def fun(): pass\n", {}, "handler_missing", "no function f", "did you mean fun?"),
        ("f = 3\n", {}, "handler_missing", "of type int", "@function"),
        ("def f(): pass\ndef s(): raise OSError('no disk')\n", {"ON_START": "app:s"}, "on_start_error", "no disk", "once"),
        ("def f(): pass\n", {"BEAM_CLIENT_PYTHON": "2.7"}, "python_mismatch", "Python 2.7", 'python_version="python2.7"'),
        ("def f(): pass\n", {"HANDLER": "other:f"}, "handler_missing", "no module other", ".beamignore"),
        ("def f(): pass\n", {"HANDLER": "app"}, "handler_missing", "module:function", "file.py:function"),
    ],
)
def test_failures_to_load(start: Start, code: str, env: Dict[str, str], kind: str, message: str, hint: str) -> None:
    error = failed(start({"app.py": code}, "app:f", env=env))
    assert error["kind"] == kind
    assert message in error["message"] and hint in error["hint"]
    assert "_runner" not in error["traceback"]
    if kind in ("syntax_error", "import_error") and "import sys" not in code:
        assert "app.py" in error["traceback"]


def test_frames_keep_their_bounds(start: Start) -> None:
    runner = start({"app.py": "def f():\n    raise ValueError('\\U0001f4a5' * 100000)\n"}, "app:f")
    ready(runner)
    error = runner.call(args())[0]["error"]
    assert "left out" in error["message"]


def test_notebook_handler(start: Start, tmp_path: Any) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "f.pkl").write_bytes(cloudpickle.dumps(lambda x: x * 3))
    runner = start({}, "f.pkl:f")
    ready(runner)
    assert pickle.loads(runner.call(args(3))[1]) == 9
