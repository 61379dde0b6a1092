"""Files that use the SDK, imported by the runner."""

from __future__ import annotations

import pickle
from typing import Any, Callable

from fakenode.worker import Runner

Start = Callable[..., Runner]


def args(*a: Any) -> bytes:
    return pickle.dumps({"args": a, "kwargs": {}})


NESTED = """
from beam import Context, function
@function(cpu=1)
def double(i: int, context: Context) -> int:
    return helper(i), context.task_id
@function()
def helper(i: int) -> int:
    return i * 2
# While a container imports the file these do nothing: else it would call itself without end.
assert helper.remote(4) is None
assert list(helper.map([1, 2])) == []
helper.submit(1)
"""


def test_decorated_functions_run_in_place(start: Start, any_python: str) -> None:
    runner = start({"app.py": NESTED}, "app:double", python=any_python)
    header, _ = runner.read()
    assert header["type"] == "ready", header
    # Inside a container the direct call of another function runs there too.
    assert pickle.loads(runner.call(args(4), task_id="t1")[1]) == (8, "t1")


def test_beta9_alias(start: Start) -> None:
    code = "from beta9 import function, Image\n@function(image=Image())\ndef f():\n    return 'ok'\n"
    runner = start({"app.py": code}, "app:f")
    assert runner.read()[0]["type"] == "ready"
    assert pickle.loads(runner.call(args())[1]) == "ok"


def test_names_of_later_versions_say_so(start: Start) -> None:
    runner = start({"app.py": "from beam import endpoint\n"}, "app:f")
    header, _ = runner.read()
    assert header["type"] == "failed"
    assert "beam.endpoint is not served by this version" in header["error"]["message"]


def test_code_path(start: Start) -> None:
    files = {"src/pkg/__init__.py": "", "src/pkg/app.py": "from pkg.near import V\ndef f(): return V, open('data.txt').read()\n"}
    files.update({"src/pkg/near.py": "V = 3\n", "data.txt": "here"})
    runner = start(files, "pkg.app:f", env={"BEAM_CODE_PATH": "src"})
    assert runner.read()[0]["type"] == "ready"
    assert pickle.loads(runner.call(args())[1]) == (3, "here")
