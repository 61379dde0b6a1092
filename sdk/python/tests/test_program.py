"""Whole programs in their own process: what a user types and sees."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import Callable, Dict

import pytest
from conftest import Program
from fakenode.server import FakeNode, Refusal
from fakenode.worker import LIMIT

Make = Callable[[Dict[str, str]], Program]

EXAMPLE = '''from beam import function

@function(cpu=8)
def square(i: int):
    return i**2

if __name__ == "__main__":
    result = square.remote(i=12)
    print(result)
'''


def test_reference_output(program: Make) -> None:
    done = program({"example.py": EXAMPLE}).run("example.py")
    assert done.stdout == "144\n"
    assert done.stderr == (
        "=> Building image\n"
        "=> Using cached image\n"
        "=> Syncing files\n"
        "=> Files synced\n"
        "=> Running function: <example:square>\n"
        "=> Function complete <task-2>\n"
    )
    assert done.returncode == 0


def test_phases_on_request(program: Make) -> None:
    done = program({"example.py": EXAMPLE}).run("example.py", env={"BEAM_PHASES": "1"})
    last = done.stderr.splitlines()[-1]
    assert last.startswith("=> Ran on box1 (new container): run ") and last.endswith(" ms")


def test_map_of_the_reference_document(program: Make) -> None:
    code = EXAMPLE.split("if __name__")[0] + (
        "def main():\n    squared = []\n    for result in square.map(list(range(10))):\n        squared.append(result)\n"
        "    print(squared)\nif __name__ == '__main__':\n    main()\n"
    )
    done = program({"example.py": code}).run("example.py")
    assert done.stdout == str([i * i for i in range(10)]) + "\n"
    assert done.stderr.endswith("=> Function complete <map-2>: 10 items\n")


def test_classes_of_the_main_script(program: Make) -> None:
    code = (
        "from dataclasses import dataclass\nfrom beam import function\n"
        "@dataclass\nclass Point:\n    x: int\n"
        "class Bad(Exception): pass\n"
        "@function()\ndef move(p: Point, by):\n    assert isinstance(p, Point)\n    return Point(by(p.x))\n"
        "@function(retry_for=[Bad])\ndef fail(): raise Bad('no')\n"
        "if __name__ == '__main__':\n"
        "    q = move.remote(Point(1), lambda x: x + 1)\n"
        "    print(isinstance(q, Point), q)\n"
        "    try:\n        fail.remote()\n    except Bad as e:\n        print('caught', e)\n"
    )
    made = program({"shapes.py": code})
    done = made.run("shapes.py")
    assert done.stdout == "True Point(x=2)\ncaught no\n", done.stderr
    assert made.fake.named("GetOrCreateStub")[1]["retryFor"] == ["shapes.Bad"]


def test_script_in_a_folder_and_module_in_a_package(program: Make) -> None:
    files = {
        "jobs/run.py": "from beam import function\nimport near\n@function()\ndef f(): return near.V, open('data.txt').read()\n"
        "if __name__ == '__main__': print(f.remote())\n",
        "jobs/near.py": "V = 1\n",
        "data.txt": "here",
        "pkg/__init__.py": "",
        "pkg/tool.py": "from beam import function\nfrom pkg import other\n@function()\ndef g(): return other.V\n"
        "if __name__ == '__main__': print(g.remote())\n",
        "pkg/other.py": "V = 2\n",
        "jobs/main.py": "from pkg.tool import g\nprint(g.remote())\n",
    }
    made = program(files)
    done = made.run("jobs/run.py")
    assert done.stdout == "(1, 'here')\n", done.stderr
    assert "<run:f>" in done.stderr
    done = made.run("-m", "pkg.tool")
    assert done.stdout == "2\n", done.stderr
    assert "<pkg.tool:g>" in done.stderr
    done = made.run("main.py", cwd="jobs", env={"PYTHONPATH": os.pathsep.join([str(made.folder), _root()])})
    assert done.stdout == "2\n", done.stderr


def _root() -> str:
    from conftest import ROOT

    return str(ROOT)


def test_function_typed_at_a_prompt(program: Make) -> None:
    code = "from beam import function\n@function()\ndef f(x): return x * 3\nprint(f.remote(3))\n"
    done = program({"readme.txt": ""}).run("-c", code)
    assert done.stdout == "9\n", done.stderr


def test_remote_traceback_is_shown(program: Make) -> None:
    code = EXAMPLE.replace("return i**2", "return i / 0")
    done = program({"example.py": code}).run("example.py")
    assert done.returncode == 1
    assert "return i / 0" in done.stderr and "beam._errors.RemoteTraceback" in done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


SLOW = (
    "import sys, time\nfrom beam import function\n@function(headless=%s)\ndef slow(i=0):\n    print('up', i, flush=True)\n    time.sleep(600)\n"
    "if __name__ == '__main__':\n    %s\n"
)


def interrupt(process: "subprocess.Popen[str]", up: str = "up 0\n") -> None:
    """First Ctrl-C, once the remote side runs."""
    assert process.stdout is not None
    assert process.stdout.readline() == up
    process.send_signal(signal.SIGINT)


def test_ctrl_c_is_heard_while_the_main_thread_waits(program: Make, node: FakeNode) -> None:
    # A signal that another thread takes does not wake the main one: as when it
    # comes right before the main thread begins to wait.
    aside = "import os, signal, threading, time\n"
    aside += "def send():\n    while not os.path.exists('go'):\n        time.sleep(0.01)\n"
    aside += "    signal.pthread_kill(threading.get_ident(), signal.SIGINT)\n"
    aside += "threading.Thread(target=send, daemon=True).start()\n"
    files = program({"slow.py": aside + SLOW % (False, "slow.remote()")})
    process = files.popen("slow.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "up 0\n"
    (files.folder / "go").touch()
    _, err = process.communicate(timeout=LIMIT)
    assert "=> Interrupted: cancelling task task-2 (Ctrl-C again to leave at once)\n" in err
    assert node.tasks["task-2"].status == "CANCELLED"


def test_ctrl_c_cancels_and_says_so(program: Make, node: FakeNode) -> None:
    process = program({"slow.py": SLOW % (False, "slow.remote()")}).popen("slow.py")
    interrupt(process)
    _, err = process.communicate(timeout=LIMIT)
    assert "=> Interrupted: cancelling task task-2 (Ctrl-C again to leave at once)\n" in err
    assert "=> Function failed <task-2>" in err and "KeyboardInterrupt" in err
    assert process.returncode == -signal.SIGINT  # what Python makes of KeyboardInterrupt
    assert node.tasks["task-2"].status == "CANCELLED"
    assert node.named("StopTasks") == [{"taskIds": ["task-2"]}]


def test_second_ctrl_c_leaves_at_once(program: Make, node: FakeNode) -> None:
    code = SLOW % (False, "slow.remote()")
    code = code.replace("    print('up'", "    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    print('up'")
    process = program({"slow.py": code}).popen("slow.py")
    interrupt(process)
    assert process.stderr is not None
    while "Interrupted" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGINT
    assert not node.tasks["task-2"].ended  # this runner ignores TERM: we did not wait for it


def test_ctrl_c_detaches_from_a_headless_task(program: Make, node: FakeNode) -> None:
    process = program({"slow.py": SLOW % (True, "slow.remote()")}).popen("slow.py")
    interrupt(process)
    _, err = process.communicate(timeout=LIMIT)
    assert "task task-2 runs on; stop it with 'beam task stop task-2'" in err
    assert process.returncode == -signal.SIGINT
    assert node.tasks["task-2"].status == "RUNNING" and not node.named("StopTasks")


def test_ctrl_c_cancels_a_map(program: Make, node: FakeNode) -> None:
    code = SLOW.replace("%s\n", "list(slow.map(range(1, 40), return_exceptions=True))\n") % False
    code = code.replace("print('up', i, flush=True)\n    time.sleep(600)", "if i > 2: time.sleep(600)\n    print('up', i, flush=True)")
    process = program({"slow.py": code}).popen("slow.py")
    assert process.stdout is not None
    assert sorted(process.stdout.readline() for _ in range(2)) == ["up 1\n", "up 2\n"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    # Between two values the interrupt is an ordinary KeyboardInterrupt.
    assert re.search(r"=> (Interrupted: c|C)ancelling the map's \d+ open calls", err), err
    assert process.returncode == -signal.SIGINT
    assert not [task for task in node.tasks.values() if task.status in ("PENDING", "RUNNING")]


APP = (
    "import sys\nfrom beam import function\n"
    "@function()\ndef add(a, b=1, *, c=0):\n    print('adding')\n    return a + b + c\n"
    "@function()\ndef fail():\n    raise KeyError('gone')\n"
    "@function()\ndef thing(): return {1}\n"
    "def plain(): pass\nadd.remote(1)\n"
)


def test_beam_run(program: Make) -> None:
    made = program({"app.py": APP, "pkg/__init__.py": "", "pkg/mod.py": APP})
    done = made.run("-m", "beam.run", "app.py:add", "--arg", "2", "--arg", "3", "--arg", "c=4")
    assert (done.returncode, done.stdout) == (0, "adding\n9\n"), done.stderr
    assert len(made.fake.named("FunctionInvoke")) == 1  # not the call at the file's top level
    done = made.run("-m", "beam.run", "pkg/mod.py:add", "--arg", '"x"', "--arg", "y", "--arg", 'c="z"', "--json")
    told = json.loads(done.stdout)
    assert told["result"] == "xyz" and told["status"] == "COMPLETE" and told["node"] == "box1"
    assert told["task_id"].startswith("task-") and "adding" in done.stderr and "<pkg.mod:add>" in done.stderr
    done = made.run("-m", "beam.run", "pkg.mod:thing", "--json")
    assert json.loads(done.stdout)["result"] == "{1}"
    done = made.run("-m", "beam.run", "pkg.mod:fail", "--json")
    error = json.loads(done.stdout)["error"]
    assert error["message"] == "KeyError: 'gone'" and error["task_id"] in made.fake.tasks


def test_beam_run_detached(program: Make) -> None:
    made = program({"app.py": APP})
    done = made.run("-m", "beam.run", "app.py:add", "--arg", "2", "--detach")
    assert done.returncode == 0 and done.stdout.strip() in made.fake.tasks
    assert "beam logs -f --task-id" in done.stderr
    done = made.run("-m", "beam.run", "app.py:add", "--arg", "2", "--detach", "--json")
    assert json.loads(done.stdout)["task_id"] in made.fake.tasks


@pytest.mark.parametrize(
    "argv, status, error, hint",
    [
        (["nowhere.py:f"], 3, "no file nowhere.py", "relative to"),
        (["app.py:ad"], 3, "app.py has no ad", "functions there: add, fail, thing"),
        (["app.py:plain"], 2, "plain in app.py is not decorated", "add, fail"),
        (["app.py"], 2, "'app.py' is not file.py:function", "app.py:square"),
        (["no.such.module:f"], 3, "no module no.such.module", "app.py:square"),
        (["bad.py:f"], 1, "bad.py, line 1: invalid syntax", "mend"),
        (["raises.py:f"], 1, "ZeroDivisionError while importing", "mend"),
        (["needs.py:f"], 1, "ModuleNotFoundError while importing", "install it here too"),
        (["app.py:fail"], 1, "KeyError: 'gone'", None),
    ],
)
def test_beam_run_errors(program: Make, argv: "list[str]", status: int, error: str, hint: "str | None") -> None:
    files = {"app.py": APP, "bad.py": "def f(x) return\n", "raises.py": "1/0\n", "needs.py": "import nosuchthing\n"}
    made = program(files)
    done = made.run("-m", "beam.run", *argv)
    lines = done.stderr.splitlines()
    assert done.returncode == status, done.stderr
    assert any(line.startswith("error: ") and (error in line or "expected ':'" in line) for line in lines), done.stderr
    assert hint is None or any(line.startswith("hint: ") and hint in line for line in lines), done.stderr
    assert done.stdout == "" and "_runner" not in done.stderr
    done = made.run("-m", "beam.run", *argv, "--json")
    assert done.returncode == status and json.loads(done.stdout)["error"]["code"]


def test_beam_run_tells_each_thing_once(program: Make, node: FakeNode) -> None:
    code = "from beam import Image, function\nclass Bad(Exception): pass\n@function()\ndef fail(): raise Bad('no')\n"
    code += "@function(image=Image(python_packages=['x']))\ndef build(): pass\n"
    made = program({"app.py": code})
    done = made.run("-m", "beam.run", "app.py:fail")
    assert done.stderr.count("Traceback") == 1 and done.stderr.count("Bad: no") == 1, done.stderr
    assert done.stderr.endswith("\nerror: Bad: no\n")
    node.build = [{"msg": "no x here"}, {"msg": "step 1: exit code 1\n  no x here\nhint: mend it\n", "done": True}]
    node.build_error = Refusal("failed_precondition", "build_failed", "step 1: exit code 1\n  no x here", "mend it")
    done = made.run("-m", "beam.run", "app.py:build")
    assert done.stderr.endswith("no x here\nerror: step 1: exit code 1\nhint: mend it\n") and done.stderr.count("no x") == 1


def test_beam_run_exit_codes(program: Make, node: FakeNode) -> None:
    made = program({"app.py": APP})
    node.refuse["gateway.GatewayService/GetOrCreateStub"] = Refusal("resource_exhausted", "no_capacity", "no room", "add a node")
    done = made.run("-m", "beam.run", "app.py:fail")
    assert done.returncode == 6 and "error: no room\nhint: add a node\n" in done.stderr
    done = made.run("-m", "beam.run", "app.py:fail", env={"GATEWAY_PORT": "1"})
    assert done.returncode == 8 and "hint: start one with 'beam node up'" in done.stderr
    done = made.run("-m", "beam.run", "app.py:fail", env={"BEAM_TOKEN": ""})
    assert done.returncode == 4


def test_beam_run_interrupted(program: Make) -> None:
    process = program({"slow.py": SLOW % (False, "pass")}).popen("-m", "beam.run", "slow.py:slow")
    interrupt(process)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 130
