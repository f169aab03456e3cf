"""Callers that do what they should not: the gateway answers, bounds them, and serves everybody else."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tests.support.eventually import eventually
from tests.support.gateway_rig import Answering, GatewayProcess, GatewayRig, echo
from tests.support.http_connection import HttpConnection, fetch

SIZE = 512 * 1024
HEAD = b"POST /hook/orders HTTP/1.1\r\nhost: t\r\n"


async def _serving(rig: GatewayRig, **environment: str) -> GatewayProcess:
    await rig.flow("orders")
    await rig.responder("orders")
    return await rig.gateway(**environment)


async def _others_are_served(gateway: GatewayProcess) -> None:
    answer = await fetch(gateway.address, "POST", "/hook/orders", b"fine")
    assert (answer.status, answer.body) == (200, b"fine")


async def test_too_large_bodies_are_413(rig: GatewayRig) -> None:
    """Nothing is left of them in the object store, however far they came."""
    gateway = await _serving(rig, HEADRACE_MAX_ATTACHMENT_MB="1")
    limit = 1024 * 1024
    # Declared: refused before the body is sent.
    connection = await HttpConnection.open(gateway.address)
    connection.write(HEAD + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % (limit + 1))
    answer = await connection.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (413, "BODY_TOO_LARGE")
    assert str(limit) in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"
    await connection.close()
    # Sent whole, by a client that reads only afterwards.
    answer = await fetch(gateway.address, "POST", "/hook/orders", b"x" * (4 * limit))
    assert answer.status == 413
    # In chunks without an end.
    connection = await HttpConnection.open(gateway.address)
    connection.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    sender = asyncio.create_task(_chunks_without_end(connection))
    answer = await connection.answer()
    assert answer.status == 413
    assert await connection.at_end()
    sender.cancel()
    with pytest.raises((asyncio.CancelledError, ConnectionError)):
        await sender
    await connection.close()
    await _others_are_served(gateway)
    assert await rig.attachments_are_empty()


async def _chunks_without_end(connection: HttpConnection) -> None:
    while True:
        connection.write(b"4000\r\n" + b"y" * 0x4000 + b"\r\n")
        await connection.drain()
        await asyncio.sleep(0.001)  # tidy: pace


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"POST /hook/orders HTTP/9.9\r\n\r\n",
        HEAD + b"content-length: -5\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"bad header: x\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_400(serving: GatewayProcess, raw: bytes) -> None:
    connection = await HttpConnection.open(serving.address)
    connection.write(raw)
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert answer.json()["error"]["code"] == "MALFORMED_REQUEST"
    assert await connection.at_end()
    await connection.close()
    await _others_are_served(serving)


@pytest.fixture
async def serving(rig: GatewayRig) -> GatewayProcess:
    return await _serving(rig)


async def test_huge_heads_are_431(rig: GatewayRig) -> None:
    gateway = await _serving(rig)
    heads = [
        HEAD + b"content-length: 0\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"v" * 1000) for n in range(70)) + b"\r\n",
        HEAD + b"x-endless: " + b"v" * 300_000,
        b"GET /hook/orders/" + b"a" * 300_000,
    ]
    for head in heads:
        connection = await HttpConnection.open(gateway.address)
        connection.write(head)
        answer = await connection.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (431, "HEADERS_TOO_LARGE")
        assert await connection.at_end()
        await connection.close()
    # What the server takes may still be more than travels with a message.
    headers = {f"x-{n}": "v" * 1000 for n in range(17)}
    answer = await fetch(gateway.address, "POST", "/hook/orders", b"body", headers)
    assert (answer.status, answer.json()["error"]["code"]) == (431, "HEADERS_TOO_LARGE")
    await _others_are_served(gateway)


async def test_slow_callers_are_408(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway("--body-limit", "0.4", "--head-limit", "0.5")
    slow_body = await HttpConnection.open(gateway.address)
    slow_body.write(HEAD + b"content-length: 10\r\n\r\nhal")
    slow_head = await HttpConnection.open(gateway.address)
    slow_head.write(b"POST /hook/orders HTTP/1.1\r\nhost")
    silent = await HttpConnection.open(gateway.address)
    answer = await slow_body.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (408, "BODY_TOO_SLOW")
    answer = await slow_head.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (408, "HEAD_TOO_SLOW")
    assert (await silent.answer()).status == 408
    for connection in (slow_body, slow_head, silent):
        assert await connection.at_end()
        await connection.close()
    # A connection that has been served may idle longer than a head may take.
    connection = await HttpConnection.open(gateway.address)
    assert (await connection.request("POST", "/hook/orders", b"1")).status == 200
    assert not await _ends_within(connection, 0.8)
    assert (await connection.request("POST", "/hook/orders", b"2")).status == 200
    await connection.close()


async def _ends_within(connection: HttpConnection, limit_s: float) -> bool:
    try:
        return await connection.at_end(limit_s)
    except TimeoutError:
        return False


async def test_callers_that_go_away_leave_nothing_behind(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=30)
    responder = await rig.responder("orders", lambda envelope: None)
    gateway = await rig.gateway("--max-requests", "26")  # of which a flow alone gets twenty

    async def nothing_in_work() -> bool:
        return bool((await fetch(gateway.address, "GET", "/healthz")).json()["requests"] == 0)

    for _ in range(3):
        before = len(responder.seen)
        connections = [await HttpConnection.open(gateway.address) for _ in range(20)]
        for connection in connections:
            connection.write(HEAD + b"content-length: 4\r\n\r\nbody")
            await connection.drain()
        await eventually(lambda before=before: len(responder.seen) == before + 20)  # type: ignore[misc]
        for connection in connections:
            connection.abort()
        await eventually(nothing_in_work)
    # Also half-way through a body.
    connection = await HttpConnection.open(gateway.address)
    connection.write(HEAD + b"content-length: 4\r\n\r\nbo")
    await connection.drain()
    connection.abort()
    await eventually(nothing_in_work)
    # All twenty places are free again, and the executions were left alone.
    responder.handler = echo
    answers = await asyncio.gather(*(fetch(gateway.address, "POST", "/hook/orders", b"x") for _ in range(20)))
    assert [answer.status for answer in answers] == [200] * 20
    assert len(responder.seen) == 80
    # A reply for somebody who has gone is dropped.
    await responder.reply(responder.seen[0], echo(responder.seen[0]))
    await _others_are_served(gateway)


async def test_pipelined_requests_are_answered_in_order(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway()
    connection = await HttpConnection.open(gateway.address)
    for number in range(10):
        connection.write(HEAD + b"content-length: 1\r\n\r\n%d" % number)
    assert [(await connection.answer()).body for _ in range(10)] == [b"%d" % number for number in range(10)]
    await connection.close()


async def test_rubbish_after_a_request_does_not_cost_its_answer(rig: GatewayRig) -> None:
    gateway = await _serving(rig)
    connection = await HttpConnection.open(gateway.address)
    connection.write(HEAD + b"content-length: 1\r\n\r\n1" + b"rubbish\r\n\r\n")
    answer = await connection.answer()
    assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"1", "close")
    assert await connection.at_end()
    await connection.close()


async def test_callers_that_do_not_read_are_cut_off(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders", lambda envelope: Answering(200, b"z" * SIZE))
    gateway = await rig.gateway("--body-limit", "0.5", "--max-requests", "3")
    host, _, port = gateway.address.rpartition(":")
    silent: list[socket.socket] = []
    for _ in range(3):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        for _ in range(12):
            connection.sendall(HEAD + b"content-length: 1\r\n\r\n1")
        silent.append(connection)

    async def served() -> bool:
        return (await fetch(gateway.address, "POST", "/hook/orders", b"x")).status == 200

    # They read nothing for three times the limit; then each finds that its connection has ended early.
    until = time.monotonic() + 1.5
    await eventually(lambda: time.monotonic() > until)
    for connection in silent:
        assert await asyncio.to_thread(_read_to_the_end, connection) < 12 * SIZE
        connection.close()
    await eventually(served)


def _read_to_the_end(connection: socket.socket) -> int:
    connection.settimeout(10)
    total = 0
    try:
        while chunk := connection.recv(1 << 20):
            total += len(chunk)
    except ConnectionError:
        pass
    return total
