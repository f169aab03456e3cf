"""Waits of a gateway: for a reply while the broker has not answered, to a deadline, and on connections at rest."""

from __future__ import annotations

import asyncio

from headrace.edge.sweep_timer import NEVER
from headrace.ports import PublishUnknown, Stored
from headrace.wire.envelope import encode_reply
from services.gateway.connection_rest import ConnectionRest
from services.gateway.reply_desk import NoReply, ReceivedReply, ReplyDesk
from tests.support.eventually import eventually


def _reply(execution: str) -> bytes:
    return encode_reply(execution_id=execution, status=200, body=b"", sent_at_unix_ns=1)


async def test_a_reply_ends_the_wait_whether_the_broker_has_answered_or_not() -> None:
    desk, far = ReplyDesk(), asyncio.get_running_loop().time() + 60
    early, late = desk.expect("early", far), desk.expect("late", far)
    late.told(Stored(1, duplicate=False))
    for waiter in (early, late):
        desk.on_message(_reply(waiter.execution))
        assert isinstance(await waiter.outcome, ReceivedReply)
    early.told(PublishUnknown("too late to matter"))
    assert (early.has_reply, early.stored, late.stored) == (True, False, True)


async def test_a_publish_that_failed_interrupts_the_wait_and_a_reply_still_counts() -> None:
    desk = ReplyDesk()
    waiter = desk.expect("e", asyncio.get_running_loop().time() + 60)
    waiting, error = waiter.outcome, PublishUnknown("no answer in time")
    waiter.told(error)
    assert await waiting is error
    assert not waiter.is_over()
    desk.on_message(_reply("e"))
    assert isinstance(await waiter.outcome, ReceivedReply)
    desk.forget(waiter)
    assert len(desk) == 0


async def test_each_wait_ends_at_its_own_deadline() -> None:
    desk, now = ReplyDesk(), asyncio.get_running_loop().time()
    slow, soon, sooner = (desk.expect(str(s), now + s) for s in (60.0, 0.06, 0.02))
    async with asyncio.timeout(5):
        assert await sooner.outcome is NoReply.DEADLINE
        assert await soon.outcome is NoReply.DEADLINE
    assert asyncio.get_running_loop().time() >= now + 0.06
    assert not slow.is_over()


class Connection:
    def __init__(self, idle_since: float) -> None:
        self.idle_since = idle_since
        self.closed = False

    def timeout_keep_alive_handler(self) -> None:
        self.closed = True
        self.idle_since = NEVER


async def test_connections_that_rest_too_long_are_closed_and_others_are_not() -> None:
    busy, resting, later = Connection(NEVER), Connection(NEVER), Connection(NEVER)
    rest = ConnectionRest([busy, resting, later], limit_s=0.05)
    resting.idle_since = rest.begins()
    later.idle_since = rest.begins() + 0.02
    await eventually(lambda: resting.closed)
    await eventually(lambda: later.closed)
    assert not busy.closed
