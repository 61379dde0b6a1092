"""What a node takes while it has nothing to do."""

import time

import stats
from mesh import Mesh, usage

SECONDS = 60


def measure(a):
    with Mesh(3) as mesh:
        time.sleep(60)  # gossip and routing tables settle
        before = [usage(n) for n in mesh.nodes]
        since = time.monotonic()
        time.sleep(SECONDS)
        took = time.monotonic() - since
        after = [usage(n) for n in mesh.nodes]
    rows = [["", "resident, MiB", "of one core, %", "on its link, KiB/s"]]
    for i, (b, e) in enumerate(zip(before, after)):
        rows.append(["node %d" % (i + 1), stats.digits(e[1]), "%.2f" % ((e[0] - b[0]) / took * 100), stats.digits((e[2] - b[2]) / 1024 / took)])
    rows.append(["goal", "<= 120", "<= 0.5", "<= 2"])
    return rows
