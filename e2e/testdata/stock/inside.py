"""Runs with our SDK: its function runs a stock program inside a container."""

import os
import subprocess
import sys

from beam import Image, function

PROGRAM = """
import beta9
from PACKAGE import function

@function(cpu=0.1, memory=128)
def square(x):
    return x * x

if __name__ == "__main__":
    print("installed", "/dist-packages/" in beta9.__file__ or "/site-packages/" in beta9.__file__)
    print("result", square.remote(12))
    print("mapped", sorted(square.map(range(5))))
"""


@function(cpu=0.5, memory=512, image=Image(python_packages=sys.argv[1:]))
def outer(package):
    os.makedirs("/tmp/program", exist_ok=True)
    with open("/tmp/program/app.py", "w") as f:
        f.write(PROGRAM.replace("PACKAGE", package))
    # Our own packages stand first on PYTHONPATH in every container.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "app.py"], cwd="/tmp/program", env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    return done.returncode, done.stdout


if __name__ == "__main__":
    for package in ("beam", "beta9"):
        code, text = outer.remote(package)
        print(package, "ended with", code)
        print(text)
