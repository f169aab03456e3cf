"""A watch that resumes: whoever comes back with a token gets what it missed, each key once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.edge import resumable_watch
from headrace.edge.resumable_watch import ResumableWatch, WatchStep
from headrace.model.errors import InvalidInput, OutOfRange
from headrace.model.opaque_tokens import make_token
from tests.support.memory_bucket import MemoryBucket

KIND = "a watch of flows"
keys = st.sampled_from(["flow.a", "flow.b", "flow.c", "operation.x"])


@dataclass
class Mirror:
    """What a client that follows the watch knows."""

    known: dict[str, bytes] = field(default_factory=dict)
    token: str = ""
    synced: bool = False
    steps: list[WatchStep] = field(default_factory=list)

    def take(self, step: WatchStep) -> None:
        for entry in step.entries:
            if entry.value is None:
                self.known.pop(entry.key, None)
            else:
                self.known[entry.key] = entry.value
        self.token, self.synced = step.token, step.synced
        self.steps.append(step)


async def follow(bucket: MemoryBucket, mirror: Mirror, *, until: int) -> None:
    """Until the watch stands at that revision."""
    stopping = asyncio.Event()
    watch = ResumableWatch(bucket, "flow.*", KIND)
    reached = make_token(KIND, "memory", str(until))
    async with asyncio.timeout(5), contextlib.aclosing(watch.follow(mirror.token, stopping)) as steps:
        async for step in steps:
            mirror.take(step)
            if step.synced and step.token == reached:
                return


def present(bucket: MemoryBucket) -> dict[str, bytes]:
    return {key: value for key, (value, _) in bucket.values.items() if value is not None and key.startswith("flow.")}


@given(rounds=st.lists(st.lists(st.tuples(keys, st.one_of(st.none(), st.binary(max_size=3))), max_size=8), max_size=5))
@settings(deadline=None, max_examples=60)
def test_a_client_that_comes_and_goes_always_ends_with_what_is_there(
    rounds: list[list[tuple[str, bytes | None]]],
) -> None:
    async def story() -> None:
        bucket, mirror = MemoryBucket("test"), Mirror()
        for changes in [[], *rounds]:
            for key, value in changes:
                await (bucket.put(key, value) if value is not None else bucket.delete(key))
            before = len(mirror.steps)
            await follow(bucket, mirror, until=bucket.revision)
            assert mirror.known == present(bucket)
            told = [entry.key for step in mirror.steps[before:] for entry in step.entries]
            assert len(told) == len(set(told)), "each key once"
            assert set(told) <= {key for key, _ in changes}, "nothing that did not change"

    asyncio.run(story())


async def test_a_change_comes_while_it_watches_and_an_idle_watch_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resumable_watch, "IDLE_S", 0.05)
    bucket, stopping, mirror = MemoryBucket("test"), asyncio.Event(), Mirror()
    await bucket.put("flow.a", b"1")
    async with asyncio.timeout(5):
        async for step in ResumableWatch(bucket, "flow.*", KIND).follow("", stopping):
            mirror.take(step)
            if len(mirror.steps) == 1:
                await bucket.put("operation.x", b"not watched")
            elif mirror.token == make_token(KIND, "memory", "2"):
                await bucket.put("flow.a", b"2")
            elif mirror.known.get("flow.a") == b"2":
                stopping.set()
    assert not bucket.listeners
    assert [len(step.entries) for step in mirror.steps[:2]] == [1, 0]
    assert mirror.steps[1].token == make_token(KIND, "memory", "2"), "what it does not watch moves it on too"


async def test_large_and_many_entries_come_in_several_messages_each_of_which_can_be_gone_on_from() -> None:
    bucket, mirror = MemoryBucket("test"), Mirror()
    for number in range(250):
        await bucket.put(f"flow.n{number}", b"x" * (10 if number else 2_000_000))
    await follow(bucket, mirror, until=250)
    assert [len(step.entries) for step in mirror.steps] == [1, 100, 100, 49]
    assert [step.synced for step in mirror.steps] == [False, False, False, True]
    again = Mirror(token=mirror.steps[1].token)
    await follow(bucket, again, until=250)
    assert sorted(again.known) == sorted(f"flow.n{number}" for number in range(101, 250))


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (make_token(KIND, "memory", "99"), OutOfRange),
        (make_token(KIND, "another", "1"), OutOfRange),
        (make_token("a watch of components", "memory", "1"), InvalidInput),
        ("nonsense", InvalidInput),
    ],
)
async def test_a_token_of_what_is_not_there_is_refused(token: str, problem: type[Exception]) -> None:
    bucket = MemoryBucket("test")
    await bucket.put("flow.a", b"1")
    with pytest.raises(problem):
        await anext(ResumableWatch(bucket, "flow.*", KIND).follow(token, asyncio.Event()))


async def test_a_bucket_that_is_made_anew_meanwhile_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_watch, "IDLE_S", 0.02)
    bucket = MemoryBucket("test")
    steps = ResumableWatch(bucket, "flow.*", KIND).follow("", asyncio.Event())
    await anext(steps)

    async def another() -> tuple[str, int]:
        return "another", 0

    monkeypatch.setattr(bucket, "state", another)
    with pytest.raises(OutOfRange):
        await asyncio.wait_for(anext(steps), 5)
