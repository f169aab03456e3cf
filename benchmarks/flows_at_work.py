"""Flows of the bench's own components, made in code, and how fast one of them goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.blast import Blast, Sent
from benchmarks.mesh_bench import QUIET_LIMIT_S, BenchMesh
from headrace.model.flow_spec import FlowSpec, StepSpec

COMPONENT = "bench-opaque@latest"
OPAQUE_BODY = b"x" * 256
OPAQUE_TYPE = "application/octet-stream"
PREFETCH = 256
MAX_WAITING = 10_000
# Before anything is measured: imports, first allocations, and how long a stretch has to be.
WARM_UP_MESSAGES = 500
GUESS_S = 1.0
LEAST_LOOK_S, MOST_LOOK_S = 0.02, 0.5


def step(name: str, *to: str, function: str = "relay", **more: Any) -> StepSpec:
    """Of the opaque component, with room for many messages."""
    return StepSpec(name, COMPONENT, function, to=to, prefetch=PREFETCH, **more)


def flow(*steps: StepSpec, **more: Any) -> FlowSpec:
    return FlowSpec("realtime", steps, max_waiting=MAX_WAITING, **more)


def chain(length: int, **more: Any) -> FlowSpec:
    """`start` and so many steps less one after it; the last is `s<length>` (or `start`)."""
    names = ["start", *(f"s{number}" for number in range(2, length + 1))]
    pairs = zip(names, [*names[1:], ""], strict=True)
    steps = [
        step(name, *([to] if to else []), function="relay" if index else "start")
        for index, (name, to) in enumerate(pairs)
    ]
    return flow(*steps, **more)


def direct(actions: int) -> FlowSpec:
    """A trigger without a process, and so many actions; the last is `s<actions + 1>`."""
    _, *rest = chain(actions + 1).steps
    return flow(StepSpec("start", to=(rest[0].name,)), *rest)


def last_of(spec: FlowSpec) -> list[str]:
    """Steps with nothing after them."""
    return [found.name for found in spec.steps if not found.to]


async def finished(bench: BenchMesh, name: str, step_name: str) -> int:
    """Calls of the step that ended since its instances started, from their own counts at this moment."""
    return (await bench.finished(name)).get(step_name, 0)


async def until_finished(bench: BenchMesh, name: str, steps: Sequence[str], count: int, rate: float) -> float:
    """Waits until each of the steps has ended `count` calls; answers the moment (monotonic). Looks as often as what is
    left to do at `rate` asks for, so that looking costs little and the moment is exact."""
    async with asyncio.timeout(QUIET_LIMIT_S):
        while True:
            ended = await bench.finished(name)
            left = count - min(ended.get(each, 0) for each in steps)
            if left <= 0:
                return time.monotonic()
            await asyncio.sleep(min(MOST_LOOK_S, max(LEAST_LOOK_S, 0.5 * left / max(rate, 1.0))))


async def saturated(bench: BenchMesh, name: str, steps: Sequence[str], load: Blast, seconds: float) -> dict[str, Any]:
    """From the first stimulus to the last message ended by the last of `steps`; as many as take about `seconds`, after
    two shorter stretches that warm everything up and tell how many that are."""
    warm_s, _ = await _stretch(bench, name, steps, load, WARM_UP_MESSAGES, 1e4)
    guess = WARM_UP_MESSAGES / warm_s
    second = max(WARM_UP_MESSAGES, int(guess * GUESS_S))
    second_s, _ = await _stretch(bench, name, steps, load, second, guess)
    guess = second / second_s
    count = max(200, int(guess * seconds))
    cpu_before = await bench.cpu_s(name)
    took_s, sent = await _stretch(bench, name, steps, load, count, guess)
    cpu_after = await bench.cpu_s(name)
    return {
        "messages": count,
        "warm_up": WARM_UP_MESSAGES + second,
        "seconds": round(took_s, 2),
        "messages_per_s": round(count / took_s),
        "refused_by_full_edges": sent.refused,
        "load_us_per_message": round(sent.cpu_s / count * 1e6, 1),
        "cpu_us_per_message": {
            kind: round((cpu_after[kind] - cpu_before[kind]) / count * 1e6, 1) for kind in cpu_after
        },
    }


async def _stretch(
    bench: BenchMesh, name: str, steps: Sequence[str], load: Blast, count: int, rate: float
) -> tuple[float, Sent]:
    await load.prepare(count)
    ended = await bench.finished(name)
    before = [ended.get(each, 0) for each in steps]
    began = time.monotonic()
    sent = await load.send()
    over = await until_finished(bench, name, steps, max(before) + count, rate)
    return over - began, sent
