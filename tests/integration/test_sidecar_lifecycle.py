"""How an instance starts, fails to start, drains and ends: real processes, called through its Lifecycle socket."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.broker_process import BrokerProcess
from headrace.model.deployment import DeploymentPhase
from headrace.model.message_ids import output_message_id, stimulus_id
from tests.support.eventually import eventually
from tests.support.sidecar import sidecar_bench
from tests.support.sidecar_life import PREPARING, prepare, reason_of, until_failed, until_warm
from tests.support.step_assets import STEP

HEAD = """
import os, pathlib, sys, time
from asyncio import sleep as pause
from headrace.sdk import Component, Context

component = Component()
"""


async def test_prepare_activate_drain_shutdown(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await pause(0.3)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, phase=PREPARING, generation=4) as bench:
        await bench.prepare()
        await bench.start()
        sleeping = await bench.status()
        assert sleeping.state == sidecar_pb2.STEP_STATE_SLEEPING
        assert sleeping.generation == 4
        assert (await prepare(bench, 5)).state == sidecar_pb2.STEP_STATE_STARTING
        warm = await until_warm(bench)
        assert warm.revision == bench.digest
        assert warm.sdk.startswith("headrace-python/")
        assert warm.interpreter
        await bench.inject(b"in")
        assert (await bench.status()).counters["received"] == 0
        await bench.lifecycle.Activate(sidecar_pb2.ActivateRequest(generation=5))
        await bench.until(lambda status: status.in_flight == 1)
        answer = await bench.lifecycle.Drain(sidecar_pb2.DrainRequest(generation=6))
        assert answer.status.progress == sidecar_pb2.PROGRESS_DRAINING
        # A puller goes on until nothing is left, and handles what comes meanwhile.
        await bench.inject(b"more")
        drained = await bench.until(
            lambda status: status.progress == sidecar_pb2.PROGRESS_DRAINED and status.counters["processed"] == 2
        )
        assert drained.in_flight == 0
        assert len(await bench.take(2)) == 2
        pid = drained.component_pid
        await bench.lifecycle.Shutdown(sidecar_pb2.ShutdownRequest(generation=7))
        assert bench.sidecar is not None
        assert await bench.sidecar.wait() == 0
        assert not Path(f"/proc/{pid}").exists()


async def test_a_stale_generation_is_refused(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, phase=PREPARING, generation=7) as bench:
        await bench.prepare()
        await bench.start()
        calls: list[tuple[Any, Any]] = [
            (bench.lifecycle.Prepare, sidecar_pb2.PrepareRequest(generation=6)),
            (bench.lifecycle.Shutdown, sidecar_pb2.ShutdownRequest(generation=6)),
        ]
        for call, request in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason_of(caught.value) == "STALE_GENERATION"
        assert (await bench.status()).state == sidecar_pb2.STEP_STATE_SLEEPING


async def test_activate_needs_warm(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, phase=PREPARING) as bench:
        await bench.prepare()
        await bench.start()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.lifecycle.Activate(sidecar_pb2.ActivateRequest(generation=1))
        assert reason_of(caught.value) == "NOT_WARM"


async def test_every_stage_is_watched(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, phase=PREPARING) as bench:
        await bench.prepare()
        await bench.start()
        seen: list[Any] = []
        watch = bench.lifecycle.WatchStatus(sidecar_pb2.WatchStatusRequest(), timeout=20)
        async for message in watch:
            if not seen:
                await prepare(bench)
            seen.append(message.status.progress)
            if seen[-1] == sidecar_pb2.PROGRESS_WARM:
                break
        watch.cancel()
        assert seen[0] == sidecar_pb2.PROGRESS_UNSPECIFIED
        assert seen == sorted(seen)
        assert len(set(seen)) >= 4


# Code that changes what the SDK says for it in the handshake.
LYING = (
    HEAD
    + """
@component.action
async def work(body: bytes) -> None: ...

import headrace.sdk.server as server

kind = next(found for found in vars(server).values() if getattr(found, "__module__", "") == server.__name__
            and hasattr(found, "Handshake"))
honest = kind.Handshake

async def lie(self, request, context):
    answer = await honest(self, request, context)
    %s
    return answer

kind.Handshake = lie
"""
)


@pytest.mark.parametrize(
    ("source", "reason", "text"),
    [
        ("import not_there\n", "COMPONENT_EXITED", "not_there"),
        ("def broken(:\n", "COMPONENT_EXITED", "SyntaxError"),
        (
            HEAD + "@component.action\nasync def other(body: bytes) -> None: ...\n",
            "UNKNOWN_FUNCTION",
            "no function 'work'",
        ),
        (LYING % "answer.protocol_version = 9", "PROTOCOL_VERSION", "speaks version 9 of the contract, not 1"),
        (LYING % "answer.functions.add(name='work')", "DUPLICATE_FUNCTION", "claims its function 'work' twice"),
        (
            HEAD + "@component.init\nasync def start() -> None:\n    os._exit(0)\n"
            "@component.action\nasync def work(body: bytes) -> None: ...\n",
            "COMPONENT_EXITED_IN_INIT",
            "exit status 0",
        ),
        (
            HEAD + "@component.init\nasync def start() -> None:\n    os._exit(9)\n"
            "@component.action\nasync def work(body: bytes) -> None: ...\n",
            "COMPONENT_EXITED_IN_INIT",
            "exit status 9",
        ),
        (
            HEAD + "@component.init\nasync def start() -> None:\n    raise ValueError('no licence')\n"
            "@component.action\nasync def work(body: bytes) -> None: ...\n",
            "INIT_FAILED",
            "no licence",
        ),
        ("import time\ntime.sleep(60)  # tidy: pace\n", "COMPONENT_SOCKET_NOT_OPENED", "did not open its socket"),
    ],
    ids=[
        "not-importable",
        "syntax",
        "wrong-function",
        "unknown-protocol",
        "function-twice",
        "exits-0-in-init",
        "exits-in-init",
        "raises-in-init",
        "no-socket",
    ],
)
async def test_a_component_that_cannot_start_says_why(
    broker: BrokerProcess, tmp_path: Path, source: str, reason: str, text: str
) -> None:
    async with sidecar_bench(
        broker.url, tmp_path, source=source, phase=PREPARING, component_start_limit_s=1.5
    ) as bench:
        await bench.prepare()
        await bench.start()
        failed = await until_failed(bench)
        assert failed.cause_reason == reason
        assert text in failed.cause


async def test_a_start_that_failed_recovers_by_itself(broker: BrokerProcess, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    source = (
        HEAD
        + f"""
