"""The scheduler on a real broker: each instant stored once, whoever ticks, and what cannot be stored is counted."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from nats.aio.client import Client

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState, PinPlan, StepPlan
from headrace.model.flow_spec import RetryPolicy
from headrace.model.flow_stream import flow_stream_config, ingress_transform
from headrace.model.route import Route
from headrace.wire.envelope import decode_envelope
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot
from services.orchestrator.domain.tick_plan import TickCursor
from services.orchestrator.scheduler import Scheduler
from services.orchestrator.stores import Stores
from tests.support.eventually import eventually

FLOW = "ticker"
STREAM = subjects.flow_stream("default", FLOW)


@dataclass
class Rig:
    """A flow's stream, and as many schedulers as a test makes."""

    broker: BrokerProcess
    connection: Client
    stores: Stores
    assets: JetStreamAssets
    schedulers: list[Scheduler]

    def scheduler(self, is_leader: Any = lambda: True) -> Scheduler:
        made = Scheduler(self.stores, self.assets, is_leader=is_leader)
        self.schedulers.append(made)
        made.start()
        return made

    async def make_stream(self, max_waiting: int = 10_000) -> None:
        listed = [subjects.ingress_filter("default", FLOW), subjects.owner_filter("default", FLOW, "d1")]
        config = flow_stream_config(STREAM, listed, max_waiting=max_waiting)
        await self.assets.create_stream(config | {"subject_transform": ingress_transform("default", FLOW, "d1")})

    async def stored(self) -> int:
        info = await self.assets.stream_info(STREAM)
        assert info is not None
        return int(info["state"]["messages"])

    async def instants(self) -> list[int]:
        """Instants of all ticks, in the order in which they are stored; Unix milliseconds."""
        found = []
        for sequence in range(1, await self.stored() + 1):
            answer = await self.assets.request(f"STREAM.MSG.GET.{STREAM}", {"seq": sequence})
            envelope = decode_envelope(base64.b64decode(answer["message"]["data"]))
            assert answer["message"]["subject"] == f"hr.default.{FLOW}.d1.tick.0"
            found.append(int(json.loads(envelope.body)["unix_ms"]))
        return found

    async def cursor(self) -> TickCursor:
        found = await self.stores.tick_cursor(FLOW)
        assert found is not None
        return found[0]


@pytest.fixture
async def rig(broker: BrokerProcess) -> AsyncIterator[Rig]:
    connection = await connect_nats(broker.url, "test")
    assets = JetStreamAssets(connection)
    running = Rig(broker, connection, await Stores.open(connection, "default"), assets, [])
    yield running
    for scheduler in running.schedulers:
        await scheduler.stop()
    await close_nats(connection)


def snapshot(
    every_s: float, *, state: FlowState = FlowState.RUNNING, since: float | None = None, **timer: str
) -> Snapshot:
    """A flow whose timer has run since then (now, unless said otherwise)."""
    pin = PinPlan("timer", 1, "sha256:00", "", "", "")
    step = StepPlan("tick", "trigger", "tick", pin, {}, (), 64, 60.0, RetryPolicy(), every_s=every_s, **timer)
    plan = DeploymentPlan("default", FLOW, "realtime", 1, 1, "tick", (step,), 1000, 0.0, 1)
    began = time.time() if since is None else since
    phase = DeploymentState(DeploymentPhase.ACTIVE, 1, {"tick": 1}, created_at=began, changed_at=began)
    document = FlowDocument(FLOW, "realtime", began, state=state, active=1, live=(1,), running_since=began)
    view = DeploymentView(1, plan, phase)
    route = Route(FLOW, str(state))
    return Snapshot(time.time(), "default", document, 1, {1: view}, None, {}, True, {}, {}, route, route, {})


def assert_contiguous(instants: list[int], every_ms: int) -> None:
    assert instants == list(range(instants[0], instants[0] + len(instants) * every_ms, every_ms))


