"""The history's stream: append-only, one subject per entry, so that an entry is stored once for ever.

An entry is published under the condition that its subject is empty yet; the broker refuses a second one, after
any retry, restart or fail-over. Read newest first, in windows of stream sequences.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import msgspec
from nats.aio.client import Client

from headrace.edge.direct_get import read_batch
from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets, NoResponders
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import Conflict, Unavailable
from headrace.model.pages import Page
from services.orchestrator.caller import ORCHESTRATOR
from services.orchestrator.domain.documents import DeletedFlow, decode, encode
from services.orchestrator.domain.history_entry import HistoryEntry
from services.orchestrator.domain.leadership import EpochDocument
from services.orchestrator.stores import Stores

log = get_logger(__name__)

MAX_ENTRIES = 100_000
MAX_AGE_S = 400 * 24 * 3600
WRONG_LAST_SEQUENCE = 10071
WINDOW = 1000
IF_ABSENT = {"Nats-Expected-Last-Subject-Sequence": "0"}


def history_stream_config(workspace: str, copies: int = 1) -> dict[str, Any]:
    return {
        "name": subjects.history_stream(workspace),
        "subjects": [subjects.history_filter(workspace)],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs": MAX_ENTRIES,
        "max_age": MAX_AGE_S * 1_000_000_000,
        "allow_direct": True,
        "deny_delete": True,
        "num_replicas": copies,
    }


@dataclass
class HistoryLog:
    """Writes and reads entries of one workspace."""

    assets: JetStreamAssets
    workspace: str

    async def record(self, *entries: HistoryEntry) -> None:
        """Stores those that are not stored yet, in order."""
        for entry in entries:
            subject = subjects.history_subject(self.workspace, entry.flow, entry.place)
            for last in (False, True):
                try:
                    await self.assets.publish(subject, encode(entry), IF_ABSENT)
                except JetStreamApiError as error:
                    if error.code != WRONG_LAST_SEQUENCE:
                        raise Unavailable(f"the history cannot be written: {error}") from error
                except NoResponders as error:
                    if last:
                        raise Unavailable("there is no stream for the history") from error
                    await self.assets.ensure_stream(history_stream_config(self.workspace, self.assets.copies))
                    continue
                break

    async def record_leader(self, epoch: int, name: str, previous: EpochDocument | None, now: float) -> None:
        """A new term: `fail-over` where another led before, `leader` else. The epoch is the entry's number."""
        if previous is not None and previous.name != name:
            what, detail = "fail-over", f"{name} leads, after {previous.name}"
        else:
            what, detail = "leader", f"{name} leads"
        await self.record(HistoryEntry(epoch, now, ORCHESTRATOR, "", what, detail=detail))

    async def record_deleted(self, stores: Stores) -> None:
        """Entries of deleted flows that their orchestrator did not live to store."""
        for entry in await stores.flows.entries("deleted.*"):
            remains = decode(entry.value or b"", DeletedFlow)
            if remains.history:
                await self.record(*remains.history)
                noted = encode(msgspec.structs.replace(remains, history=()))
                with contextlib.suppress(Conflict):  # somebody else was faster
                    await stores.flows.update(entry.key, noted, entry.revision)


@dataclass
class HistoryReader:
    """Reads pages, newest first."""

    connection: Client
    assets: JetStreamAssets
    workspace: str

    async def read(self, flow: str, page: Page) -> list[tuple[int, HistoryEntry]]:
        """The entries of a page, one more where there is a next one; each with the number it has among all."""
        size = page.size
        info = await self.assets.stream_info(subjects.history_stream(self.workspace))
        if info is None:
            return []
        first, last = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
        found: list[tuple[int, bytes]] = []
        before = page.number or last + 1
        while before > first and len(found) <= size:
            begin = max(first, before - WINDOW)
            window = await self._window(flow, begin, before)
            found += reversed(window)
            before = begin
        return [(number, msgspec.json.decode(raw, type=HistoryEntry)) for number, raw in found[: size + 1]]

    async def _window(self, flow: str, begin: int, before: int) -> list[tuple[int, bytes]]:
        """Entries with begin <= sequence < before, oldest first."""
        found: list[tuple[int, bytes]] = []
        while begin < before:
            stream = subjects.history_stream(self.workspace)
            pattern = subjects.history_filter(self.workspace, flow)
            batch, pending = await read_batch(self.connection, stream, pattern, begin, count=WINDOW)
            found += [(item.sequence, item.data) for item in batch if item.sequence < before]
            if not batch or not pending:
                break
            begin = batch[-1].sequence + 1
        return found
