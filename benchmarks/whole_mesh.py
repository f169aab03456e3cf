"""What belongs to no profile: fail-over, recovery from kills, many flows at once and at rest; and says it in lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.edit_loop import edit_loop, edit_loop_lines
from benchmarks.fail_over import fail_over
from benchmarks.many_flows import many_flows
from benchmarks.mesh_bench import bench_mesh
from benchmarks.recovery import recovery, recovery_lines
from benchmarks.watchers import watchers, watchers_lines

WATCHED_S = 4.0


async def whole_mesh(flows: int, told: Callable[[str], None]) -> dict[str, Any]:
    """`flows` at rest, of which half are started at once; 0 leaves them out."""
    told("fail-over: the leading orchestrator is killed under 200 orders/s")
    async with bench_mesh("fast", told, orchestrators=2) as bench:
        result: dict[str, Any] = {"fail_over": await fail_over(bench)}
    told("recovery: each kind of process is killed under 100 orders/s")
    async with bench_mesh("fast", told) as bench:
        result["recovery"] = await recovery(bench)
    told("watchers: 0, 1, 10 and 100 clients watch the hops of a flow at 200 messages/s")
    async with bench_mesh("fast", told) as bench:
        result["watchers"] = await watchers(bench, WATCHED_S)
    told("the start of commands, and the edit loop")
    async with bench_mesh("fast", told) as bench:
        result["edit_loop"] = await edit_loop(bench)
    if flows:
        told(f"{flows // 2} flows started at once, {flows} at rest")
        async with bench_mesh("fast", told) as bench:
            result["many_flows"] = await many_flows(bench, at_once=flows // 2, at_rest=flows)
    return result


def whole_mesh_lines(result: dict[str, Any]) -> list[str]:
    """What a person reads."""
    failing = result["fail_over"]
    lines = [
        "\norchestrator killed",
        f"  {'kill -9 of the leader → first verb':<36}{max(failing['first_verb_s']):>10.2f} s",
        f"  {'longest pause of callers at 200/s':<36}{failing['killing']['longest_gap_ms']:>10.1f} ms, else"
        f" {failing['steady']['longest_gap_ms']:.1f} ms",
    ]
    lines += recovery_lines(result["recovery"])
    lines += watchers_lines(result["watchers"])
    lines += edit_loop_lines(result["edit_loop"])
    if many := result.get("many_flows"):
        started, rest = many["started_at_once"], many["at_rest"]
        at_once = f"{started['flows']} started at once, all RUNNING"
        lines += [
            f"\n{rest['flows']} flows",
            f"  {at_once:<36}{started['all_running_s']:>10.1f} s",
            f"  {'at rest, memory':<36}{sum(rest['pss_mb'].values()) / 1024:>10.1f} GB",
            f"  {'at rest, processor':<36}{rest['cpu_percent_sum']:>10.1f} % of a core",
            f"  {'at rest, requests to the broker':<36}{_asked(rest['messages_per_s']):>10.1f} per s",
        ]
    return lines


def _asked(messages: dict[str, float]) -> float:
    return sum(rate for kind, rate in messages.items() if kind.startswith(("api", "kv", "pull")))
