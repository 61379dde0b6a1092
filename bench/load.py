"""A load to record and replay: calls that sleep, at random times.

    python bench/load.py --calls 5000 --rate 40 --mean 0.3 --gpu-share 0.1

Calls arrive as a Poisson process of the given rate per second and last an
exponentially distributed time; with --burst they come several at once, at the
same mean rate. The same seed makes the same load. KEEP_WARM in the environment is
how many seconds idle containers are kept. It prints one line of JSON.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from typing import List, Tuple

from beam import function


KEEP_WARM = float(os.environ.get("KEEP_WARM", "3"))


@function(cpu=0.25, memory=64, keep_warm_seconds=KEEP_WARM)
def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@function(cpu=0.25, memory=64, gpu="any", keep_warm_seconds=KEEP_WARM)
def gpu_work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def run(options: argparse.Namespace) -> List[str]:
    dice = random.Random(options.seed)
    begin = time.monotonic()
    at = 0.0
    failed: List[str] = []
    calls: "set[asyncio.Task[None]]" = set()

    async def call(on_gpu: bool, seconds: float) -> None:
        try:
            await (gpu_work if on_gpu else work).aio.remote(seconds)
        except Exception as error:  # it is counted; the load goes on
            failed.append(repr(error))

    least, most = options.burst
    left = 0
    for _ in range(options.calls):
        if left == 0:
            left = dice.randint(least, most)
            at += dice.expovariate(options.rate * 2 / (least + most))
        left -= 1
        wait = begin + at - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(call(dice.random() < options.gpu_share, dice.expovariate(1 / options.mean)))
        calls.add(task)
        task.add_done_callback(calls.discard)
    while calls:
        await asyncio.wait(set(calls))
    return failed


def sizes(text: str) -> Tuple[int, int]:
    least, _, most = text.partition("-")
    return int(least), int(most or least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20.0, help="calls per second")
    parser.add_argument("--mean", type=float, default=0.3, help="seconds that a call lasts on average")
    parser.add_argument("--gpu-share", type=float, default=0.1, help="share of the calls that need a GPU")
    parser.add_argument("--burst", type=sizes, default=(1, 1), help="calls that come together: N, or from N-M")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    failed = asyncio.run(run(options))
    print(json.dumps({"calls": options.calls, "failed": len(failed), "seconds": round(time.monotonic() - began, 1)}))
    if failed:
        sys.exit(f"error: {len(failed)} calls failed, the first with {failed[0]}")


if __name__ == "__main__":
    main()
