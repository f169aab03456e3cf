"""The sweep of attachments against a world that goes on between any two of its requests: messages are worked on, fail,
are replayed; uploads come and are repeated; clocks go on; another sweeper sweeps. Whatever the interleaving, no object
goes that anything still names, and none stays once nothing does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.api.message.v1.message_pb2 import DeadLetter, Envelope, Passed
from headrace.edge.jetstream_assets import StoredMessage
from headrace.edge.object_bucket import ObjectInfo, StoredObject
from headrace.model import subjects
from headrace.model.attachments import KEEP_S, object_name
from services.orchestrator.attachment_sweeper import AttachmentSweeper

FLOW, WORKSPACE = "orders", "default"
OWN = subjects.flow_stream(WORKSPACE, FLOW)
DEAD = subjects.dead_letter_stream(WORKSPACE, FLOW)
KEPT = subjects.stimulus_stream(WORKSPACE, FLOW)
PUBLISH_WITHIN_S = KEEP_S / 2


@dataclass
class Work:
    """A message in a step's hands, and what its call has uploaded."""

    sequence: int
    uploads: set[str] = field(default_factory=set)
    lettered: bool = False


@dataclass
class World:
    """Streams and objects; every request of a sweeper lets `between` happen first."""

    between: Callable[[], None] = lambda: None
    now: float = 1_000_000.0
    sequence: int = 0
    streams: dict[str, dict[int, set[str]]] = field(default_factory=lambda: {OWN: {}, DEAD: {}, KEPT: {}})
    objects: dict[str, StoredObject] = field(default_factory=dict)
    chunks: set[str] = field(default_factory=set)
    works: list[Work] = field(default_factory=list)
    coming: list[tuple[str, float]] = field(default_factory=list)
    """Uploads and replays that are kept, and until when they are published."""
    counter: int = 0

    # What the mesh does

    def commit(self, identity: str, *, holder: int = 0, keep_s: float = KEEP_S) -> None:
        name = object_name(FLOW, identity)
        known = self.objects.get(name)
        live = known is not None and not known.info.deleted
        nuid = known.info.nuid if live and known else f"upload-{self.sequence}"
        metadata = {"created": str(self.now), "keep_s": str(keep_s)} | ({"holder": str(holder)} if holder else {})
        self._write(ObjectInfo(name, "b", nuid, size=1, metadata=metadata))
        self.chunks.add(nuid)

    def _write(self, info: ObjectInfo) -> None:
        self.sequence += 1
        self.objects[info.name] = StoredObject(info, self.sequence, self.now)

    def lives(self, identity: str) -> bool:
        stored = self.objects.get(object_name(FLOW, identity))
        return stored is not None and not stored.info.deleted and stored.info.nuid in self.chunks

    def store(self, stream: str, names: set[str]) -> None:
        self.sequence += 1
        self.streams[stream][self.sequence] = set(names)

    def named(self) -> set[str]:
        """Everything that somebody may still want."""
        found = {name for messages in self.streams.values() for names in messages.values() for name in names}
        found |= {name for work in self.works if work.sequence in self.streams[OWN] for name in work.uploads}
        return found | {name for name, until in self.coming if until > self.now}

    def act(self, draw: Callable[[int], int]) -> None:
        """One thing that may happen at any moment."""
        actions = [self.upload, self.publish, self.begin, self.step_uploads, self.step_emits, self.finish, self.fail,
                   self.replay, self.discard, self.wait]  # fmt: skip
        actions[draw(len(actions))](draw)

    def upload(self, draw: Callable[[int], int]) -> None:
        self.counter += 1
        identity = f"g{self.counter}"
        self.commit(identity)
        self.coming.append((identity, self.now + PUBLISH_WITHIN_S))

    def publish(self, draw: Callable[[int], int]) -> None:
        if self.coming:
            identity, until = self.coming.pop(draw(len(self.coming)))
            if until > self.now:
                self.store(OWN, {identity})

    def begin(self, draw: Callable[[int], int]) -> None:
        free = [sequence for sequence in self.streams[OWN] if all(work.sequence != sequence for work in self.works)]
        if free:
            self.works.append(Work(free[draw(len(free))]))

    def step_uploads(self, draw: Callable[[int], int]) -> None:
        """Also the same bytes again, as a repeated attempt does."""
        if self.works:
            work = self.works[draw(len(self.works))]
            identity = f"s{work.sequence}-{draw(2)}"
            self.commit(identity, holder=work.sequence)
            work.uploads.add(identity)

    def step_emits(self, draw: Callable[[int], int]) -> None:
        if self.works:
            work = self.works[draw(len(self.works))]
            names = sorted(self.streams[OWN][work.sequence] | work.uploads)
            self.store(OWN, {name for name in names if draw(2)})

    def finish(self, draw: Callable[[int], int]) -> None:
        """Acknowledged; or its sidecar dies, and it is delivered again."""
        if self.works:
            work = self.works.pop(draw(len(self.works)))
            if draw(4):
                del self.streams[OWN][work.sequence]

    def fail(self, draw: Callable[[int], int]) -> None:
        """A letter first (or a stimulus filed); the message goes by `finish`, or stays for a while."""
        if self.works:
            work = self.works[draw(len(self.works))]
            self.store((DEAD, KEPT)[draw(2)], self.streams[OWN][work.sequence])

    def replay(self, draw: Callable[[int], int]) -> None:
        stream = (DEAD, KEPT)[draw(2)]
        if letters := sorted(self.streams[stream]):
            number = letters[draw(len(letters))]
            for identity in self.streams[stream][number]:
                self.commit(identity)
                self.coming.append((identity, self.now + PUBLISH_WITHIN_S))
            if draw(2):
                del self.streams[stream][number]

    def discard(self, draw: Callable[[int], int]) -> None:
        if letters := sorted(self.streams[DEAD]):
            del self.streams[DEAD][letters[draw(len(letters))]]

    def wait(self, draw: Callable[[int], int]) -> None:
        self.now += draw(100)

    # What a sweeper asks

    async def is_empty(self) -> bool:
        self.between()
        return not self.objects and not self.chunks

    async def list_all(self) -> list[StoredObject]:
        self.between()
        return list(self.objects.values())

    async def delete(self, stored: StoredObject) -> bool:
        self.between()
        name = stored.info.name
        if self.objects.get(name) is None or self.objects[name].sequence != stored.sequence:
            return False
        identity = name.partition("/")[2]
        assert identity not in self.named(), f"{identity} is still named"
        self._write(replace(stored.info, deleted=True))
        self.between()
        await self.drop_chunks(stored.info.nuid)
        return True

    async def drop_chunks(self, upload: str) -> None:
        self.between()
        self.chunks.discard(upload)
        for identity in self.named():
            assert self.lives(identity), f"the bytes of {identity} are gone"

    async def forget(self, name: str) -> None:
        self.between()
        if name in self.objects and self.objects[name].info.deleted:
            del self.objects[name]

    async def drop_chunks_without_object(self, min_age_s: float) -> int:
        return 0

    async def next_message(self, stream: str, subject_filter: str, sequence: int) -> StoredMessage | None:
        self.between()
        found = min((number for number in self.streams[stream] if number >= sequence), default=None)
        if found is None:
            return None
        envelope = Envelope(id="m", attachments=[Attachment(id=name) for name in self.streams[stream][found]])
        if found % 2:  # what steps before have emitted counts, too
            envelope = Envelope(id="m", passthrough=[Passed(attachments=envelope.attachments)])
        return stored(stream, found, envelope)

    async def message_subject(self, stream: str, sequence: int) -> str | None:
        self.between()
        return "there" if sequence in self.streams[stream] else None


