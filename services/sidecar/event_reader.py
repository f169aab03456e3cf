"""What comes back from the component: events one by one, and calls that ended in lots, as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Protocol

from headrace.ports import EndedLot
from services.sidecar.call_dispatch import CallDispatch
from services.sidecar.call_events import PlainEmit, note_event, note_output, outcome_of, take_only_output
from services.sidecar.domain.delivery import Outcome
from services.sidecar.domain.flood import FloodGauge
from services.sidecar.held_input import HeldInput
from services.sidecar.late_emits import LateEmits
from services.sidecar.liveness import Liveness


class CallEnds(Protocol):
    """Who is told how calls ended."""

    def ended(self, held: HeldInput, outcome: Outcome) -> None:
        """The call is over."""

    def ended_plainly(self, rows: list[HeldInput]) -> None:
        """The calls of plain inputs are over; they ended well, with one output at most."""


class EventReader:
    """`in_rows`: plain inputs may be told as such. `on_finished` is called when calls ended, `on_flood` when so many
    events are of no use that only a new component helps."""

    def __init__(
        self,
        dispatch: CallDispatch,
        late: LateEmits,
        liveness: Liveness,
        counters: dict[str, int],
        clock: Callable[[], float],
        ends: CallEnds,
        *,
        in_rows: bool,
        on_finished: Callable[[], None],
        on_flood: Callable[[], None],
    ) -> None:
        self._dispatch, self._late, self._liveness = dispatch, late, liveness
        self._counters, self._clock = counters, clock
        self._ends, self._in_rows = ends, in_rows
        self._on_finished, self._on_flood = on_finished, on_flood
        self._flood = FloodGauge()

    def component_ready(self) -> None:
        """The (re)started component says something from now on."""
        self._flood.start(self._clock())

    def on_events(self, events: Sequence[Any]) -> None:
        """Events of the Process stream, in order."""
        running, ends, in_rows = self._dispatch.running, self._ends, self._in_rows
        rows: list[HeldInput] = []
        ended, useless = False, 0
        self._liveness.heard()
        try:
            for event in events:
                call = event.call
                held = running.get(call)
                kind = event.WhichOneof("kind")
                if held is None:
                    if rows:
                        # It may be one of these.
                        over, rows = rows, []
                        ends.ended_plainly(over)
                    useless += not self._take_late(call, event, kind)
                elif kind == "end":
                    del running[call]
                    end = event.end
                    held.entered_at_mono_ns, held.left_at_mono_ns = end.started_at_mono_ns, end.ended_at_mono_ns
                    ended = True
                    if in_rows and held.plain:
                        rows.append(held)
                    else:
                        ends.ended(held, outcome_of(held))
                else:
                    useless += not note_event(held, event, kind)
        finally:
            if rows:
                ends.ended_plainly(rows)
        self._all_read(useless, ended=ended)

    def on_ended(self, lot: EndedLot) -> None:
        """Calls that ended in one lot."""
        take, ends, in_rows = self._dispatch.running.pop, self._ends, self._in_rows
        content_type, bodies = lot.content_type, lot.bodies or repeat(None, len(lot.calls))
        times = (lot.started_at_mono_ns, lot.ended_at_mono_ns)
        rows: list[HeldInput] = []
        useless = 0
        self._liveness.heard()
        try:
            for call, body, began, over in zip(lot.calls, bodies, *times, strict=True):
                held = take(call, None)
                if held is None:
                    useless += 1
                    self._ended_late(call)
                    continue
                held.entered_at_mono_ns, held.left_at_mono_ns = began, over
                if body is not None and not take_only_output(held, body, content_type):
                    note_output(held, PlainEmit(body, content_type))
                if in_rows and held.plain:
                    rows.append(held)
                else:
                    ends.ended(held, outcome_of(held))
        finally:
            if rows:
                ends.ended_plainly(rows)
        self._all_read(useless, ended=True)

    def _all_read(self, useless: int, *, ended: bool) -> None:
        if useless and not self._flood.take(useless, self._clock()):
            self._on_flood()
        if ended:
            self._on_finished()
            self._dispatch.send_what_may_go()

    def _take_late(self, call: int, event: Any, kind: str | None) -> bool:
        """An event of a call that is over; False if nothing comes of it."""
        if kind == "end":
            self._ended_late(call)
            return False
        if kind == "data" and self._late.take(call, event.data):
            return True
        self._counters["late_ignored"] += 1
        return False

    def _ended_late(self, call: int) -> None:
        """The end of a call that was given up."""
        self._dispatch.ended_late(call)
        self._counters["late_ignored"] += 1
