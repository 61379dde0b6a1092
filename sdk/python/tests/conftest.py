from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fakenode.server import TOKEN, FakeNode  # noqa: E402
from fakenode.worker import LIMIT, Runner, write_files  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner bundle, as it is mounted into containers."""
    out = tmp_path_factory.mktemp("bundle") / "runner"
    subprocess.run([sys.executable, str(ROOT / "bundle.py"), str(out)], check=True)
    return out


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    """start(files, handler, env=…) runs the real runner on a small source tree."""
    started: List[Runner] = []

    def start_(files: Dict[str, str], handler: str, **kwargs: Any) -> Runner:
        code = write_files(tmp_path / "code", files)
        runner = Runner(bundle, code, handler, **kwargs)
        started.append(runner)
        return runner

    yield start_
    for runner in started:
        runner.close()


def pythons() -> List[str]:
    """Every Python 3.8 to 3.13 of this machine, this one first."""
    found = {sys.version_info[:2]: sys.executable}
    places = [shutil.which("python3.%d" % minor) for minor in range(8, 14)]
    places += [str(p) for p in Path("/usr/bin").glob("python3.[0-9]*") if p.name[8:].isdigit()]
    root = subprocess.run(["sh", "-c", "command -v pyenv >/dev/null && pyenv root"], stdout=subprocess.PIPE, text=True).stdout.strip()
    if root:
        places += [str(p) for p in sorted(Path(root).glob("versions/3.*/bin/python3.*")) if p.name[8:].isdigit()]
    for place in places:
        if place is None:
            continue
        ask = "import sys; print(*sys.version_info[:2])"
        answer = subprocess.run([place, "-c", ask], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if answer.returncode == 0:
            major, minor = map(int, answer.stdout.split())
            if 8 <= minor <= 13 and major == 3:
                found.setdefault((major, minor), place)
    return list(found.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_python" in metafunc.fixturenames:
        metafunc.parametrize("any_python", pythons())


@pytest.fixture
def node(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNode]:
    """A fake node that this process's environment points at."""
    with FakeNode(bundle) as fake:
        for name, value in environment(fake, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield fake
        from beam import _client

        for client in list(_client._shared.values()):
            client._transport.close()
        _client._shared.clear()


def environment(fake: FakeNode, home: Path) -> Dict[str, str]:
    return {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(fake.port),
        "BEAM_TOKEN": TOKEN,
        "HOME": str(home),
    }


class Program:
    """Runs a user's program as a user does."""

    def __init__(self, fake: FakeNode, folder: Path) -> None:
        self.fake = fake
        self.folder = folder

    def popen(self, *argv: str, cwd: str = "", env: Optional[Dict[str, str]] = None) -> "subprocess.Popen[str]":
        environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        environ.update(environment(self.fake, self.folder.parent))
        environ.update(env or {})
        return subprocess.Popen(
            [sys.executable, *argv],
            cwd=str(self.folder / cwd),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str, cwd: str = "", env: Optional[Dict[str, str]] = None) -> "subprocess.CompletedProcess[str]":
        process = self.popen(*argv, cwd=cwd, env=env)
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(argv, process.returncode, out, err)


@pytest.fixture
def program(node: FakeNode, tmp_path: Path) -> Callable[[Dict[str, str]], Program]:
    """program(files).run("app.py") runs a program in its own process."""

    def make(files: Dict[str, str]) -> Program:
        return Program(node, write_files(tmp_path / "project", files))

    return make


@pytest.fixture
def module(node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """module(code) writes a user's file, changes there and imports it."""
    monkeypatch.setenv("BEAM_QUIET", "1")
    names: List[str] = []

    def load(code: str) -> Any:
        name = "userfile%d" % len(names)
        names.append(name)
        write_files(tmp_path / "user", {name + ".py": code})
        monkeypatch.chdir(tmp_path / "user")
        monkeypatch.syspath_prepend(str(tmp_path / "user"))
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)
