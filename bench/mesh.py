"""A dev mesh of the benchmark's own, and what is read off it."""

import json
import os
import subprocess
import urllib.request

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEAM = os.path.join(REPO, "bin", "beam")
NAME = "beambench"
ROOT = "/var/tmp/beammesh-" + NAME


def beam(*args, env=None, check=True):
    done = subprocess.run([BEAM, *args], env=env, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit("error: beam %s: %s" % (" ".join(args), done.stderr.strip()))
    return done.stdout


def plain_env():
    """Our environment without what points clients at some mesh."""
    drop = ("GATEWAY_HOST", "GATEWAY_PORT", "API_HOST", "API_PORT", "BEAM_TOKEN", "BEAM_CONTEXT")
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env["BEAM_BASE_CACHE"] = os.path.join(REPO, ".cache", "base")
    return env


class Mesh:
    """`with Mesh(3) as mesh:` starts nodes and removes all of them in the end."""

    def __init__(self, nodes, *flags):
        self.count, self.flags = nodes, flags

    def __enter__(self):
        down()
        beam("dev", "up", "--nodes", str(self.count), "--name", NAME, "--dir", ROOT, *self.flags, env=plain_env())
        with open(os.path.join(ROOT, "state.json")) as f:
            state = json.load(f)
        self.nodes, self.bridge, self.subnet = state["nodes"], state["bridge"], state["subnet"]
        return self

    def __exit__(self, *exc):
        down()

    def env(self, node=1):
        """The environment of a client of a node."""
        env = plain_env()
        for line in beam("dev", "env", "--dir", ROOT, "--node", str(node)).splitlines():
            key, _, value = line.replace("export ", "", 1).partition("=")
            env[key] = value.strip("'\"")
        env["PYTHONPATH"] = os.path.join(REPO, "sdk", "python")
        return env


def down():
    beam("dev", "down", "--dir", ROOT)


def rpc(env, method, message):
    """One Connect call with JSON."""
    request = urllib.request.Request(
        "http://%s:%s/%s" % (env["GATEWAY_HOST"], env["GATEWAY_PORT"], method),
        json.dumps(message).encode(),
        {"content-type": "application/json", "authorization": "Bearer " + env["BEAM_TOKEN"]},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def usage(node):
    """(CPU seconds, resident MiB, bytes on its link) of a node's processes now."""
    ticks, pages = 0, 0
    for pid in pids(node):
        try:
            with open("/proc/%d/stat" % pid) as f:
                fields = f.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            with open("/proc/%d/statm" % pid) as f:
                pages += int(f.read().split()[1])
        except OSError:
            continue  # it ended meanwhile
    moved = 0
    for way in ("rx_bytes", "tx_bytes"):
        with open("/sys/class/net/%s/statistics/%s" % (node["veth"], way)) as f:
            moved += int(f.read())
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20, moved


def pids(node):
    """The node and all its children."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name) as f:
                    parent = int(f.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found, todo = [], [node["pid"]]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def inside(node, *command, **options):
    """Start a command in a node's network namespace. Not with `ip netns exec`,
    which mounts /sys anew and hides the cgroups."""
    return subprocess.Popen(["nsenter", "--net=/run/netns/" + node["netns"], *command], **options)
