"""Idempotency-Keys: one execution and one answer, whatever dies in between."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

import pytest

from headrace.edge.kv_bucket import KvBucket
from headrace.model import answer as answers
from headrace.model import bucket_names, message_ids
from tests.support.eventually import eventually
from tests.support.gateway_rig import WORKSPACE, Answering, GatewayRig, echo
from tests.support.http_connection import HttpAnswer, HttpConnection, fetch

PATH = "/hook/orders"


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key, "content-type": "text/plain"}


async def answer_bucket(rig: GatewayRig) -> KvBucket:
    return await KvBucket.open(rig.connection, bucket_names.answer_bucket(WORKSPACE), ttl_s=answers.ANSWER_TTL_S)


def code_of(answer: HttpAnswer) -> str:
    return str(answer.json()["error"]["code"])


async def test_a_repeat_gets_the_first_answer_through_any_gateway(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    count = iter(range(100))
    responder.handler = lambda envelope: Answering(
        201, envelope.body + b"%d" % next(count), "text/x", {"x-first": "yes"}
    )
    one, two = await rig.gateway(), await rig.gateway()
    first = await fetch(one.address, "POST", PATH, b"body", keyed("k1"))
    assert (first.status, first.body) == (201, b"body0")
    assert "headrace-replayed" not in first.headers
    for gateway in (one, two, two):
        again = await fetch(gateway.address, "POST", PATH, b"body", keyed("k1"))
        assert (again.status, again.body, again.headers["headrace-replayed"]) == (201, b"body0", "true")
        for name in ("headrace-execution", "headrace-version", "headrace-deployment", "content-type", "x-first"):
            assert again.headers[name] == first.headers[name]
    assert len(responder.seen) == 1
    other = await fetch(two.address, "POST", PATH, b"other body", keyed("k1"))
    assert (other.status, code_of(other)) == (422, "KEY_WITH_OTHER_BODY")
    fresh = await fetch(two.address, "POST", PATH, b"body", keyed("k2"))
    assert (fresh.status, fresh.body) == (201, b"body1")
    record = await (await answer_bucket(rig)).get(message_ids.answer_key("orders", "k1"))
    assert record is not None


async def test_keys_that_are_none_are_400(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway()
    for key in ("", " ", "k" * 256):
        answer = await fetch(gateway.address, "POST", PATH, b"x", {"Idempotency-Key": key})
        assert (answer.status, code_of(answer)) == (400, "BAD_IDEMPOTENCY_KEY")
    connection = await HttpConnection.open(gateway.address)
    connection.write(
        b"POST /hook/orders HTTP/1.1\r\nidempotency-key: a\r\nidempotency-key: b\r\ncontent-length: 0\r\n\r\n"
    )
    assert (await connection.answer()).status == 400
    await connection.close()
    assert (await fetch(gateway.address, "POST", PATH, b"x", {"Idempotency-Key": "k" * 255})).status == 200


async def test_a_repeat_while_the_first_is_worked_on_is_409(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=10)
    responder = await rig.responder("orders", lambda envelope: None)
    one, two = await rig.gateway(), await rig.gateway()
    first = asyncio.create_task(fetch(one.address, "POST", PATH, b"x", keyed("k")))
    await eventually(lambda: len(responder.seen) == 1)
    for gateway in (one, two):
        repeat = await fetch(gateway.address, "POST", PATH, b"x", keyed("k"))
        assert (repeat.status, code_of(repeat)) == (409, "KEY_IN_WORK")
        assert int(repeat.headers["retry-after"]) >= 1
        assert repeat.headers["headrace-execution"] == responder.seen[0].execution_id
    assert (await fetch(two.address, "POST", PATH, b"y", keyed("k"))).status == 422
    await responder.reply(responder.seen[0], echo(responder.seen[0]))
    assert (await first).status == 200
    assert (await fetch(two.address, "POST", PATH, b"x", keyed("k"))).headers["headrace-replayed"] == "true"


async def test_many_at_once_make_one_execution(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    gateways = [await rig.gateway(), await rig.gateway()]
    asked = [fetch(gateways[n % 2].address, "POST", PATH, b"x", keyed("k")) for n in range(30)]
    statuses = Counter(answer.status for answer in await asyncio.gather(*asked))
    assert set(statuses) <= {200, 409}
    assert statuses[200] >= 1
    assert len({envelope.execution_id for envelope in responder.seen}) == 1
    assert len(responder.seen) == 1


async def test_a_repeat_of_an_acceptance_is_an_acceptance(rig: GatewayRig) -> None:
    await rig.flow("tasks", reply_timeout_s=0)
    responder = await rig.responder("tasks")
    one, two = await rig.gateway(), await rig.gateway()
    first = await fetch(one.address, "POST", "/hook/tasks", b"x", keyed("k"))
    again = await fetch(two.address, "POST", "/hook/tasks", b"x", keyed("k"))
    assert (first.status, again.status) == (202, 202)
    assert first.json() == again.json()
    assert again.headers["headrace-replayed"] == "true"
    await eventually(lambda: len(responder.seen) == 1)


async def test_an_answer_after_the_deadline_is_found_by_the_key(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=0.3)
    responder = await rig.responder("orders", lambda envelope: None)
    gateway = await rig.gateway()
    assert (await fetch(gateway.address, "POST", PATH, b"x", keyed("k"))).status == 504
    assert (await fetch(gateway.address, "POST", PATH, b"x", keyed("k"))).status == 409
    await responder.reply(responder.seen[0], Answering(200, b"late"))
    answer = await fetch(gateway.address, "POST", PATH, b"x", keyed("k"))
    assert (answer.status, answer.body, answer.headers["headrace-replayed"]) == (200, b"late", "true")


async def test_a_reply_lost_on_its_way_is_taken_from_the_record(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=1)
    responder = await rig.responder("orders", lambda envelope: None)
    gateway = await rig.gateway()
    asked = asyncio.create_task(fetch(gateway.address, "POST", PATH, b"x", keyed("k")))
    await eventually(lambda: len(responder.seen) == 1)
    envelope = responder.seen[0]
    envelope.reply_to.subject = "hr.default._reply.nobody"
    await responder.reply(envelope, Answering(200, b"stored"))
    answer = await asked
    assert (answer.status, answer.body) == (200, b"stored")


async def _reserve_as_a_dead_gateway(rig: GatewayRig, *, ago_s: float, reserved_ago_s: float) -> str:
    stimulus = message_ids.stimulus_id("orders", "key", "k")
    now = time.time()
    record = answers.Answer(
        body_digest=message_ids.body_digest(b"x"),
        execution=message_ids.execution_id(stimulus),
        state=answers.AnswerState.RESERVED,
        holder="dead",
        reserved_at=now - reserved_ago_s,
        held_since=now - ago_s,
    )
    await (await answer_bucket(rig)).put(message_ids.answer_key("orders", "k"), answers.encode_answer(record))
    return record.execution


async def test_a_reservation_of_a_dead_gateway_is_taken_over(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    one, two = await rig.gateway(), await rig.gateway()
    execution = await _reserve_as_a_dead_gateway(rig, ago_s=1, reserved_ago_s=1)
    held = await fetch(one.address, "POST", PATH, b"x", keyed("k"))
    assert (held.status, 1 <= int(held.headers["retry-after"]) <= 5) == (409, True)
    await _reserve_as_a_dead_gateway(rig, ago_s=6, reserved_ago_s=6)
    asked = [fetch(gateway.address, "POST", PATH, b"x", keyed("k")) for gateway in (one, two) * 5]
    answered = await asyncio.gather(*asked)
    assert {answer.status for answer in answered} <= {200, 409}
    final = await fetch(one.address, "POST", PATH, b"x", keyed("k"))
    assert (final.status, final.headers["headrace-execution"]) == (200, execution)
    assert len(responder.seen) == 1


async def test_too_old_a_reservation_is_in_doubt(rig: GatewayRig) -> None:
    await rig.flow("orders")
    responder = await rig.responder("orders")
    gateway = await rig.gateway()
    await _reserve_as_a_dead_gateway(rig, ago_s=95, reserved_ago_s=95)
    answer = await fetch(gateway.address, "POST", PATH, b"x", keyed("k"))
    assert (answer.status, code_of(answer)) == (409, "KEY_IN_DOUBT")
    assert not responder.seen


@pytest.mark.parametrize("published", [False, True])
async def test_kill_between_reservation_and_acceptance(rig: GatewayRig, published: bool) -> None:
    """A gateway is killed while its key is reserved and its publish is being repeated (the ingress is hidden);
    with `published` the stimulus is stored all the same, as if its last bytes had got through."""
    await rig.flow("orders", reply_timeout_s=8)
    one, two = await rig.gateway(), await rig.gateway()
    # Without a stream the publish finds no responders and is repeated: the reservation exists, nothing is stored.
    await rig.hide_ingress("orders")
    asked = asyncio.create_task(_status_or_death(one.address))
    bucket = await answer_bucket(rig)
    key = message_ids.answer_key("orders", "k")

    async def reserved() -> bool:
        return await bucket.get(key) is not None

    await eventually(reserved)
    one.child.signal(signal.SIGKILL)
    assert await asked is None
    await rig.flow("orders", reply_timeout_s=8)
    if published:
        await rig.publish_stimulus("orders", "k", b"x")
    responder = await rig.responder("orders")

    async def answered() -> HttpAnswer | None:
        answer = await fetch(two.address, "POST", PATH, b"x", keyed("k"))
        assert answer.status in (200, 409), answer
        return answer if answer.status == 200 else None

    final = await eventually(answered, within_s=15, every_s=0.3)
    assert final is not None
    assert final.body == b"x"
    assert len(responder.seen) == 1


async def _status_or_death(address: str) -> int | None:
    try:
        return (await fetch(address, "POST", PATH, b"x", keyed("k"))).status
    except (ConnectionError, asyncio.IncompleteReadError):
        return None


async def test_a_refused_publish_frees_the_key(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=0.5)
    gateway = await rig.gateway()
    await rig.hide_ingress("orders")
    answer = await fetch(gateway.address, "POST", PATH, b"x", keyed("k"))
    assert (answer.status, code_of(answer)) == (503, "BROKER_UNAVAILABLE")
    assert await (await answer_bucket(rig)).get(message_ids.answer_key("orders", "k")) is None
    await rig.flow("orders")
    await rig.responder("orders")

    async def answered() -> bool:
        return (await fetch(gateway.address, "POST", PATH, b"another", keyed("k"))).status == 200

    await eventually(answered)
