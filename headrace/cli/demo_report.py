"""What the demo prints: steps, hops, the budget, the stages of the start, what to try next; and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.api.hop.v1 import hop_pb2
from headrace.cli.demo_letters import LettersResult, letters_json
from headrace.cli.flow_tables import revision_words, running_instances, step_word, steps_table
from headrace.cli.latency_budget import CALLER, PHASES, PUBLISH, Budget, in_flow_order, make_budget, percentile
from headrace.cli.order_check import Difference
from headrace.cli.pinning_check import PinningResult
from headrace.cli.tables import table

SHOWN_DIFFERENCES = 10
# Of a deployment, then of one instance.
STAGES = ("resolve", "assets", "prepare", "activate", "fetch", "build", "start", "init", "self_check")


@dataclass(slots=True)
class DemoResult:
    """Everything that was found out."""

    profile: str
    orders: int
    differences: list[Difference]
    start_s: dict[str, float]
    status: flow_pb2.FlowStatus
    hops: hop_pb2.GetHopsResponse
    latencies_us: list[float]
    """The caller's clock, of the requests that went through the flow."""
    unread_us: Sequence[float] = ()
    """Of the same requests: how long the answer lay at the caller's socket before it was read."""
    effects: int = 0
    stage_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Per step: the stages of its instance's start."""
    pinning: PinningResult | None = None
    """What the second act found; None before it, or without one."""
    letters: LettersResult | None = None
    """What the third act found."""

    @property
    def correct(self) -> int:
        return self.orders - len({difference.order for difference in self.differences if difference.order})

    @property
    def ok(self) -> bool:
        acts_ok = all(act is None or act.ok for act in (self.pinning, self.letters))
        return not self.differences and self.orders > 0 and acts_ok

    @property
    def phases(self) -> list[hop_pb2.HopPhase]:
        """The mesh's, and the caller's own."""
        return [*self.hops.phases, *_caller_phases(self.unread_us)]

    @property
    def budget(self) -> Budget:
        return make_budget(self.phases, self.latencies_us)


def report_text(result: DemoResult) -> str:
    """All tables, for a person."""
    parts = [
        steps_table(result.status.steps),
        hops_table(result.phases),
        budget_text(result),
        start_text(result),
        verdict_text(result),
    ]
    return "\n\n".join(parts)


def hops_table(phases: Sequence[hop_pb2.HopPhase]) -> str:
    """One line per hop and phase, microseconds, in the order of the flow."""
    rows, last = [], ""
    for row in ordered_phases(phases):
        name = f"{row.phase} → {row.receiver}" if row.receiver else row.phase
        figures = (f"{value:.0f}" for value in (row.p50_us, row.p95_us, row.p99_us))
        rows.append((row.step if row.step != last else "", name, row.count, *figures))
        last = row.step
    return table(("HOP", "PHASE", "COUNT", "P50 µs", "P95 µs", "P99 µs"), rows)


def ordered_phases(phases: Sequence[hop_pb2.HopPhase]) -> list[hop_pb2.HopPhase]:
    """Rows with samples, of the phases themselves (not the whole hops), in the order of the flow."""
    kept = [row for row in phases if row.count and row.phase in PHASES]
    edges = {(row.step, row.receiver) for row in kept if row.phase == PUBLISH and row.receiver}
    edges = {(sender, receiver) for sender, receiver in edges if receiver != "gateway"}
    order = [*in_flow_order(sorted({row.step for row in kept} - {CALLER}), edges), CALLER]
    return sorted(kept, key=lambda row: (order.index(row.step), PHASES.index(row.phase), row.receiver))


def budget_text(result: DemoResult) -> str:
    """The caller's clock, and the sum of phases beside it."""
    budget, latencies = result.budget, result.latencies_us
    share = 100 * budget.difference_us / budget.caller_us if budget.caller_us else 0.0
    return (
        f"caller's clock: p50 {percentile(latencies, 0.5) / 1000:.2f} ms, p99 {percentile(latencies, 0.99) / 1000:.2f}"
        f" ms over {budget.requests} requests\n"
        f"phases along {' → '.join(budget.path)} → caller: {budget.phases_us / 1000:.3f} ms a request; the caller"
        f" measured {budget.caller_us / 1000:.3f} ms ({budget.difference_us / 1000:+.3f} ms, {share:+.1f} %)\n"
        "(means, sum of mean x count over all phases by the number of requests, because medians do not add;\n"
        " caller queue: how long answers lay at the caller's socket before it read them)"
    )


def _caller_phases(unread_us: Sequence[float]) -> list[hop_pb2.HopPhase]:
    """How long answers waited to be read, as a row beside the mesh's; none where the kernel does not say."""
    stamped = [value for value in unread_us if value]
    if not stamped:
        return []
    p50, p95, p99 = (percentile(stamped, share) for share in (0.5, 0.95, 0.99))
    mean = sum(stamped) / len(stamped)
    row = hop_pb2.HopPhase(
        step=CALLER, phase="queue", count=len(stamped), p50_us=p50, p95_us=p95, p99_us=p99, mean_us=mean
    )
    return [row]


