import os
import sys
import time

from PACKAGE import Image, function


@function(cpu=0.1, memory=128)
def boom(x):
    raise ValueError("boom %d" % x)


@function(cpu=0.1, memory=128)
def leave(x):
    os._exit(7)


@function(cpu=0.1, memory=128, timeout=1, retries=0)
def late(x):
    time.sleep(600)


@function(cpu=0.1, memory="900Gi")
def huge(x):
    return x


@function(cpu=0.1, memory=128, secrets=["MISSING"])
def secret(x):
    return x


@function(cpu=0.1, memory=128, image=Image(python_version="python3.12"))
def python312(x):
    return x


@function(cpu=0.1, memory=128, image=Image(base_image="docker.io/library/no-such-image:1"))
def base(x):
    return x


@function(cpu=0.1, memory=128)
def odd(x):
    if x % 2:
        raise RuntimeError("odd")
    return x


@function(cpu=0.1, memory=128)
def sleepy(x):
    print("asleep", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name == "odd":
            print("odd:", sorted(odd.map(range(6)), key=str))
        else:
            print(name + ":", globals()[name].remote(1))
