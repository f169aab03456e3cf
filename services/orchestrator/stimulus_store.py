"""What started a flow's executions, as its stream keeps it: pages newest first, one, and that of an execution."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from nats.aio.client import Client

from headrace.edge.direct_get import read_batch
from headrace.edge.jetstream_assets import JetStreamAssets, StoredMessage
from headrace.model import subjects
from headrace.model.pages import Page
from headrace.wire.envelope import Envelope, MalformedMessage, decode_envelope
from services.orchestrator.asked_messages import came_within, has_text
from services.orchestrator.newest_first import newest_first, stream_bounds

DEFAULT_PAGE = 50
MAX_PAGE = 500
READ_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Stimulus:
    """`number` is the sequence of the stream; `step` the first step then; `at_unix_ns` when it was filed."""

    number: int
    step: str
    at_unix_ns: int
    envelope: Envelope
    traceparent: str


@dataclass(frozen=True, slots=True)
class StimulusFilter:
    """Empty fields fit all."""

    since_ns: int = 0
    until_ns: int = 0
    text: str = ""

    def fits(self, stimulus: Stimulus) -> bool:
        came = came_within(stimulus.at_unix_ns, self.since_ns, self.until_ns)
        return came and (not self.text or has_text(stimulus.envelope, self.text))


@dataclass
class StimulusStore:
    """Of the flows of one workspace."""

    connection: Client
    assets: JetStreamAssets
    workspace: str

    async def stimulus(self, flow: str, number: int) -> Stimulus | None:
        """None when it is gone, or never was."""
        stream = subjects.stimulus_stream(self.workspace, flow)
        pattern = subjects.stimulus_filter(self.workspace, flow)
        messages, _ = await read_batch(self.connection, stream, pattern, number, count=1)
        return _stimulus(messages[0]) if messages and messages[0].sequence == number else None

    async def has_any(self, flow: str) -> bool:
        """Whether something is kept."""
        info = await self.assets.stream_info(subjects.stimulus_stream(self.workspace, flow))
        return info is not None and bool(info["state"]["messages"])

    async def of_execution(self, flow: str, execution: str) -> Stimulus | None:
        """What started an execution, as it came first; None when it is gone, or was never filed."""
        stream = subjects.stimulus_stream(self.workspace, flow)
        pattern = subjects.stimulus_filter(self.workspace, flow, execution)
        sequence, pending = 1, 1
        while pending:
            messages, pending = await read_batch(self.connection, stream, pattern, sequence, count=READ_AT_ONCE)
            if not messages:
                return None
            sequence = messages[-1].sequence + 1
            for message in messages:
                found = _stimulus(message)
                if found is not None and found.envelope.execution_id == execution:
                    return found
        return None

    async def page(self, flow: str, wanted: StimulusFilter, size: int, token: str) -> tuple[list[Stimulus], str]:
        """Newest first, and the token of the next page; a page with a filter may be short."""
        kind = f"the stimuli of {flow}: {wanted}"
        page = Page.asked(kind, size, token, default=DEFAULT_PAGE, most=MAX_PAGE)
        stream = subjects.stimulus_stream(self.workspace, flow)
        pattern = subjects.stimulus_filter(self.workspace, flow)

        def fitting(message: StoredMessage) -> Stimulus | None:
            found = _stimulus(message)
            return found if found is not None and wanted.fits(found) else None

        bounds = await stream_bounds(self.assets, stream)
        return await newest_first(self.connection, stream, pattern, page, bounds, fitting)


def _stimulus(message: StoredMessage) -> Stimulus | None:
    """None for what somebody else put there."""
    try:
        envelope = decode_envelope(message.data)
    except MalformedMessage:
        return None
    step = message.subject.split(".")[4]
    at = Timestamp()
    at.FromJsonString(message.headers["Nats-Time-Stamp"])
    trace = message.headers.get("traceparent", "")
    return Stimulus(message.sequence, step, at.ToNanoseconds(), envelope, trace)
