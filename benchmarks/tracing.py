"""What traces cost: a span's encoding by itself, and throughput of the saturated flow at 0, 1 and 100 %, and without.

The collector is a stand-in that takes requests and looks at no byte of them, in a process of its own on the same cores:
what a real one does with spans is its own affair. Rounds of all four go up and down again in short stretches, so that a
machine that gets slower meanwhile favours none.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from benchmarks.blast import Blast
from benchmarks.flows_at_work import OPAQUE_BODY, OPAQUE_TYPE, chain, last_of, saturated
from benchmarks.latency import at_rate
from benchmarks.mesh_bench import BenchMesh, bench_mesh
from benchmarks.recent_executions import recent_executions
from headrace.edge.otlp_target import ENDPOINT_VARIABLE
from headrace.edge.parent_death import tied_command
from headrace.model.hop_record import HopOutcome, HopRecord, Site
from headrace.wire.otlp_spans import SpanEncoder

RATE = 200.0
SINK = "benchmarks.otlp_sink"
CASES = ("off", "0", "1", "100")
"""Per cent of executions sampled; `off`: no collector."""
RATIOS = {"0": 0.0, "1": 0.01, "100": 1.0}
BATCH = 400
ROUNDS = 6
FLOW = "traced"


def encoding() -> dict[str, float]:
    """Microseconds of this process's own time to make and to encode a record of a common hop (six spans)."""
    site, sender = (Site(name, "default", "orders", 1, 1, name, name, "sha256:" + "a" * 64, 1, name) for name in "ab")
    stored = time.time_ns()
    values = (
        site, sender, "ab" * 16, "cd" * 8, "12" * 8, True, "34" * 16, "ef" * 16, 1, True, 1, False, 1, False,
        HopOutcome.PROCESSED, "", "", 0, -1, stored - 9, stored, stored + 9, 9, 9, 19, 29, 39, 49,
    )  # fmt: skip
    encoder = SpanEncoder()
    sizes = [0, 0]

    def encode() -> None:
        record = HopRecord(*values)
        for _ in range(BATCH):
            encoder.add(record)
        raw, sizes[1] = encoder.take()
        sizes[0] = len(raw)

    def record() -> None:
        for _ in range(BATCH):
            tuple.__new__(HopRecord, (site, *values[1:]))

    hop_us = _best_us(encode) / BATCH
    spans = sizes[1] / BATCH
    return {
        "record_us": round(_best_us(record) / BATCH, 2),
        "encode_us_per_hop": round(hop_us, 2),
        "encode_us_per_span": round(hop_us / spans, 3),
        "spans_per_hop": spans,
        "bytes_per_span": round(sizes[0] / sizes[1], 1),
    }


def _best_us(work: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(40):
        began = time.process_time_ns()
        work()
        best = min(best, (time.process_time_ns() - began) / 1000)
    return best


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """URL of a collector that looks at nothing."""
    process = subprocess.Popen(tied_command([sys.executable, "-m", SINK]), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(10)


@contextlib.asynccontextmanager
async def _environment(url: str) -> AsyncIterator[None]:
    os.environ.pop(ENDPOINT_VARIABLE, None)
    if url:
        os.environ[ENDPOINT_VARIABLE] = url
    try:
        yield
    finally:
        os.environ.pop(ENDPOINT_VARIABLE, None)


async def tracing(told: Callable[[str], None], seconds: float, rounds: int = ROUNDS) -> dict[str, Any]:
    """Profile `fast`, two meshes at once, one of them with a collector, of which one works at a time. A round is one
    stretch of each case; what a case costs is the median over rounds of the difference to `off` of the same round."""
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    with sink() as url:
        async with _traced_mesh("") as plain, _traced_mesh(url) as traced:
            hops = {
                case: (await at_rate(_of(case, plain, traced)[0], RATE, seconds / 2, sampled=RATIOS.get(case)))["hop"]
                for case in ("off", "100")
            }
            for number in range(rounds):
                told(f"tracing, round {number + 1} of {rounds}")
                for case in CASES if number % 2 == 0 else CASES[::-1]:
                    found[case].append(await _saturated(*_of(case, plain, traced), RATIOS.get(case), seconds / 2))
    cpu = {case: [sum(run["cpu_us_per_message"].values()) for run in runs] for case, runs in found.items()}
    rate = {case: [run["messages_per_s"] for run in runs] for case, runs in found.items()}
    return {
        "encoding": encoding(),
        "recent_executions": recent_executions(),
        "messages_per_s": {case: statistics.median(values) for case, values in rate.items()},
        "hop_at_200_per_s": hops,
        "cost_percent": {case: _median_percent(rate["off"], rate[case]) for case in RATIOS},
        "cpu_us_per_message": {case: statistics.median(values) for case, values in cpu.items()},
        "cpu_cost_percent": {case: -_median_percent(cpu["off"], cpu[case]) for case in RATIOS},
        "rounds": found,
    }


def _median_percent(off: list[float], on: list[float]) -> float:
    """By how much less the second is, round by round."""
    return round(statistics.median(100 * (1 - second / first) for first, second in zip(off, on, strict=True)), 1)


@contextlib.asynccontextmanager
async def _traced_mesh(url: str) -> AsyncIterator[tuple[BenchMesh, Blast]]:
    """A mesh with the flow that is saturated again and again, and its load."""
    async with _environment(url), bench_mesh("fast", lambda line: None) as bench:
        await bench.prepare("opaque")  # pushes the component
        name = await bench.begin(FLOW, chain(3))
        async with bench.blast(name, OPAQUE_BODY, OPAQUE_TYPE) as load:
            yield bench, load


Loaded = tuple[BenchMesh, Blast]


def _of(case: str, plain: Loaded, traced: Loaded) -> Loaded:
    return traced if case in RATIOS else plain


async def _saturated(bench: BenchMesh, load: Blast, sampled: float | None, seconds: float) -> dict[str, Any]:
    if sampled is not None:
        await bench.client.set_sampling(FLOW, ratio=sampled)
    return await saturated(bench, FLOW, last_of(chain(3)), load, seconds)
