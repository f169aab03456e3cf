"""Who is to blame where edges are full: the step at the end of the chain, not those that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headrace.model.causes import Cause
from services.orchestrator.domain.facts import InstanceFacts, StepFacts
from services.orchestrator.domain.finding import Finding, Severity, counted, shown_s

# A part of its limit: an edge with so many messages is as good as full.
NEARLY_FULL = 0.8
OLD_S = 5.0
STANDS_S = 3.0


def blamed(steps: Sequence[StepFacts], found: Sequence[Finding]) -> list[Finding]:
    """The findings, each with the steps that wait because of it; and those of steps that are simply too slow, or
    stand still for no reason that is known."""
    waits_for: dict[str, set[str]] = {}
    for finding in found:
        if finding.cause is Cause.DOWNSTREAM_FULL:
            waits_for.setdefault(finding.step, set()).add(finding.receiver)
    roots = [finding for finding in found if finding.cause is not Cause.DOWNSTREAM_FULL and finding.step]
    explained = {finding.step for finding in roots} | set(waits_for)
    roots += [slow for step in steps if step.name not in explained and (slow := _own(step, waits_for)) is not None]
    known = {step.name: step for step in steps}
    result = [replace(finding) for finding in found if not finding.step]
    for finding in roots:
        upstream = _upstream(finding.step, waits_for)
        worst = min((_severity(known[name]) for name in upstream if name in known), default=finding.severity)
        result.append(replace(finding.affecting(upstream), severity=min(finding.severity, worst)))
    named = {finding.step for finding in result}
    for finding in found:
        if finding.cause is Cause.DOWNSTREAM_FULL:
            root = _end_of(finding.step, waits_for, named - set(waits_for))
            told = (*finding.evidence, f"the cause is at step {root!r}") if root else finding.evidence
            result.append(replace(finding, evidence=told))
    return result


def _severity(step: StepFacts) -> Severity:
    return Severity.SLOW if step.moving else Severity.STALLED


def _upstream(step: str, waits_for: dict[str, set[str]]) -> tuple[str, ...]:
    """Steps that wait for it, nearest first."""
    found: list[str] = []
    nearest = {step}
    while nearest:
        nearest = {name for name, receivers in waits_for.items() if receivers & nearest and name not in found}
        found += sorted(nearest)
    return tuple(name for name in found if name != step)


def _end_of(step: str, waits_for: dict[str, set[str]], roots: set[str]) -> str:
    """Where the chain of full edges that begins at a step ends."""
    seen, left = {step}, [step]
    while left:
        name = left.pop(0)
        if name in roots and name != step:
            return name
        for receiver in sorted(waits_for.get(name, ())):
            if receiver not in seen:
                seen.add(receiver)
                left.append(receiver)
    return ""


def _own(step: StepFacts, waits_for: dict[str, set[str]]) -> Finding | None:
    """Of a step of which no rule said anything."""
    if step.paused or not step.has_work:
        return None
    full = any(step.name in receivers for receivers in waits_for.values())
    crowded = step.waiting >= NEARLY_FULL * step.max_waiting
    old = step.oldest_s is not None and step.oldest_s >= OLD_S
    weight = step.waiting + step.in_flight
    if full or crowded or (step.moving and old):
        done = sum(instance.done for instance in step.instances)
        evidence: tuple[str, ...] = (
            f"{counted(step.waiting, 'message')} wait, of at most {step.max_waiting}"
            + (f"; the oldest for {shown_s(step.oldest_s)}" if step.oldest_s is not None else ""),
            f"{counted(done, 'message')} done while it was looked at, by {counted(len(step.instances), 'instance')}",
        )
        summary = f"more comes to step {step.name!r} than it gets done"
        return Finding(
            Cause.STEP_TOO_SLOW, Severity.SLOW, summary, evidence, step=step.name, deployment=step.deployment,
            weight=weight, replicas=len(step.instances),
        )  # fmt: skip
    if step.moving or step.oldest_s is None or step.oldest_s < STANDS_S:
        return None
    evidence = (f"the oldest has been stored for {shown_s(step.oldest_s)}", *map(_seen, step.instances))
    summary = f"{counted(weight, 'message')} of step {step.name!r} wait, and nothing goes on"
    return Finding(
        Cause.UNEXPLAINED, Severity.STALLED, summary, evidence, step=step.name, deployment=step.deployment,
        weight=weight, replicas=len(step.instances),
    )  # fmt: skip


def _seen(instance: InstanceFacts) -> str:
    held = ", ".join(f"{count} {phase}" for phase, count in sorted(instance.held.items())) or "nothing"
    return f"{instance.name} is {instance.stage}, holds {held}"