async def test_two_schedulers_store_every_instant_once_and_in_order(rig: Rig) -> None:
    await rig.make_stream()
    running = snapshot(0.01)
    for _ in range(2):
        rig.scheduler().observe(running)
    await eventually(lambda: _more_than(rig, 150))
    for scheduler in rig.schedulers:
        await scheduler.stop()
    instants = await rig.instants()
    assert sorted(set(instants)) == sorted(instants)
    assert_contiguous(sorted(instants), 10)
    # A stop may come between the broker's storing of a tick and its answer: the next leader stores it again, under
    # the same id.
    cursor = await rig.cursor()
    uncounted = (max(instants) - cursor.settled_ns // 1_000_000) // 10
    assert uncounted in (0, 1)
    assert cursor.ticks == len(instants) - uncounted


async def _more_than(rig: Rig, count: int) -> bool:
    return await rig.stored() > count


async def test_a_schedule_by_the_clock_is_sent_once_by_two_schedulers_and_made_up_for(rig: Rig) -> None:
    """Two that both think they lead, after an outage of a minute: all of it, once each, in order."""
    await rig.make_stream()
    settled_ns = int(time.time() - 60) * 1_000_000_000
    await rig.stores.write_tick_cursor(FLOW, TickCursor("tick", settled_ns), 0)
    running = snapshot(0.0, since=time.time() - 3600, cron="* * * * * *", catch_up="all")
    for _ in range(2):
        rig.scheduler().observe(running)
    await eventually(lambda: _more_than(rig, 61))
    for scheduler in rig.schedulers:
        await scheduler.stop()
    instants = await rig.instants()
    assert sorted(set(instants)) == sorted(instants)
    assert min(instants) == settled_ns // 1_000_000 + 1000
    assert_contiguous(sorted(instants), 1000)


async def test_who_takes_over_goes_on_with_the_same_instants(rig: Rig) -> None:
    """The first one is cut off without noting how far it was; the second makes up for the time between."""
    await rig.make_stream()
    running = snapshot(0.01)
    leads = [True]
    rig.scheduler(lambda: leads[0]).observe(running)
    await eventually(lambda: _more_than(rig, 130))
    leads[0] = False
    before = await rig.stored()
    await asyncio.sleep(0.5)  # tidy: pace
    assert await rig.stored() <= before + 1
    rig.scheduler().observe(running)
    await eventually(lambda: _more_than(rig, before + 150))
    instants = await rig.instants()
    assert_contiguous(instants, 10)
    assert (await rig.cursor()).skipped == 0


async def test_a_broker_restart_costs_no_tick_and_doubles_none(rig: Rig) -> None:
    await rig.make_stream()
    rig.scheduler().observe(snapshot(0.01))
    await eventually(lambda: _more_than(rig, 50))
    rig.broker.kill()
    await rig.broker.start()
    await eventually(lambda: _more_than(rig, 250), within_s=20)
    await rig.schedulers[0].stop()
    assert_contiguous(await rig.instants(), 10)


async def test_ticks_for_a_full_edge_are_dropped_and_counted(rig: Rig) -> None:
    await rig.make_stream(max_waiting=5)
    rig.scheduler().observe(snapshot(0.02))

    async def dropped() -> bool:
        found = await rig.stores.tick_cursor(FLOW)
        return found is not None and found[0].edge_full > 10

    await eventually(dropped)
    assert await rig.stored() == 5
    assert (await rig.cursor()).ticks == 5
    await rig.assets.purge(STREAM)
    await eventually(lambda: _more_than(rig, 4))


async def test_ticks_that_are_too_late_are_skipped_and_counted_but_the_newest(rig: Rig) -> None:
    await rig.make_stream()
    now = time.time()
    settled_ns = int((now - 600) // 10 * 10 * 1e9)
    await rig.stores.write_tick_cursor(FLOW, TickCursor("tick", settled_ns, ticks=7), 0)
    rig.scheduler().observe(snapshot(10.0, since=now - 3600))
    await eventually(lambda: _more_than(rig, 2))

    async def noted() -> bool:
        return (await rig.cursor()).skipped > 0

    await eventually(noted)
    cursor, instants = await rig.cursor(), await rig.instants()
    assert_contiguous(instants, 10_000)
    assert len(instants) in (3, 4)
    assert instants[0] >= (now - 31) * 1000
    assert cursor.ticks == 7 + len(instants)
    assert cursor.skipped + len(instants) == (instants[-1] - settled_ns // 1_000_000) // 10_000


@pytest.mark.parametrize("state", [FlowState.STOPPED, FlowState.SUSPENDED, FlowState.STOPPING])
async def test_no_ticks_while_the_flow_does_not_run_and_none_made_up_for(rig: Rig, state: FlowState) -> None:
    await rig.make_stream()
    scheduler = rig.scheduler()
    scheduler.observe(snapshot(0.01))
    await eventually(lambda: _more_than(rig, 20))
    scheduler.observe(snapshot(0.01, state=state))
    stopped_ms = time.time() * 1000
    before = await rig.stored()
    await asyncio.sleep(0.3)  # tidy: pace
    assert await rig.stored() <= before + 1
    resumed = time.time()
    scheduler.observe(snapshot(0.01, since=resumed))
    await eventually(lambda: _more_than(rig, before + 20))
    instants = await rig.instants()
    assert not [instant for instant in instants if stopped_ms + 10 < instant < resumed * 1000 - 10]
    assert sorted(set(instants)) == instants


async def test_a_timer_at_rest_asks_the_broker_nothing(rig: Rig) -> None:
    await rig.make_stream()
    scheduler = rig.scheduler()
    scheduler.observe(snapshot(86_400.0))
    await eventually(lambda: _noted(rig))
    sent = rig.connection.stats["out_msgs"]
    await asyncio.sleep(1.0)  # tidy: pace
    assert rig.connection.stats["out_msgs"] == sent


async def _noted(rig: Rig) -> bool:
    return await rig.stores.tick_cursor(FLOW) is not None
