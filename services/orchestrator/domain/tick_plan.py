"""Which ticks of a flow's timer are due: instants are the multiples of its interval since the Unix epoch.

So instants do not drift, and whoever schedules next goes on with the same ones. All times are Unix nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.model.cron import CronSchedule
from headrace.model.flow_spec import ALL, LATEST, NONE
from services.orchestrator.domain.documents import FlowDocument, Strategy
from services.orchestrator.domain.flow_states import RUNS, FlowState
from services.orchestrator.domain.snapshot import Snapshot

NANOS = 1_000_000_000
# Ticks at most this late are made up for; of older ones only the newest is, the others are skipped and counted.
# Far inside the broker's duplicate window, so that a tick in doubt can be repeated.
CATCH_UP_NS = 30 * NANOS
# Of `catch_up: all`.
MAX_MADE_UP = 1_000
# A cursor this far ahead of the clock comes from a clock that was set back since.
CLOCK_SLACK_NS = 60 * NANOS


class TickCursor(msgspec.Struct, frozen=True):
    """How far a flow's timer is: every instant up to `settled_ns` is stored, skipped or was dropped."""

    step: str
    settled_ns: int
    ticks: int = 0
    skipped: int = 0
    edge_full: int = 0


@dataclass(frozen=True, slots=True)
class TimerSpec:
    """A timer that should tick: since when its flow runs, and since when a deployment of it is active.

    `step` is the trigger, in whose name it ticks; `entry` the step that ticks go to."""

    flow: str
    step: str
    entry: str
    every_ns: int
    running_since_ns: int
    active_since_ns: int
    # Of the entry: they place a tick.
    key: str = ""
    slots: int = 1
    # Instead of the interval (0 then).
    schedule: CronSchedule | None = None
    catch_up: str = LATEST


@dataclass(frozen=True, slots=True)
class DueTicks:
    """Instants to be sent now, oldest first; how many older ones are given up, up to `skipped_to_ns`.

    `next_ns` is the first instant that is not due yet.
    """

    instants: tuple[int, ...]
    skipped: int
    skipped_to_ns: int
    next_ns: int


def tick_key(flow: str) -> str:
    return f"tick.{flow}"


def takes_ticks(flow: FlowDocument) -> bool:
    """Running; or being restarted, when ticks are parked like all that comes meanwhile."""
    restarts = flow.state == FlowState.STARTING and flow.rollout.strategy == Strategy.RESTART
    return flow.state in RUNS or restarts


def wanted_timer(snapshot: Snapshot) -> TimerSpec | None:
    """The timer of the deployment that runs (or is being restarted); None while the flow takes no ticks."""
    flow = snapshot.flow
    view = snapshot.deployments.get(flow.active or flow.target)
    if not takes_ticks(flow) or view is None or view.plan is None:
        return None
    timer, entry = view.plan.timer, view.plan.step(view.plan.entry)
    if timer is None:
        return None
    return TimerSpec(
        flow.flow,
        timer.name,
        entry.name,
        every_ns=round(timer.every_s * 1000) * 1_000_000,
        running_since_ns=int(flow.running_since * NANOS),
        active_since_ns=int((view.state.changed_at if view.state else 0.0) * NANOS),
        key=entry.key,
        slots=entry.slots,
        schedule=CronSchedule(timer.cron, timer.time_zone) if timer.cron else None,
        catch_up=timer.catch_up,
    )


def begun_to_tick(before: FlowDocument, after: FlowDocument, now: float) -> FlowDocument:
    """Notes in a change of the flow document that ticks are wanted from now on (`now`: Unix seconds)."""
    if not takes_ticks(after) or takes_ticks(before):
        return after
    return msgspec.structs.replace(after, running_since=now)


def settled_at_start(spec: TimerSpec, cursor: TickCursor | None, now_ns: int) -> int:
    """Up to which instant nothing is owed when a scheduler takes a timer over.

    A cursor of this run goes on; one from before the flow was last stopped or suspended does not, so that
    nothing is made up for the time in which nobody wanted ticks.
    """
    fresh = min(max(spec.running_since_ns, spec.active_since_ns), now_ns)
    if cursor is None or cursor.step != spec.step or cursor.settled_ns < spec.running_since_ns:
        return fresh
    if cursor.settled_ns > now_ns + spec.every_ns + CLOCK_SLACK_NS:
        return now_ns
    return cursor.settled_ns


def due(spec: TimerSpec, settled_ns: int, now_ns: int, limit: int) -> DueTicks:
    """At most `limit` instants; call again for the rest."""
    if spec.schedule is None:
        return due_ticks(settled_ns, spec.every_ns, now_ns, limit, spec.catch_up)
    owed, complete = spec.schedule.between(settled_ns, now_ns, MAX_MADE_UP)
    wanted = [instant for instant in owed if instant >= now_ns - CATCH_UP_NS]
    if spec.catch_up == ALL:
        wanted = owed
    elif spec.catch_up == LATEST and not wanted:
        wanted = owed[-1:]
    skipped = len(owed) - len(wanted) + (0 if complete else 1)  # of those before them nobody knows how many
    skipped_to = settled_ns if not skipped else wanted[0] - 1 if wanted else owed[-1]
    sent = tuple(wanted[:limit])
    following = wanted[limit] if len(wanted) > limit else spec.schedule.next_after(max(now_ns, settled_ns))
    return DueTicks(sent, skipped, skipped_to, following)


def due_ticks(settled_ns: int, every_ns: int, now_ns: int, limit: int, catch_up: str = LATEST) -> DueTicks:
    """As `due`, of a timer with an interval."""
    newest = now_ns // every_ns * every_ns
    if newest <= settled_ns:
        return DueTicks((), 0, settled_ns, (settled_ns // every_ns + 1) * every_ns)
    oldest = (settled_ns // every_ns + 1) * every_ns
    in_time = -((CATCH_UP_NS - now_ns) // every_ns) * every_ns  # first instant that is not too late
    first = min(max(oldest, in_time), newest)
    if catch_up == ALL:
        first = max(oldest, newest - (MAX_MADE_UP - 1) * every_ns)
    elif catch_up == NONE and in_time > newest:
        skipped = (newest - oldest) // every_ns + 1
        return DueTicks((), skipped, newest, newest + every_ns)
    skipped = (first - oldest) // every_ns
    count = min(limit, (newest - first) // every_ns + 1)
    instants = tuple(first + index * every_ns for index in range(count))
    return DueTicks(instants, skipped, first - every_ns if skipped else settled_ns, instants[-1] + every_ns)


def next_tick(spec: TimerSpec, settled_ns: int, now_ns: int) -> int:
    """The next instant that a person should expect."""
    if spec.schedule is not None:
        return spec.schedule.next_after(max(settled_ns, now_ns))
    return next_instant(settled_ns, spec.every_ns, now_ns)


def next_instant(settled_ns: int, every_ns: int, now_ns: int) -> int:
    """The same, of an interval."""
    return (max(settled_ns, now_ns) // every_ns + 1) * every_ns
