"""The smallest program for a mesh: python square.py

GPU=any python square.py asks for a machine with a GPU.
"""

import os

from beam import function


@function(cpu=1, gpu=os.environ.get("GPU"))
def square(i: int) -> int:
    return i**2


if __name__ == "__main__":
    print(square.remote(12))
