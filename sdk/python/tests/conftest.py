from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fakenode.worker import Runner, write_files  # noqa: E402

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
