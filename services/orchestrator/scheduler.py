"""Sends the ticks of all timers: one heap of due times, one task, and one more per timer while it has work.

Nothing is done for a flow between its ticks. A tick is published to the flow's ingress under an id made from
trigger and instant, so that the broker stores it once whoever publishes it, and how often. How far a timer is
stands in KV (`tick.<flow>`), written after each tick, but at most once a second per flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from headrace.edge.assets_transport import AssetsTransport
from headrace.edge.ingress_publisher import IngressPublisher
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.stimulus_traces import StimulusTraces
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import Conflict, HeadraceError
from headrace.model.hop_record import Site
from headrace.model.ingress_owner import is_fenced
from headrace.model.message_ids import execution_id, first_message_id, stimulus_id
from headrace.model.slots import keying
from headrace.ports import PublishRefused, PublishUnknown
from headrace.wire.envelope import Origin, encode_envelope
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.domain.tick_body import tick_body
from services.orchestrator.domain.tick_plan import (
    NANOS,
    TickCursor,
    TimerSpec,
    due,
    settled_at_start,
    wanted_timer,
)
from services.orchestrator.stores import Stores

log = get_logger(__name__)

BATCH = 100
NOTE_EVERY_S = 1.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
# The heap is looked at this often while it holds anything, since the wall clock may be set.
LONGEST_SLEEP_S = 60.0


@dataclass
class _Timer:
    """One flow's timer. `cursor` None: not taken over yet."""

    spec: TimerSpec
    cursor: TickCursor | None = None
    revision: int = 0
    due_ns: int = 0
    noted_at: float = 0.0
    noted: TickCursor | None = None
    pause_s: float = FIRST_PAUSE_S
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Scheduler:
    """Told by the reconcile loops what runs (`observe`). Ticks only while `is_leader()` says so."""

    def __init__(
        self,
        stores: Stores,
        assets: JetStreamAssets,
        *,
        is_leader: Callable[[], bool] = lambda: True,
        clock_ns: Callable[[], int] = time.time_ns,
        traces: StimulusTraces | None = None,
    ) -> None:
        self._traces = traces or StimulusTraces(None, "tick", lambda flow: Site("", "", flow))
        self._stores = stores
        self._assets = assets
        self._ingress = IngressPublisher(AssetsTransport(assets), stores.workspace)
        self._is_leader = is_leader
        self._clock_ns = clock_ns
        self._timers: dict[str, _Timer] = {}
        self._heap: list[tuple[int, int, _Timer]] = []
        self._sequence = itertools.count()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_notes: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """To be called when this orchestrator has become the leader; every timer then reads how far it is."""
        self._task = asyncio.create_task(self._run(), name="ticks")

    async def stop(self) -> None:
        """Ends all work, and notes how far the timers are."""
        await end_tasks(task for task in (self._task, *(timer.task for timer in self._timers.values())) if task)
        await asyncio.gather(*self._last_notes.values(), return_exceptions=True)
        self._task = None
        for timer in self._timers.values() if self._is_leader() else ():
            with contextlib.suppress(HeadraceError):
                await self._note(timer)
        self._timers.clear()
        self._heap.clear()

    def observe(self, snapshot: Snapshot) -> None:
        """Begins, changes or ends a flow's timer after what was read of it. Cheap when nothing changed."""
        spec = wanted_timer(snapshot)
        name = snapshot.flow.flow
        timer = self._timers.get(name)
        if timer is not None and timer.spec == spec:
            return
        before = self._end(name)
        if spec is not None:
            self._timers[name] = timer = _Timer(spec)
            if before is not None and before.cursor is not None:
                self._continue(timer, before)
            self._arm(timer, 0)
        elif before is not None:
            self._last_notes[name] = asyncio.create_task(self._last_note(before), name=f"last note of {name}")

    def _end(self, flow: str) -> _Timer | None:
        timer = self._timers.pop(flow, None)
        if timer is not None:
            timer.due_ns = -1
            if timer.task is not None:
                timer.task.cancel()
        return timer

    def _continue(self, timer: _Timer, before: _Timer) -> None:
        """Another deployment took over: the timer goes on where it was."""
        assert before.cursor is not None
        settled = settled_at_start(timer.spec, before.cursor, self._clock_ns())
        timer.cursor = msgspec.structs.replace(before.cursor, step=timer.spec.step, settled_ns=settled)
        timer.revision, timer.noted = before.revision, before.noted

    async def _last_note(self, timer: _Timer) -> None:
        try:
            with contextlib.suppress(HeadraceError):
                await self._note(timer)
        finally:
            self._last_notes.pop(timer.spec.flow, None)

    def _arm(self, timer: _Timer, due_ns: int) -> None:
        timer.due_ns = due_ns
        heapq.heappush(self._heap, (due_ns, next(self._sequence), timer))
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now_ns = self._clock_ns()
            while self._heap and self._heap[0][0] <= now_ns:
                due_ns, _, timer = heapq.heappop(self._heap)
                if timer.due_ns != due_ns or timer.task is not None:
                    continue  # it was armed anew, or has ended: this entry was left behind
                if not self._is_leader():
                    timer.cursor = None
                    self._arm(timer, now_ns + NANOS)
                else:
                    timer.task = asyncio.create_task(self._work(timer), name=f"ticks of {timer.spec.flow}")
            wait_s = min(LONGEST_SLEEP_S, (self._heap[0][0] - now_ns) / NANOS) if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _work(self, timer: _Timer) -> None:
        """Sends what is due, and arms the timer for what follows; after a failure a little later."""
        due_ns = 0
        try:
            due_ns = await self._send_due(timer)
            timer.pause_s = FIRST_PAUSE_S
        except Exception as error:
            if not isinstance(error, Conflict):
                log.warning("ticks wait", flow=timer.spec.flow, error=repr(error)[:300])
            due_ns = self._clock_ns() + int(timer.pause_s * NANOS)
            timer.pause_s = min(timer.pause_s * 2, LONGEST_PAUSE_S)
        finally:
            timer.task = None
        if self._timers.get(timer.spec.flow) is timer:
            self._arm(timer, due_ns)

    async def _send_due(self, timer: _Timer) -> int:
        spec = timer.spec
        if timer.cursor is None:
            await self._take_over(timer)
        while self._is_leader():
            assert timer.cursor is not None
            now_due = due(spec, timer.cursor.settled_ns, self._clock_ns(), BATCH)
            if now_due.skipped:
                log.warning("ticks skipped, they are too late", flow=spec.flow, step=spec.step, count=now_due.skipped)
                timer.cursor = msgspec.structs.replace(
                    timer.cursor, settled_ns=now_due.skipped_to_ns, skipped=timer.cursor.skipped + now_due.skipped
                )
            for instant in now_due.instants:
                if not self._is_leader():
                    break
                await self._send(timer, instant)
            await self._note_now_and_then(timer)
            if now_due.next_ns > self._clock_ns():
                return now_due.next_ns
        timer.cursor = None  # another one's now
        return self._clock_ns()

    async def _take_over(self, timer: _Timer) -> None:
        found = await self._stores.tick_cursor(timer.spec.flow)
        cursor, timer.revision = found if found is not None else (None, 0)
        settled = settled_at_start(timer.spec, cursor, self._clock_ns())
        before = cursor or TickCursor(timer.spec.step, settled)
        timer.cursor = msgspec.structs.replace(before, step=timer.spec.step, settled_ns=settled)
        timer.noted = cursor

    async def _send(self, timer: _Timer, instant: int) -> None:
        """Stores one tick (or finds it stored, or finds the edge full). Other outcomes raise: it is tried again."""
        spec, cursor = timer.spec, timer.cursor
        assert cursor is not None
        stimulus = stimulus_id(spec.flow, "tick", f"{spec.step}:{instant}")
        message_id = first_message_id(stimulus, spec.entry)
        body = tick_body(instant, spec)
        execution = execution_id(stimulus)
        trace = self._traces.begin(f"tick {spec.step}", spec.flow, execution=execution, stimulus=stimulus)
        envelope = encode_envelope(
            message_id=message_id,
            execution_id=execution,
            origin=Origin.ORIGIN_TICK,
            sent_at_unix_ns=self._clock_ns(),
            body=body,
            content_type="application/json",
        )
        slot = keying(spec.key, spec.slots).place({}, body, message_id).slot
        counted = {"ticks": cursor.ticks + 1}
        try:
            stored = await self._ingress.publish(
                spec.flow,
                spec.entry,
                slot,
                envelope,
                fenced=is_fenced(self._assets.copies),
                message_id=message_id,
                traceparent=trace.traceparent,
            )
            self._traces.end(trace, duplicate=stored.duplicate)
        except PublishRefused as error:
            if not error.edge_full:
                raise
            self._traces.end(trace, code="EDGE_FULL", problem="the trigger's edge is full")
            log.warning("tick dropped, the trigger's edge is full", flow=spec.flow, step=spec.step, instant=instant)
            counted = {"edge_full": cursor.edge_full + 1}
        except PublishUnknown as error:
            if not error.no_responders:
                raise
            raise Conflict(f"the ingress of {spec.flow!r} is closed", reason="INGRESS_CLOSED") from error
        timer.cursor = msgspec.structs.replace(cursor, settled_ns=instant, **counted)

    async def _note_now_and_then(self, timer: _Timer) -> None:
        now = asyncio.get_running_loop().time()
        if timer.noted is None or now - timer.noted_at >= NOTE_EVERY_S:
            await self._note(timer)
            timer.noted_at = now

    async def _note(self, timer: _Timer) -> None:
        """Compare-and-set: a leader that was overtaken finds out here, and reads what the other one did."""
        if timer.cursor is None or timer.cursor == timer.noted:
            return
        try:
            timer.revision = await self._stores.write_tick_cursor(timer.spec.flow, timer.cursor, timer.revision)
            timer.noted = timer.cursor
        except Conflict:
            timer.cursor = None
            raise
