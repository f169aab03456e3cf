"""Runs seeds: `python -m tests.simulation FIRST COUNT [STEP]`; one line of JSON per seed that broke a law.

With COUNT 1 it prints what happened in that run.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback

from tests.simulation.script import run

COLLECT_EVERY = 20


def main(first: int, count: int, step: int) -> int:
    """Answers how many seeds failed."""
    failed = 0
    gc.disable()  # a fifth of the time, for worlds that are thrown away whole
    for number, seed in enumerate(range(first, first + count * step, step)):
        if number % COLLECT_EVERY == COLLECT_EVERY - 1:
            gc.collect()
        try:
            world = run(seed)
            problems, trace = world.violations, world.trace
        except Exception as error:
            problems, trace = [f"{error!r}", traceback.format_exc()], []
        if count == 1:
            print("\n".join(trace))
        if problems:
            failed += 1
            print(json.dumps({"seed": seed, "problems": problems[:10]}), flush=True)
    return failed


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(1 if main(numbers[0], (numbers[1:2] or [1])[0], (numbers[2:3] or [1])[0]) else 0)
