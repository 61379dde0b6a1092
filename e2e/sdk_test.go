package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// sdkProgram tries what the SDK promises; it prints one JSON object of answers.
const sdkProgram = `
import asyncio, json, os, sys, time
from beam import Context, Image, env, function

small = dict(cpu=0.2, memory=128)
def container(): return os.environ["CONTAINER_ID"]

@function(**small)
def square(x): return x * x

@function(**small)
def later(x):
    time.sleep(0.0 if x else 15)
    return x

@function(**small)
def odd(x):
    if x % 2: raise ValueError(x)
    return x

@function(**small, retries=2, retry_for=[ConnectionError])
def flaky():
    where = "/tmp/tries"
    n = int(open(where).read()) if os.path.exists(where) else 0
    open(where, "w").write(str(n + 1))
    if n < 1: raise ConnectionError("try again")
    return n + 1

@function(**small, keep_warm_seconds=5)
def warm(): return container()

@function(**small, env={"COLOUR": "green"})
def coloured(): return os.environ["COLOUR"], env.is_remote()

def begin(): return {"loaded": True}

@function(**small, on_start=begin)
def started(x, context: Context): return context.on_start_value, bool(context.task_id), context.container_id == container(), x

@function(**small, image=Image(commands=["echo made > /made.txt"], env_vars={"FLAVOUR": "sweet"}))
def imaged(): return open("/made.txt").read().strip(), os.environ["FLAVOUR"]

@function(**small)
def nested(x): return square.remote(x) + 1

@function(**small)
def stepwise(n): yield from range(n)

async def twins():
    one = await square.aio.remote(5)
    many = [v async for v in square.aio.map([1, 2, 3])]
    return one, many

if __name__ == "__main__":
    out = {"local": square.local(3), "remote_here": env.is_remote()}
    out["ordered"] = list(square.map(range(20)))
    done = list(later.map([0, 1, 1, 1], order_outputs=False))
    out["completion"] = [done[0], sorted(done)]
    out["exceptions"] = [repr(v) for v in odd.map([0, 1, 2], return_exceptions=True)]
    try:
        list(odd.map([0, 1, 2])); out["raised"] = ""
    except ValueError as e:
        out["raised"] = repr(e)
    taken = []
    def endless():
        n = 0
        while True:
            taken.append(n); yield n; n += 1
    values = square.map(endless(), max_in_flight=4)
    out["lazy"] = [next(values) for _ in range(3)]
    values.close()
    out["taken"] = len(taken)
    out["flaky"] = flaky.remote()
    first, second = warm.remote(), warm.remote()
    time.sleep(9)
    out["warm"] = [first == second, warm.remote() == first]
    out["coloured"] = coloured.remote()
    out["started"] = started.remote(7)
    out["imaged"] = imaged.remote()
    out["nested"] = nested.remote(4)
    out["stepwise"] = stepwise.remote(3)
    out["twins"] = asyncio.run(twins())
    task = square.submit(9)
    out["submit"] = task.result(wait=True)
    sys.stdout.flush()
    print("\nANSWERS" + json.dumps(out))
`

func TestSDKFeatures(t *testing.T) {
	m := sharedMesh(t)
	out := m.mustPython(1, sdkProgram)
	_, text, ok := strings.Cut(out, "ANSWERS")
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &got); !ok || err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	squares := "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225, 256, 289, 324, 361]"
	for name, want := range map[string]string{
		"local": "9", "remote_here": "false", "ordered": squares, "completion": "[1, [0, 1, 1, 1]]",
		"exceptions": `["0", "ValueError(1)", "2"]`, "raised": `"ValueError(1)"`, "lazy": "[0, 1, 4]",
		"flaky": "2", "warm": "[true, false]", "coloured": `["green", true]`, "started": `[{"loaded": true}, true, true, 7]`,
		"imaged": `["made", "sweet"]`, "nested": "17", "stepwise": "[0, 1, 2]", "twins": "[25, [1, 4, 9]]", "submit": "81",
	} {
		if string(got[name]) != want {
			t.Errorf("%s: got %s, want %s", name, got[name], want)
		}
	}
	var taken int
	if err := json.Unmarshal(got["taken"], &taken); err != nil || taken > 20 {
		t.Errorf("a generator was asked for %s inputs for 3 values with 4 in flight", got["taken"])
	}
}

// An image that was built once is known, and another node gets it from a peer.
func TestImageIsBuiltOnce(t *testing.T) {
	m := sharedMesh(t)
	const program = `
from beam import Image, function
image = Image(commands=["head -c 20000000 /dev/urandom > /blob"])

@function(gpu="RTX4090", cpu=0.2, memory=128, image=image)
def size():
    import os
    return os.path.getsize("/blob")

if __name__ == "__main__":
    print(size.remote())
`
	if out := m.mustPython(1, program); strings.TrimSpace(out) != "20000000" {
		t.Fatal(out)
	}
	if in := m.status(3).Counters["blocks.bytes_in"]; in < 20_000_000 {
		t.Errorf("node3 got %d bytes from peers", in)
	}
	out, errs, code := m.python(2, program)
	if code != 0 || !strings.Contains(errs, "Using cached image") || strings.TrimSpace(out) != "20000000" {
		t.Errorf("the second time: exit %d\n%s%s", code, out, errs)
	}
}
