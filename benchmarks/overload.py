"""More than a flow can take: load held at twice its saturation, and memory after many messages.

    python -m benchmarks.overload [--profile fast] [--seconds 60] [--messages 1000000]

Accepted and refused add up to what was sent; what was accepted is processed, and how long that took is measured from
the moment of sending to the reply of the last step, for every tenth message. PSS per process, before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable
from typing import Any

from benchmarks.flows_at_work import OPAQUE_BODY
from benchmarks.mesh_bench import BenchMesh, bench_mesh, pss_of
from benchmarks.raw_nats import RawNats
from benchmarks.sampling import percentile
from headrace.api.message.v1 import message_pb2
from headrace.model import message_ids, subjects

SATURATION_MESSAGES = 10_000
FACTOR = 2.0
SAMPLED = 10
TICK_S = 0.002
SETTLE_LIMIT_S = 60.0
FEW = 10_000


class OverLoad:
    """Open loop: sends at its rate whatever the answers are; a refusal is final."""

    def __init__(self, flow: str, trigger: str) -> None:
        self._flow, self._trigger = flow, trigger
        self._subject = subjects.ingress_subject("default", flow, trigger)
        self._run = uuid.uuid4().hex
        self._client: RawNats
        self._sampled_at: dict[str, float] = {}
        self.sent = self.accepted = self.refused = self.failed = 0
        self.took_s: list[float] = []
        self.worst_late_s = 0.0

    async def connect(self, host: str, port: int) -> None:
        self._client = await RawNats.connect(host, port, self._on_message)
        self._client.subscribe(f"bench.{self._run}.>", 1)

    def _on_message(self, subject: str, reply: str, payload: bytes) -> None:
        if subject.endswith(".reply"):
            began = self._sampled_at.pop(message_pb2.Reply.FromString(payload).execution_id, None)
            if began is not None:
                self.took_s.append(time.monotonic() - began)
        elif b'"error"' not in payload and payload:
            self.accepted += 1
        elif b"10077" in payload:
            self.refused += 1
        else:
            self.failed += 1

    def _send(self) -> None:
        self.sent += 1
        stimulus = message_ids.stimulus_id(self._flow, "inject", f"{self._run}{self.sent}")
        envelope = message_pb2.Envelope(
            id=message_ids.first_message_id(stimulus, self._trigger),
            execution_id=message_ids.execution_id(stimulus),
            body=OPAQUE_BODY,
            content_type="application/octet-stream",
            sent_at_unix_ns=time.time_ns(),
        )
        if self.sent % SAMPLED == 0:
            envelope.reply_to.subject = f"bench.{self._run}.reply"
            self._sampled_at[envelope.execution_id] = time.monotonic()
        self._client.publish(
            self._subject, envelope.SerializeToString(), f"bench.{self._run}.ack.{self.sent}", envelope.id
        )

    async def hold(self, rate: float, seconds: float) -> None:
        """Sends `rate` messages a second for so long."""
        began, sent = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * rate)
            self.worst_late_s = max(self.worst_late_s, (due - sent) / rate)
            for _ in range(due - sent):
                self._send()
            sent = due
            await asyncio.sleep(TICK_S)

    async def settle(self) -> None:
        """Until everything sent has its answer, or the limit."""
        until = time.monotonic() + SETTLE_LIMIT_S
        while self.accepted + self.refused + self.failed < self.sent and time.monotonic() < until:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._client.close()


async def all_pss_mb(bench: BenchMesh, flow: str) -> dict[str, float]:
    """PSS of every process of the mesh and of the flow's instances, MB."""
    found = {role: pss_of(pid) for role, pid in bench.mesh.endpoints.processes.items() if pid}
    for step, pair in (await bench.pss_mb(flow)).items():
        found |= {f"{step} {kind}": value for kind, value in pair.items()}
    return found


async def saturation(bench: BenchMesh, flow: str, count: int) -> float:
    """Messages a second that the flow takes at most."""
    async with bench.blast(flow, OPAQUE_BODY, "application/octet-stream") as load:
        await load.prepare(count)
        before = await bench.processed(flow, "answer")
        began = time.monotonic()
        await load.send()
        ended = await bench.until_processed(flow, "answer", before + count)
    return count / (ended - began)


