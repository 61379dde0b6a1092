"""remote, submit and what can go wrong, against the fake node with real runners."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable

import beam
import pytest
from beam import _console
from fakenode.server import FakeNode, Refusal, Task

Load = Callable[[str], Any]


def test_value_and_registration(module: Load, node: FakeNode) -> None:
    m = module(
        "from beam import function, Image, TaskPolicy\n"
        "def start(): return 5\n"
        "@function(app='a', cpu=2, memory='1Gi', gpu=['H100', 'A100-80'], env={'K': 'a=b'}, timeout=60, retries=1,\n"
        "          retry_for=[KeyError], on_start=start, callback_url='http://x/y', keep_warm_seconds=30, headless=True,\n"
        "          task_policy=TaskPolicy(ttl=90), image=Image(python_packages=['numpy']), strict=True)\n"
        "def add(a, b=1, *, context):\n    return a + b + context.on_start_value\n"
    )
    assert m.add.remote(1, b=2) == 8
    assert m.add(1) == 7  # a call outside of a container runs on the mesh
    assert m.add.local(1, context=type("C", (), {"on_start_value": 0})) == 2
    (stub,) = node.named("GetOrCreateStub")
    expected = {
        "stubType": "function", "handler": m.__name__ + ":add", "cpu": 2000, "memory": 1024, "gpu": "H100,A100-80",
        "gpuCount": 1, "env": ["K=a=b"], "timeout": 60, "retries": 1, "retryFor": ["builtins.KeyError"], "appName": "a",
        "onStart": m.__name__ + ":start", "callbackUrl": "http://x/y", "keepWarmSeconds": 30.0, "headless": True,
        "strict": True, "taskPolicy": {"timeout": 0, "maxRetries": 0, "ttl": 90},
    }  # fmt: skip
    assert {key: stub.get(key) for key in expected} == expected
    assert stub["clientPython"].startswith("3.") and stub["pythonVersion"] == "python3"
    assert node.named("VerifyImageBuild")[0] == {"pythonVersion": "python3", "pythonPackages": ["numpy"]}
    assert all(m["headless"] for m in node.named("FunctionInvoke"))
    assert len(node.named("CreateObject")) == 1  # the second call sends nothing again


def test_callback_url_of_one_call(module: Load, node: FakeNode) -> None:
    m = module(
        "from beam import function\n"
        "@function()\ndef f(**k): return sorted(k)\n"
        "@function()\ndef g(callback_url): return callback_url\n"
    )
    assert m.f.remote(a=1, callback_url="http://h/c") == ["a"]
    assert m.g.remote(callback_url="mine") == "mine"
    first, second = node.named("FunctionInvoke")
    assert first["callbackUrl"] == "http://h/c" and "callbackUrl" not in second


def test_output_streams_are_kept_apart(module: Load, capsys: pytest.CaptureFixture[str]) -> None:
    m = module("import sys\nfrom beam import function\n@function()\ndef f():\n    print('out é')\n    print('err', file=sys.stderr)\n")
    assert m.f.remote() is None
    captured = capsys.readouterr()
    assert captured.out == "out é\n" and captured.err == "err\n"


def test_exception_comes_back_as_itself(module: Load) -> None:
    m = module(
        "from beam import function\n"
        "class Broken(Exception):\n    def __init__(self, code):\n        super().__init__('code %d' % code); self.code = code\n"
        "    def __reduce__(self): return (Broken, (self.code,))\n"
        "def inner(): raise Broken(7)\n"
        "@function()\ndef f(): inner()\n"
    )
    with pytest.raises(m.Broken) as caught:
        m.f.remote()
    assert caught.value.code == 7
    cause = caught.value.__cause__
    assert isinstance(cause, beam.RemoteTraceback)
    assert "inner()" in str(cause) and "Broken: code 7" in str(cause)


def test_exception_that_cannot_travel(module: Load) -> None:
    m = module(
        "import threading\nfrom beam import function\n"
        "class Odd(Exception):\n    def __init__(self):\n        super().__init__('odd'); self.lock = threading.Lock()\n"
        "@function()\ndef f(): raise Odd()\n@function()\ndef g():\n    import sys; sys.exit(4)\n"
    )
    with pytest.raises(beam.RemoteError, match="Odd: odd") as caught:
        m.f.remote()
    assert caught.value.kind == "exception" and caught.value.task_id.startswith("task-")
    assert "raise Odd()" in caught.value.remote_traceback
    with pytest.raises(beam.RemoteError, match="sys.exit"):  # must not end this program
        m.g.remote()


@pytest.mark.parametrize(
    "body, kind, text",
    [
        ("import threading; return threading.Lock()", "unpicklable_result", "lock"),
        ("return b'x' * (17 << 20)", "unpicklable_result", "16 MiB"),
    ],
)
def test_results_that_cannot_travel(module: Load, body: str, kind: str, text: str) -> None:
    m = module("from beam import function\n@function(memory=512)\ndef f():\n    %s\n" % body)
    with pytest.raises(beam.RemoteError, match=text) as caught:
        m.f.remote()
    assert caught.value.kind == kind and caught.value.hint


def test_arguments_that_cannot_travel(module: Load, node: FakeNode) -> None:
    m = module("from beam import function\n@function()\ndef f(*a, **k): return 1\n")
    with pytest.raises(beam.InvalidError, match=r"argument b \(a lock\)") as caught:
        m.f.remote(1, b=threading.Lock())
    assert "hint:" in str(caught.value)
    with pytest.raises(beam.TooLargeError, match="limit is 16 MiB"):
        m.f.remote(b"x" * (17 << 20))
    assert not node.named("FunctionInvoke")


def test_user_code_that_does_not_load(module: Load, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    m = module(
        "import os\nfrom beam import function\n"
        "if os.environ.get('CONTAINER_ID'):\n    import not_in_the_image\n"
        "@function()\ndef f(): return 1\n"
    )
    with pytest.raises(beam.RemoteError, match="not_in_the_image") as caught:
        m.f.remote()
    assert caught.value.kind == "import_error" and "python_packages" in caught.value.hint


def test_python_mismatch(module: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    m = module("from beam import function\n@function()\ndef f(): return 1\n")
    real = m.f._settings.request
    monkeypatch.setattr(m.f._settings, "request", lambda *a: {**real(*a), "clientPython": "3.5"})
    with pytest.raises(beam.PythonMismatchError, match="Python 3.5") as caught:
        m.f.remote()
    assert "python_version=" in caught.value.hint and caught.value.exit_status == 2


def test_crash_is_reported(module: Load) -> None:
    m = module("import os\nfrom beam import function\n@function()\ndef f(): os._exit(9)\n")
    with pytest.raises(beam.RemoteError, match="exit code 9"):
        m.f.remote()
    with pytest.raises(beam.RemoteError, match="exit code 9"):
        m.f.remote()


def test_nested_remote_calls_leave_the_container(module: Load, node: FakeNode) -> None:
    m = module(
        "from beam import function\n@function()\ndef inner(i): return i + 1\n@function()\ndef outer(i): return inner.remote(i) * 10\n"
    )
    assert m.outer.remote(1) == 20
    assert len(node.named("FunctionInvoke")) == 2


@pytest.mark.parametrize("debug", [True, False])
def test_refusals_carry_code_and_hint(module: Load, node: FakeNode, debug: bool) -> None:
    m = module("from beam import function\n@function(gpu='H100')\ndef f(): return 1\n")
    node.refuse["function.FunctionService/FunctionInvoke"] = Refusal(
        "resource_exhausted", "no_capacity", "no node has an H100", "box2 has RTX4090: gpu='any'", debug
    )
    with pytest.raises(beam.CapacityError) as caught:
        m.f.remote()
    assert caught.value.code == "no_capacity" and caught.value.exit_status == 6
    assert str(caught.value) == "no node has an H100\nhint: box2 has RTX4090: gpu='any'"
    node.refuse = {"gateway.GatewayService/GetOrCreateStub": Refusal("unimplemented", "unsupported", "no", "", debug)}
    m = module("from beam import function\n@function()\ndef g(): return 1\n")
    with pytest.raises(beam.UnsupportedError):
        m.g.remote()


def test_bad_token(module: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    m = module("from beam import function\n@function()\ndef f(): return 1\n")
    monkeypatch.setenv("BEAM_TOKEN", "wrong")
    with pytest.raises(beam.AuthError, match="not valid here") as caught:
        m.f.remote()
    assert caught.value.exit_status == 4
    monkeypatch.delenv("BEAM_TOKEN")
    with pytest.raises(beam.AuthError, match="no token"):
        m.f.remote()


def test_no_node(module: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    m = module("from beam import function\n@function()\ndef f(): return 1\n")
    monkeypatch.setenv("GATEWAY_PORT", "1")
    with pytest.raises(beam.UnreachableError, match="no node answers at 127.0.0.1:1 ") as caught:
        m.f.remote()
    assert "beam node up" in caught.value.hint


def test_not_served_parameters(module: Load, node: FakeNode) -> None:
    m = module("from beam import function\n@function(volumes=[object()], secrets=['S'])\ndef f(): return 1\n")
    with pytest.raises(beam.UnsupportedError, match="volumes, secrets"):
        m.f.remote()
    assert not node.named("CreateObject")  # refused before anything was sent


def test_notes_are_said_once(module: Load, node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    node.notes = ["asked for 8 cores, the largest node has 2"]
    m = module("from beam import function\n@function(cpu=8)\ndef f(): return 1\n")
    monkeypatch.setenv("BEAM_QUIET", "0")
    _console._said.clear()
    m.f.remote()
    m.f.remote()
    assert capsys.readouterr().err.count("=> Note: asked for 8 cores, the largest node has 2") == 1


def test_submit_outlives_its_stream(module: Load, node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    m = module("from beam import function\n@function()\ndef f(x):\n    print('working')\n    return x\n@function()\ndef bad(): raise KeyError('k')\n")
    task = m.f.submit(3)
    assert task.result(wait=True, show_output=True) == 3
    assert capsys.readouterr().out == "working\n"
    assert task.status() is beam.TaskStatus.Complete and task.is_complete()
    assert beam.Task(task.id).result() == 3
    assert node.named("FunctionInvoke")[0]["headless"] is True
    with pytest.raises(KeyError):
        m.bad.submit().result(wait=True)
    with pytest.raises(beam.NotFoundError, match="no task task-0") as caught:
        beam.Task("task-0").result()
    assert caught.value.exit_status == 3


def test_task_cancel_and_time_limit(module: Load, node: FakeNode) -> None:
    m = module("import time\nfrom beam import function\n@function()\ndef f():\n    print('up')\n    time.sleep(600)\n")
    task = m.f.submit()
    assert task.result() is None
    with pytest.raises(beam.DeadlineError, match="not ended"):
        task.result(wait=True, timeout=0.2)
    task.cancel()
    with pytest.raises(beam.TaskCancelledError) as caught:
        task.result(wait=True)
    assert caught.value.task_id == task.id
    assert task.status() is beam.TaskStatus.Cancelled


def test_async_remote(module: Load, node: FakeNode) -> None:
    m = module(
        "import time\nfrom beam import function\n@function()\ndef f(x):\n    if x < 0: raise ValueError(x)\n    return x + 1\n"
        "@function()\ndef slow():\n    print('up')\n    time.sleep(600)\n"
    )

    async def main() -> None:
        assert await asyncio.gather(*(m.f.async_remote(i) for i in range(5))) == [1, 2, 3, 4, 5]
        assert await m.f.aio.remote(7) == 8
        with pytest.raises(ValueError):
            await m.f.async_remote(-1)
        running = asyncio.ensure_future(m.slow.async_remote())
        task = None
        while task is None:
            task = next((t for t in node.tasks.values() if t.log), None)
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await asyncio.get_running_loop().run_in_executor(None, ended, task)
        assert task.status == "CANCELLED"

    asyncio.run(main())


def ended(task: Task) -> bool:
    with task.cv:
        return task.cv.wait_for(lambda: task.ended, 60)


def test_blocking_call_in_a_loop_warns(module: Load) -> None:
    m = module("from beam import function\n@function()\ndef f(x): return x\n")

    async def main() -> None:
        with pytest.warns(RuntimeWarning, match="async_remote"):
            assert m.f.remote(1) == 1

    asyncio.run(main())


BUILD = [
    {"msg": "Step 1/2: apt\n"},
    {"msg": "Step 2/2: pip install nosuch"},
    {"msg": "ERROR: no matching distribution for nosuch"},
]


def test_image_is_built_with_its_output_shown(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.build = BUILD[:1] + [{"done": True, "success": True, "imageId": "image-9", "pythonVersion": "python3.11"}]
    image = beam.Image(commands=["apt"], base_image="docker.io/x:1", base_image_creds={"U": "v"})
    assert not image.exists()
    built = image.build()
    assert (built.success, built.image_id, built.python_version) == (True, "image-9", "python3.11")
    assert capsys.readouterr().err == "=> Building image\nStep 1/2: apt\n=> Image built\n"
    (asked,) = node.named("BuildImage")
    assert asked["existingImageCreds"] == {"U": "v"} and asked["commands"] == ["apt"]
    assert image.build() is built and len(node.named("BuildImage")) == 1


def test_failed_build_shows_its_last_lines(node: FakeNode) -> None:
    node.build = BUILD + [{"done": True}]
    with pytest.raises(beam.BuildError, match="no matching distribution for nosuch") as caught:
        beam.Image(python_packages=["nosuch"]).build()
    assert caught.value.code == "build_failed" and "Step 1/2" in str(caught.value)


def test_failed_build_tells_each_thing_once(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    message = "image step 1 of 1: pip install nosuch: exit code 1\n  ERROR: no matching distribution for nosuch"
    node.build = BUILD + [{"msg": message + "\nhint: check the names\n", "done": True}]
    node.build_error = Refusal("failed_precondition", "build_failed", message, "check the names")
    with pytest.raises(beam.BuildError) as caught:
        beam.Image(python_packages=["nosuch"]).build()
    assert str(caught.value) == message + "\nhint: check the names"
    assert capsys.readouterr().err.count("no matching distribution") == 1
    node.build, node.build_error = BUILD[:1], Refusal("invalid_argument", "invalid_argument", "no such Python", "write python3.11")
    with pytest.raises(beam.InvalidError, match="no such Python"):
        beam.Image(python_version="python3.99").build()


def test_unknown_image(node: FakeNode) -> None:
    node.build = BUILD
    with pytest.raises(beam.InvalidError, match="no image nope"):
        beam.Image.from_id("nope").build()
