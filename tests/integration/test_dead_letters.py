"""Dead letters on a real broker: listed, shown, replayed, discarded, pushed out, also under kills."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.model import subjects
from headrace.model.errors import HeadraceError, InvalidInput, NotFound, Unavailable, WrongState
from headrace.wire.dead_letter import LetterDesk, failed_attempt
from headrace.wire.envelope import Envelope, ReplyTo, decode_envelope
from services.orchestrator.domain import letter_ledger as ledgers
from services.orchestrator.domain.documents import change
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import OrchestratorRig, chain, orchestrator_rig, published

FLOW = "orders"
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def running(rig: OrchestratorRig, client: AsyncClient) -> None:
    await published(rig, client, FLOW, chain("order", "price"))
    await client.start(FLOW)


async def give_up(
    rig: OrchestratorRig,
    numbers: range,
    *,
    step: str = "price",
    reason: str = "TIMEOUT",
    deployment: int = 1,
    size: int = 0,
) -> None:
    """Letters as a sidecar of that deployment writes them."""
    plan = await rig.stores.plan(FLOW, deployment)
    assert plan is not None
    desk = LetterDesk.of_plan(plan)
    for number in numbers:
        original = Envelope(
            id=f"{number:032x}", execution_id=f"{number + 10**6:032x}", body=b"%d" % number + b" " * size,
            content_type="application/json", headers={"kind": "test"}, sender="order",
            reply_to=ReplyTo(subject="hr.default._reply.gone"),
        )  # fmt: skip
        attempts = [failed_attempt(1, "BUSY", "first", 1), failed_attempt(2, reason, "no answer", 2)]
        letter = desk.letter(original, step, reason, attempts, time.time_ns(), traceparent=TRACE)
        await rig.assets.publish(letter.subject, letter.payload, {"Nats-Msg-Id": letter.message_id})


def handled(rig: OrchestratorRig, step: str = "price") -> list[Envelope]:
    return [decode_envelope(data) for _, at, _, data in rig.agent.handled if at == step]


async def test_letters_are_listed_newest_first_and_shown_whole(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        assert not (await client.list_dead_letters(FLOW)).dead_letters
        await give_up(rig, range(5))
        await give_up(rig, range(5, 8), step="order", reason="COMPONENT_ERROR")
        found = await client.list_dead_letters(FLOW, limit=5)
        assert [letter.name for letter in found.dead_letters] == [
            f"flows/orders/deadLetters/{n}" for n in (8, 7, 6, 5, 4)
        ]
        assert found.next_page_token
        older = await client.list_dead_letters(FLOW, limit=5, page_token=found.next_page_token)
        assert [letter.name.rpartition("/")[2] for letter in older.dead_letters] == ["3", "2", "1"]
        assert not older.next_page_token
        assert (found.counts.waiting, found.counts.total, found.counts.pushed_out) == (8, 8, 0)
        of_step = await client.list_dead_letters(FLOW, step="order")
        assert {letter.step for letter in of_step.dead_letters} == {"order"}
        of_reason = await client.list_dead_letters(FLOW, reason="TIMEOUT", limit=3)
        assert [letter.name.rpartition("/")[2] for letter in of_reason.dead_letters] == ["5", "4", "3"]
        letter = await client.get_dead_letter(FLOW, 2)
        plan = await rig.stores.plan(FLOW, 1)
        assert plan is not None
        assert (letter.step, letter.reason, letter.error, letter.attempt_count) == ("price", "TIMEOUT", "no answer", 2)
        assert [(item.code, item.message) for item in letter.attempts] == [("BUSY", "first"), ("TIMEOUT", "no answer")]
        assert (letter.body, dict(letter.headers), letter.trace_id) == (b"1", {"kind": "test"}, "a" * 32)
        assert (letter.deployment, letter.version, letter.revision) == (1, 1, plan.step("price").pin.digest)
        assert dict(letter.pins) == {step.name: step.pin.digest for step in plan.steps}
        assert (await client.get_dead_letter(FLOW, 2, max_body_bytes=1)).body_truncated is False
        status = await client.get_status(FLOW)
        assert status.dead_letters.waiting == 8
        with pytest.raises(NotFound, match="keeps no dead letter 99") as missing:
            await client.get_dead_letter(FLOW, 99)
        assert "headrace dead-letters list orders" in missing.value.next_step


async def test_replays_go_to_the_pinned_deployment_under_new_ids_and_leave_the_list(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await give_up(rig, range(4))
        answer = await client.replay_dead_letters(FLOW, [2, 3])
        assert (answer.replayed, len(answer.refusals), answer.remaining) == (2, 0, 0)
        assert {(item.deployment, item.version, item.same_revision) for item in answer.replays} == {(1, 1, True)}
        got = await eventually(lambda: handled(rig) if len(handled(rig)) == 2 else [])
        assert [message.body for message in got] == [b"1", b"2"]
        assert {message.id for message in got} == {item.message_id for item in answer.replays}
        assert [message.replayed.id for message in got] == [f"{1:032x}", f"{2:032x}"]
        assert got[0].incarnation
        assert not got[0].HasField("reply_to")
        assert got[0].execution_id == f"{1 + 10**6:032x}"
        left = await client.list_dead_letters(FLOW)
        assert [letter.name.rpartition("/")[2] for letter in left.dead_letters] == ["4", "1"]
        assert (left.counts.replayed, left.counts.pushed_out, left.counts.total) == (2, 0, 4)
        again = await client.replay_dead_letters(FLOW, [2])
        assert [(item.reason, item.dead_letter) for item in again.refusals] == [
            ("NOT_FOUND", f"flows/{FLOW}/deadLetters/2")
        ]
        entries, _ = await eventually(lambda: _history(client, "dead-letters-replay"))
        assert entries[0].detail == "2 letters: 2, 3"


async def _history(client: AsyncClient, what: str) -> tuple[list[object], str]:
    entries, token = await client.list_history(FLOW)
    found = [entry for entry in entries if entry.what == what]
    assert found
    return found, token  # type: ignore[return-value]


async def test_after_a_switch_letters_go_to_the_deployment_that_runs_and_the_answer_says_so(
    rig: OrchestratorRig,
) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await give_up(rig, range(2))
        await rig.push("name: work\ndescription: newer\nfunctions:\n  work: {kind: action}\n")
        await client.restart(FLOW)

        async def over() -> bool:
            return [d.deployment.number for d in (await client.get_status(FLOW)).deployments] == [2]

        await eventually(over)
        answer = await client.replay_dead_letters(FLOW, all_letters=True)
        assert {(item.deployment, item.same_revision) for item in answer.replays} == {(2, False)}
        await eventually(lambda: len(handled(rig)) == 2)


async def test_what_cannot_be_replayed_is_refused_and_stays(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await give_up(rig, range(1), step="gone")
        desk = LetterDesk.without_plan("default", FLOW, 1)
        letter = desk.letter(Envelope(id="x", body=b"\xff"), "price", "MALFORMED_MESSAGE", [], 1, unreadable=True)
        await rig.assets.publish(letter.subject, letter.payload, {})
        await rig.assets.publish(letter.subject, b"\xff\xff no letter at all", {})
        answer = await client.replay_dead_letters(FLOW, all_letters=True)
        assert answer.replayed == 0
        assert [item.reason for item in answer.refusals] == ["UNREADABLE", "UNREADABLE", "NO_SUCH_STEP"]
        assert (await client.list_dead_letters(FLOW)).counts.waiting == 3
        for wrong in ({}, {"numbers": [1], "all_letters": True}):
            with pytest.raises(InvalidInput, match="which letters"):
                await client.replay_dead_letters(FLOW, **wrong)
        await client.stop(FLOW)
        with pytest.raises(WrongState, match="cannot be replayed") as stopped:
            await client.replay_dead_letters(FLOW, [1])
        assert "headrace flow start orders" in stopped.value.next_step
        with pytest.raises(WrongState, match="3 dead letters") as kept:
            await client.delete_flow(FLOW)
        assert "headrace dead-letters discard orders --all --yes" in kept.value.next_step
        assert (await client.discard_dead_letters(FLOW, all_letters=True)).discarded == 3
        entries, _ = await eventually(lambda: _history(client, "dead-letters-discard"))
        assert entries[0].detail == "3 letters: all"
        counts = (await client.list_dead_letters(FLOW)).counts
        assert (counts.waiting, counts.discarded, counts.pushed_out) == (0, 3, 0)
        await client.delete_flow(FLOW)


async def test_a_step_that_is_full_takes_the_rest_later(tmp_path: Path) -> None:
    async with orchestrator_rig(tmp_path) as rig, rig.client() as client:
        await published(rig, client, FLOW, chain("order", "price", max_waiting=10))
        await client.start(FLOW)
        rig.agent.keep.add("price")
        await give_up(rig, range(30))
        working = asyncio.create_task(client.replay_dead_letters(FLOW, all_letters=True))

        async def full() -> bool:
            return (await rig.counts(FLOW)).get("hr.default.orders.d1.price.0", 0) == 10

        await eventually(full)
        rig.agent.keep.clear()
        assert (await working).replayed == 30
        await eventually(lambda: len(handled(rig)) == 30)


async def test_the_oldest_are_pushed_out_and_counted_and_no_flow_pushes_out_anothers(tmp_path: Path) -> None:
    limits = ("--dead-letters", "50", "--dead-letter-bytes", "1048576")
    async with orchestrator_rig(tmp_path, *limits) as rig, rig.client() as client:
        await running(rig, client)
        other = LetterDesk.without_plan("default", "other", 1)
        await client.create_flow("other", (await client.get_version(FLOW, 1)).spec)
        await client.publish("other")
        await client.start("other")
        letter = other.letter(Envelope(id="x", execution_id="e"), "price", "TIMEOUT", [], 1)
        await rig.assets.publish(letter.subject, letter.payload, {})
        await give_up(rig, range(70))
        counts = (await client.list_dead_letters(FLOW)).counts
        assert (counts.waiting, counts.total, counts.pushed_out, counts.max_count) == (50, 70, 20, 50)
        await client.replay_dead_letters(FLOW, [60, 61])
        await client.discard_dead_letters(FLOW, [62])
        await give_up(rig, range(100, 104), size=400_000)
        counts = (await client.list_dead_letters(FLOW)).counts
        assert counts.bytes <= 1048576
        assert counts.waiting + counts.replayed + counts.discarded + counts.pushed_out == counts.total == 74
        assert (counts.replayed, counts.discarded) == (2, 1)
        assert (await client.list_dead_letters("other")).counts.waiting == 1

        # A shorter age holds for what is there, too.
        await rig.kill()
        rig.options = (*limits, "--dead-letter-age", "1")
        await rig.restart()

        async def too_old() -> bool:
            counts = (await client.list_dead_letters(FLOW)).counts
            return counts.waiting == 0 and counts.replayed + counts.discarded + counts.pushed_out == counts.total == 74

        await eventually(too_old)


async def test_messages_in_doubt_are_counted_and_listed(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        plan = await rig.stores.plan(FLOW, 1)
        assert plan is not None
        for number in range(3):
            original = Envelope(id=f"{number:032x}", execution_id=f"{number:032x}", sender="order", body=b"secret")
            record = LetterDesk.of_plan(plan).doubt(original, "price", time.time_ns(), traceparent=TRACE)
            await rig.assets.publish(record.subject, record.payload, {"Nats-Msg-Id": record.message_id})
            await rig.assets.publish(record.subject, record.payload, {"Nats-Msg-Id": record.message_id})
        assert b"secret" not in record.payload
        status = await client.get_status(FLOW)
        assert (status.in_doubt, status.dead_letters.total) == (3, 0)
        found = await client.list_in_doubt(FLOW, limit=2)
        assert [message.message_id for message in found.messages] == [f"{2:032x}", f"{1:032x}"]
        assert (found.total, found.messages[0].step, found.messages[0].trace_id) == (3, "price", "a" * 32)
        older = await client.list_in_doubt(FLOW, limit=2, page_token=found.next_page_token)
        assert [message.message_id for message in older.messages] == [f"{0:032x}"]
        assert not older.next_page_token


async def test_new_letters_are_watched(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await give_up(rig, range(2))
        seen: list[str] = []

        async def watch() -> None:
            async for message in client.watch_dead_letters(FLOW, reason="TIMEOUT"):
                seen.extend(letter.name.rpartition("/")[2] for letter in message.dead_letters)
                if message.counts.waiting == 5 and len(seen) == 2:
                    return

        watching = asyncio.create_task(watch())
        # It begins with what comes from now on; until it has begun nothing may come.
        await asyncio.wait_for(anext(aiter(client.watch_dead_letters(FLOW, after=0))), 5)
        await give_up(rig, range(2, 4))
        await give_up(rig, range(4, 5), reason="OTHER")
        await asyncio.wait_for(watching, 10)
        assert seen == ["3", "4"]


@pytest.mark.parametrize("action", ["replay", "discard"])
async def test_a_kill_in_the_middle_loses_and_doubles_nothing(rig: OrchestratorRig, action: str) -> None:
    count = 700
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("price")
        await give_up(rig, range(count))
        kills = 0
        for left in (count - 50, count - 350):
            verb = client.replay_dead_letters if action == "replay" else client.discard_dead_letters
            working = asyncio.create_task(verb(FLOW, all_letters=True))

            async def under_way(left: int = left) -> bool:
                info = await rig.assets.stream_info(subjects.dead_letter_stream("default", FLOW))
                return info is not None and int(info["state"]["messages"]) < left

            await eventually(under_way, every_s=0.002)
            await rig.kill()
            kills += 1
            working.cancel()
            with contextlib.suppress(HeadraceError, asyncio.CancelledError):
                await working
            await rig.restart()
        await eventually(lambda: _finished(client))
        answer = await (client.replay_dead_letters if action == "replay" else client.discard_dead_letters)(
            FLOW, all_letters=True
        )
        assert not answer.remaining
        counts = (await client.list_dead_letters(FLOW)).counts
        assert (counts.waiting, counts.pushed_out, counts.replay_in_doubt) == (0, 0, 0)
        assert counts.replayed + counts.discarded == count
        rig.agent.keep.clear()
        expected = count if action == "replay" else 0
        await eventually(lambda: len(handled(rig)) >= expected, within_s=20)
        origins = Counter(message.replayed.id for message in handled(rig))
        assert len(origins) == expected
        assert set(origins.values()) <= {1}
        print(f"{action}: {kills} kills in the middle, {expected} handled once each")


async def _finished(client: AsyncClient) -> bool:
    """The new leader has ended what the killed one had begun: work begins with it."""
    try:
        await client.discard_dead_letters(FLOW, [10**6])
    except Unavailable:
        return False
    return True


async def test_a_replay_that_nobody_knows_of_any_more_is_marked_and_not_repeated_by_itself(
    rig: OrchestratorRig,
) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await give_up(rig, range(3))
        await rig.kill()
        found = await rig.stores.flow(FLOW)
        assert found is not None
        ledger = ledgers.begun(found[0].letters, ledgers.REPLAY, "somebody", "all", 1.0)
        ledger = ledgers.claimed(ledger, [1, 2], 7, time.time() - 100)
        await rig.stores.write_flow(change(found[0], letters=ledger), found[1])
        await rig.restart()

        async def marked() -> bool:
            return (await client.get_status(FLOW)).dead_letters.replay_in_doubt == 2

        await eventually(marked)
        assert [letter.replay_in_doubt for letter in (await client.list_dead_letters(FLOW)).dead_letters] == [
            False,
            True,
            True,
        ]
        answer = await client.replay_dead_letters(FLOW, all_letters=True)
        assert (answer.replayed, {item.reason for item in answer.refusals}) == (1, {"REPLAY_IN_DOUBT"})
        assert (await client.replay_dead_letters(FLOW, [1])).replayed == 1
        assert (await client.list_dead_letters(FLOW)).counts.replay_in_doubt == 1
        await eventually(lambda: len(handled(rig)) == 2)
