"""What one process remembers of executions, and what of it goes to the collector although it was not sampled.

A tap and the sampler of a span log (`headrace.edge.span_log`). When a record shows that its execution is worth keeping
(`headrace.model.sampling.TailRules`), this process sends what it has of it and says so on NATS, so that all others do
the same; what they record of it later is sent too. Who asks for the next executions of a kind is served the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from headrace.edge.sampling_documents import SamplingDocuments
from headrace.edge.structured_log import get_logger
from headrace.edge.trace_responder import TraceResponder
from headrace.model import subjects
from headrace.model.hop_record import Record
from headrace.model.recent_executions import RecentExecutions
from headrace.model.record_lot import RecordLot, went_wrong
from headrace.model.sampling import DEFAULT_RATIO, SLOWEST, CaptureMatcher, Sampling, TailRules, bound_of, is_sampled

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from headrace.edge.kv_bucket import KvBucket
    from headrace.edge.span_log import SpanLog

log = get_logger(__name__)

MAX_ANNOUNCED = 64
"""Executions of one lot (a fifth of a second) that others are told of; past it only the record itself is kept."""
MAX_HEARD = 256
HEARD_S = 0.1
SLOW_S = 0.1
MAX_KEPT = 2_048
ALL_FLOWS = "*"


class TraceKeeper:
    """Of one flow's sidecar, or of a service that serves all flows (`flow` `*`). Make it before anybody is given the
    span log; `start` it once the connection is there, and give `follow` to a TaskGroup."""

    def __init__(self, span_log: SpanLog, workspace: str, flow: str, instance: str) -> None:
        self.recent = RecentExecutions()
        self._log = span_log
        self._workspace, self._flow, self._instance = workspace, flow, instance
        self._bounds: dict[str, int] = {}
        self._default_bound = bound_of(DEFAULT_RATIO)
        self._rules = TailRules()
        self._matchers: dict[str, CaptureMatcher] = {}
        self._kept: dict[str, set[str]] = {}
        self._earlier: list[Record] = []
        self._connection: Client | None = None
        self._documents: SamplingDocuments | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self._asked: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._slowest: dict[tuple[str, str], Record] = {}
        self._slow_timer: asyncio.TimerHandle | None = None
        span_log.taps.append(self._take)
        span_log.sampler = self

    # Sampler

    def begins(self, flow: str, trace_id: str) -> bool:
        """See `Sampler`."""
        return is_sampled(trace_id, self._bounds.get(flow, self._default_bound))

    def keep(self, lot: RecordLot) -> Sequence[Record]:
        """See `Sampler`; asked right after the tap got the same lot."""
        kept, self._earlier = self._earlier, []
        if lot.all_sampled:
            return [*kept, *lot.records] if kept else lot.records
        ours = self._kept
        for record in [record for record in lot.records if record.sampled or record.execution_id in ours]:
            if record.sampled:
                kept.append(record)
            elif (sent := self._kept.get(record.execution_id)) is not None and record.span_id not in sent:
                sent.add(record.span_id)
                kept.append(record)
        return kept

    # Tap

    def _take(self, lot: RecordLot) -> None:
        self.recent.note(lot.records, time.monotonic())
        self._earlier += self._kept_with(self._gone_wrong(lot))
        for flow, matcher in self._matchers.items():
            if (
                matcher.capture.open(time.time())
                and (found := matcher.found(lot.records))
                and self._documents is not None
            ):
                self._documents.claim(flow, found)

    def _gone_wrong(self, lot: RecordLot) -> list[Record]:
        """What is kept at once; the slowest has time."""
        exporting, crowded = self._log.exporter is not None, self.recent.level > 0
        if not exporting or lot.all_sampled:
            # All of it is sent, or nothing is; what went wrong is to be remembered whole all the same.
            return list(lot.went_wrong) if crowded else []
        found: list[Record] = []
        for record in self._rules.to_be_asked(lot):
            if record.sampled:
                if crowded and went_wrong(record):
                    found.append(record)
            elif reason := self._rules.reason(record):
                if reason == SLOWEST:
                    self._slowest[record.site.flow, record.site.step] = record
                else:
                    found.append(record)
        if self._slowest and self._slow_timer is None:
            self._slow_timer = asyncio.get_running_loop().call_later(SLOW_S, self._keep_slowest)
        return found

    def _keep_slowest(self) -> None:
        """Behind an edge that fills up every message takes longer than the one before: the last of a while stands for
        all, since what is remembered is looked through for each."""
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
        slowest, self._slowest = list(self._slowest.values()), {}
        found = self._kept_with(slowest)
        if found and self._log.exporter is not None:
            self._log.exporter.put(found)

    def _kept_with(self, own: Sequence[Record]) -> list[Record]:
        """The executions of these are kept from now on, here and wherever else; answers what is to be sent of them."""
        worth: dict[str, dict[str, None]] = {}
        for record in own:
            if record.execution_id not in self._kept:
                worth.setdefault(record.site.flow, {})[record.execution_id] = None
        found: list[Record] = []
        for flow, executions in worth.items():
            found += self._kept_whole(executions, own)
            self._announce(flow, list(executions)[:MAX_ANNOUNCED])
        return found

    def close(self) -> None:
        """Gives the exporter what still waits for its time."""
        if self._slowest:
            self._keep_slowest()

    def _kept_whole(self, executions: Collection[str], own: Sequence[Record] = ()) -> list[Record]:
        """From now on these are kept; answers what is there of them to be sent. `own`: records of this very lot, of
        which a large one pushes out its own beginning."""
        self.recent.mark(executions)
        for execution in executions:
            self._kept.setdefault(execution, set())
        found: list[Record] = []
        if self._log.exporter is not None:
            for record in (*own, *self.recent.of(executions)):
                sent = self._kept.get(record.execution_id)
                if not record.sampled and sent is not None and record.span_id not in sent:
                    sent.add(record.span_id)
                    found.append(record)
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def _announce(self, flow: str, executions: list[str]) -> None:
        if self._connection is None or not self._connection.is_connected:
            return
        task = asyncio.get_running_loop().create_task(self._publish(flow, executions))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _publish(self, flow: str, executions: list[str]) -> None:
        assert self._connection is not None
        with contextlib.suppress(Exception):  # the connection went: what is sent elsewhere is not worth a failure here
            await self._connection.publish(subjects.keep_subject(self._workspace, flow), "\n".join(executions).encode())

    # What others say

    async def start(self, connection: Client, bucket: KvBucket) -> None:
        """Listens to what others keep, and to questions."""
        self._connection = connection
        self._documents = SamplingDocuments(bucket, self._flow, self._changed)
        await connection.subscribe(subjects.keep_subject(self._workspace, self._flow), cb=self._heard)
        await TraceResponder(self._log, self.recent, self._instance).start(connection, self._workspace, self._flow)

    async def follow(self) -> None:
        """Keeps to the documents of sampling; for ever."""
        assert self._documents is not None
        await self._documents.follow()

    async def until_read(self, limit_s: float) -> None:
        """Until `follow` has read the documents for the first time, at most so long."""
        assert self._documents is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._documents.read.wait()

    async def _heard(self, message: Msg) -> None:
        executions = message.data.decode("ascii", "replace").split("\n")[:MAX_HEARD]
        self._asked.update(dict.fromkeys(execution for execution in executions if execution not in self._kept))
        if self._asked and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HEARD_S, self._keep_asked)

    def _keep_asked(self) -> None:
        """However many ask: what is remembered is looked through a few times a second at most."""
        self._timer = None
        asked, self._asked = list(self._asked)[:MAX_KEPT], {}
        self._log.hand_over()
        found = self._kept_whole(asked)
        if found and self._log.exporter is not None:
            self._log.exporter.put(found)

    def _changed(self, flow: str, sampling: Sampling) -> None:
        self._bounds[flow] = bound_of(sampling.ratio)
        capture = sampling.capture
        if capture is None:
            self._matchers.pop(flow, None)
            return
        known = self._matchers.get(flow)
        if known is None or known.capture.since != capture.since or known.capture.where != capture.where:
            known = self._matchers[flow] = CaptureMatcher(capture)
        known.capture = capture
        self._asked.update(dict.fromkeys(execution for execution in capture.caught if execution not in self._kept))
        if self._asked:
            self._keep_asked()