def stored(stream: str, sequence: int, envelope: Envelope) -> StoredMessage:
    """As that stream keeps it."""
    if stream == DEAD:
        subject = subjects.dead_letter_subject(WORKSPACE, FLOW, "price")
        return StoredMessage(subject, sequence, DeadLetter(original=envelope).SerializeToString(), {})
    if stream == KEPT:
        subject = subjects.stimulus_subject(WORKSPACE, FLOW, "price", "ab")
    else:
        subject = subjects.data_subject(WORKSPACE, FLOW, "d1", "price")
    return StoredMessage(subject, sequence, envelope.SerializeToString(), {})


def sweeper_of(world: World) -> AttachmentSweeper:
    return AttachmentSweeper(world, world, WORKSPACE, lambda: world.now)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2))
def test_whatever_happens_meanwhile_nothing_goes_that_is_named(seed: int, busy: int) -> None:
    world = World()
    chance = random.Random(seed)

    def draw(count: int) -> int:
        return chance.randrange(count)

    other = sweeper_of(world)  # a leader that does not know that it is none any more

    def between() -> None:
        for _ in range(draw(busy + 1)):
            world.act(draw)
        if draw(40) == 39:
            world.between, before = (lambda: None), world.between
            _run(other.sweep())
            world.between = before

    world.between = between
    sweeper = sweeper_of(world)
    for _ in range(8):
        for _ in range(draw(8)):
            world.act(draw)
        world.now += draw(90)
        _run(sweeper.sweep())
    for identity in world.named():
        assert world.lives(identity), f"{identity} is named and gone"

    # Nothing is wanted any more: all of it goes, by whoever leads next.
    world.between = lambda: None
    for messages in world.streams.values():
        messages.clear()
    world.works.clear()
    world.coming.clear()
    successor = sweeper_of(world)
    for _ in range(3):
        world.now += KEEP_S + 1
        _run(successor.sweep())
    assert (world.objects, world.chunks) == ({}, set())


def _run(work: Any) -> Any:
    """A coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as over:
        return over.value
    raise AssertionError("it waits")


@pytest.mark.parametrize("stream", [OWN, DEAD, KEPT])
def test_what_only_an_earlier_steps_output_names_is_kept_wherever_that_is_stored(stream: str) -> None:
    """A message on its way to an error step carries no attachment of its own, nor do its letter and its stimulus."""
    body = Attachment(id="g1", is_body=True)
    message = Envelope(id="m", passthrough=[Passed(step="load"), Passed(step="price", attachments=[body])])
    message.failure.code = "TIMEOUT"

    class OneMessage(World):
        async def next_message(self, stream: str, subject_filter: str, sequence: int) -> StoredMessage | None:
            found = await super().next_message(stream, subject_filter, sequence)
            return stored(stream, found.sequence, message) if found is not None else None

    world = OneMessage()
    world.commit("g1")
    world.commit("g2")
    world.store(stream, {"g1"})
    sweeper = sweeper_of(world)
    for _ in range(3):
        world.now += KEEP_S + 1
        _run(sweeper.sweep())
    assert (world.lives("g1"), world.lives("g2")) == (True, False)


def test_what_is_not_ours_or_says_nothing_sensible_stays() -> None:
    world = World()
    for name, metadata in (("other", {}), ("orders/a", {"keep_s": "soon"}), ("orders/b", {"keep_s": "nan"})):
        world.chunks.add(name)
        world._write(ObjectInfo(name, "b", name, metadata=metadata))
    for _ in range(3):
        world.now += 1_000
        assert asyncio.run(sweeper_of(world).sweep()) == 0
    assert len(world.objects) == 3
