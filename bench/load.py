"""A load to record and replay: calls that sleep, at random times.

    python bench/load.py --calls 5000 --rate 40 --mean 0.3 --gpu-share 0.1

Calls arrive as a Poisson process of the given rate per second and last an
exponentially distributed time; with --burst N they come N at once, at the same
mean rate. The same seed makes the same load. It prints one line of JSON.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from typing import List

from beam import function


@function(cpu=0.25, memory=64, keep_warm_seconds=3)
def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@function(cpu=0.25, memory=64, gpu="any", keep_warm_seconds=3)
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

    for number in range(options.calls):
        if number % options.burst == 0:
            at += dice.expovariate(options.rate / options.burst)
        wait = begin + at - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(call(dice.random() < options.gpu_share, dice.expovariate(1 / options.mean)))
        calls.add(task)
        task.add_done_callback(calls.discard)
    while calls:
        await asyncio.wait(set(calls))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20.0, help="calls per second")
    parser.add_argument("--mean", type=float, default=0.3, help="seconds that a call lasts on average")
    parser.add_argument("--gpu-share", type=float, default=0.1, help="share of the calls that need a GPU")
    parser.add_argument("--burst", type=int, default=1, help="calls that come together")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    failed = asyncio.run(run(options))
    print(json.dumps({"calls": options.calls, "failed": len(failed), "seconds": round(time.monotonic() - began, 1)}))
    if failed:
        sys.exit(f"error: {len(failed)} calls failed, the first with {failed[0]}")


if __name__ == "__main__":
    main()
