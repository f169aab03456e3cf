"""Revisions that do not work, published into a running flow: what runs goes on, and the publish says why it failed.

Crashes in `init`, hangs in `init`, fails the self-check, is altered in the bundle store, or works for ten messages
and then crashes whenever it starts. And work that takes longer than a switch.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.client import AsyncClient
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import bucket_names
from headrace.model.errors import HeadraceError
from tests.robustness.ledger import Outcome
from tests.robustness.pinned_flow import WORK, PinnedFlow, stop
from tests.robustness.settled import Inspector
from tests.robustness.traffic import Traffic, answers_by
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

RATE = 60.0
CRASHES_IN_INIT = """

@component.init
def fail() -> None:
    print("the tap is stuck")
    raise RuntimeError("no water")
"""
EXITS_IN_INIT = """

@component.init
def leave() -> None:
    import os

    print("leaving")
    os._exit(3)
"""
HANGS_IN_INIT = """

@component.init
async def hang() -> None:
    await asyncio.Event().wait()
"""
# The loop is blocked as soon as the stream is opened, so that the ping of the self-check is not answered.
FAILS_SELF_CHECK = """

@component.init
def spoil() -> None:
    import threading

    from headrace.sdk.process_stream import ProcessStream

    ProcessStream.run = lambda self: threading.Event().wait()
"""
CRASHES_AFTER_TEN = """

import os
from pathlib import Path

COUNT = Path("{count}")


def _handled() -> int:
    return COUNT.stat().st_size if COUNT.exists() else 0


@component.init
def check() -> None:
    if _handled() >= 10:
        print("ten are enough")
        os._exit(9)


inner = component


component = Component()
component.init(check)


@component.action
async def work(order: dict[str, Any], ctx: Context) -> None:
    if _handled() >= 10:
        os._exit(9)
    with COUNT.open("ab") as file:
        file.write(b".")
    await ctx.emit({**order, "touched": [[ctx.step.step, ctx.step.deployment, REVISION]]})
