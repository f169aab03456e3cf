"""One execution as text: a line for its root and for each attempt, bars on one scale of time, then phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.cli.tables import table

if TYPE_CHECKING:
    from headrace.api.trace.v1 import trace_pb2

WIDTH = 48
# Phase and its sign; where two fall on the same place the later one here is seen.
SIGNS = {
    "publish": ">",
    "reply": ">",
    "queue": ".",
    "gateway-in": "=",
    "gateway-out": "=",
    "sidecar-in": "=",
    "sidecar-out": "=",
    "ack": "<",
    "component": "#",
}
WAITS = "-"
LEGEND = "> publish  . queue  = sidecar, gateway  # component  < ack  - waits for the reply"
ROOT_PHASES = ("queue", "gateway-in", "reply", "gateway-out")
HOP_PHASES = ("publish", "queue", "sidecar-in", "component", "sidecar-out", "ack")
MAX_DEPTH = 6


def execution_text(execution: trace_pb2.Execution) -> str:
    """The whole picture, no colour."""
    _, flow, _, identity = execution.name.split("/")
    begin = execution.begin_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    place = f"{flow} version {execution.version}, deployment {execution.deployment}" if execution.version else flow
    lines = [
        f"execution {identity}  {place}",
        f"{_outcome(execution)} in {_ms(execution.duration.ToNanoseconds())} ms, begun {begin} UTC",
    ]
    if execution.trace_id != identity:
        lines.append(f"trace {execution.trace_id} (its caller's)")
    if execution.link:
        lines.append(
            f"Jaeger: {execution.link}" + ("" if execution.sampled else "  (not sampled; there if it was kept)")
        )
    lines += ["", _bars(execution), "", LEGEND, "", _phases(execution)]
    lines += _remarks(execution)
    return "\n".join(lines)


def _outcome(execution: trace_pb2.Execution) -> str:
    words = execution.outcome.replace("_", "-")
    return f"{words} at {execution.code_step} ({execution.code})" if execution.code else words


def _bars(execution: trace_pb2.Execution) -> str:
    scale = _Scale(execution)
    rows: list[Sequence[object]] = []
    if execution.HasField("root"):
        root = execution.root
        status = f"{root.status} {root.code}".strip() if root.status else root.code or "-"
        bar = scale.bar(root, root.phases)
        rows.append((root.name or root.kind, "-", status, scale.start(root), _ms(_took(root)), bar))
    depth = _depths(execution)
    for attempt in execution.attempts:
        name = "  " * depth[attempt.step] + attempt.step
        ended = "" if attempt.outcome == "processed" else f" {attempt.outcome.replace('_', '-')}"
        number = f"{attempt.attempt}{ended}{f' {attempt.code}' if attempt.code else ''}"
        revision = f"{attempt.component}@{attempt.revision_number}"
        bar = scale.bar(attempt, attempt.phases)
        rows.append((name, revision, number, scale.start(attempt), _ms(_took(attempt)), bar))
    axis = f"0{_ms(scale.length_ns) + ' ms':>{WIDTH + 1}}"
    return table(("STEP", "REVISION", "ATTEMPT", "START", "TOOK", axis), rows)


def _depths(execution: trace_pb2.Execution) -> dict[str, int]:
    """How far each step is from the beginning, in hops."""
    root = int(execution.HasField("root"))
    depths: dict[str, int] = {}
    for attempt in execution.attempts:
        before = depths.get(attempt.sender, root - 1)
        depths.setdefault(attempt.step, min(before + 1, MAX_DEPTH))
    return depths


class _Scale:
    """From times to columns."""

    def __init__(self, execution: trace_pb2.Execution) -> None:
        self._begin_ns = execution.begin_time.ToNanoseconds()
        self.length_ns = max(1, execution.duration.ToNanoseconds())

    def start(self, part: trace_pb2.Attempt | trace_pb2.Root) -> str:
        return _ms(part.begin_time.ToNanoseconds() - self._begin_ns)

    def bar(self, part: trace_pb2.Attempt | trace_pb2.Root, phases: Sequence[trace_pb2.Phase]) -> str:
        cells = [" "] * WIDTH
        self._draw(cells, part, WAITS)
        order = list(SIGNS)
        for phase in sorted(phases, key=lambda phase: order.index(phase.name) if phase.name in order else 0):
            self._draw(cells, phase, SIGNS.get(phase.name, "?"))
        return f"|{''.join(cells)}|"

    def _draw(self, cells: list[str], part: trace_pb2.Attempt | trace_pb2.Root | trace_pb2.Phase, sign: str) -> None:
        first = (part.begin_time.ToNanoseconds() - self._begin_ns) * WIDTH // self.length_ns
        end_ns = part.begin_time.ToNanoseconds() + part.duration.ToNanoseconds() - self._begin_ns
        last = max(first + 1, -(-end_ns * WIDTH // self.length_ns))
        for cell in range(max(0, min(first, WIDTH - 1)), min(last, WIDTH)):
            cells[cell] = sign


def _phases(execution: trace_pb2.Execution) -> str:
    rows: list[Sequence[object]] = []
    for attempt in execution.attempts:
        took = {phase.name: _ms(phase.duration.ToNanoseconds()) for phase in attempt.phases}
        name = attempt.step if attempt.attempt == 1 else f"{attempt.step} ({attempt.attempt})"
        rows.append((name, *(took.get(name, "-") for name in HOP_PHASES)))
    text = table(("PHASES, MS", *HOP_PHASES), rows)
    if execution.root.phases:
        took = {phase.name: _ms(phase.duration.ToNanoseconds()) for phase in execution.root.phases}
        text += "\ngateway: " + ", ".join(f"{name} {took[name]}" for name in ROOT_PHASES if name in took)
    return text


def _remarks(execution: trace_pb2.Execution) -> list[str]:
    lines = []
    for attempt in execution.attempts:
        if attempt.problem:
            again = (
                f"; again after {_ms(attempt.retry_after.ToNanoseconds())} ms"
                if attempt.retry_after.ToNanoseconds()
                else ""
            )
            lines.append(f"{attempt.step} attempt {attempt.attempt}: {attempt.code}: {attempt.problem}{again}")
        if attempt.in_doubt:
            lines.append(f"{attempt.step}: the message was in doubt, and may have been handled before")
    if execution.root.problem:
        lines.append(f"gateway: {execution.root.code}: {execution.root.problem}")
    if execution.missing_steps:
        lines.append(f"not remembered any more: {', '.join(execution.missing_steps)}")
    skewed = [
        part.name for attempt in execution.attempts for part in attempt.phases if part.duration.ToNanoseconds() < 0
    ]
    if skewed:
        lines.append(f"clocks differ: {', '.join(sorted(set(skewed)))} below zero")
    return ["", *lines] if lines else []


def _took(part: trace_pb2.Attempt | trace_pb2.Root) -> int:
    return part.duration.ToNanoseconds()


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.2f}"
