"""Reads the records of messages in doubt."""

from __future__ import annotations

from dataclasses import dataclass

from nats.aio.client import Client

from headrace.api.deadletter.v1 import dead_letter_pb2
from headrace.edge.direct_get import read_batch
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.pages import Page
from headrace.wire.envelope import DeadLetter, MalformedMessage, decode_dead_letter
from services.orchestrator.letter_messages import trace_id

log = get_logger(__name__)

DEFAULT_PAGE = 50
MAX_PAGE = 500
READ_AT_ONCE = 1000


@dataclass
class DoubtRecords:
    """Of the flows of one workspace; bounded by their stream, so a flow's are read whole."""

    connection: Client
    assets: JetStreamAssets
    workspace: str

    async def count(self, flow: str) -> int:
        pattern = subjects.doubt_filter(self.workspace, flow)
        info = await self.assets.stream_info(subjects.doubt_stream(self.workspace), pattern)
        return sum(int(count) for count in (info["state"].get("subjects") or {}).values()) if info else 0

    async def page(self, flow: str, size: int, token: str) -> tuple[list[dead_letter_pb2.InDoubt], str, int]:
        """Newest first: up to `size` records older than the token, the next token, and how many there are."""
        page = Page.asked(f"what is in doubt of {flow}", size, token, default=DEFAULT_PAGE, most=MAX_PAGE)
        size = page.size
        stream, pattern = subjects.doubt_stream(self.workspace), subjects.doubt_filter(self.workspace, flow)
        found: list[tuple[int, dead_letter_pb2.InDoubt]] = []
        sequence, pending = 0, 1
        while pending:
            batch, pending = await read_batch(self.connection, stream, pattern, sequence + 1, count=READ_AT_ONCE)
            if not batch:
                break
            sequence = batch[-1].sequence
            for item in batch:
                try:
                    found.append((item.sequence, _message(decode_dead_letter(item.data))))
                except MalformedMessage:
                    log.warning("a record of a message in doubt cannot be read", sequence=item.sequence)
        found.reverse()
        older = [item for item in found if not page.number or item[0] < page.number]
        more = page.token(older[size - 1][0]) if len(older) > size else ""
        return [message for _, message in older[:size]], more, len(found)


def _message(record: DeadLetter) -> dead_letter_pb2.InDoubt:
    message = dead_letter_pb2.InDoubt(
        message_id=record.original.id,
        execution_id=record.original.execution_id,
        step=record.step,
        sender=record.original.sender,
        deployment=record.deployment,
        version=record.version,
        revision=record.revision,
        trace_id=trace_id(record.traceparent),
    )
    message.time.FromNanoseconds(record.at_unix_ns)
    return message
