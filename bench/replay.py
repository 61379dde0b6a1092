"""What the simulator says of recorded work beside what really happened."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile

from mesh import REPO, Mesh, beam

NODES = 10
FLAGS = ("--gpus", "H100:2,RTX4090:1", "--cpu-overcommit", "8")

# The first is recorded to fit the models, the next three are predicted with them.
LOADS = [
    ("steady", "--calls 300 --rate 10 --mean 0.3 --seed 1"),
    ("more at once", "--calls 450 --rate 15 --mean 0.4 --gpu-share 0.05 --seed 2"),
    ("bursts", "--calls 300 --rate 10 --mean 0.3 --burst 20 --seed 3"),
    ("scarce GPUs", "--calls 240 --rate 8 --mean 0.4 --gpu-share 0.4 --seed 4"),
]
# 5,000 calls that want 2.6 GPUs on average: of three with node 3, of two without.
LONG = "--calls 5000 --rate 60 --mean 0.27 --gpu-share 0.16 --seed 5"
REMOVED = "node3"

TEXT = """\
A dev mesh of 10 nodes on this machine records four loads (`bench/load.py`), each on a
fresh mesh. Links and container starts are fitted on the first and predict the others:
recorded / simulated. Then 5,000 calls are recorded and every decision is made again;
what the simulator says of the same load without node 3 (one of the three GPUs) stands
beside a mesh whose node 3 was really drained. GPUs are simulated ones."""


def record(name, load, into, drained=None):
    """Run a load on a fresh mesh and keep its journals; gives their folders."""
    kept = []
    with Mesh(NODES, *FLAGS) as mesh:
        if drained:
            beam("node", "drain", env=mesh.env(int(drained[len("node"):])))
        done = subprocess.run([sys.executable, os.path.join(REPO, "bench", "load.py"), *load.split()],
                              env=mesh.env(), capture_output=True, text=True, timeout=1800)
        if done.returncode != 0:
            raise SystemExit("error: the load %s failed:\n%s" % (name, done.stderr[-2000:]))
        stop(mesh.nodes)  # what of the journals is in memory reaches the disk then
        for node in mesh.nodes:
            to = os.path.join(into, name.replace(" ", "-"), node["name"])
            shutil.copytree(os.path.join(node["dir"], "market"), to)
            kept.append(to)
    return kept


def stop(nodes):
    """End nodes in peace."""
    waiting = []
    for node in nodes:
        waiting.append(os.pidfd_open(node["pid"]))
        os.kill(node["pid"], signal.SIGTERM)
    for pidfd in waiting:
        if not select.select([pidfd], [], [], 120)[0]:
            raise SystemExit("error: a node does not end")
        os.close(pidfd)


def ask(folders, *flags):
    """The metrics of each world of `beam sim replay`, by name, and the check."""
    words = ["sim", "replay", "--one-machine", "--json"]
    for f in folders:
        words += ["--from", f]
    report = json.loads(beam(*words, *flags))
    worlds = [{m["name"]: m["value"] for m in w["metrics"]} for w in report["worlds"]]
    return worlds, report["check"]


def both(real, simulated, name, digits=1):
    ratio = "" if not real else " (%.2fx)" % (simulated / real)
    return "%.*f / %.*f%s" % (digits, real, digits, simulated, ratio)


def measure(a):
    rows = [["", "lease given after, ms, p50", "messages per lease", "wait of calls, ms, p50", "wait p99", "GPU hours"]]

    def row(title, real, simulated):
        rows.append([title, both(real["place_p50"], simulated["place_p50"]), both(real["messages_per_award"], simulated["messages_per_award"]),
                     both(real["wait_p50"], simulated["wait_p50"]), both(real["wait_p99"], simulated["wait_p99"], 0),
                     both(real["gpu_hours"], simulated["gpu_hours"], 3)])

    with tempfile.TemporaryDirectory(prefix="beambench-replay-", dir="/var/tmp") as into:
        fitted = None
        for name, load in LOADS:
            folders = record(name, load, into)
            fitted = fitted or folders
            worlds, _ = ask(folders, *[w for f in fitted for w in ("--fit", f)])
            row(name + (", fitted on itself" if folders is fitted else ""), *worlds[:2])
        folders = record("long", LONG, into)
        worlds, check = ask(folders, "--remove", REMOVED)
        row("5,000 calls", *worlds[:2])
        without = record("without", LONG, into, drained=REMOVED)
        really, _ = ask(without)
        row("without " + REMOVED, really[0], worlds[2])
        rows.append(["decisions made again, of 5,000 calls", "%d of %d awards" % (check["equal_awards"], check["awards"]),
                     "%d of %d calls sent" % (check["equal_dispatches"], check["dispatches"]), "%d of %d steps" % (check["equal"], check["steps"]), "", ""])
    return rows
