"""A flow's rate limit and its share of a gateway: the others keep their room."""

from __future__ import annotations

import asyncio

from tests.integration.gateway.test_answers import code_of
from tests.support.eventually import eventually
from tests.support.gateway_rig import GatewayRig, echo
from tests.support.http_connection import HttpAnswer, fetch


async def test_a_flow_over_its_rate_gets_429_with_the_time_to_wait_and_others_do_not(rig: GatewayRig) -> None:
    for flow in ("orders", "others"):
        await rig.flow(flow)
        await rig.responder(flow)
    gateway = await rig.gateway()
    await rig.route("orders", "RUNNING", rate_limit=5.0)

    async def post(flow: str = "orders") -> HttpAnswer:
        return await fetch(gateway.address, "POST", f"/hook/{flow}", b"x")

    async def limited() -> bool:
        # The first burst may come before the gateway knows the limit.
        answers = await asyncio.gather(*(post() for _ in range(20)))
        refused = [answer for answer in answers if answer.status == 429]
        assert {code_of(answer) for answer in refused} <= {"RATE_LIMITED"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        return len(refused) >= 15

    await eventually(limited)
    assert [answer.status for answer in await asyncio.gather(*(post("others") for _ in range(20)))] == [200] * 20

    async def accepted_again() -> bool:
        return bool((await post()).status == 200)

    await eventually(accepted_again)
    # Without a limit all are taken again.
    await rig.route("orders", "RUNNING")

    async def unlimited() -> bool:
        return {answer.status for answer in await asyncio.gather(*(post() for _ in range(20)))} == {200}

    await eventually(unlimited)


async def test_a_flow_whose_callers_all_wait_leaves_room_for_the_others(rig: GatewayRig) -> None:
    await rig.flow("stuck", reply_timeout_s=30)
    responder = await rig.responder("stuck", lambda envelope: None)
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway("--max-requests", "40")
    waiting = [asyncio.create_task(fetch(gateway.address, "POST", "/hook/stuck", b"x")) for _ in range(60)]
    await eventually(lambda: sum(task.done() for task in waiting) == 30 and len(responder.seen) == 30)
    refused = [task.result() for task in waiting if task.done()]
    assert {(answer.status, code_of(answer)) for answer in refused} == {(429, "FLOW_SHARE_USED")}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    for _ in range(5):
        answers = await asyncio.gather(*(fetch(gateway.address, "POST", "/hook/orders", b"x") for _ in range(8)))
        assert [answer.status for answer in answers] == [200] * 8
    for envelope in responder.seen:
        await responder.reply(envelope, echo(envelope))
    assert sum(answer.status == 200 for answer in await asyncio.gather(*waiting)) == 30
