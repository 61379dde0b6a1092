"""The package as a whole: names, documentation, types, cost of importing it."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import beam
import pytest
from conftest import ROOT

PUBLIC = (
    "AuthError BeamError BuildError CapacityError ConflictError Context DeadlineError Function GpuType Image "
    "ImageBuildResult InvalidError NotFoundError OutOfMemoryError PythonMismatchError PythonVersion QueueDepthAutoscaler "
    "RemoteError RemoteTraceback Task TaskCancelledError TaskPolicy TaskStatus TaskTimeoutError TooLargeError "
    "UnreachableError UnsupportedError env function"
).split()


def test_public_names_are_pinned() -> None:
    assert beam.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(beam, name) is not None
    modules = {m.name for m in pkgutil.iter_modules(beam.__path__)}
    assert {name for name in modules if not name.startswith("_")} == {"env", "run"}
    with pytest.raises(AttributeError):
        beam.nonsense
    with pytest.raises(ImportError, match=r"beam.Sandbox is not served by this version\nhint: what is: Context"):
        beam.Sandbox


def test_at_most_fifteen_error_classes() -> None:
    def below(kind: type) -> List[type]:
        return [k for sub in kind.__subclasses__() for k in [sub, *below(sub)]]

    tree = [kind for kind in below(beam.BeamError) if kind.__module__.startswith("beam")]
    assert len(tree) <= 15
    assert all(kind.code and kind.exit_status for kind in tree)  # type: ignore[attr-defined]
    codes = {beam._errors.make_error(code, "m").exit_status: code for code in beam._errors.EXIT_STATUS}  # type: ignore[attr-defined]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 8, 124, 130, 137]


@pytest.mark.parametrize("name", sorted(m.name for m in pkgutil.walk_packages(beam.__path__, "beam.")))
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, "%s has no documentation" % name
    assert doctest.testmod(module).failed == 0


def test_documentation_examples_compile() -> None:
    text = (ROOT.parent.parent / "docs" / "python.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) >= 5
    for block in blocks:
        compile(block, "docs/python.md", "exec")


def test_types() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy", "--no-incremental"], cwd=str(ROOT), stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout


def test_what_type_checkers_see(tmp_path: Path) -> None:
    code = (
        "from beam import function\n@function(cpu=1)\ndef f(a: int, b: str = '') -> float: return 1.0\n"
        "reveal_type(f.remote(1))\nreveal_type(f.map([1]))\nreveal_type(f.submit(1).result())\nf.remote('x')\n"
    )
    (tmp_path / "use.py").write_text(code)
    env = dict(os.environ, MYPYPATH=str(ROOT))
    argv = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", str(tmp_path / "use.py")]
    out = subprocess.run(argv, cwd=str(tmp_path), env=env, stdout=subprocess.PIPE, text=True).stdout
    assert 'Revealed type is "float"' in out.replace("builtins.", "")
    assert "Iterator[float]" in out.replace("builtins.", "")
    assert "float | None" in out.replace("builtins.", "") or "Union[float, None]" in out.replace("builtins.", "")
    assert 'incompatible type "str"; expected "int"' in out


def seconds(code: str) -> float:
    """The fastest of several runs, so that a busy machine counts little."""
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        times.append(time.perf_counter() - start)
    return min(times) if os.environ.get("CI") else statistics.median(times)


def test_import_budget() -> None:
    bare = seconds("pass")
    assert seconds("import beam; beam.function; beam.Image") - bare < 0.150 + bare


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, beam; from beam import function, Image\n@function(image=Image())\ndef f(): pass\n"
        "bad = {'cloudpickle', 'pathspec', 'asyncio', 'ssl', 'http.client', 'httpx', 'zipfile'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(ROOT)}, check=True)


def test_dependencies_are_few() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("dependencies"))
    assert line.count('"') // 2 <= 5
    assert "[project.scripts]" not in text  # the command is the Go binary's


def test_bundle_is_reproducible_and_complete(bundle: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "bundle.py"), str(tmp_path / "again")], check=True)
    first, second = tree(bundle), tree(tmp_path / "again")
    assert first == second
    for name in ("beam/_runner/main.py", "beta9/__init__.py", "cloudpickle/__init__.py", "pathspec/__init__.py"):
        assert name in first
    assert any(name.startswith("cloudpickle/LICEN") for name in first)


def tree(root: Path) -> "dict[str, tuple[bytes, float, int]]":
    return {
        str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime, p.stat().st_mode)
        for p in root.rglob("*")
        if p.is_file()
    }
