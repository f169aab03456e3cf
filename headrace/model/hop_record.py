"""What is remembered of a hop or a stimulus until it is encoded, kept for a person, or forgotten.

One `HopRecord` is one attempt of one message at one step: plain values, made once when the attempt is over. It holds
all phases of that attempt (ARCHITECTURE, clocks and phases of a hop), so that whether to keep it can be decided from it
alone; the records of one execution share `execution_id`. One `RootRecord` is what an execution began with.

Times: `_unix_ns` of the wall clock (`stored_at` the broker's, `sent_at` the sender's), `_mono_ns` of CLOCK_MONOTONIC of
this machine; 0 where there was no such moment. `unix_of` turns the latter into the former.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class HopOutcome(StrEnum):
    """How an attempt ended, and what followed."""

    PROCESSED = "processed"
    RETRIED = "retried"
    """It failed, and is tried again after `retry_after_ns`."""
    REBOUND = "rebound"
    """The component asked for it again later."""
    REJECTED = "rejected"
    """It failed, and a waiting caller was told: that is all."""
    DEAD_LETTERED = "dead_lettered"
    HANDED_OVER = "handed_over"
    """It failed for good, and its error step got it."""
    STUCK = "stuck"
    """It failed, and waits for its flow to be resumed (`on_error: suspend-flow`)."""


FAILURES = frozenset(HopOutcome) - {HopOutcome.PROCESSED, HopOutcome.REBOUND}
"""Outcomes that are errors; a rebound is asked for."""


@dataclass(frozen=True, eq=False)
class Site:
    """Where spans come from: one step of one deployment, or a service of the mesh. Made once, compared by identity.

    `service` is the component's name (the `service.name` of its spans), or of a service `headrace-gateway`, ...
    `version`, `deployment` and `revision_number` 0, texts empty where there is none. `instance` is empty for a site
    that somebody else reports on (a publish is told by its receiver).
    """

    service: str
    workspace: str
    flow: str = ""
    version: int = 0
    deployment: int = 0
    step: str = ""
    component: str = ""
    revision: str = ""
    revision_number: int = 0
    instance: str = ""


class HopRecord(NamedTuple):
    """One attempt of one message at one step."""

    site: Site
    sender: Site | None
    """Who published the input; None where nobody knows."""
    trace_id: str
    parent_id: str
    """Span that published the input; "" where the message named none."""
    span_id: str
    """Of this attempt's `process` span."""
    sampled: bool
    """The flag of the message's traceparent: decided where its trace began."""
    message_id: str
    execution_id: str
    attempt: int
    """From 1: redeliveries and repetitions."""
    opens: bool
    """The first record of this delivery: the publish and the wait of its input belong to it."""
    delivered: int
    """How often the broker has delivered the message, from 1."""
    in_doubt: bool
    outputs: int
    replied: bool
    outcome: HopOutcome
    code: str
    """Upper-case code of what failed; "" where nothing did."""
    problem: str
    retry_after_ns: int
    slot: int
    """-1 for a step that is not keyed."""
    sent_at_unix_ns: int
    stored_at_unix_ns: int
    received_at_unix_ns: int
    received_at_mono_ns: int
    began_at_mono_ns: int
    """When this attempt began: the first with the reading of its input."""
    entered_at_mono_ns: int
    """Function entered; 0 when the component did not say (it died, or ran over its limit)."""
    left_at_mono_ns: int
    written_at_mono_ns: int
    """Last output, reply, or else acknowledgement written; 0 for an attempt that is followed by another."""
    ended_at_mono_ns: int
    """Acknowledged; or the attempt failed."""
    input_stored_at_unix_ns: int = 0
    """When the input of whoever sent it was stored: where the sender's hop began."""
    confirmed_at_unix_ns: int = 0
    """Of a terminal one whose acknowledgement was confirmed: when that was, by the wall clock."""
    samples: int = 0
    """Which samples it gives the histograms of its process (services/sidecar/hop_tally.py)."""

    @property
    def terminal(self) -> bool:
        """It published nothing: its acknowledgement is its publish."""
        return not self.outputs and not self.replied

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES

    @property
    def duration_ns(self) -> int:
        """From stored to written, or to the attempt's failure; of a later attempt from its beginning."""
        end = self.written_at_mono_ns or self.ended_at_mono_ns
        if not self.opens:
            return end - self.began_at_mono_ns
        return self.unix_of(end) - self.stored_at_unix_ns

    def unix_of(self, mono_ns: int) -> int:
        """That moment by the wall clock, as it stood when the input was read."""
        return self.received_at_unix_ns + mono_ns - self.received_at_mono_ns


class ReplyPart(NamedTuple):
    """A reply's way from the step that gave it to the gateway that took it."""

    sender: Site
    parent_id: str
    """The replying attempt's `process` span."""
    sent_at_unix_ns: int
    read_at_unix_ns: int


class RootRecord(NamedTuple):
    """What an execution began with."""

    site: Site
    kind: str
    """`webhook`, `tick`, `injected` or `listener`."""
    name: str
    """What it was, in few values: `POST /hook/orders`, `tick orders/start`."""
    trace_id: str
    parent_id: str
    """The caller's span; "" for the root of a trace."""
    span_id: str
    sampled: bool
    execution_id: str
    started_at_unix_ns: int
    ended_at_unix_ns: int
    phases: tuple[tuple[str, int, int], ...] = ()
    """Name, begin and end (Unix ns) of its parts."""
    reply: ReplyPart | None = None
    link: str = ""
    """Traceparent of an attempt in another trace which gave its answer."""
    status: int = 0
    """HTTP status of the answer."""
    code: str = ""
    """Upper-case code where it failed."""
    problem: str = ""
    duplicate: bool = False
    """The broker had this stimulus already, or its first answer was given again."""

    @property
    def failed(self) -> bool:
        return bool(self.code)

    @property
    def duration_ns(self) -> int:
        return self.ended_at_unix_ns - self.started_at_unix_ns


Record = HopRecord | RootRecord


class ComponentSpan(NamedTuple):
    """A span that a component's own code made with the stock OpenTelemetry SDK."""

    site: Site
    encoded: bytes
    """An OTLP Span."""


Exportable = Record | ComponentSpan


@dataclass(slots=True)
class SpanCounts:
    """Of one process, since it started. Records become spans: six of a common hop."""

    recorded: int = 0
    """Records taken."""
    left_out: int = 0
    """Records that sampling left out."""
    dropped: int = 0
    """Records lost because the collector did not take them in time (or they could not be encoded)."""
    exported: int = 0
    """Spans that the collector took."""
    rejected: int = 0
    """Spans that the collector refused."""
    problem: str = field(default="")
    """Why the collector takes nothing now; empty while it does."""
