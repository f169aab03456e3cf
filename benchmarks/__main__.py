"""`make bench`: runs the scenarios, prints a table, writes build/bench.json."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import scenarios
from benchmarks.dead_letters import dead_letters
from benchmarks.floors import measure_floors
from benchmarks.keyed import keyed, keyed_lines
from benchmarks.mesh_bench import bench_mesh
from benchmarks.overload import overload, overload_lines
from benchmarks.switching import RATE, switching
from benchmarks.tracing import tracing, tracing_lines
from benchmarks.validate import validate
from benchmarks.whole_mesh import whole_mesh, whole_mesh_lines
from headrace import __version__
from headrace.edge.broker_process import PROFILES, BrokerProcess

TARGET = Path("build/bench.json")


def told(line: str) -> None:
    print(f"  {line}", flush=True)


def machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": commit.stdout.strip(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


async def run(seconds: float, count: int, overload_s: float, flows: int) -> dict[str, Any]:
    """Everything, one after another; floors first, in the same run."""
    result: dict[str, Any] = {"schema": 1, "headrace": __version__, "machine": machine(), "profiles": {}}
    for profile in PROFILES:
        told(f"{profile}: floors")
        with tempfile.TemporaryDirectory() as folder:
            broker = BrokerProcess(Path(folder), profile=profile)
            await broker.start()
            try:
                floors = await measure_floors(broker, seconds / 2)
            finally:
                await broker.stop()
        async with bench_mesh(profile, told) as bench:
            told(f"{profile}: latency at {scenarios.RATE:.0f} messages/s")
            measured: dict[str, Any] = {"floors": floors, "latency": await scenarios.latency(bench, seconds)}
            told(f"{profile}: throughput")
            measured["throughput"] = {
                kind: await scenarios.throughput(bench, kind, count if profile == "fast" else count // 4)
                for kind in ("opaque", "typed")
            }
            told(f"{profile}: start")
            measured["start"] = await scenarios.start(bench)
            told(f"{profile}: switching under {RATE:.0f} orders/s")
            measured["switching"] = await switching(bench)
            told(f"{profile}: every message dead-lettered")
            measured["dead_letters"] = await dead_letters(bench, max(500, count // 10))
            told(f"{profile}: keyed steps")
            measured["keyed"] = await keyed(bench, count if profile == "fast" else count // 4)
            if overload_s > 0:
                told(f"{profile}: twice the saturation for {overload_s:g} s")
                measured["overload"] = await overload(bench, overload_s)
            measured["mesh_start_s"] = round(bench.mesh.start_s, 2)
        floor_us = floors["publish_to_deliver"]["p50_us"] + floors["unix_socket_round_trip"]["p50_us"]
        hop_us = measured["latency"]["hop"].get("p50_us", 0.0)
        measured["hop_to_floor"] = round(hop_us / floor_us, 2) if floor_us else 0.0
        result["profiles"][profile] = measured
    result["tracing"] = await tracing(told, count)
    result["validate"] = await asyncio.to_thread(validate)
    return result | await whole_mesh(flows, told)


def table(result: dict[str, Any]) -> str:
    """What a person reads."""
    lines = []
    for profile, measured in result["profiles"].items():
        floors, hop = measured["floors"], measured["latency"]["hop"]
        memory = [sum(pair.values()) for pair in measured["latency"]["pss_mb"].values()]
        rows = [
            ("raw publish→deliver p50 / p99", *_pair(floors["publish_to_deliver"])),
            ("raw Unix socket round trip", *_pair(floors["unix_socket_round_trip"])),
            ("raw gRPC round trip", *_pair(floors["grpc_round_trip"])),
            ("hop at 200 messages/s", *_pair(hop)),
        ]
        lines.append(f"\n{profile}")
        lines += [f"  {name:<36}{p50:>10.2f} ms {p99:>10.2f} ms" for name, p50, p99 in rows]
        lines.append(f"  {'hop p50 ÷ floor (deliver + socket)':<36}{measured['hop_to_floor']:>10.2f}")
        for kind, value in measured["throughput"].items():
            lines.append(f"  {'trigger + 2 actions, ' + kind:<36}{value['messages_per_s']:>10} messages/s")
        for kind, value in measured["start"].items():
            lines.append(f"  {'start, ' + kind + ', to first answer':<36}{value['first_answer_s']:>10.2f} s")
        felt = measured["switching"]
        for part in ("steady", "switching"):
            values = felt[part]
            lines.append(f"  {'caller at 500/s, ' + part + ', p99':<36}{values['p99_ms']:>10.2f} ms, longest pause")
            lines[-1] += f" {values['longest_gap_ms']:.0f} ms"
        lines.append(f"  {'restart → first answer by new code':<36}{max(felt['first_on_new_code_s']):>10.2f} s")
        if memory:
            lines.append(f"  {'PSS of one instance':<36}{max(memory):>10.1f} MB")
        letters = measured["dead_letters"]
        lines.append(f"  {'every message dead-lettered':<36}{letters['dead_lettered_per_s']:>10} messages/s")
        lines.append(f"  {'the same flow, none fails':<36}{letters['processed_per_s']:>10} messages/s")
        lines += keyed_lines(measured["keyed"])
        lines += overload_lines(measured)
    errors = [floor["histogram_error_percent"] for floor in _floors(result)]
    lines.append(f"\n  {'histograms against raw samples':<36}{max(errors):>10.2f} % off at most (p50, p95, p99)")
    lines += tracing_lines(result["tracing"])
    checked = result["validate"]
    lines.append(f"\n  {'validate a flow of 100 steps':<36}{checked['all_ms']:>10.1f} ms")
    return "\n".join(lines + whole_mesh_lines(result))


def _floors(result: dict[str, Any]) -> list[dict[str, float]]:
    return [floor for measured in result["profiles"].values() for floor in measured["floors"].values()]


def _pair(values: dict[str, float]) -> tuple[float, float]:
    return values.get("p50_us", 0.0) / 1000, values.get("p99_us", 0.0) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a latency run (default 10)")
    parser.add_argument("--messages", type=int, default=40_000, help="messages of a throughput run, fast profile")
    parser.add_argument("--overload-seconds", type=float, default=60.0, help="at twice the saturation (default 60)")
    parser.add_argument("--flows", type=int, default=200, help="flows at rest, 0 for none; 40 MB each (default 200)")
    arguments = parser.parse_args()
    import uvloop

    result = uvloop.run(run(arguments.seconds, arguments.messages, arguments.overload_seconds, arguments.flows))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"\nwritten to {TARGET}")


if __name__ == "__main__":
    main()
