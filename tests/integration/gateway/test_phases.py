"""The gateway's phases: measured, and adding up to what its caller's clock measured."""

from __future__ import annotations

import asyncio
import socket
import time

from headrace.api.hop.v1.hop_pb2 import HopSnapshot
from headrace.cli.http_caller import HttpAnswer, HttpRequest, call_all
from headrace.model import subjects
from tests.support.gateway_rig import REVISION, WORKSPACE, GatewayRig

PIECE_S = 0.05


async def test_phases_are_answered_and_add_up(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    gateway = await rig.gateway()
    await _call(gateway.address, 20)
    before = await _snapshot(rig)
    answers = await _call(gateway.address, 100)
    after = await _snapshot(rig)

    sums = {}
    for histogram in after.histograms:
        key = (histogram.step, histogram.phase, histogram.receiver, histogram.revision)
        old = next(h for h in before.histograms if (h.step, h.phase, h.receiver) == key[:3])
        assert histogram.count - old.count == 100
        sums[key] = histogram.sum_ns - old.sum_ns
    assert set(sums) == {
        ("gateway", "queue", "", ""),
        ("gateway", "gateway-in", "", ""),
        ("gateway", "gateway-out", "", ""),
        ("hook", "publish", "gateway", REVISION),
    }
    # What the responder knows: from the gateway's write to its own write of the reply.
    away_ns = sum(responder.written_at_unix_ns[-100:]) - sum(
        envelope.sent_at_unix_ns for envelope in responder.seen[-100:]
    )
    measured_ns = sum(answer.received_ns - answer.sent_ns for answer in answers)
    known_ns = sum(sums.values()) + away_ns + sum(answer.unread_ns for answer in answers)
    # Law 7, with the responder's own clock in the place of a flow's steps.
    assert abs(measured_ns - known_ns) <= max(0.02 * measured_ns, 300_000 * len(answers))


async def test_a_request_that_comes_in_pieces_begins_with_its_first(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway()
    host, _, port = gateway.address.rpartition(":")

    def send_slowly() -> int:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            began = time.monotonic_ns()
            for piece in (b"POST /hook/orders HTT", b"P/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n", b"ab"):
                connection.sendall(piece)
                time.sleep(PIECE_S)  # tidy: pace
            connection.sendall(b"cd")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            return time.monotonic_ns() - began

    whole_ns = await asyncio.to_thread(send_slowly)
    sums = {histogram.phase: histogram.sum_ns for histogram in (await _snapshot(rig)).histograms}
    assert 3 * PIECE_S * 1e9 <= sums["queue"] + sums["gateway-in"] <= whole_ns


async def _call(address: str, count: int) -> list[HttpAnswer]:
    host, _, port = address.rpartition(":")
    requests = [HttpRequest("/hook/orders", b"x" * 256) for _ in range(count)]
    answers = await asyncio.to_thread(call_all, requests, host=host, port=int(port), connections=1, timeout_s=10)
    assert {answer.status for answer in answers} == {200}
    assert all(0 < answer.unread_ns < answer.received_ns - answer.sent_ns for answer in answers)
    return answers


async def _snapshot(rig: GatewayRig) -> HopSnapshot:
    answer = await rig.connection.request(subjects.hop_request_subject(WORKSPACE, "orders"), b"", timeout=5)
    return HopSnapshot.FromString(answer.data)