async def overload(bench: BenchMesh, seconds: float) -> dict[str, Any]:
    """Load held at twice the saturation, straight to the ingress, `max_waiting` 500."""
    flow = await bench.prepare("overload")
    await bench.client.start(flow)
    per_s = await saturation(bench, flow, SATURATION_MESSAGES)
    load = OverLoad(flow, "start")
    await load.connect(*bench.broker)
    try:
        done = await bench.processed(flow, "answer")
        before = await all_pss_mb(bench, flow)
        began = time.monotonic()
        await load.hold(FACTOR * per_s, seconds)
        held_s = time.monotonic() - began
        await load.settle()
        await bench.until_processed(flow, "answer", done + load.accepted)
        processed = await bench.processed(flow, "answer") - done
        after = await all_pss_mb(bench, flow)
    finally:
        load.close()
    await bench.client.stop(flow)
    return {
        "saturation_per_s": round(per_s),
        "rate": round(FACTOR * per_s),
        "seconds": round(held_s, 1),
        "sent": load.sent,
        "accepted": load.accepted,
        "refused": load.refused,
        "unanswered": load.sent - load.accepted - load.refused,
        "processed": processed,
        "accepted_per_s": round(load.accepted / held_s),
        "sampled": len(load.took_s),
        "p50_ms": round(percentile(load.took_s, 0.50) * 1e3, 1),
        "p99_ms": round(percentile(load.took_s, 0.99) * 1e3, 1),
        "sender_late_ms": round(load.worst_late_s * 1e3, 1),
        "pss_mb": {name: [before.get(name, 0.0), after[name]] for name in after},
    }


async def memory(bench: BenchMesh, count: int, told: Callable[[str], None]) -> dict[str, Any]:
    """PSS after ten thousand opaque messages through three steps, and after each quarter of `count`. A sidecar keeps
    ids for a duplicate window or two (100 000 at most, some 10 MB), the broker for one; both are flat from there on."""
    flow = await bench.prepare("overload")
    await bench.client.start(flow)
    done, began = 0, time.monotonic()
    rows: list[dict[str, Any]] = []
    for mark in [FEW, *(count * quarter // 4 for quarter in range(1, 5))]:
        rate = round(await saturation(bench, flow, mark - done))
        done = mark
        rows.append(
            {
                "messages": mark,
                "at_s": round(time.monotonic() - began),
                "messages_per_s": rate,
                "load_1m": round(os.getloadavg()[0], 1),
                "pss_mb": await all_pss_mb(bench, flow),
            }
        )
        told(f"{mark} messages: {json.dumps(rows[-1])}")
    await bench.client.stop(flow)
    return {
        "rows": [{name: value for name, value in row.items() if name != "pss_mb"} for row in rows],
        "pss_mb": {name: [row["pss_mb"].get(name, 0.0) for row in rows] for name in rows[-1]["pss_mb"]},
    }


def overload_lines(result: dict[str, Any]) -> list[str]:
    """What a person reads."""
    found = []
    if held := result.get("overload"):
        found.append(
            f"  overload {held['rate']}/s for {held['seconds']} s: sent {held['sent']} = accepted {held['accepted']} "
            f"+ refused {held['refused']} + unanswered {held['unanswered']}; processed {held['processed']}; "
            f"accepted p50 {held['p50_ms']} ms, p99 {held['p99_ms']} ms"
        )
    for part in ("overload", "memory"):
        if part in result:
            values = result[part]["pss_mb"].items()
            pairs = ", ".join(f"{name} {' -> '.join(map(str, sizes))}" for name, sizes in values)
            found.append(f"  PSS in MB, {part}: {pairs}")
    return found


def told(line: str) -> None:
    print(f"  {line}", flush=True)


async def run(profile: str, seconds: float, messages: int) -> dict[str, Any]:
    result: dict[str, Any] = {"schema": 2, "profile": profile}
    if seconds > 0:
        async with bench_mesh(profile, told) as bench:
            result["overload"] = await overload(bench, seconds)
    if messages >= 4 * FEW:
        async with bench_mesh(profile, told) as bench:
            result["memory"] = await memory(bench, messages, told)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--profile", default="fast", choices=("fast", "durable"))
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the overload is held; 0: leave it out")
    parser.add_argument(
        "--messages", type=int, default=0, help="for the memory run, 40000 or more, for example 1000000; 0: leave out"
    )
    arguments = parser.parse_args()
    import uvloop

    result = uvloop.run(run(arguments.profile, arguments.seconds, arguments.messages))
    print(json.dumps(result, indent=1))
    print("\n".join(overload_lines(result)))


if __name__ == "__main__":
    main()