if not pathlib.Path({str(flag)!r}).exists():
    sys.exit("the flag is not there")

@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.prepare()
        await bench.start()
        failed = await bench.until(lambda status: status.state == sidecar_pb2.STEP_STATE_FAILED)
        assert "the flag is not there" in failed.cause
        await bench.inject(b"in")
        flag.touch()
        await bench.until_active()
        await bench.take(1)


async def test_a_crash_loop_is_failed_and_recovers(broker: BrokerProcess, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    source = (
        HEAD
        + f"""
@component.action
async def work(body: bytes, ctx: Context) -> None:
    if not pathlib.Path({str(flag)!r}).exists():
        print("giving up")
        os._exit(3)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        for number in range(6):
            await bench.inject(b"%d" % number)
        failed = await bench.until(lambda status: status.state == sidecar_pb2.STEP_STATE_FAILED)
        assert failed.cause_reason == "COMPONENT_CRASH_LOOP"
        assert "giving up" in failed.last_log_lines[-1]
        flag.touch()
        await bench.until_active()
        await bench.until_done()
        arrived = await bench.waiting("next")
        assert arrived + len(await bench.dead_letters()) == 6
        assert arrived > 0


async def test_a_draining_deployment_goes_on_without_orchestrator(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, phase=DeploymentPhase.DRAINING) as bench:
        await bench.prepare()
        await bench.inject(b"in")
        await bench.start()
        await bench.take(1)
        await bench.until(lambda status: status.progress == sidecar_pb2.PROGRESS_DRAINED)


async def test_sigterm_finishes_what_is_in_flight(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await pause(0.4)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, prefetch=4) as bench:
        await bench.run()
        for number in range(20):
            await bench.inject(b"%d" % number)
        held = await bench.until(lambda status: status.in_flight == 4)
        assert bench.sidecar is not None
        bench.sidecar.signal(signal.SIGTERM)
        assert await bench.sidecar.wait() == 0
        done = await bench.waiting("next")
        assert done >= held.in_flight
        # Nothing is left half-done: the rest waits as it came.
        assert await bench.waiting(STEP) == 20 - done


async def test_the_environment_of_a_component_holds_no_secrets(
    broker: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "s3cret")
    source = (
        HEAD
        + """
import json

@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(json.dumps(dict(os.environ)).encode())
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, config={"password": "hunter2"}) as bench:
        await bench.run()
        await bench.inject(b"in")
        (arrived,) = await bench.take(1)
        assert b"s3cret" not in arrived.envelope.body
        assert b"hunter2" not in arrived.envelope.body
        assert b"HEADRACE_NATS_URL" not in arrived.envelope.body


async def test_a_listener_feeds_the_next_step_and_drains(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + f"""
@component.listener
async def work(ctx: Context) -> None:
    number = 0
    while True:
        await ctx.emit(b"%d" % number, source_id=str(number))
        with open({str(tmp_path / "committed")!r}, "a") as file:
            file.write(f"{{number}} ")
        number += 1
        await pause(0.01)
"""
    )
    async with sidecar_bench(
        broker.url, tmp_path, source=source, kind="listener", receivers=("left", "right"), max_waiting=10
    ) as bench:
        await bench.run()
        # The edges are full: nothing more is committed than they took.
        await bench.until(lambda status: status.counters["refused_full"] > 2)
        committed = (tmp_path / "committed").read_text().split()
        assert len(committed) == 10
        arrived, _ = await asyncio.gather(bench.take(15, "left"), bench.take(15, "right"))
        assert [found.envelope.body for found in arrived] == [b"%d" % number for number in range(15)]
        stimulus = stimulus_id("bench", "listener", f"{STEP}:3")
        assert arrived[3].message_id == output_message_id(stimulus, STEP, "0", "left")
        await bench.lifecycle.Drain(sidecar_pb2.DrainRequest(generation=2))
        await bench.until(lambda status: status.progress == sidecar_pb2.PROGRESS_DRAINED)
        committed = (tmp_path / "committed").read_text().split()

        async def all_that_was_committed_is_stored() -> bool:
            return await bench.waiting("left") + 15 >= len(committed)

        await eventually(all_that_was_committed_is_stored)


async def test_kill_9_of_the_sidecar_ends_the_component(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path) as bench:
        await bench.run()
        pid = (await bench.status()).component_pid
        assert os.path.exists(f"/proc/{pid}")
        await bench.kill_sidecar()

        def gone() -> bool:
            try:
                return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
            except OSError:
                return True

        await eventually(gone)
