"""From facts to findings: what holds a flow up, most likely first. Pure; the rules are in the modules beside it."""

from __future__ import annotations

from headrace.model.causes import Cause
from services.orchestrator.domain.blame import blamed
from services.orchestrator.domain.facts import Facts, StepFacts
from services.orchestrator.domain.finding import Finding, Severity, counted, shown_s
from services.orchestrator.domain.flow_causes import flow_findings
from services.orchestrator.domain.instance_causes import step_findings
from services.orchestrator.domain.mesh_causes import mesh_findings

MAX_FINDINGS = 50


def explain(facts: Facts, step: str = "") -> list[Finding]:
    """At least one finding. With `step` only what can hold that one up: its own troubles, those downstream of it, and
    what is the flow's or the mesh's."""
    mesh = mesh_findings(facts)
    if facts.flow is None:
        return mesh or [_nothing_wrong(facts)]
    of_steps = [finding for item in facts.steps for finding in step_findings(facts, item)]
    found = [*mesh, *flow_findings(facts, of_steps), *blamed(facts.steps, of_steps)]
    if step:
        reach = downstream(facts.steps, step)
        found = [item for item in found if not item.step or item.step in reach]
    found.sort(key=lambda item: item.order)
    if not any(item.severity is not Severity.NOTICE for item in found):
        found.append(_nothing_wrong(facts))
    return found[:MAX_FINDINGS]


def is_healthy(findings: list[Finding]) -> bool:
    """Nothing stalls or slows the flow."""
    return all(item.severity is Severity.NOTICE for item in findings)


def downstream(steps: tuple[StepFacts, ...], step: str) -> set[str]:
    """A step and all that what it sends can reach."""
    receivers: dict[str, set[str]] = {}
    for item in steps:
        receivers.setdefault(item.name, set()).update(item.receivers)
    found, left = {step}, [step]
    while left:
        for receiver in receivers.get(left.pop(), ()):
            if receiver not in found:
                found.add(receiver)
                left.append(receiver)
    return found


def _nothing_wrong(facts: Facts) -> Finding:
    evidence = []
    for step in facts.steps:
        done = sum(instance.done for instance in step.instances) / max(facts.looked_s, 0.001)
        oldest = f", the oldest for {shown_s(step.oldest_s)}" if step.oldest_s is not None and step.has_work else ""
        evidence.append(
            f"{step.name}: {done:.0f} messages/s, {step.waiting} wait, {step.in_flight} in flight{oldest}; "
            f"{counted(len(step.instances), 'instance')}"
        )
    if facts.mesh.broker_ms is not None:
        stored = f", stores in {facts.mesh.store_ms:.1f} ms" if facts.mesh.store_ms is not None else ""
        evidence.append(f"the broker answers in {facts.mesh.broker_ms:.1f} ms{stored}")
    summary = "nothing that stalls or slows the flow was found"
    return Finding(Cause.NOTHING_WRONG, Severity.NOTICE, summary, tuple(evidence))
