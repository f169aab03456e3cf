"""What `headrace top` knows of a flow, and its lines: a row for each step and revision that works. No terminal here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headrace.cli.flow_tables import active_deployment, running_instances, state_word, step_word
from headrace.cli.plain import enum_word

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2
    from headrace.api.hop.v1 import hop_pb2

GATEWAY = "gateway"


@dataclass(slots=True)
class FlowView:
    """The newest that is known of one flow. `heard_at` is when, on any clock that does not go back; `problem` why its
    watch ended."""

    flow: str
    status: flow_pb2.FlowStatus | None = None
    hops: hop_pb2.WatchHopsResponse | None = None
    heard_at: float = 0.0
    problem: str = ""

    def window(self, seconds: int) -> hop_pb2.HopWindow | None:
        """That window, once some of it was watched."""
        for window in self.hops.windows if self.hops is not None else ():
            if window.seconds == seconds and window.covered.ToMicroseconds() > 0:
                return window
        return None


@dataclass(frozen=True, slots=True)
class Row:
    """One step's revision. Latencies are of its whole hops, microseconds; None where none ended in the window."""

    flow: str
    step: str
    state: str
    revision: str
    digest: str
    instances: str
    rate: float
    p50_us: float | None
    p95_us: float | None
    p99_us: float | None
    max_us: float | None
    error_rate: float
    waiting: int
    in_flight: int
    oldest_s: float | None
    order: int
    """Its place in the flow."""


def rows_of(view: FlowView, seconds: int) -> list[Row]:
    """In the order of the flow: the gateway, the steps of the deployment that works, then older code that finishes."""
    window = view.window(seconds)
    measured = {(step.step, step.revision): step for step in window.steps} if window is not None else {}
    rows: list[Row] = []
    if (GATEWAY, "") in measured:
        rows.append(_row(view.flow, GATEWAY, "", "-", "", "", measured.pop((GATEWAY, "")), 0))
    status = view.status
    backlogs = {backlog.step: backlog for backlog in view.hops.backlogs} if view.hops is not None else {}
    for number, step in enumerate(status.steps if status is not None else (), start=1):
        pin = f"{step.pin.component}@{step.pin.revision_number}"
        instances = f"{running_instances(step)}/{max(step.replicas, 1)}"
        found = measured.pop((step.step, step.pin.digest), None)
        waiting = step.waiting, step.in_flight
        state = step_word(step.state)
        row = _row(view.flow, step.step, step.pin.digest, state, pin, instances, found, number, waiting)
        if step.step in backlogs:  # also what no instance holds
            oldest_s = backlogs[step.step].oldest_age.ToMicroseconds() / 1e6
            row = replace(row, oldest_s=max(oldest_s, row.oldest_s or 0.0))
        rows.append(row)
    pins = dict(_other_pins(status)) if status is not None else {}
    for (name, digest), found in measured.items():
        phase, pin = pins.get((name, digest), ("-", digest.removeprefix("sha256:")[:12]))
        rows.append(_row(view.flow, name, digest, phase, pin, str(found.instances), found, len(rows) + 1000))
    return rows


def _other_pins(status: flow_pb2.FlowStatus) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """What every deployment pins: its phase and its revision, by step and digest."""
    from headrace.api.flow.v1 import flow_pb2

    for item in status.deployments:
        phase = enum_word(flow_pb2.DeploymentPhase.DESCRIPTOR, item.deployment.phase)
        for pin in item.deployment.pins:
            yield (pin.step, pin.digest), (phase, f"{pin.component}@{pin.revision_number}")


def _row(
    flow: str,
    step: str,
    digest: str,
    state: str,
    pin: str,
    instances: str,
    found: hop_pb2.StepWindow | None,
    order: int,
    waiting: tuple[int, int] | None = None,
) -> Row:
    hop = found.hop if found is not None and found.HasField("hop") else None
    oldest = found.oldest_age.ToMicroseconds() / 1e6 if found is not None and found.HasField("oldest_age") else None
    held = found.held if found is not None else 0
    return Row(
        flow,
        step,
        state,
        pin or "-",
        digest,
        instances or (str(found.instances) if found is not None else "-"),
        found.rate if found is not None else 0.0,
        hop.p50_us if hop is not None else None,
        hop.p95_us if hop is not None else None,
        hop.p99_us if hop is not None else None,
        hop.max_us if hop is not None else None,
        found.error_rate if found is not None else 0.0,
        waiting[0] if waiting is not None else 0,
        waiting[1] if waiting is not None else held,
        oldest,
        order,
    )


SORTS: Mapping[str, str] = {
    "flow": "as they follow each other",
    "rate": "messages per second",
    "p50": "half of the hops took no longer",
    "p99": "99 % of the hops took no longer",
    "errors": "failed attempts per second",
    "waiting": "messages that wait",
    "oldest": "age of the oldest message held",
}
"""What rows can be sorted by; all but the first with the highest first."""


def arranged(rows: Iterable[Row], sort: str, wanted: str = "", *, reverse: bool = False) -> list[Row]:
    """Sorted by one of SORTS; only those with `wanted` in flow, step, revision or state."""
    found = [row for row in rows if wanted.lower() in f"{row.flow} {row.step} {row.revision} {row.state}".lower()]
    figures = {
        "rate": lambda row: row.rate,
        "p50": lambda row: row.p50_us or 0.0,
        "p99": lambda row: row.p99_us or 0.0,
        "errors": lambda row: row.error_rate,
        "waiting": lambda row: row.waiting,
        "oldest": lambda row: row.oldest_s or 0.0,
    }
    found.sort(key=lambda row: (row.flow, row.order))
    if sort in figures:
        found.sort(key=figures[sort], reverse=True)
    return found[::-1] if reverse else found


def head_words(view: FlowView) -> list[str]:
    """Flow, state, version, deployment, what was given up."""
    words = [view.flow]
    status = view.status
    if status is not None:
        words.append(state_word(status))
        if (active := active_deployment(status)) is not None:
            words += [f"version {active.version}", f"deployment {active.number}"]
        if status.dead_letters.total:
            words.append(f"{status.dead_letters.total} dead letters")
        if status.in_doubt:
            words.append(f"{status.in_doubt} in doubt")
    return words


def exemplars_of(view: FlowView, seconds: int, step: str, digest: str) -> list[hop_pb2.Exemplar]:
    """Executions of a step's hops that can be looked at, each with its slowest hop, the slowest first."""
    window = view.window(seconds)
    found: dict[str, hop_pb2.Exemplar] = {}
    for line in window.phases if window is not None else ():
        if (line.step, line.phase, line.revision) == (step, "hop", digest):
            for exemplar in line.exemplars:
                name = exemplar.execution_id or exemplar.trace_id
                if name not in found or exemplar.us > found[name].us:
                    found[name] = exemplar
    return sorted(found.values(), key=lambda exemplar: -exemplar.us)[:5]


def trace_command(exemplars: Sequence[hop_pb2.Exemplar]) -> str:
    """What shows the slowest of them; empty where there is none."""
    for exemplar in exemplars:
        if exemplar.execution_id:
            return f"headrace trace {exemplar.execution_id}"
    return ""
