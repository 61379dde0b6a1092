"""Uses documented names only: our SDK and the stock one give the same lines."""

import sys

from PACKAGE import GpuType, Image, PythonVersion, env, function

image = (
    Image(python_version=PythonVersion.Python311, commands=["echo first > /first"], env_vars=["COLOUR=blue"])
    .add_python_packages(["six==1.16.0"])
    .add_commands(["echo second > /second"])
)


def say(*words):
    print("both:", *words)


@function(name="look", cpu="200m", memory="256Mi", image=image, env={"SHAPE": "round"}, timeout=120, retries=1,
          headless=False, callback_url=None)
def look(word, times=1):
    import os

    import six

    with open("/first") as a, open("/second") as b:
        files = a.read().strip(), b.read().strip()
    return {"said": word * times, "files": files, "six": six.__version__, "colour": os.environ.get("COLOUR"),
            "shape": os.environ.get("SHAPE"), "python": sys.version_info[:2], "id": bool(os.environ["CONTAINER_ID"])}


@function(cpu=0.2, memory=128, gpu=[GpuType.H100, "RTX4090"])
def gpu(x):
    return x + 1


@function(cpu=0.2, memory=128)
def inner(x):
    return x * 10


@function(cpu=0.2, memory=256)
def outer(x):
    return inner.local(x) + 1


if __name__ == "__main__":
    say("here", env.is_remote())
    for key, value in sorted(look.remote("ab", times=2).items()):
        say(key, value)
    say("local", inner.local(4))
    say("nested", outer.remote(3))
    say("gpu", gpu.remote(1))
    say("mapped", sorted(inner.map(list(range(8)))))
