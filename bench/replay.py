"""What the simulator says of recorded work beside what really happened."""

import datetime
import glob
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from mesh import REPO, Mesh, beam

NODES = 10
FLAGS = ("--gpus", "H100:2,RTX4090:1", "--cpu-overcommit", "8")

# The first is recorded to fit the models, the next three are predicted with them.
# Containers are kept for a second, so that there are some hundred placements.
LOADS = [
    ("mixed", "--calls 700 --rate 4 --burst 1-8 --mean 0.5 --seed 1"),
    ("large bursts", "--calls 700 --rate 4 --burst 12 --mean 0.5 --seed 2"),
    ("one by one", "--calls 450 --rate 2.5 --mean 2 --seed 3"),
    ("scarce GPUs", "--calls 700 --rate 3 --burst 3 --mean 1 --gpu-share 0.5 --seed 4"),
]
# 5,000 calls that want 2.7 GPUs on average: of three with node 3, of two without.
LONG = "--calls 5000 --rate 36 --burst 12 --mean 0.1 --gpu-share 0.75 --seed 5"
REMOVED = "node3"

TEXT = """\
A dev mesh of 10 nodes on this machine records four loads (`bench/load.py`), each on a
fresh mesh that was warmed up first. Links, container starts and how the machine slows
down are fitted on the first and predict the others: recorded / simulated. Then 5,000
calls are recorded and every decision is made again; what the simulator says of the
same load without node 3 (one of the three GPUs) stands beside a mesh whose node 3 was
really drained. GPUs are simulated ones."""


WARM = "--calls 60 --rate 60 --burst 60 --mean 0.3 --gpu-share 0.2 --seed 99"


def record(name, load, into, drained=None):
    """Run a load on a fresh mesh whose nodes have the image, and keep its journals.

    Gives their folders, and when the load began.
    """
    kept = []
    with Mesh(NODES, *FLAGS) as mesh:
        run(mesh, WARM)
        settle(mesh)
        if drained:
            beam("node", "drain", env=mesh.env(int(drained[len("node"):])))
        began = datetime.datetime.now(datetime.timezone.utc).isoformat()
        run(mesh, load)
        settle(mesh)  # else containers would count until their nodes end
        stop(mesh.nodes)  # what of the journals is in memory reaches the disk then
        for node in mesh.nodes:
            to = os.path.join(into, name.replace(" ", "-"), node["name"])
            shutil.copytree(os.path.join(node["dir"], "market"), to)
            kept.append(to)
    return kept, began


def run(mesh, load):
    done = subprocess.run([sys.executable, os.path.join(REPO, "bench", "load.py"), *load.split()],
                          env=dict(mesh.env(), KEEP_WARM="1"), capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        raise SystemExit("error: the load %s failed:\n%s" % (load, done.stderr[-2000:]))


def settle(mesh, limit=120):
    """Wait until every node has the images in use and no container is left."""
    deadline = time.monotonic() + limit
    env = mesh.env()
    while True:
        containers = json.loads(beam("container", "list", "--json", env=env))
        wanted, hot = set(), {}
        for node in mesh.nodes:
            for path in glob.glob(os.path.join(node["dir"], "market", "*.jsonl")):
                with open(path) as f:
                    for line in f:
                        if '"in":"SetHotRoots"' in line:
                            hot[node["name"]] = set(json.loads(line)["ev"]["Roots"])
                        elif '"in":"Award"' in line:
                            wanted.update(r["Name"] for r in json.loads(line)["ev"]["Demand"]["Roots"])
        if not containers and all(wanted <= hot.get(n["name"], set()) for n in mesh.nodes):
            os.sync()  # the blocks of the images, which starts would wait for
            return
        if time.monotonic() > deadline:
            lack = {n["name"]: len(wanted - hot.get(n["name"], set())) for n in mesh.nodes}
            raise SystemExit("error: after %d s there are %d containers, and nodes lack images: %s" % (limit, len(containers), lack))
        time.sleep(1)


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


def ask(recording, *flags):
    """The metrics of each world of `beam sim replay`, by name, and the check."""
    report = json.loads(beam("sim", "replay", "--one-machine", "--json", *source(recording, "--from", "--since"), *flags))
    worlds = [{m["name"]: m["value"] for m in w["metrics"]} for w in report["worlds"]]
    return worlds, report["check"]


def source(recording, folder, since):
    """Flags that name a recording."""
    folders, began = recording
    return [w for f in folders for w in (folder, f)] + [since, began]


def both(real, simulated, digits=1):
    ratio = "" if not real else " (%.2fx)" % (simulated / real)
    return "%.*f / %.*f%s" % (digits, real, digits, simulated, ratio)


COLUMNS = [("place_p50", "lease given after, ms, p50", 1), ("messages_per_award", "messages per lease", 1), ("messages_per_call", "messages per call", 2),
           ("wait_p50", "wait of calls, ms, p50", 0), ("wait_p99", "wait p99", 0), ("gpu_hours", "GPU hours", 3)]


def measure(a):
    rows = [["", *(title for _, title, _ in COLUMNS)]]

    def row(title, real, simulated):
        rows.append([title, *(both(real[name], simulated[name], digits) for name, _, digits in COLUMNS)])
        print("  %s: %s" % (title, "; ".join(rows[-1][1:])), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="beambench-replay-", dir="/var/tmp") as into:
        fitted = None
        for name, load in LOADS:
            recording = record(name, load, into)
            fitted = fitted or recording
            worlds, _ = ask(recording, *source(fitted, "--fit", "--fit-since"))
            row(name + (", fitted on itself" if recording is fitted else ""), *worlds[:2])
        recording = record("long", LONG, into)
        worlds, check = ask(recording, "--remove", REMOVED)
        row("5,000 calls", *worlds[:2])
        really, _ = ask(record("without", LONG, into, drained=REMOVED))
        row("without " + REMOVED, really[0], worlds[2])
        rows.append(["decisions made again, of 5,000 calls", "%d of %d awards" % (check["equal_awards"], check["awards"]),
                     "%d of %d calls sent" % (check["equal_dispatches"], check["dispatches"]), "%d of %d steps" % (check["equal"], check["steps"]), "", "", ""])
    return rows
