"""Removes objects of attachments that no stored message names any more. Level, not edge: it looks at what is stored.

Why nothing that is named goes. Messages of a flow are read in the order of their stream: whoever takes a reference
from a message stores what names it next behind it, before the message goes; so the reference is always at or ahead of
the place that is read. Dead letters and kept stimuli are read after that, since references move there. Whoever takes
one from elsewhere (a letter that is replayed, an upload of a caller) has the object kept for a time first, which
changes its metadata; and an object goes by a compare-and-set on the metadata that was read before the look. What a
step uploads is kept by its input until that is acknowledged, which comes after its outputs are stored. So a sweeper
that was stopped for an hour, one that no longer leads, and two at once remove nothing more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from google.protobuf.message import DecodeError

from headrace.api.message.v1.message_pb2 import DeadLetter, Envelope
from headrace.edge.attachment_store import AttachmentAccess
from headrace.edge.attachment_store import named_by as references_of
from headrace.edge.jetstream_assets import StoredMessage
from headrace.edge.object_bucket import StoredObject
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import HeadraceError
from services.orchestrator.domain.attachment_sweep import Candidate, SweepMemory, candidate_of
from services.orchestrator.lease import Lease

log = get_logger(__name__)

SWEEP_S = 30.0
REST = 20
"""A sweep is followed by a rest of so many times what it took."""
ORPHAN_S = 7_200.0
"""Chunks of uploads that were never finished go after that; an upload may take half an hour."""
ORPHANS_EVERY_S = 600.0


class Objects(Protocol):
    """The object store."""

    async def list_all(self) -> list[StoredObject]: ...
    async def is_empty(self) -> bool: ...
    async def delete(self, stored: StoredObject) -> bool: ...
    async def drop_chunks(self, upload: str) -> None: ...
    async def forget(self, name: str) -> None: ...
    async def drop_chunks_without_object(self, min_age_s: float) -> int: ...


class Streams(Protocol):
    """Stored messages, read from the leaders of their streams."""

    async def next_message(self, stream: str, subject_filter: str, sequence: int) -> StoredMessage | None: ...
    async def message_subject(self, stream: str, sequence: int) -> str | None: ...


class AttachmentSweeper:
    """Of one workspace. Any process may sweep; the leader does, so that it is done once."""

    def __init__(
        self, objects: Objects, streams: Streams, workspace: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._objects = objects
        self._streams = streams
        self._workspace = workspace
        self._clock = clock
        self._memory = SweepMemory()
        self._orphans_at = 0.0

    async def sweep(self) -> int:
        """One look; answers how many objects were removed. HeadraceError when the broker does not answer: what was not
        looked at stays."""
        if await self._objects.is_empty():
            return 0
        now = self._clock()
        found = await self._objects.list_all()
        self._memory.forget_all_but(stored.info.name for stored in found)
        by_flow: dict[str, dict[str, tuple[Candidate, StoredObject]]] = {}
        for stored in found:
            if stored.info.deleted:
                # Of a delete that was cut off, or is being made by another: the same again.
                await self._remove_rest(stored)
                continue
            metadata = stored.info.metadata
            candidate = candidate_of(stored.info.name, stored.sequence, stored.stored_at, metadata, now)
            if candidate is not None:
                by_flow.setdefault(candidate.flow, {})[candidate.identity] = (candidate, stored)
        removed = 0
        for flow, candidates in by_flow.items():
            removed += await self._sweep_flow(flow, candidates)
        await self._drop_orphans(now)
        return removed

    async def _sweep_flow(self, flow: str, candidates: dict[str, tuple[Candidate, StoredObject]]) -> int:
        wanted = {identity: candidate for identity, (candidate, _) in candidates.items()}
        await self._without_kept(flow, wanted)
        for stream, pattern in self._sources(flow):
            if wanted:
                await self._look_through(stream, pattern, wanted)
        removed = 0
        for identity, candidate in wanted.items():
            stored = candidates[identity][1]
            if self._memory.may_go(candidate, self._clock()) and await self._objects.delete(stored):
                removed += 1
                await self._objects.forget(stored.info.name)
                log.info("attachment removed", flow=flow, attachment=identity, bytes=stored.info.size)
        return removed

    async def _without_kept(self, flow: str, wanted: dict[str, Candidate]) -> None:
        """Takes out those whose input, or the message that named them at the last look, is still there."""
        own = subjects.flow_stream(self._workspace, flow)
        for identity, candidate in list(wanted.items()):
            places = [(own, candidate.holder)] if candidate.holder else []
            if candidate.name in self._memory.witnesses:
                places.append(self._memory.witnesses[candidate.name])
            for stream, sequence in places:
                if await self._streams.message_subject(stream, sequence) is not None:
                    del wanted[identity]
                    break

    async def _look_through(self, stream: str, pattern: str, wanted: dict[str, Candidate]) -> None:
        """Takes out those that a message of the stream names."""
        sequence = 1
        while wanted and (message := await self._streams.next_message(stream, pattern, sequence)) is not None:
            sequence = message.sequence + 1
            for identity in named_by(message):
                candidate = wanted.pop(identity, None)
                if candidate is not None:
                    self._memory.saw_named(candidate, stream, message.sequence)

    def _sources(self, flow: str) -> Iterator[tuple[str, str]]:
        """Streams whose messages may name objects of the flow, in the order in which references move."""
        workspace = self._workspace
        yield subjects.flow_stream(workspace, flow), subjects.all_data(workspace, flow)
        yield subjects.dead_letter_stream(workspace, flow), subjects.dead_letter_filter(workspace, flow)
        yield subjects.stimulus_stream(workspace, flow), subjects.stimulus_filter(workspace, flow)

    async def _remove_rest(self, stored: StoredObject) -> None:
        if stored.info.nuid:
            await self._objects.drop_chunks(stored.info.nuid)
        await self._objects.forget(stored.info.name)

    async def _drop_orphans(self, now: float) -> None:
        if now - self._orphans_at >= ORPHANS_EVERY_S:
            self._orphans_at = now
            await self._objects.drop_chunks_without_object(ORPHAN_S)


async def keep_swept(access: AttachmentAccess, streams: Streams, lease: Lease, workspace: str) -> None:
    """Sweeps while this process leads, for ever."""
    sweeper: AttachmentSweeper | None = None
    while True:
        took_s = 0.0
        try:
            if lease.leading:
                began = time.monotonic()
                sweeper = sweeper or AttachmentSweeper((await access.store()).bucket, streams, workspace)
                await sweeper.sweep()
                took_s = time.monotonic() - began
        except HeadraceError as error:
            log.warning("attachments were not swept, it is repeated", error=str(error)[:300])
        await asyncio.sleep(max(SWEEP_S, REST * took_s))


def named_by(message: StoredMessage) -> set[str]:
    """Ids of all objects that a stored message names; of what is no message, none."""
    try:
        if subjects.is_dead_letter(message.subject):
            envelope = DeadLetter.FromString(message.data).original
        else:
            envelope = Envelope.FromString(message.data)
    except DecodeError:
        return set()
    return {item.id for item in references_of(envelope)}
