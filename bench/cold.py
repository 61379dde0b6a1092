"""New containers of the mesh beside `runc run` of the same root filesystem."""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import stats
from mesh import REPO, ROOT, Mesh

HERE = os.path.dirname(os.path.abspath(__file__))

# Runs one cold call of each function after the other, in a process of its own.
CLIENT = """
import json, sys, time
import square
out = []
for name in sys.argv[1:]:
    getattr(square, name).stub()  # known to the node: code is sent, image is made
    t = time.time()
    call = getattr(square, name).call((), {})
    first, host = call.value()
    out.append({"first_ms": (first - t) * 1e3, "phases": call._outcome.get("phases", [])})
print(json.dumps(out))
"""

FIRST_LINE = ["python3", "-c", "import time; print(time.time())"]


class Bundle:
    """A runc bundle over the node's own copy of the base image."""

    def __init__(self, folder):
        self.folder = folder
        self.runc = glob.glob(os.path.join(ROOT, "node1", "assets", "*", "runc"))[0]
        layer = max(glob.glob(os.path.join(ROOT, "node1", "runtime", "layers", "snapshots", "*", "fs")), key=weight)
        for name in ("upper", "work", "rootfs"):
            os.mkdir(os.path.join(folder, name))
        options = "lowerdir=%s,upperdir=%s/upper,workdir=%s/work" % (layer, folder, folder)
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, folder + "/rootfs"], check=True)
        subprocess.run([self.runc, "spec", "--bundle", folder], check=True)
        path = os.path.join(folder, "config.json")
        with open(path) as f:
            spec = json.load(f)
        spec["process"].update(terminal=False, args=FIRST_LINE, env=["PATH=/usr/local/bin:/usr/bin:/bin"])
        spec["linux"]["resources"] = {"cpu": {"quota": 100000, "period": 100000}}
        with open(path, "w") as f:
            json.dump(spec, f)

    def first_ms(self, name):
        t = time.time()
        done = subprocess.run([self.runc, "--root", self.folder + "/state", "run", "--bundle", self.folder, name],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit("error: runc run: " + done.stderr)
        return (float(done.stdout) - t) * 1e3

    def close(self):
        subprocess.run(["umount", self.folder + "/rootfs"], check=True)


def weight(folder):
    """The base image is the layer with the most below /usr/lib."""
    try:
        return len(os.listdir(os.path.join(folder, "usr", "lib")))
    except OSError:
        return 0


def measure(a):
    full, small, ratio, plain = [], [], [], []
    phases = {"place": [], "start": [], "import": []}
    with Mesh(1) as mesh:
        env = mesh.env()
        run(env, "born", "born_small")  # the image is fetched and unpacked here
        folder = tempfile.mkdtemp(prefix="beambench-", dir="/var/tmp")
        bundle = None
        try:
            bundle = Bundle(folder)
            bundle.first_ms("beambench-warm")
            for i in range(a.rounds * 2):
                plain.append(bundle.first_ms("beambench-%d" % i))
                one, two = run(env, "born", "born_small")
                full.append(one["first_ms"])
                small.append(two["first_ms"])
                ratio.append(full[-1] / plain[-1])
                for p in one["phases"]:
                    if p.get("name") in phases:
                        phases[p["name"]].append(float(p.get("durationMs", 0)))
        finally:
            if bundle:
                bundle.close()
            shutil.rmtree(folder)
    rows = [["", "first line, ms"], ["runc run, one core", stats.spread(plain)],
            ["new container by .remote(), one core", stats.spread(full)],
            ["the same with the default 0.125 cores", stats.spread(small)],
            ["one core / runc run", stats.spread(ratio) + "x"]]
    for name, what in (("place", "of which finding a node"), ("start", "of which making the container"), ("import", "of which Python and imports")):
        if phases[name]:
            rows.append([what, stats.spread(phases[name])])
    return rows


def run(env, *names):
    python = os.path.join(REPO, ".cache", "bench-venv", "bin", "python")
    done = subprocess.run([python, "-c", CLIENT, *names], env=dict(env, PYTHONPATH=env["PYTHONPATH"] + ":" + HERE), cwd=HERE,
                          capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit("error: cold call failed")
    return json.loads(done.stdout)
