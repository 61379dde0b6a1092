"""Joining until another node sees the GPU, and the base image over the mesh."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time

import cold
import stats
from mesh import BEAM, ROOT, Mesh, beam, inside, plain_env, rpc


def measure(a):
    joins, afters = [], []
    with Mesh(2) as mesh:
        for i in range(a.rounds):
            took, after = join_once(mesh, i)
            joins.append(took)
            afters.append(after)
    pulls = [pull_once() for _ in range(min(a.rounds, 3))]
    mib = pulls[0][0]
    rows = [["", "ms"],
            ["`node join` started -> another node lists its GPU", stats.spread(joins)],
            ["it says that it joined -> another node lists its GPU", stats.spread(afters)],
            ["base image, %.0f MiB of blocks, to a node that lacks it" % mib, stats.spread([p[1] for p in pulls])],
            ["plain TCP copy of as many bytes", stats.spread([p[2] for p in pulls])],
            ["image / copy", stats.spread([p[1] / p[2] for p in pulls]) + "x"]]
    return rows


def join_once(mesh, i):
    """A node of its own namespace joins at node 1; node 2 is asked."""
    name = "beambenchj%d" % i
    address = mesh.subnet.rpartition(".")[0] + ".%d" % (200 + i)
    watch = mesh.env(2)
    ticket = beam("node", "invite", "--tier", "own", env=mesh.env(1)).strip()
    run = lambda *c: subprocess.run(c, check=True, capture_output=True)  # noqa: E731
    run("ip", "netns", "add", name)
    process = None
    try:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name, "master", mesh.bridge, "up")
        for words in ("addr add %s/24 dev eth0" % address, "link set eth0 up", "link set lo up",
                      "route add default via " + mesh.subnet.rpartition(".")[0] + ".1"):
            run("ip", "-n", name, *words.split())
        with tempfile.TemporaryDirectory(prefix="beambench-", dir="/var/tmp") as folder:
            ready, ready_w = os.pipe()
            started = time.monotonic()
            process = inside({"netns": name}, BEAM, "node", "join", ticket, "--data", folder + "/data", "--name", "joiner%d" % i,
                             "--listen", address + ":1992", "--grpc", address + ":1993", "--http", address + ":1994",
                             "--simulate-gpus", "H200:%d" % (i + 1), "--ready-fd", str(ready_w), pass_fds=[ready_w],
                             env=plain_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os.close(ready_w)
            seen = said = None
            while seen is None or said is None:
                if said is None and select.select([ready], [], [], 0)[0]:
                    if not os.read(ready, 1 << 16):
                        raise SystemExit("error: the joining node ended")
                    said = time.monotonic()
                for node in rpc(watch, "beammesh.v1.NodeService/ListNodes", {}).get("nodes", []):
                    if node.get("name") == "joiner%d" % i and any(g.get("model") == "H200" for g in node.get("gpus", [])):
                        seen = seen or time.monotonic()
                if seen is None or said is None:
                    if time.monotonic() - started > 60:
                        raise SystemExit("error: the joining node was not seen within a minute")
                    time.sleep(0.005)
            os.close(ready)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            process = None
            return (seen - started) * 1e3, max(seen - said, 0) * 1e3
    finally:
        if process:
            process.kill()
            process.wait()
        # The link first: a namespace goes some time after its name does.
        subprocess.run(["ip", "link", "del", name], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=True)


def pulled(phases):
    """(MiB, ms) of the pull phase, whose detail reads `112.4 MiB from 1 peer`."""
    for p in phases:
        if p.get("name") == "pull" and "MiB" in p.get("detail", ""):
            return float(p["detail"].split()[0]), float(p["durationMs"])
    raise SystemExit("error: nothing was pulled: %s" % phases)


# A raw copy: what the link and the disk give, without checking anything.
SERVER = "import socket,sys\ns=socket.create_server((sys.argv[1],7777))\nc,_=s.accept()\nb=b'x'*(1<<20)\nfor _ in range(int(sys.argv[2])): c.sendall(b)\nc.close()"
COPY = """
import os, socket, sys, time
t = time.monotonic()
c = socket.create_connection((sys.argv[1], 7777))
with open(sys.argv[2], "wb") as f:
    while True:
        b = c.recv(1 << 20)
        if not b: break
        f.write(b)
    f.flush()
    os.fsync(f.fileno())
print((time.monotonic() - t) * 1e3)
"""


def pull_once():
    """(MiB, ms over the mesh, ms of a TCP copy)."""
    with Mesh(2, "--gpus", "H200:1", "--node-arg=--no-prefetch") as mesh:
        # Only node 2 has the GPU; node 1 makes the image when it is asked for.
        one, two = mesh.nodes
        (call,) = cold.run(mesh.env(1), "born_on_gpu")
        got = pulled(call["phases"])
        address = one["addr"]
        server = inside(one, sys.executable, "-c", SERVER, address, str(max(int(got[0]), 1)))
        try:
            time.sleep(0.3)
            path = os.path.join(ROOT, "copy")
            client = inside(two, sys.executable, "-c", COPY, address, path, stdout=subprocess.PIPE, text=True)
            out, _ = client.communicate(timeout=120)
            os.unlink(path)
        finally:
            server.kill()
            server.wait()
        return got[0], got[1], float(out)