def start_text(result: DemoResult) -> str:
    """How long each stage of the start took."""
    start = "  ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.start_s.items())
    steps = [
        (step, "  ".join(f"{stage} {millis:.0f}" for stage, millis in in_order(stages) if millis >= 0.5))
        for step, stages in result.stage_ms.items()
    ]
    lines = [f"start: {start}"]
    if any(stages for _, stages in steps):
        lines.append(table(("STEP", "STAGES, ms"), steps))
    lines.append(f"durability profile: {result.profile} ({profile_words(result.profile)})")
    return "\n".join(lines)


def in_order(stages: Mapping[str, float]) -> list[tuple[str, float]]:
    """Stages of a start as they come one after the other, the total last; unknown ones before it."""
    place = {stage: number for number, stage in enumerate(STAGES)}
    return sorted(stages.items(), key=lambda item: (item[0] == "total", place.get(item[0], len(STAGES)), item[0]))


def profile_words(profile: str) -> str:
    """What the profile promises, in half a line."""
    if profile == "durable":
        return "what the mesh acknowledged is on disk"
    return "the broker syncs every 2 minutes: a power cut can lose acknowledged messages"


def verdict_text(result: DemoResult) -> str:
    """Which orders differ, or that none does."""
    if result.ok:
        return f"{result.correct} of {result.orders} orders answered as expected, {result.effects} effects counted"
    shown = [
        f"{item.order or '-'}  {item.what}\n    expected {item.expected}\n    got      {item.got}"
        for item in result.differences[:SHOWN_DIFFERENCES]
    ]
    more = len(result.differences) - len(shown)
    if more > 0:
        shown.append(f"and {more} more")
    head = f"{result.orders - result.correct} of {result.orders} orders differ from what is expected"
    return "\n".join([head, *shown])


def pinning_text(pinning: PinningResult) -> str:
    """How the second act ended."""
    answered = ", ".join(f"{revision} {count}" for revision, count in pinning.answered_by_revision.items())
    pauses = ", ".join(f"{what} {gap:.0f} ms" for what, gap in pinning.gaps_ms.items())
    return (
        f"{pinning.orders} orders while code was switched {pinning.publishes} times: answered by {answered}\n"
        f"longest pause between two answers: {pauses} (steady {pinning.steady_gap_ms:.0f} ms)\n"
        f"unanswered {pinning.unanswered}, lost {pinning.lost}, duplicated {pinning.duplicated}, "
        f"on code that was not pinned {pinning.unpinned}"
    )


def pinning_json(pinning: PinningResult | None) -> dict[str, Any] | None:
    if pinning is None:
        return None
    return {
        "publishes": pinning.publishes,
        "orders": pinning.orders,
        "answered_by_revision": pinning.answered_by_revision,
        "unanswered": pinning.unanswered,
        "lost": pinning.lost,
        "duplicated": pinning.duplicated,
        "unpinned": pinning.unpinned,
        "max_gap_ms": pinning.max_gap_ms,
        "steady_gap_ms": pinning.steady_gap_ms,
        "gaps_ms": pinning.gaps_ms,
    }


def next_text(*, flow: str, data: str, webhook_url: str, sample: str) -> str:
    """What to type next, ready to paste."""
    return "\n".join(
        [
            "try next, in another terminal:",
            f"  curl -i {webhook_url} -H 'content-type: application/json' -d '{sample}'",
            f"  .venv/bin/headrace flow status {flow} --data {data}",
            f"  .venv/bin/headrace logs {flow} -f --data {data}",
            f"  .venv/bin/headrace component list --data {data}",
            f"  .venv/bin/headrace status --data {data}",
            "the demo's data is fresh each run and goes with it; `headrace up` keeps its data",
            "Ctrl-C ends the demo",
        ]
    )


def report_json(result: DemoResult) -> dict[str, Any]:
    """The one JSON object of `headrace demo --once --json`."""
    latencies, budget = result.latencies_us, result.budget
    return {
        "ok": result.ok,
        "orders": result.orders,
        "correct": result.correct,
        "profile": result.profile,
        "start_s": {stage: round(seconds, 4) for stage, seconds in result.start_s.items()},
        "steps": [
            {
                "step": step.step,
                "state": step_word(step.state),
                "revision": revision_words(step),
                "digest": step.pin.digest,
                "instances": len(step.instances),
                "running": running_instances(step),
                "stage_ms": {stage: round(ms, 2) for stage, ms in in_order(result.stage_ms.get(step.step, {}))},
            }
            for step in result.status.steps
        ],
        "hops": [
            {
                "step": row.step,
                "phase": row.phase,
                "receiver": row.receiver,
                "p50_us": round(row.p50_us, 1),
                "p95_us": round(row.p95_us, 1),
                "p99_us": round(row.p99_us, 1),
                "mean_us": round(row.mean_us, 1),
                "count": row.count,
            }
            for row in ordered_phases(result.phases)
        ],
        "caller": {
            "p50_us": round(percentile(latencies, 0.5), 1),
            "p99_us": round(percentile(latencies, 0.99), 1),
            "mean_us": round(budget.caller_us, 1),
            "phases_mean_us": round(budget.phases_us, 1),
            "requests": budget.requests,
        },
        "effects": result.effects,
        "pinning": pinning_json(result.pinning),
        "letters": letters_json(result.letters),
        "differing": [
            {"order": item.order, "what": item.what, "expected": item.expected, "got": item.got}
            for item in result.differences
        ],
    }
