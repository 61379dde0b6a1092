"""What the benchmark runs on the mesh; sent there as it is."""

import os
import time

from beam import QueueDepthAutoscaler, function

LOADED = time.time()  # the first line of this file that runs in a container

# As many containers as the other systems get worker processes, a whole core each.
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))


@function(cpu=1, memory=256, retries=0, keep_warm_seconds=600, autoscaler=QueueDepthAutoscaler(max_containers=WORKERS))
def echo(i, slowly=False):
    if slowly:
        time.sleep(0.05)
        return os.uname().nodename
    return i


@function(cpu=1, memory=256, keep_warm_seconds=0)
def born():
    return LOADED, os.uname().nodename


@function(memory=256, keep_warm_seconds=0)
def born_small():
    """The same with the default share of a core."""
    return LOADED, os.uname().nodename


@function(cpu=1, memory=256, gpu="H200", keep_warm_seconds=0)
def born_on_gpu():
    return LOADED, os.uname().nodename
