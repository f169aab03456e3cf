"""The gateway in trouble: brokers that die, streams that are away, and its own stop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

from tests.robustness.ledger import Outcome
from tests.robustness.traffic import Traffic
from tests.support.eventually import eventually
from tests.support.gateway_rig import Answering, GatewayRig
from tests.support.http_connection import HttpAnswer, HttpConnection, fetch, request_bytes

PATH = "/hook/orders"


async def test_a_broker_killed_under_traffic_costs_no_acknowledged_request(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=8)
    responder = await rig.responder("orders", lambda envelope: Answering(200, envelope.body, "application/json"))
    gateway = await rig.gateway()
    async with Traffic([gateway.address], PATH, rate=150) as traffic:
        for _ in range(2):
            done = traffic.counted(Outcome.OK)
            await eventually(lambda done=done: traffic.counted(Outcome.OK) >= done + 40)  # type: ignore[misc]
            rig.broker.kill()
            await rig.broker.process.wait()  # type: ignore[union-attr]
            await rig.broker.start()
        done = traffic.counted(Outcome.OK)
        await eventually(lambda: traffic.counted(Outcome.OK) >= done + 150, within_s=20)
        attempts = await traffic.finish()
    assert not [attempt for attempt in attempts if attempt.wrong]
    assert {attempt.outcome for attempt in attempts} <= {Outcome.OK, Outcome.UNKNOWN}
    handled = Counter(envelope.execution_id for envelope in responder.seen)
    assert len(handled) >= traffic.counted(Outcome.OK)
    # Executions are made once per request: no second one for a publish that was repeated.
    assert len(handled) <= len(attempts)


async def test_a_stream_that_is_away_is_waited_for(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=15)
    await rig.responder("orders")
    gateway = await rig.gateway()
    assert (await fetch(gateway.address, "POST", PATH, b"x")).status == 200
    await rig.hide_ingress("orders")
    asked = asyncio.create_task(fetch(gateway.address, "POST", PATH, b"late"))
    done, _ = await asyncio.wait([asked], timeout=0.5)
    assert not done
    await rig.flow("orders", reply_timeout_s=15)
    answer = await asked
    assert (answer.status, answer.body) == (200, b"late")


async def test_no_broker_until_the_deadline_is_an_error_in_time(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=0.8)
    await rig.responder("orders")
    gateway = await rig.gateway()
    assert (await fetch(gateway.address, "POST", PATH, b"x")).status == 200
    assert rig.broker.process is not None
    rig.broker.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        answer = await fetch(gateway.address, "POST", PATH, b"x")
        keyed = await fetch(gateway.address, "POST", PATH, b"x", {"Idempotency-Key": "k"})
        assert (await fetch(gateway.address, "GET", "/healthz")).status == 200
        assert time.monotonic() - began < 4
    finally:
        rig.broker.process.send_signal(signal.SIGCONT)
    # It was written to the broker, so nobody knows; the keyed one was not even reserved.
    assert (answer.status, _code(answer)) == (504, "OUTCOME_UNKNOWN")
    assert answer.headers["headrace-execution"]
    assert (keyed.status, _code(keyed)) == (503, "BROKER_UNAVAILABLE")

    async def served() -> bool:
        return (await fetch(gateway.address, "POST", PATH, b"x")).status == 200

    await eventually(served)


async def test_a_stop_is_ordered(rig: GatewayRig) -> None:
    await rig.flow("orders", reply_timeout_s=30)
    responder = await rig.responder("orders", lambda envelope: None)
    gateway = await rig.gateway("--grace", "4")
    idle = await HttpConnection.open(gateway.address)
    assert (await idle.request("GET", "/healthz")).status == 200
    assert (await idle.request("GET", "/readyz")).status == 200
    waiting = [asyncio.create_task(fetch(gateway.address, "POST", PATH, b"%d" % n)) for n in range(2)]
    await eventually(lambda: len(responder.seen) == 2)
    gateway.child.signal(signal.SIGTERM)

    async def stopping() -> bool:
        return (await fetch(gateway.address, "GET", "/readyz")).status == 503

    await eventually(stopping)
    # New requests are refused while those in flight may finish ...
    answer = await idle.request("POST", PATH, b"new")
    assert (answer.status, _code(answer), answer.headers["connection"]) == (503, "GATEWAY_STOPPING", "close")
    first = responder.seen[0]
    await responder.reply(first, Answering(200, b"in time"))
    answers = {answer.status: answer for answer in await asyncio.gather(*waiting)}
    # ... and past the grace the others get their execution's id.
    assert answers[200].body == b"in time"
    assert _code(answers[503]) == "GATEWAY_STOPPING"
    assert answers[503].json()["error"]["execution"] in {envelope.execution_id for envelope in responder.seen}
    assert await gateway.child.wait() == 0
    await idle.close()


async def test_a_gateway_killed_leaves_the_other_serving(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders", lambda envelope: Answering(200, envelope.body, "application/json"))
    one, two = await rig.gateway(), await rig.gateway()
    async with Traffic([one.address, two.address], PATH, rate=100) as traffic:
        await eventually(lambda: traffic.counted(Outcome.OK) >= 30)
        one.child.kill()
        done = traffic.counted(Outcome.OK)
        await eventually(lambda: traffic.counted(Outcome.OK) >= done + 30)
        port = int(one.address.rpartition(":")[2])
        again = await rig.gateway(port=port)
        assert again.address == one.address
        done = traffic.counted(Outcome.OK)
        await eventually(lambda: traffic.counted(Outcome.OK) >= done + 50)
        attempts = await traffic.finish()
    assert not [attempt for attempt in attempts if attempt.wrong]


def _code(answer: HttpAnswer) -> str:
    return str(answer.json()["error"]["code"])


async def test_a_caller_who_is_gone_before_its_reply_finds_it_kept_under_its_key(rig: GatewayRig) -> None:
    """What it asked for is done once all the same; nobody else gets its answer."""
    await rig.flow("orders", reply_timeout_s=8)
    responder = await rig.responder("orders")
    gateway = await rig.gateway()
    keyed = {"idempotency-key": "gone-1"}
    connection = await HttpConnection.open(gateway.address)
    connection.write(request_bytes("POST", PATH, b"mine", keyed))
    await connection.drain()
    await eventually(lambda: len(responder.seen) == 1)
    connection.abort()
    other = await fetch(gateway.address, "POST", PATH, b"another")
    assert (other.status, other.body) == (200, b"another")
    again = await fetch(gateway.address, "POST", PATH, b"mine", keyed)
    assert (again.status, again.body) == (200, b"mine")
    assert [envelope.body for envelope in responder.seen] == [b"mine", b"another"]
