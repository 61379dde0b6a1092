from PACKAGE import function


@function(cpu=0.1, memory=128)
def square(x):
    return x * x


@function(cpu=0.1, memory=128)
def add(a, b):
    return a + b


if __name__ == "__main__":
    got = list(square.map(range(400)))
    print("items", len(got), "right", sorted(got) == [i * i for i in range(400)])
    print("spread", sorted(add.map([(1, 2), (3, 4)])))
