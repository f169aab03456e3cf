"""One flow that is stuck, full, and in a storm of retries never slows another, and takes nothing from it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.edge.child_process import ChildProcess, Command, own_module
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh

HOSTILE = """
import asyncio
from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.action
async def stuck(order: dict) -> None:
    await asyncio.Event().wait()


@component.action
async def storm(order: dict) -> None:
    raise ComponentError("BUSY", "as always", retryable=True)


@component.action
async def answer(order: dict, ctx: Context) -> None:
    with open(ctx.config["notes"], "a") as notes:
        notes.write(f"{order['n']}\\n")
    await ctx.reply({"n": order["n"]})
"""
MANIFEST = "name: hostile\nfunctions: {stuck: {kind: action}, storm: {kind: action}, answer: {kind: action}}\n"
WEBHOOK = ROOT / "components" / "webhook"
REQUESTS = 150
# More than it may hold of this gateway.
HOSTILE_CALLERS = 60


@contextlib.asynccontextmanager
async def small_gateway(mesh: RunningMesh) -> AsyncIterator[str]:
    """A gateway of the mesh with room for forty requests; its address."""
    arguments = ("--nats", mesh.endpoints.nats, "--listen", "127.0.0.1:0", "--max-requests", "40")
    child = ChildProcess.spawn(Command(own_module("services.gateway", *arguments)), readiness=True)
    try:
        yield str((await child.ready(20.0))["address"])
    finally:
        await child.end(3.0)


async def _measure(gateway: str, first: int) -> list[float]:
    """Seconds that each of the requests took; four callers, one request after the other."""
    numbers = iter(range(first, first + REQUESTS))
    took: list[float] = []

    async def caller() -> None:
        for number in numbers:
            began = time.monotonic()
            answer = await fetch(gateway, "POST", "/hook/good", b'{"n": %d}' % number)
            took.append(time.monotonic() - began)
            assert (answer.status, answer.json()) == (200, {"n": number})

    await asyncio.gather(*(caller() for _ in range(4)))
    return sorted(took)


@pytest.mark.timeout(150)
async def test_a_stuck_flow_in_a_storm_of_retries_leaves_another_flow_alone(mesh: RunningMesh, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "component.yaml").write_text(MANIFEST)
    (tmp_path / "hostile" / "component.py").write_text(HOSTILE)
    (tmp_path / "good.yaml").write_text(
        "name: good\nreply_timeout: 20s\nsteps:\n"
        f"  receive: {{component: {WEBHOOK}, function: receive, to: [answer]}}\n"
        f"  answer: {{component: ./hostile, function: answer, config: {{notes: {notes}}}}}\n"
    )
    retry = "retry: {attempts: 100, backoff: 40ms, max_delay: 40ms, jitter: 1}"
    (tmp_path / "bad.yaml").write_text(
        "name: bad\nreply_timeout: 60s\nmax_waiting: 30\nsteps:\n"
        f"  receive: {{component: {WEBHOOK}, function: receive, prefetch: 8, to: [stuck, storm]}}\n"
        "  stuck: {component: ./hostile, function: stuck, prefetch: 8, timeout: 10m}\n"
        f"  storm: {{component: ./hostile, function: storm, prefetch: 16, {retry}}}\n"
    )
    statuses: Counter[str] = Counter()
    stopped = asyncio.Event()

    async def hostile_caller(gateway: str) -> None:
        while not stopped.is_set():
            answer = await fetch(gateway, "POST", "/hook/bad", b"{}")
            statuses[answer.json()["error"]["code"]] += 1
            await asyncio.sleep(0.2)  # tidy: pace

    async with AsyncClient(mesh.api) as client, small_gateway(mesh) as gateway:
        for flow in ("good", "bad"):
            await client.apply(tmp_path / f"{flow}.yaml")
            await client.publish(flow)
            await client.start(flow)
        alone = await _measure(gateway, 0)
        callers = [asyncio.create_task(hostile_caller(gateway)) for _ in range(HOSTILE_CALLERS)]

        async def it_storms() -> bool:
            found = {step.step: step for step in (await client.get_status("bad")).steps}
            retried = sum(instance.counters["retried"] for instance in found["storm"].instances)
            full = found["receive"].waiting + found["receive"].in_flight
            return full >= 22 and retried > 200 and statuses["FLOW_SHARE_USED"] > 0

        await eventually(it_storms, within_s=30)
        beside = await _measure(gateway, REQUESTS)
        stopped.set()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await client.stop("bad", drop=True)
        assert set(statuses) <= {"FLOW_SHARE_USED", "FLOW_FULL", "BUSY"}
    assert sorted(map(int, notes.read_text().split())) == list(range(2 * REQUESTS)), "each once, none lost"
    half, most = len(alone) // 2, int(len(alone) * 0.95)
    print(f"alone p50 {alone[half] * 1e3:.1f} p95 {alone[most] * 1e3:.1f} ms; beside a hostile flow "
          f"p50 {beside[half] * 1e3:.1f} p95 {beside[most] * 1e3:.1f} ms; {dict(statuses)}")  # fmt: skip
    # Two cores are shared, so it costs something; waiting for the other flow's room would cost seconds.
    assert beside[half] < 8 * alone[half] + 0.1
    assert beside[most] < 8 * alone[most] + 0.3
