"""What a caller gets: replies, acceptances and refusals."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import msgspec

from headrace.model import subjects
from headrace.wire.envelope import Envelope
from tests.support.eventually import eventually
from tests.support.gateway_rig import WORKSPACE, Answering, GatewayRig, Responder, echo
from tests.support.http_connection import HttpAnswer, HttpConnection, fetch

JSON = {"content-type": "application/json"}


def code_of(answer: HttpAnswer) -> str:
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["message"]
    return str(error["code"])


async def test_a_reply_reaches_its_caller_and_the_request_its_flow(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders", _teapot)
    gateway = await rig.gateway()
    parent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    headers = {
        "content-type": "text/plain",
        "X-Tenant": "Müller",
        "authorization": "Bearer secret",
        "cookie": "a=b",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "headrace-path": "/forged",
        "traceparent": parent,
    }
    connection = await HttpConnection.open(gateway.address)
    answer = await connection.request("POST", "/hook/orders/a%0d%0ab/c?x=1&y=%20", "Grüße".encode(), headers)
    assert (answer.status, answer.body.decode(), answer.headers["content-type"]) == (418, "Grüße", "text/plain")
    assert (answer.headers["x-answer"], answer.headers["x-name"]) == ("yes", "Jürgen")
    assert (answer.headers["headrace-version"], answer.headers["headrace-deployment"]) == ("3", "1")
    assert "server" not in answer.headers

    seen = responder.seen[0]
    assert seen.execution_id == answer.headers["headrace-execution"]
    assert (seen.body.decode(), seen.content_type, seen.sender, seen.parent_id) == ("Grüße", "text/plain", "", "")
    passed = dict(seen.headers)
    assert passed["headrace-path"] == "/a%0d%0ab/c"
    assert passed["headrace-query"] == "x=1&y=%20"
    assert passed["headrace-method"] == "POST"
    assert passed["x-tenant"].encode("latin-1").decode() == "Müller"
    assert not {"authorization", "cookie", "x-hop", "connection", "content-length", "host"} & passed.keys()
    delivery = responder.deliveries[0]
    assert delivery.traceparent[:36] == parent[:36], "the caller's trace"
    assert delivery.traceparent[36:52] not in parent, "below the request's span"
    assert delivery.traceparent[52:] == parent[52:]
    assert delivery.message_id == seen.id

    # The same connection goes on; GET without a body and without a traceparent.
    answer = await connection.request("GET", "/hook/orders?q=1")
    assert answer.status == 418
    seen = responder.seen[1]
    assert (dict(seen.headers)["headrace-method"], seen.body) == ("GET", b"")
    begun = responder.deliveries[1].traceparent
    assert (begun[:36], begun[52:]) == (f"00-{seen.execution_id}-", "-01")
    assert responder.seen[0].execution_id != seen.execution_id
    await connection.close()


def _teapot(envelope: Envelope) -> Answering:
    headers = {"X-Answer": "yes", "X-Name": "Jürgen", "Connection": "close", "headrace-execution": "forged"}
    return Answering(418, envelope.body, envelope.content_type, headers)


async def test_binary_and_large_bodies_come_back_whole(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway()
    connection = await HttpConnection.open(gateway.address)
    for body in (bytes(range(256)) * 4, b"\x00" * (512 * 1024), b""):
        answer = await connection.request("POST", "/hook/orders", body)
        assert (answer.status, answer.body == body) == (200, True)
        assert answer.headers["content-type"] == "application/octet-stream"
    # In chunks, as a client that does not know the length sends it.
    connection.write(b"POST /hook/orders HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
    for chunk in (b"one ", b"two ", b"three"):
        connection.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await connection.drain()
    connection.write(b"0\r\n\r\n")
    assert (await connection.answer()).body == b"one two three"
    await connection.close()


async def test_a_flow_that_does_not_reply_accepts(rig: GatewayRig) -> None:
    await rig.flow("tasks", reply_timeout_s=0)
    responder = await rig.responder("tasks")
    gateway = await rig.gateway()
    answer = await fetch(gateway.address, "POST", "/hook/tasks", b"{}", JSON)
    assert answer.status == 202
    execution = answer.headers["headrace-execution"]
    assert answer.json() == {"execution": execution}
    assert "headrace-version" not in answer.headers
    await eventually(lambda: [envelope.execution_id for envelope in responder.seen] == [execution])
    assert not responder.seen[0].HasField("reply_to")


async def test_no_reply_by_the_deadline_is_504_and_the_execution_goes_on(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=0.3)
    responder = await rig.responder("orders", lambda envelope: None)
    gateway = await rig.gateway()
    answer = await fetch(gateway.address, "POST", "/hook/orders", b"{}")
    assert (answer.status, code_of(answer)) == (504, "REPLY_TIMEOUT")
    execution = answer.json()["error"]["execution"]
    assert execution == answer.headers["headrace-execution"] == responder.seen[0].execution_id
    assert "headrace-version" not in answer.headers
    # A reply that comes too late disturbs nobody.
    await responder.reply(responder.seen[0], echo(responder.seen[0]))
    responder.handler = echo
    assert (await fetch(gateway.address, "POST", "/hook/orders", b"x")).status == 200


async def test_refusals_by_route_method_and_path(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway()
    connection = await HttpConnection.open(gateway.address)

    async def refused(method: str, path: str) -> tuple[int, str]:
        answer = await connection.request(method, path)
        return answer.status, code_of(answer)

    assert await refused("POST", "/hook/nothing") == (404, "UNKNOWN_FLOW")
    assert await refused("POST", "/hook/") == (404, "NOT_FOUND")
    assert await refused("POST", "/hook/..%2f..%2fetc") == (404, "NOT_FOUND")
    assert await refused("POST", "/hook/Orders") == (404, "NOT_FOUND")
    assert await refused("POST", "/elsewhere") == (404, "NOT_FOUND")
    assert await refused("PUT", "/hook/orders") == (405, "METHOD_NOT_ALLOWED")
    assert await refused("POST", "/healthz") == (405, "METHOD_NOT_ALLOWED")
    assert (await connection.request("GET", "/healthz")).status == 200
    assert (await connection.request("DELETE", "/hook/orders")).headers["allow"] == "GET, POST"
    assert (await connection.request("POST", "/hook/orders", b"still works")).status == 200
    await connection.close()


async def test_the_route_decides_and_is_followed(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway()

    async def status() -> int:
        return (await fetch(gateway.address, "POST", "/hook/orders", b"{}")).status

    async def becomes(expected: int) -> None:
        async def check() -> bool:
            return await status() == expected

        await eventually(check)

    assert await status() == 200
    for state, expected in (("STOPPING", 503), ("STARTING", 200), ("STOPPED", 503), ("SUSPENDED", 200)):
        await rig.route("orders", state)
        await becomes(expected)
    await rig.route("orders", "STOPPED")
    await becomes(503)
    answer = await fetch(gateway.address, "POST", "/hook/orders", b"{}")
    assert code_of(answer) == "FLOW_STOPPED"
    assert int(answer.headers["retry-after"]) > 0
    await rig.routes.delete("orders")
    await becomes(404)


async def test_malformed_json_names_the_position(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    gateway = await rig.gateway()
    for body, position in ((b'{"a": 1,}', "byte 8"), (b'{"a"', "byte 4"), (b'["\xff"]', "byte 2")):
        for content_type in ("application/json", "application/vnd.api+json; charset=utf-8"):
            answer = await fetch(gateway.address, "POST", "/hook/orders", body, {"content-type": content_type})
            assert (answer.status, code_of(answer)) == (400, "MALFORMED_JSON")
            assert position in answer.json()["error"]["message"]
    assert not responder.seen
    answer = await fetch(gateway.address, "POST", "/hook/orders", b'{"a": 1,}', {"content-type": "text/plain"})
    assert answer.status == 200
    answer = await fetch(gateway.address, "POST", "/hook/orders", json.dumps({"ö": [1.5e3]}).encode(), JSON)
    assert answer.json() == {"ö": [1500.0]}


async def test_a_full_edge_is_429(rig: GatewayRig) -> None:
    await rig.flow("tasks", reply_timeout_s=0, max_waiting=3)
    gateway = await rig.gateway()
    statuses = Counter[int]()
    for _ in range(5):
        answer = await fetch(gateway.address, "POST", "/hook/tasks", b"x", {"Idempotency-Key": "same"} if _ > 2 else {})
        statuses[answer.status] += 1
        if answer.status == 429:
            assert code_of(answer) == "FLOW_FULL"
            assert int(answer.headers["retry-after"]) > 0
    assert statuses == {202: 3, 429: 2}
    # The refused key is free again.
    await rig.responder("tasks")

    async def accepted() -> bool:
        answer = await fetch(gateway.address, "POST", "/hook/tasks", b"other", {"Idempotency-Key": "same"})
        return answer.status == 202

    await eventually(accepted)


async def test_more_requests_than_may_be_in_work_are_429(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders", lambda envelope: None)
    gateway = await rig.gateway("--max-requests", "2")
    waiting = [asyncio.create_task(fetch(gateway.address, "POST", "/hook/orders", b"x")) for _ in range(2)]
    await eventually(lambda: len(responder.seen) == 2)
    answer = await fetch(gateway.address, "POST", "/hook/orders", b"x")
    assert (answer.status, code_of(answer)) == (429, "GATEWAY_FULL")
    assert (await fetch(gateway.address, "GET", "/healthz")).status == 200
    for envelope in responder.seen:
        await responder.reply(envelope, echo(envelope))
    assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
    responder.handler = echo
    assert (await fetch(gateway.address, "POST", "/hook/orders", b"x")).status == 200


async def test_replies_that_http_cannot_carry_are_502(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    gateway = await rig.gateway()
    for answering in (
        Answering(headers={"x-evil": "a\r\nset-cookie: b=c"}),
        Answering(headers={"x evil": "a"}),
        Answering(headers={"x\r\ny": "a"}),
        Answering(content_type="text/plain\r\nx: y"),
        Answering(status=101),
        Answering(headers={f"x-{n}": "v" * 1000 for n in range(40)}),
    ):
        responder.handler = lambda envelope, answering=answering: answering  # type: ignore[misc]
        answer = await fetch(gateway.address, "POST", "/hook/orders", b"x")
        assert (answer.status, code_of(answer)) == (502, "BAD_REPLY")
        assert "set-cookie" not in answer.headers
    responder.handler = lambda envelope: Answering(204, b"ignored")
    answer = await fetch(gateway.address, "POST", "/hook/orders", b"x")
    assert (answer.status, answer.body) == (204, b"")


async def test_two_gateways_serve_side_by_side_and_say_where(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders", _by_path)
    one, two = await rig.gateway(), await rig.gateway()

    async def ask(address: str, number: int) -> bool:
        answer = await fetch(address, "POST", f"/hook/orders/{number}", b"x")
        return answer.body == f"/{number}".encode()

    asked = [ask((one, two)[number % 2].address, number) for number in range(40)]
    assert all(await asyncio.gather(*asked))
    assert await _presence(rig) == {one.address, two.address}


def _by_path(envelope: Envelope) -> Answering:
    return Answering(body=envelope.headers["headrace-path"].encode())


async def _presence(rig: GatewayRig) -> set[str]:
    inbox = rig.connection.new_inbox()
    subscription = await rig.connection.subscribe(inbox)
    await rig.connection.publish(subjects.gateway_presence_subject(WORKSPACE), b"", reply=inbox)
    addresses = {(await subscription.next_msg(timeout=5)).data.decode() for _ in range(2)}
    await subscription.unsubscribe()
    return addresses


async def test_a_thousand_connections_at_once(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=20)
    responder = await rig.responder("orders")
    gateway = await rig.gateway("--max-requests", "2000")

    async def caller(number: int) -> int:
        connection = await HttpConnection.open(gateway.address, limit_s=20)
        right = 0
        for turn in range(2):
            body = msgspec.json.encode({"caller": number, "turn": turn, "name": "Ünïcødé ☃"})
            answer = await connection.request("POST", "/hook/orders", body, JSON)
            right += answer.status == 200 and answer.body == body
        await connection.close()
        return right

    assert sum(await asyncio.gather(*(caller(number) for number in range(1000)))) == 2000
    assert len({envelope.execution_id for envelope in responder.seen}) == 2000
    await _nothing_left(rig, responder)


async def _nothing_left(rig: GatewayRig, responder: Responder) -> None:
    async def empty() -> bool:
        return await rig.stored("orders") == 0

    await eventually(empty)
