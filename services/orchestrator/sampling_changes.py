"""What people change about sampling, and its lines in the flow's history: whichever orchestrator was asked writes both.

A line is written into the document of sampling with the change itself, by the same compare-and-set, and leaves it once
the history has it: each change is recorded exactly once, whoever is killed in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nats.aio.client import Client

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.sampling_documents import edit_sampling, read_sampling
from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.errors import HeadraceError
from headrace.model.sampling import Sampling, SamplingChange, without_recorded
from services.orchestrator.domain.history_entry import HistoryEntry
from services.orchestrator.history_log import HistoryLog

log = get_logger(__name__)

SERIES = "sampling-"


@dataclass
class SamplingChanges:
    """Of the flows of one workspace."""

    documents: KvBucket
    history: HistoryLog

    @classmethod
    async def open(cls, connection: Client, assets: JetStreamAssets, workspace: str) -> SamplingChanges:
        """With a bucket of its own, whose writes do not ask for the lease."""
        documents = await KvBucket.open(connection, bucket_names.deployment_bucket(workspace))
        return cls(documents, HistoryLog(assets, workspace))

    async def read(self, flow: str) -> Sampling:
        return (await read_sampling(self.documents, flow))[0]

    async def change(self, flow: str, edit: Callable[[Sampling], Sampling | None]) -> Sampling:
        """See `edit_sampling`; what `edit` notes is in the history afterwards, or is put there by the next leader."""
        changed = await edit_sampling(self.documents, flow, edit)
        try:
            await self._record(flow, changed)
        except HeadraceError as error:
            log.warning("a change of sampling is not in the history yet", flow=flow, error=str(error)[:300])
        return changed

    async def record_left(self) -> None:
        """Lines that their orchestrator did not live to store."""
        prefix = bucket_names.sampling_key("")
        for key in await self.documents.keys(bucket_names.sampling_key("*")):
            flow = key.removeprefix(prefix)
            await self._record(flow, await self.read(flow))

    async def _record(self, flow: str, sampling: Sampling) -> None:
        if sampling.unrecorded:
            await self.history.record(*(_entry(flow, change) for change in sampling.unrecorded))
            await edit_sampling(self.documents, flow, partial(without_recorded, sampling.unrecorded))


def _entry(flow: str, change: SamplingChange) -> HistoryEntry:
    """Its number is its time, since the flow's own count is in a document that only the leader writes."""
    return HistoryEntry(
        change.at_ms, change.at_ms / 1000, change.who, flow, change.what, detail=change.detail, series=SERIES
    )