"""


@pytest.fixture(scope="module")
def kept(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedFlow]:
    flow = PinnedFlow("broken", tmp_path_factory.mktemp("effects"))
    yield flow
    stop(mesh, flow)


@pytest.fixture
async def flow(mesh: RunningMesh, kept: PinnedFlow) -> AsyncIterator[PinnedFlow]:
    async with AsyncClient(mesh.api) as client:
        kept.use(client)
        if not kept.reigns:
            await kept.begin()
        yield kept


async def failed_publish(mesh: RunningMesh, flow: PinnedFlow, work: str, *, timeout_s: float = 60.0) -> HeadraceError:
    """Publishes under traffic and expects a refusal that leaves everything as it was; answers the error."""
    async with Inspector(mesh) as inspector:
        before = await eventually(lambda: inspector.settled(flow), within_s=30, every_s=0.1)
        async with Traffic(mesh.endpoints.gateways, flow.path, rate=RATE) as traffic:
            await eventually(lambda: traffic.counted(Outcome.OK) >= 10, within_s=10)
            with pytest.raises(HeadraceError) as caught:
                await flow.publish(work, timeout_s=timeout_s)
            enough = traffic.sent + 10
            await eventually(lambda: traffic.sent >= enough, within_s=10)
            attempts = await traffic.finish()
        ledger, pins = await flow.judge(traffic.run, attempts)
        assert ledger.ok, ledger.line()
        assert pins.ok, pins.complaints()
        assert ledger.acknowledged == ledger.attempted
        assert set(pins.answered_by_deployment) == {before}
        after = await eventually(lambda: inspector.settled(flow), within_s=30, every_s=0.1)
        assert after == before
    print(f"publish refused, {ledger.attempted} requests went on: {caught.value.message.splitlines()[0]}")
    return caught.value


@pytest.mark.timeout(60)
async def test_a_crash_in_init_is_named_with_its_last_lines(mesh: RunningMesh, flow: PinnedFlow) -> None:
    error = await failed_publish(mesh, flow, (await flow.push(WORK, CRASHES_IN_INIT)).reference)
    assert "no water" in error.message
    assert "'work'" in error.message
    error = await failed_publish(mesh, flow, (await flow.push(WORK, EXITS_IN_INIT)).reference)
    assert "exit status 3" in error.message
    assert "leaving" in error.message


@pytest.mark.timeout(60)
async def test_an_altered_bundle_is_refused(mesh: RunningMesh, flow: PinnedFlow) -> None:
    """What the store holds under a digest is not what was pushed; the good revision under the same name works."""
    pushed = await flow.push(WORK)
    other = await flow.push(WORK)
    connection = await connect_nats(mesh.endpoints.nats, "vandal")
    try:
        store = await connection.jetstream().object_store(bucket_names.bundle_store("default"))
        stolen = (await store.get(other.digest.removeprefix("sha256:"))).data
        assert stolen is not None
        await store.put(pushed.digest.removeprefix("sha256:"), stolen)
    finally:
        await close_nats(connection)
    error = await failed_publish(mesh, flow, pushed.reference)
    assert "digest" in error.message or "damaged" in error.message, error.message
    reign = await flow.publish(other.reference)
    assert reign.pins["work"] == other.constant


@pytest.mark.timeout(60)
async def test_a_failed_self_check_is_named(mesh: RunningMesh, flow: PinnedFlow) -> None:
    error = await failed_publish(mesh, flow, (await flow.push(WORK, FAILS_SELF_CHECK)).reference)
    assert "'work'" in error.message
    assert "ping" in error.message.lower() or "self" in error.message.lower(), error.message


@pytest.mark.timeout(60)
async def test_a_hang_in_init_ends_with_the_publish_s_own_limit(mesh: RunningMesh, flow: PinnedFlow) -> None:
    hanging = await flow.push(WORK, HANGS_IN_INIT)
    error = await failed_publish(mesh, flow, hanging.reference, timeout_s=4.0)
    assert error.reason == "START_TIMEOUT"
    assert "'work'" in error.message


@pytest.mark.timeout(60)
async def test_a_registry_that_is_down_holds_up_no_sidecar_that_starts_again(
    mesh: RunningMesh, flow: PinnedFlow
) -> None:
    """Its verified bundle on disk is enough."""
    active = await flow.active()
    registry = mesh.pid_of("registry")
    async with Traffic(mesh.endpoints.gateways, flow.path, rate=RATE) as traffic:
        await eventually(lambda: traffic.counted(Outcome.OK) >= 10, within_s=10)
        os.kill(registry, signal.SIGSTOP)
        try:
            began = time.monotonic()
            mesh.kill("sidecar", flow.name, "work", deployment=active)
            await answers_by(traffic, active, after=traffic.sent, within_s=15)
            took_s = time.monotonic() - began
        finally:
            os.kill(registry, signal.SIGCONT)
        attempts = await traffic.finish()
    ledger, pins = await flow.judge(traffic.run, attempts)
    print(f"sidecar restarted without a registry, answers after {took_s:.2f} s: {pins.line()}; {ledger.line()}")
    assert pins.ok, pins.complaints()
    assert ledger.ok, ledger.line()


@pytest.mark.timeout(90)
async def test_a_crash_loop_is_shown_and_a_rollback_mends_it(
    mesh: RunningMesh, flow: PinnedFlow, tmp_path: Path
) -> None:
    """What waits for the broken deployment is moved to the one that works, by a person's choice."""
    good = await flow.active()
    version = flow.reigns[good].version
    breaking = await flow.push(WORK, CRASHES_AFTER_TEN.replace("{count}", str(tmp_path / "handled")))
    async with Traffic(mesh.endpoints.gateways, flow.path, rate=RATE, answer_limit_s=40) as traffic:
        broken = (await flow.publish(breaking.reference)).deployment
        step = await eventually(partial(failed_step, flow, "work"), within_s=30, every_s=0.1)
        assert step is not None
        assert "exit status 9" in step.instances[0].cause
        status = await flow.client.get_status(flow.name)
        others = {found.step: found.state for found in status.steps if found.step != "work"}
        assert set(others.values()) == {sidecar_pb2.STEP_STATE_RUNNING}
        mended = await flow.rollback(version)
        assert mended.pins == flow.reigns[good].pins
        await answers_by(traffic, mended.deployment, after=traffic.sent)
        attempts = await traffic.finish()
    await flow.resolve_drain(broken, flow_pb2.DRAIN_CHOICE_MOVE)
    async with Inspector(mesh) as inspector:
        await eventually(lambda: inspector.settled(flow), within_s=30, every_s=0.1)
    ledger, pins = await flow.judge(traffic.run, attempts)
    print(f"crash loop of d{broken}, mended by d{mended.deployment}: {ledger.line()}")
    assert not ledger.lost | ledger.duplicated | ledger.refused | ledger.unexpected, ledger.line()
    # Callers of what was moved had their 504 by then; every one of their messages was handled in the end.
    unanswered = {attempt.id for attempt in attempts if attempt.status == 504}
    assert unanswered <= {effect.id for effect in flow.effects(traffic.run)}
    assert not pins.unpinned, pins.complaints()


async def failed_step(flow: PinnedFlow, name: str) -> flow_pb2.StepStatus | None:
    status = await flow.client.get_status(flow.name)
    return next(
        (step for step in status.steps if step.step == name and step.state == sidecar_pb2.STEP_STATE_FAILED), None
    )
