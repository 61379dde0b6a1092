#!/usr/bin/env python3
"""Assemble the runner bundle: the folder that is mounted into every container.

    python3 bundle.py OUT

OUT gets the packages ``beam``, ``beta9`` (an alias), ``cloudpickle`` and
``pathspec``; with OUT on PYTHONPATH, ``python3 -m beam._runner.main`` runs on
Python 3.8 to 3.13. The last two are copied, with their licences, from the
environment of the interpreter that runs this script; they are the run-time
dependencies in pyproject.toml. The same inputs give the same bytes.

The mount is read-only, so byte code cannot be kept there: it is made here, for
this interpreter and every other python3.N on PATH, and never checked against
its source. Other versions compile in memory at each start, which costs some 0.1 s.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterable

HERE = Path(__file__).resolve().parent
DEPENDENCIES = ("cloudpickle", "pathspec")


def main(out: Path) -> int:
    missing = [name for name in DEPENDENCIES if importlib.util.find_spec(name) is None]
    if missing:
        print("error: this Python lacks %s" % ", ".join(missing), file=sys.stderr)
        print("hint: run it in the environment where sdk/python is installed", file=sys.stderr)
        return 1
    # Made beside its place and renamed, so that a half-made bundle is never used.
    part = out.with_name(out.name + ".part-%d" % os.getpid())
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        copy(HERE / "beam", part / "beam")
        copy(HERE / "alias" / "beta9", part / "beta9")
        for name in DEPENDENCIES:
            spec = importlib.util.find_spec(name)
            assert spec is not None and spec.origin is not None
            copy(Path(spec.origin).parent, part / name)
            licences(name, part / name)
        for python in interpreters():
            compile_all(python, part)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return 0


def interpreters() -> Iterable[str]:
    """One interpreter per version: this one, then those on PATH."""
    seen = {sys.version_info[:2]}
    yield sys.executable
    for minor in range(8, 14):
        place = shutil.which("python3.%d" % minor)
        if place is None or (3, minor) in seen:
            continue
        works = subprocess.run([place, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if works.returncode == 0:
            yield place


def compile_all(python: str, folder: Path) -> None:
    argv = [python, "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash", "."]
    subprocess.run(argv, cwd=str(folder), check=True)
    for path in folder.rglob("*.pyc"):
        path.chmod(0o644)
        os.utime(path, (0, 0))


def copy(source: Path, target: Path) -> None:
    for path in sorted(walk(source)):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        place.chmod(0o644)
        os.utime(place, (0, 0))


def walk(source: Path) -> Iterable[Path]:
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in (".py", ".typed"):
            yield path


def licences(name: str, target: Path) -> None:
    for file in importlib.metadata.files(name) or []:
        if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
            place = target / file.name
            shutil.copyfile(str(file.locate()), place)
            os.utime(place, (0, 0))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: bundle.py OUT")
    sys.exit(main(Path(sys.argv[1]).absolute()))
