"""Makes a decided switch of the ingress true at the broker, and proves it, before anything is concluded from it.

On one server the stream's transform follows from the decision; a barrier that is stored under the new owner proves
it. On a cluster the stream itself is told who the owner is (headrace.model.ingress_owner): by compare-and-set, and
never by an older decision than the one it knows, so that what a former leader sends late changes nothing.
"""

from __future__ import annotations

import asyncio
import random

from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets, NoResponders
from headrace.model import subjects
from headrace.model.errors import Conflict, Unavailable
from headrace.model.ingress_owner import FENCES, NOBODY, IngressOwner, decode_owner, encode_owner
from headrace.ports import BatchMessage

LIMIT_S = 10.0
PAUSE_S = 0.02
# Another write of it came first, or is under way; or the batch did not arrive whole. So too where nobody takes it:
# its stream has no leader for the moment.
TRY_AGAIN = (10071, 10164, 10176, 10210)


class IngressProof:
    """Each call ends within `LIMIT_S`, plus what the broker takes for one answer."""

    def __init__(self, assets: JetStreamAssets, workspace: str) -> None:
        self._assets = assets
        self._workspace = workspace

    async def by_barrier(self, flow: str, owner: str) -> None:
        """Repeats barriers until one lands under the owner; Unavailable past the limit."""
        stream = subjects.flow_stream(self._workspace, flow)
        clock = asyncio.get_running_loop()
        deadline = clock.time() + LIMIT_S
        while True:
            landed = await self._assets.barrier(stream, subjects.barrier_subject(self._workspace, flow))
            found = subjects.parse_data_subject(landed).owner if landed else ""
            if found == owner:
                return
            if clock.time() > deadline:
                raise Unavailable(f"the ingress of {flow!r} still belongs to {found!r}, not {owner!r}")

    async def by_writing(self, flow: str, wanted: IngressOwner) -> int:
        """Writes the owner, unless it is written already; answers the sequence of that message: what the stream has
        stored before it is all that any earlier owner is ever given. Conflict where a later decision is written."""
        stream = subjects.flow_stream(self._workspace, flow)
        clock = asyncio.get_running_loop()
        deadline = clock.time() + LIMIT_S
        while True:
            kept = await self._assets.last_message(stream, self._subject(flow, 0))
            known = decode_owner(kept.data) if kept is not None else NOBODY
            if kept is not None and known == wanted:
                return kept.sequence
            if known.generation > wanted.generation:
                raise Conflict(f"the ingress of {flow!r} was given to {known.owner!r} by a later decision")
            try:
                stored = await self._assets.publish_batch(self._batch(flow, wanted, kept.sequence if kept else 0))
            except (JetStreamApiError, NoResponders) as error:
                if isinstance(error, JetStreamApiError) and error.code not in TRY_AGAIN:
                    raise
                if clock.time() > deadline:
                    raise Unavailable(f"the ingress of {flow!r} cannot be given to {wanted.owner!r}") from error
                await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.0))  # noqa: S311
                continue
            return int(stored["seq"]) - FENCES

    def _batch(self, flow: str, wanted: IngressOwner, expected: int) -> list[BatchMessage]:
        """The first is compared and set; the others replace what is there, so that no fence of before holds."""
        content = encode_owner(wanted)
        first = BatchMessage(self._subject(flow, 0), content, rollup=True, expected_last=expected)
        fences = [BatchMessage(self._subject(flow, number), content, rollup=True) for number in range(1, FENCES + 1)]
        return [first, *fences]

    def _subject(self, flow: str, fence: int) -> str:
        return subjects.ingress_owner_subject(self._workspace, flow, fence)
