"""Troubles of the mesh as a whole: broker, leader, agent, gateways, clocks."""

from __future__ import annotations

from headrace.model.causes import Cause
from services.orchestrator.domain.facts import Facts, MeshFacts
from services.orchestrator.domain.finding import Finding, Severity, shown_s

SLOW_PING_MS = 100.0
SLOW_STORE_MS = 250.0
SKEW_S = 0.25


def mesh_findings(facts: Facts) -> list[Finding]:
    """In no order."""
    mesh = facts.mesh
    found = _broker(facts)
    if not mesh.leads and not mesh.broker_problem:
        found += _leader(mesh)
    if not mesh.agent_known and not mesh.broker_problem and facts.flow is not None and facts.flow.state != "STOPPED":
        summary = "the agent does not answer: instances are neither started nor stopped; what runs goes on"
        severity = Severity.SLOW if _answers(facts) else Severity.STALLED
        found.append(Finding(Cause.AGENT_GONE, severity, summary, ("the orchestrator's watch of it is broken",)))
    trigger = next((step for step in facts.steps if facts.flow and step.name == facts.flow.trigger), None)
    if mesh.gateways == 0 and not mesh.broker_problem and trigger is not None:
        by_http = trigger.kind != "listener" and not trigger.every_s
        summary = "no gateway answers: nothing comes in by HTTP"
        severity = Severity.STALLED if by_http else Severity.NOTICE
        found.append(Finding(Cause.GATEWAY_GONE, severity, summary, ("nobody said its address when asked for it",)))
    return found + _clocks(facts)


def _broker(facts: Facts) -> list[Finding]:
    mesh = facts.mesh
    if mesh.broker_problem:
        cause = Cause.BROKER_REFUSES if mesh.broker_refuses else Cause.BROKER_UNREACHABLE
        what = "does not take the mesh's credentials" if mesh.broker_refuses else "does not answer"
        return [Finding(cause, Severity.STALLED, f"the broker {what}", (mesh.broker_problem,))]
    if mesh.store_problem:
        evidence = [mesh.store_problem]
        if mesh.broker_ms is not None:
            evidence.append(f"a ping took {mesh.broker_ms:.1f} ms, so it is there")
        summary = "the broker answers, and stores nothing: mostly its disk is full"
        return [Finding(Cause.BROKER_FULL, Severity.STALLED, summary, tuple(evidence))]
    pings = [ms for ms in (mesh.broker_ms, *_pings(facts)) if ms is not None]
    slow_ping = sorted(pings)[len(pings) // 2] > SLOW_PING_MS if pings else False
    slow_store = mesh.store_ms is not None and mesh.store_ms > SLOW_STORE_MS
    if not slow_ping and not slow_store:
        return []
    evidence = [f"a ping of the orchestrator took {mesh.broker_ms:.0f} ms"] if mesh.broker_ms is not None else []
    if mesh.store_ms is not None:
        evidence.append(f"storing one message took {mesh.store_ms:.0f} ms")
    if others := _pings(facts):
        evidence.append(f"pings of {len(others)} instances: {min(others):.0f} to {max(others):.0f} ms")
    return [Finding(Cause.BROKER_SLOW, Severity.SLOW, "the broker takes long to answer", tuple(evidence))]


def _pings(facts: Facts) -> list[float]:
    found = (instance.broker_ms for step in facts.steps for instance in step.instances if instance.answers)
    return [ms for ms in found if ms is not None]


def _leader(mesh: MeshFacts) -> list[Finding]:
    if mesh.leader and not mesh.leader_problem:
        return []  # another one leads, and answers
    if mesh.leader:
        summary = f"no orchestrator leads: {mesh.leader} holds the lease and does not answer"
        evidence = (mesh.leader_problem, f"answered by {mesh.answered_by}, which does not lead")
    else:
        summary = "no orchestrator leads"
        evidence = ("nobody holds the lease", f"answered by {mesh.answered_by}, which does not lead")
    return [Finding(Cause.NO_LEADER, Severity.SLOW, summary, evidence)]


def _answers(facts: Facts) -> bool:
    return any(instance.answers for step in facts.steps for instance in step.instances)


def _clocks(facts: Facts) -> list[Finding]:
    evidence = []
    if abs(facts.mesh.broker_clock_ahead_s) > SKEW_S:
        evidence.append(_ahead("the broker's clock", facts.mesh.broker_clock_ahead_s))
    for step in facts.steps:
        for instance in step.instances:
            if instance.answers and abs(instance.clock_ahead_s) > SKEW_S:
                evidence.append(_ahead(f"the clock of {instance.name}", instance.clock_ahead_s))
    if not evidence:
        return []
    summary = "clocks differ: times across them are shown as they are, not corrected"
    return [Finding(Cause.CLOCK_SKEW, Severity.SLOW, summary, tuple(evidence[:5]))]


def _ahead(what: str, seconds: float) -> str:
    side = "ahead of" if seconds > 0 else "behind"
    return f"{what} is {shown_s(abs(seconds))} {side} the orchestrator's"
