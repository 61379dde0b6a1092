import hashlib

from PACKAGE import function


@function(cpu=0.2, memory=128)
def square(x):
    print("squaring", x)
    return x * x


@function(cpu=0.2, memory=128)
def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


if __name__ == "__main__":
    print("result", square.remote(12))
    print("digest", digest.remote("large.bin"))
