"""Whoever asks for hops on NATS gets a snapshot of every instance."""

from __future__ import annotations

import nats.errors
import pytest

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.hop_recorder import HopRecorder, HopResponder
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.wire.hops import decode_snapshot, merge_snapshots
from tests.support.eventually import eventually


async def test_snapshots_of_all_instances_are_gathered_and_merged(broker: BrokerProcess) -> None:
    connection = await connect_nats(broker.url, "test")
    sidecars = [HopRecorder(f"default.orders.d1.price.{replica}", 1) for replica in range(3)]
    gateway = HopRecorder("gateway", 0)
    responders = [HopResponder(connection, "default", "orders", lambda flow, of=of: of.snapshot()) for of in sidecars]  # type: ignore[misc]
    responders.append(
        HopResponder(connection, "default", "*", lambda flow: gateway.snapshot() if flow == "orders" else None)
    )
    for recorder in sidecars:
        recorder.phase("price", "component", revision="r1").record(1_000_000)
    gateway.record("gateway", "gateway-in", "", "", 5_000)
    for responder in responders:
        await responder.start()
    answers: list[bytes] = []

    async def collect(message: object) -> None:
        answers.append(message.data)  # type: ignore[attr-defined]

    inbox = connection.new_inbox()
    await connection.subscribe(inbox, cb=collect)
    await connection.publish(subjects.hop_request_subject("default", "orders"), b"", reply=inbox)
    await eventually(lambda: len(answers) == 4)
    merged = merge_snapshots([decode_snapshot(raw) for raw in answers], deployment=1)
    assert [(row.step, row.phase, row.count) for row in merged.phases] == [
        ("gateway", "gateway-in", 1),
        ("price", "component", 3),
    ]
    assert len(merged.instances) == 4
    for responder in responders:
        await responder.stop()
    with pytest.raises(nats.errors.NoRespondersError):
        await connection.request(subjects.hop_request_subject("default", "orders"), b"", timeout=5)
    await close_nats(connection)
