"""The smallest program for a mesh: python square.py"""

from beam import function


@function(cpu=1)
def square(i: int) -> int:
    return i**2


if __name__ == "__main__":
    print(square.remote(12))
