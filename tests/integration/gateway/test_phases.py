"""The gateway's phases: measured, and adding up to what its caller's clock measured."""

from __future__ import annotations

import time

from headrace.api.hop.v1.hop_pb2 import HopSnapshot
from headrace.model import subjects
from tests.support.gateway_rig import REVISION, WORKSPACE, GatewayRig
from tests.support.http_connection import HttpConnection


async def test_phases_are_answered_and_add_up(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    gateway = await rig.gateway()
    connection = await HttpConnection.open(gateway.address)
    for _ in range(20):
        await connection.request("POST", "/hook/orders", b"warm up")
    before = await _snapshot(rig)
    measured_ns = 0
    responder.deliveries.clear()
    for _ in range(100):
        began = time.monotonic_ns()
        await connection.request("POST", "/hook/orders", b"x" * 256)
        measured_ns += time.monotonic_ns() - began
    after = await _snapshot(rig)
    await connection.close()

    sums = {}
    for histogram in after.histograms:
        key = (histogram.step, histogram.phase, histogram.receiver, histogram.revision)
        old = next(h for h in before.histograms if (h.step, h.phase, h.receiver) == key[:3])
        assert histogram.count - old.count == 100
        sums[key] = histogram.sum_ns - old.sum_ns
    assert set(sums) == {
        ("gateway", "gateway-in", "", ""),
        ("gateway", "gateway-out", "", ""),
        ("hook", "publish", "gateway", REVISION),
    }
    # What the responder knows: from the gateway's write to its own write of the reply.
    away_ns = sum(responder.written_at_unix_ns[-100:]) - sum(
        envelope.sent_at_unix_ns for envelope in responder.seen[-100:]
    )
    known_ns = sum(sums.values()) + away_ns
    # The rest is the caller's own connection: both kernels' buffers and this test's loop.
    assert 0 < measured_ns - known_ns < 0.4 * measured_ns


async def _snapshot(rig: GatewayRig) -> HopSnapshot:
    answer = await rig.connection.request(subjects.hop_request_subject(WORKSPACE, "orders"), b"", timeout=5)
    return HopSnapshot.FromString(answer.data)
