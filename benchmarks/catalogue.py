"""Every scenario by its name, what it puts into the figures, and how it is run in a mesh."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import broker_floor, floors
from benchmarks.attachments import attachments
from benchmarks.dead_letters import dead_letters
from benchmarks.edit_loop import edit_loop
from benchmarks.fail_over import fail_over
from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import OPAQUE_BODY, OPAQUE_TYPE, last_of, saturated
from benchmarks.gateway import gateway
from benchmarks.keyed import keyed
from benchmarks.latency import at_rate, latency, put
from benchmarks.many_flows import many_flows
from benchmarks.mesh_bench import bench_mesh
from benchmarks.ordinary_flows import ordinary
from benchmarks.overload import overload
from benchmarks.recovery import VICTIMS, recovery
from benchmarks.scale import scale
from benchmarks.shaping import shaping
from benchmarks.starting import start
from benchmarks.switching import switching
from benchmarks.throughput import SHAPES, throughput
from benchmarks.throughput import put as put_throughput
from benchmarks.tracing import tracing
from benchmarks.validate import validate
from benchmarks.watchers import watchers
from headrace.edge.broker_process import PROFILES

RATE = 200.0
GRPC_BATCH_RATE = 50.0
LETTERS = 4_000
OVERLOAD_S = 10.0
WATCHED_S = 3.0


@dataclass(frozen=True)
class Scenario:
    """`work` puts its figures into the run and answers its details; `about` is one line."""

    about: str
    work: Callable[[BenchRun], Awaitable[Any]]


async def _floors(run: BenchRun) -> dict[str, Any]:
    found: dict[str, Any] = {
        "unix_socket_round_trip": await floors.unix_socket_round_trip(RATE, run.seconds / 2),
        "grpc_round_trip": await floors.grpc_round_trip(RATE, run.seconds / 2),
        "grpc_batch_round_trip": await floors.grpc_batch_round_trip(GRPC_BATCH_RATE, run.seconds / 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        found["fsync"] = await asyncio.to_thread(floors.raw_fsync, Path(folder))
    for profile in PROFILES:
        async with bench_mesh(profile, run.told) as bench:
            deliver = await broker_floor.publish_to_deliver(bench.broker, RATE, run.seconds / 2)
            stored = await broker_floor.publish_to_stored(bench.broker, RATE, run.seconds / 2)
        found[f"{profile}.publish_to_deliver"] = deliver
        found[f"{profile}.publish_to_stored"] = stored
    for name, measured in found.items():
        run.figures.less(f"floors.{name}", measured["p50_us"], "us")
    worst = max(measured["histogram_error_percent"] for measured in found.values())
    run.figures.less("floors.histogram_error", worst, "%")
    return found


async def _profiles(run: BenchRun) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for profile in PROFILES:
        run.told(f"profile {profile}: hop at 200/s, trigger + 2 saturated")
        async with bench_mesh(profile, run.told) as bench:
            hop = await at_rate(bench, RATE, run.seconds)
        put(run, f"profiles.{profile}", hop)
        found[profile] = {"latency": hop}
        for shape, entry in (("trigger+2", "start"), ("direct+2", "s2")):
            async with bench_mesh(profile, run.told) as bench:
                await bench.prepare("opaque")  # pushes the component
                name = await bench.begin("profile", SHAPES[shape])
                async with bench.blast(name, OPAQUE_BODY, OPAQUE_TYPE, trigger=entry) as load:
                    rate = await saturated(bench, name, last_of(SHAPES[shape]), load, run.seconds)
            put_throughput(run, f"profiles.{profile}.{shape}", rate)
            found[profile][shape] = rate
    return found


async def _switch(run: BenchRun) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for profile in PROFILES:
        run.told(f"switch: WARM_SWITCH under 500 orders/s, {profile}")
        async with bench_mesh(profile, run.told) as bench:
            found[profile] = felt = await switching(bench)
        pause = felt["switching"]["p99_ms"] - felt["steady"]["p99_ms"]
        run.figures.less(f"switch.{profile}.p99_steady", felt["steady"]["p99_ms"], "ms")
        run.figures.less(f"switch.{profile}.p99_switching", felt["switching"]["p99_ms"], "ms")
        run.figures.less(f"switch.{profile}.pause_over_steady", pause, "ms")
        run.figures.less(f"switch.{profile}.new_code", max(felt["first_on_new_code_s"]), "s")
        run.figures.less(f"switch.{profile}.failed", felt["failed"], "requests")
    return found


async def _idle(run: BenchRun) -> dict[str, Any]:
    run.told(f"idle: {run.flows // 2} flows started at once, {run.flows} at rest")
    async with bench_mesh("fast", run.told) as bench:
        found = await many_flows(bench, at_once=run.flows // 2, at_rest=run.flows)
    rest = found["at_rest"]
    run.figures.less("idle.started_at_once", found["started_at_once"]["all_running_s"], "s")
    run.figures.less("idle.pss_per_instance", rest["pss_mb_per_instance"], "MB")
    run.figures.less("idle.cpu", rest["cpu_percent_sum"], "% of a core")
    run.figures.less("idle.broker_messages", sum(rest["messages_per_s"].values()), "messages/s")
    return found


async def _tracing(run: BenchRun) -> dict[str, Any]:
    found = await tracing(run.told, run.seconds)
    for case, rate in found["messages_per_s"].items():
        run.figures.more(f"tracing.{case}.rate", rate, "messages/s")
    for case, cost in found["cost_percent"].items():
        run.figures.less(f"tracing.{case}.cost", cost, "%")
        run.figures.less(f"tracing.{case}.cpu_cost", found["cpu_cost_percent"][case], "%")
    run.figures.less("tracing.span", found["encoding"]["encode_us_per_span"], "us")
    return found


async def _keyed(run: BenchRun) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for profile in PROFILES:
        run.told(f"keyed: 1, 100 and 10 000 keys, {profile}")
        async with bench_mesh(profile, run.told) as bench:
            found[profile] = measured = await keyed(bench, run.seconds / 2)
        for row in measured["keyed"]:
            run.figures.more(f"keyed.{profile}.{row['keys']}", row["messages_per_s"], "messages/s")
        run.figures.more(f"keyed.{profile}.unkeyed", measured["unkeyed"]["messages_per_s"], "messages/s")
    return found


async def _overload(run: BenchRun) -> dict[str, Any]:
    run.told(f"overload: twice the saturation for {OVERLOAD_S:g} s")
    async with bench_mesh("fast", run.told) as bench:
        found = await overload(bench, OVERLOAD_S)
    run.figures.less("overload.p99", found["p99_ms"], "ms")
    run.figures.more("overload.accepted", found["accepted_per_s"], "messages/s")
    run.figures.less("overload.unanswered", found["unanswered"], "messages")
    run.figures.less("overload.lost", found["accepted"] - found["processed"], "messages")
    return found


async def _dead_letters(run: BenchRun) -> dict[str, Any]:
    run.told("dead-letters: every message given up, against none")
    async with bench_mesh("fast", run.told) as bench:
        found = await dead_letters(bench, LETTERS)
    run.figures.more("dead-letters.rate", found["dead_lettered_per_s"], "messages/s")
    return found


async def _faults(run: BenchRun) -> dict[str, Any]:
    run.told("faults: the leading orchestrator is killed under 200 orders/s")
    async with bench_mesh("fast", run.told, orchestrators=2) as bench:
        failing = await fail_over(bench)
    run.told("faults: each kind of process is killed under 100 orders/s")
    async with bench_mesh("fast", run.told) as bench:
        killed = await recovery(bench)
    run.figures.less("faults.leader.first_verb", max(failing["first_verb_s"]), "s")
    run.figures.less("faults.leader.longest_gap", failing["killing"]["longest_gap_ms"], "ms")
    for victim in VICTIMS:
        run.figures.less(f"faults.{victim}.answered_again", killed[victim]["answered_again_s"][-1], "s")
    return {"fail_over": failing, "recovery": killed}


async def _watchers(run: BenchRun) -> dict[str, Any]:
    run.told("watchers: 0, 1, 10 and 100 clients watch a flow at 200 messages/s")
    async with bench_mesh("fast", run.told) as bench:
        found = await watchers(bench, WATCHED_S)
    for count in ("0", "100"):
        run.figures.less(f"watchers.{count}.orchestrator", found[count]["cpu_percent"]["orchestrator"], "% of a core")
    return found


async def _keyboard(run: BenchRun) -> dict[str, Any]:
    run.told("keyboard: commands, `dev` from save to answer, `validate`")
    async with bench_mesh("fast", run.told) as bench:
        found = await edit_loop(bench)
    checked = await asyncio.to_thread(validate)
    for name, took in found["commands"].items():
        run.figures.less(f"keyboard.{name.replace(' ', '-')}", took["median_s"], "s")
    run.figures.less("keyboard.save_to_answer", max(found["save_to_answer_s"]), "s")
    run.figures.less("keyboard.validate", checked["all_ms"], "ms")
    return found | {"validate": checked}


SCENARIOS: dict[str, Scenario] = {
    "floors": Scenario("what the machine and the broker alone take", _floors),
    "profiles": Scenario("durable and fast: hop at 200/s and trigger + 2 actions saturated", _profiles),
    "latency": Scenario("hop and whole flow at 1, 10, 200, 1 000 and 5 000 messages/s, open loop", latency),
    "throughput": Scenario("saturated: shapes, bodies, kinds of work; processor time a message by process", throughput),
    "keyed": Scenario("keyed steps with 1, 100 and 10 000 keys", _keyed),
    "shaping": Scenario("conditions, mappings, passthrough", shaping),
    "attachments": Scenario("bodies of 1 and 100 MB by reference, and the memory they take", attachments),
    "scale": Scenario("1 to 50 flows at a fixed total, 1 to 8 replicas", scale),
    "gateway": Scenario("HTTP request-reply at 100 and 1 000 requests/s", gateway),
    "start": Scenario("a flow of three steps, cold and cached, to its first answer; memory of an instance", start),
    "switch": Scenario("WARM_SWITCH under 500 orders/s", _switch),
    "idle": Scenario("many flows started at once and at rest", _idle),
    "ordinary": Scenario("ordinary flows: waking, ticks, 200 flows that sleep", ordinary),
    "tracing": Scenario("what traces cost at 0, 1 and 100 %", _tracing),
    "overload": Scenario("twice what the flow can take", _overload),
    "dead-letters": Scenario("every message given up", _dead_letters),
    "faults": Scenario("kill -9 of each kind of process under load", _faults),
    "watchers": Scenario("what it costs that somebody watches", _watchers),
    "keyboard": Scenario("commands, the edit loop, validation", _keyboard),
}
"""In the order in which they are run."""
