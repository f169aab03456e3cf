"""Receiving a pushed bundle: order of parts, silence, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.api.registry.v1 import registry_pb2
from headrace.model.errors import DeadlineExceeded, Exhausted, HeadraceError, InvalidInput
from services.registry import transfer_slots, upload
from services.registry.transfer_slots import TransferSlots
from services.registry.upload import received_bundle
from tests.support.bundles import digest_of, raw_bundle
from tests.support.registry_rig import push_parts

Part = registry_pb2.PushRevisionRequest
HEADER = Part(header=registry_pb2.PushHeader(component="price"))


async def parts_of(*parts: Part, silent: bool = False) -> AsyncIterator[Part]:
    for part in parts:
        yield part
    if silent:
        await asyncio.Event().wait()


async def receive(parts: AsyncIterator[Part]) -> tuple[str, bytes]:
    async with received_bundle(parts) as received:
        received.file.seek(0)
        return received.content.digest, received.file.read()


async def test_a_bundle_comes_in_parts_of_any_size() -> None:
    bundle = raw_bundle()
    for step in (1, 7, 1 << 20):
        assert await receive(push_parts(bundle, step=step)) == (digest_of(bundle), bundle)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "first message must hold it"),
        ([Part(chunk=b"x")], "first message must hold it"),
        ([Part()], "first message must hold it"),
        ([HEADER, HEADER], "only the first message"),
        ([HEADER, Part()], "only the first message"),
        ([HEADER, Part(chunk=bytes(2 << 20))], "more than 1,048,576"),
        ([HEADER], "it is empty"),
    ],
)
async def test_parts_out_of_order_are_refused(parts: list[Part], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        await receive(parts_of(*parts))


@pytest.mark.parametrize("parts", [[], [HEADER], [HEADER, Part(chunk=raw_bundle()[:20])]])
async def test_a_silent_client_is_given_up(parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PART_TIMEOUT_S", 0.05)
    with pytest.raises(DeadlineExceeded):
        await receive(parts_of(*parts, silent=True))


async def test_a_refused_client_that_stays_silent_gets_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "DRAIN_LIMIT_S", 0.05)
    with pytest.raises(InvalidInput, match="not a gzip"):
        await receive(parts_of(HEADER, Part(chunk=b"no gzip at all"), silent=True))


async def test_transfers_and_waiting_callers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_slots, "MAX_WAITING", 3)
    monkeypatch.setattr(transfer_slots, "MAX_WAIT_S", 0.2)
    slots = TransferSlots(2)
    running = most = 0
    release = asyncio.Event()

    async def transfer() -> None:
        nonlocal running, most
        async with slots.one():
            running += 1
            most = max(most, running)
            await release.wait()
            running -= 1

    tasks = [asyncio.ensure_future(transfer()) for _ in range(8)]
    done, _ = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert all(isinstance(task.exception(), Exhausted) for task in done)  # no room to wait
    release.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 2
    assert sum(outcome is None for outcome in outcomes) == 5
    assert sum(isinstance(outcome, HeadraceError) for outcome in outcomes) == 3
    release.clear()
    tasks = [asyncio.ensure_future(transfer()) for _ in range(3)]
    with pytest.raises(Exhausted):  # waited too long
        await tasks[2]
    release.set()
    await asyncio.gather(*tasks[:2])
