"""A sidecar whose component, broker or own process dies, or whose edge is full: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.broker_process import BrokerProcess
from tests.support.eventually import eventually
from tests.support.sidecar import sidecar_bench
from tests.support.sidecar_sources import HEAD, count_calls
from tests.support.step_assets import STEP


async def test_kill_9_of_the_component_loses_and_doubles_nothing(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await pause(0.2)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, prefetch=16) as bench:
        await bench.run()
        bodies = {b"%d" % number for number in range(100)}
        for body in sorted(bodies):
            await bench.inject(body)
        victim = await bench.until(lambda status: status.in_flight > 0)
        assert victim.in_flight > 0
        os.kill(victim.component_pid, signal.SIGKILL)
        arrived = await bench.take(100)
        assert {found.envelope.body for found in arrived} == bodies
        await bench.until_done()
        assert await bench.waiting("next") == 0
        status = await bench.status()
        assert status.component_starts == 2
        assert status.counters["crashed_calls"] >= victim.in_flight > 0
        assert "SIGKILL" in status.cause


async def test_kill_9_of_the_sidecar_loses_and_doubles_nothing(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(body)
    await ctx.emit(body + b"!")
    await pause(0.05)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, prefetch=16, ack_wait_s=1.0) as bench:
        await bench.run()
        bodies = {b"%d" % number for number in range(100)}
        for body in sorted(bodies):
            await bench.inject(body)
        victim = await bench.until(lambda status: status.in_flight > 0 and status.counters["processed"] > 5)
        await bench.kill_sidecar()
        assert victim.in_flight > 0
        await eventually(lambda: not _is_alive(victim.component_pid))
        await bench.start()
        await bench.until_active()
        arrived = await bench.take(200)
        assert {found.envelope.body for found in arrived} == bodies | {body + b"!" for body in bodies}
        await bench.until_done()
        assert await bench.waiting("next") == 0


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_message_that_kills_the_component_ends_alone(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await pause(0.05)
    if body == b"poison":
        os._exit(7)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.prepare()
        for body in (b"a", b"poison", b"b", b"c"):
            await bench.inject(body, body.decode())
        await bench.start()
        arrived = await bench.take(3)
        assert {found.envelope.body for found in arrived} == {b"a", b"b", b"c"}
        await bench.until_done()
        (letter,) = await bench.dead_letters()
        assert (letter.original.body, letter.reason) == (b"poison", "COMPONENT_DIED")
        status = await bench.status()
        assert status.component_starts == 4
        assert status.state == sidecar_pb2.STEP_STATE_RUNNING


async def test_a_redelivery_doubles_nothing(broker: BrokerProcess, tmp_path: Path) -> None:
    """The broker delivers again what the component still works on, and the ids of its outputs are forgotten."""
    source = (
        HEAD
        + count_calls(tmp_path)
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    note(body)
    await pause(0.5)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.prepare()
        # The sidecar believes in 30 s and extends every 10 s; this consumer delivers again after 0.2 s.
        bench.ack_wait_s = 0.2
        await bench.assets.delete_consumer(bench.stream, "d1_work")
        await bench.make_consumer(STEP)
        await bench.start()
        await bench.inject(b"in", "same")
        await bench.take(1)
        await bench.until_done()
        status = await bench.status()
        assert status.counters["redelivered"] >= 1
        assert (tmp_path / "calls").read_bytes() == b"in\n"
        assert await bench.waiting("next") == 0


async def test_the_same_message_stored_twice_is_handled_once(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path) as bench:
        await bench.run()
        await bench.inject(b"in", "same")
        await bench.take(1)
        await bench.until_done()
        # Kill -9 makes the broker forget the ids of consumed messages.
        broker.kill()
        assert broker.process is not None
        await broker.process.wait()
        await broker.start()
        await eventually(lambda: bench.connection.is_connected)
        await bench.inject(b"in", "same")
        await bench.until_done()
        await bench.until(lambda status: status.counters["received"] == 2)
        assert await bench.waiting("next") == 0
        assert (await bench.status()).counters["duplicates"] == 1


async def test_a_broker_restart_under_load_loses_and_doubles_nothing(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await pause(0.02)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, prefetch=32, ack_wait_s=3.0) as bench:
        await bench.run()
        bodies = {b"%d" % number for number in range(300)}
        for body in sorted(bodies):
            await bench.inject(body)
        await bench.until(lambda status: status.in_flight > 0 and status.counters["processed"] > 20)
        broker.kill()
        assert broker.process is not None
        await broker.process.wait()
        await broker.start()
        await eventually(lambda: bench.connection.is_connected)
        arrived = await bench.take(300, within_s=30)
        assert {found.envelope.body for found in arrived} == bodies
        await bench.until_done()
        assert await bench.waiting("next") == 0


async def test_a_full_edge_slows_the_step_and_recovers(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, max_waiting=20, prefetch=8) as bench:
        await bench.prepare()
        await bench.start()
        await bench.until_active()
        for number in range(20):
            await bench.inject(b"%d" % number)
        await bench.until_done()
        for number in range(20, 40):
            await bench.inject(b"%d" % number)
        status = await bench.until(lambda status: status.counters["refused_full"] > 5)
        assert status.in_flight == 8
        assert await bench.waiting("next") == 20
        arrived = await bench.take(40)
        assert {found.envelope.body for found in arrived} == {b"%d" % number for number in range(40)}
        await bench.until_done()
