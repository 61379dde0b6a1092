"""One side of the comparison: `side.py beam|ray|dask CALLS ITEMS WORKERS`.

Starts the system (the mesh runs already), warms it up until all its worker
processes have answered, and measures; prints one line of JSON:

    {"calls": [seconds, ...], "map_s": seconds, "items": n, "version": text}

calls are no-op calls one after the other, each from call to value. map_s is one
map of no-ops over `items` inputs, to the last value, in order; values are checked.
"""

import json
import os
import sys
import time


class Beam:
    def __init__(self, workers):
        os.environ["BENCH_WORKERS"] = str(workers)
        import square

        self.echo = square.echo
        self.version = "this commit"
        # One function with both uses, so that its containers are the same ones:
        # slow calls at first, until all have answered.
        hosts = set()
        limit = time.monotonic() + 60
        while len(hosts) < workers and time.monotonic() < limit:
            hosts |= set(self.echo.map([(i, True) for i in range(8 * workers)]))
        if len(hosts) < workers:
            raise SystemExit("only %d of %d containers came" % (len(hosts), workers))
        list(self.echo.map(range(2000)))

    def call(self, i):
        return self.echo.remote(i)

    def map(self, n):
        return list(self.echo.map(range(n)))

    def close(self):
        pass


class Ray:
    def __init__(self, workers):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray, self.version = ray, ray.__version__
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=True)

        @ray.remote
        def echo(i):
            return i

        @ray.remote
        def where(i):
            time.sleep(0.05)
            return os.getpid()

        self.echo = echo
        pids = set()
        limit = time.monotonic() + 60
        while len(pids) < workers and time.monotonic() < limit:
            pids |= set(ray.get([where.remote(i) for i in range(8 * workers)]))
        ray.get([echo.remote(i) for i in range(2000)])

    def call(self, i):
        return self.ray.get(self.echo.remote(i))

    def map(self, n):
        return self.ray.get([self.echo.remote(i) for i in range(n)])

    def close(self):
        self.ray.shutdown()


def echo(i):
    return i


class Dask:
    def __init__(self, workers):
        import distributed

        self.version = distributed.__version__
        cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
        self.client = distributed.Client(cluster)
        self.client.wait_for_workers(workers, timeout=60)
        self.client.gather(self.client.map(echo, range(2000), pure=False))

    def call(self, i):
        return self.client.submit(echo, i, pure=False).result()

    def map(self, n):
        return self.client.gather(self.client.map(echo, range(n), pure=False))

    def close(self):
        self.client.shutdown()


def main():
    name, calls, items, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    answer = os.dup(1)  # whatever the systems print goes elsewhere
    os.dup2(2, 1)
    side = {"beam": Beam, "ray": Ray, "dask": Dask}[name](workers)
    for i in range(calls // 5):
        side.call(i)
    times = []
    for i in range(calls):
        t = time.perf_counter()
        value = side.call(i)
        times.append(time.perf_counter() - t)
        assert value == i, (value, i)
    t = time.perf_counter()
    values = side.map(items)
    took = time.perf_counter() - t
    assert values == list(range(items)), "wrong values"
    with os.fdopen(answer, "w") as out:
        json.dump({"calls": times, "map_s": took, "items": items, "version": side.version}, out)
    side.close()


if __name__ == "__main__":
    main()
