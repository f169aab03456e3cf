"""Many flows at once: how long until all run, and what they cost while nothing happens."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.mesh_bench import BenchMesh, cpu_of, pss_of
from benchmarks.raw_nats import RawNats
from headrace.edge.data_directory import MESH_VARIABLE
from headrace.edge.process_table import processes_with
from headrace.model.errors import DeadlineExceeded, Unavailable
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.wire.flow import flow_spec_to_proto

START_LIMIT_S = 300.0
SETTLE_S = 15.0
REST_S = 30.0
BATCH = 20
SPEC = FlowSpec(
    "realtime",
    (
        StepSpec("start", "bench-opaque@latest", "start", to=("one",)),
        StepSpec("one", "bench-opaque@latest", "relay"),
    ),
)


async def many_flows(bench: BenchMesh, *, at_once: int = 100, at_rest: int = 200) -> dict[str, Any]:
    """`at_once` flows of two steps started together, and then as many as are to be `at_rest` looked at."""
    await bench.prepare("opaque")  # pushes the component
    names = [f"many-{number}" for number in range(max(at_once, at_rest))]
    for name in names:
        await bench.client.create_flow(name, flow_spec_to_proto(SPEC))
        await bench.client.publish(name)
    began = time.monotonic()
    times, repeats = await _start(bench, names[:at_once], began)
    started = {
        "flows": at_once,
        "processes": 4 * at_once,
        "all_running_s": round(max(times), 2),
        "half_running_s": round(sorted(times)[len(times) // 2], 2),
        "calls_repeated": repeats,
    }
    for first in range(at_once, len(names), BATCH):
        await _start(bench, names[first : first + BATCH], time.monotonic())
    return {"started_at_once": started, "at_rest": await at_rest_cost(bench, len(names))}


async def _start(bench: BenchMesh, names: list[str], began: float) -> tuple[list[float], int]:
    """Starts them all at once; answers after how many seconds each was RUNNING, and how many calls were repeated
    because the mesh was too busy to take them."""
    repeats = 0

    async def one(name: str) -> float:
        nonlocal repeats
        while True:
            try:
                operation = await bench.client.begin_start(name, timeout_s=START_LIMIT_S)
                break
            except (Unavailable, DeadlineExceeded):
                repeats += 1
                if time.monotonic() - began > START_LIMIT_S:
                    raise
        await bench.client.wait_operation(operation, timeout_s=START_LIMIT_S)
        return time.monotonic() - began

    times = await asyncio.gather(*(one(name) for name in names))
    return times, repeats


async def at_rest_cost(bench: BenchMesh, flows: int) -> dict[str, Any]:
    """Memory, processor and messages of the whole mesh for a while in which nobody asks for anything."""
    await asyncio.sleep(SETTLE_S)
    pids = processes_by_kind(bench)
    before = {pid: cpu_of(pid) for pids_of_kind in pids.values() for pid in pids_of_kind}
    counted = await count_messages(bench, REST_S)
    cpu = {kind: sum(cpu_of(pid) - before[pid] for pid in kind_pids) / REST_S for kind, kind_pids in pids.items()}
    memory = {kind: sum(map(pss_of, kind_pids)) for kind, kind_pids in pids.items()}
    return {
        "flows": flows,
        "instances": len(pids["sidecars"]),
        "seconds": REST_S,
        "pss_mb": _rounded(memory, 0),
        "pss_mb_per_instance": round((memory["sidecars"] + memory["components"]) / max(1, len(pids["sidecars"])), 1),
        "cpu_percent": _rounded({kind: 100 * share for kind, share in cpu.items()}, 1),
        "cpu_percent_sum": round(100 * sum(cpu.values()), 1),
        "messages_per_s": {kind: round(count / REST_S, 2) for kind, count in sorted(counted.items())},
    }


def _rounded(values: dict[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def processes_by_kind(bench: BenchMesh) -> dict[str, list[int]]:
    """All processes of the mesh by kind: its services, all sidecars, all components, what they were forked from."""
    roles = {pid: role for role, pid in bench.mesh.endpoints.processes.items() if pid}
    found: dict[str, list[int]] = {"sidecars": [], "components": []}
    for pid in processes_with(MESH_VARIABLE, str(bench.mesh.directory.path)):
        found.setdefault(roles.get(pid) or _kind(pid), []).append(pid)
    return found


def _kind(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return "other"
    known = {b"services.sidecar": "sidecars", b"headrace.sdk.serve": "components", b"headrace.edge.zygote": "zygote"}
    return next((kind for module, kind in known.items() if module in words), "other")


async def count_messages(bench: BenchMesh, seconds: float) -> Counter[str]:
    """Every message that passes the broker meanwhile, by what it is for."""
    counted = Counter[str]()

    def on_message(subject: str, reply: str, payload: bytes) -> None:
        counted[_purpose(subject)] += 1

    client = await RawNats.connect(*bench.broker, on_message)
    client.subscribe(">", 1)
    await asyncio.sleep(seconds)
    client.close()
    return counted


def _purpose(subject: str) -> str:
    api = "$JS.API."
    if subject.startswith(api + "CONSUMER.MSG.NEXT"):
        return "pull requests"
    if subject.startswith(api):
        return "api " + ".".join(_words(subject.removeprefix(api)))
    if subject.startswith("$KV."):
        return f"kv writes {subject.split('.')[1]}"
    if subject.startswith("$JS.EVENT.ADVISORY"):
        return "advisories"
    if subject.startswith("_INBOX"):
        return "answers and heartbeats"
    return "other " + subject.split(".")[0]


def _words(subject: str) -> Iterable[str]:
    """The words of an API subject that are its verb: `STREAM.INFO`, `DIRECT.GET`."""
    for word in subject.split(".")[:3]:
        if not word.isupper() or "_" in word:
            return
        yield word
