"""The lines of `headrace top`: tables that fit into a width, the same on a screen, in a pipe and in a document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.cli.tables import display_width, table
from headrace.cli.top_rows import FlowView, Row, exemplars_of, head_words

if TYPE_CHECKING:
    from headrace.api.hop.v1 import hop_pb2


@dataclass(frozen=True, slots=True)
class Column:
    """`keep`: the higher, the longer it stays when the terminal gets narrow."""

    heading: str
    cell: Callable[[Row], str]
    keep: int


COLUMNS = (
    Column("FLOW", lambda row: row.flow, 95),
    Column("STEP", lambda row: row.step, 100),
    Column("STATE", lambda row: row.state, 60),
    Column("REVISION", lambda row: row.revision, 30),
    Column("INST", lambda row: row.instances, 40),
    Column("RATE/s", lambda row: rate_text(row.rate), 90),
    Column("P50 ms", lambda row: millis(row.p50_us), 85),
    Column("P95 ms", lambda row: millis(row.p95_us), 45),
    Column("P99 ms", lambda row: millis(row.p99_us), 80),
    Column("MAX ms", lambda row: millis(row.max_us), 35),
    Column("ERR/s", lambda row: rate_text(row.error_rate), 70),
    Column("WAITING", lambda row: str(row.waiting), 75),
    Column("IN FLIGHT", lambda row: str(row.in_flight), 50),
    Column("OLDEST", lambda row: age(row.oldest_s), 55),
)


def steps_table(rows: Sequence[Row], width: int, *, several: bool) -> list[str]:
    """Heading and a line for each row; columns are left out until it fits. `several` flows need their names."""
    columns = [column for column in COLUMNS if several or column.heading != "FLOW"]
    while True:
        text = table([column.heading for column in columns], [[column.cell(row) for column in columns] for row in rows])
        lines = text.split("\n")
        if len(columns) == 1 or max(map(display_width, lines)) <= width:
            return lines
        columns.remove(min(columns, key=lambda column: column.keep))


def nothing_line(views: Sequence[FlowView], wanted: str) -> str:
    """Why there is no row, and what to type."""
    if not views:
        return "no flow runs; start one: headrace flow start FLOW"
    if wanted:
        return "nothing fits the filter"
    if any(view.status is None for view in views):
        return "waiting for the mesh to tell of steps"
    return f"no step runs; start the flow: headrace flow start {views[0].flow}"


def head_line(view: FlowView, seconds: int) -> str:
    """`orders  RUNNING  version 3  deployment 7  last 10 s`."""
    window = view.window(seconds)
    covered = window.covered.ToMicroseconds() / 1e6 if window is not None else 0.0
    words = head_words(view)
    words.append(f"last {seconds} s" if covered > seconds - 0.5 else f"last {covered:.0f} of {seconds} s")
    if view.hops is not None and view.hops.silent:
        words.append(f"{len(view.hops.silent)} silent")
    return "  ".join(words)


def step_lines(view: FlowView, row: Row, seconds: int, width: int) -> list[str]:
    """One step opened: its hops by phase, what it counted, executions to look at, its instances."""
    window = view.window(seconds)
    lines = [_cut("  ".join([f"{row.step} of {row.flow}", row.state, row.revision, row.digest]).rstrip(), width), ""]
    phases = [
        line
        for line in (window.phases if window is not None else ())
        if (line.step, line.revision) == (row.step, row.digest)
    ]
    lines += _phase_lines(phases, width) if phases else [f"nothing was measured in the last {seconds} s"]
    found = next((step for step in (window.steps if window else ()) if _is(step, row)), None)
    if found is not None and (counted := _counted(found)):
        lines += ["", *_wrapped(counted, width)]
    lines += _exemplar_lines(exemplars_of(view, seconds, row.step, row.digest))
    lines += _instance_lines(view, row, width)
    return lines


def _is(step: hop_pb2.StepWindow, row: Row) -> bool:
    return (step.step, step.revision) == (row.step, row.digest)


def _phase_lines(phases: Sequence[hop_pb2.PhaseWindow], width: int) -> list[str]:
    headings = ["PHASE", "RECEIVER", "RATE/s", "P50 ms", "P95 ms", "P99 ms", "MAX ms", "SAMPLES"]
    cells = [
        [
            line.phase,
            line.receiver or "-",
            rate_text(line.latency.rate),
            *(millis(us) for us in (line.latency.p50_us, line.latency.p95_us, line.latency.p99_us)),
            millis(line.latency.max_us),
            f"{line.latency.count}" + (f" ({line.latency.skewed} skewed)" if line.latency.skewed else ""),
        ]
        for line in phases
    ]
    for leave_out in ("", "SAMPLES", "P95 ms", "MAX ms", "RECEIVER"):
        if leave_out:
            index = headings.index(leave_out)
            headings, cells = (
                headings[:index] + headings[index + 1 :],
                [row[:index] + row[index + 1 :] for row in cells],
            )
        lines = table(headings, cells).split("\n")
        if max(map(display_width, lines)) <= width:
            break
    return lines


def _counted(step: hop_pb2.StepWindow) -> list[str]:
    """What is not zero: `120 processed`, `3 retried`."""
    return [f"{number} {field.name.replace('_', ' ')}" for field, number in step.counts.ListFields()]


def _exemplar_lines(exemplars: Sequence[hop_pb2.Exemplar]) -> list[str]:
    if not exemplars:
        return []
    rows = [(millis(found.us), found.execution_id or "-", found.trace_id or "-") for found in exemplars]
    return ["", *table(("HOP ms", "EXECUTION", "TRACE"), rows).split("\n")]


def _instance_lines(view: FlowView, row: Row, width: int) -> list[str]:
    from headrace.cli.flow_tables import step_word

    status = view.status
    if status is None:
        return []
    lines: list[str] = []
    for step in status.steps:
        if (step.step, step.pin.digest) != (row.step, row.digest):
            continue
        for instance in step.instances:
            words = [instance.instance, step_word(instance.state)]
            words += [f"{instance.in_flight} in flight"] * bool(instance.in_flight)
            words += [instance.cause] * bool(instance.cause)
            lines.append(_cut("  ".join(words), width))
    return ["", *lines] if lines else []


def millis(us: float | None) -> str:
    """Milliseconds with as many digits as they deserve; `-` for none."""
    if us is None:
        return "-"
    value = us / 1000
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def rate_text(rate: float) -> str:
    """Per second."""
    if not rate:
        return "0"
    return f"{rate:.2f}" if rate < 1 else f"{rate:.1f}" if rate < 1000 else f"{rate:.0f}"


def age(seconds: float | None) -> str:
    """`3 ms`, `1.2 s`, `5 m`, `2 h`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} m" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 2 + len(word) > width:
            lines.append("")
        lines[-1] += ("  " if lines[-1] else "") + word
    return lines


def _cut(line: str, width: int) -> str:
    return line if display_width(line) <= width else line[: max(0, width - 1)] + "…"
