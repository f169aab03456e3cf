"""Troubles of the flow as a whole: stopped, suspended, draining, refusing, or with nothing to do."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.model.causes import Cause
from services.orchestrator.domain.facts import Facts, FlowFacts, StepFacts
from services.orchestrator.domain.finding import Finding, Severity, counted, shown_s

# Nothing came for so long: then that is said.
QUIET_S = 10.0
# A tick may be so much later than it is due (or twice its interval, if that is more).
TICK_LATE_S = 3.0
OPERATION_LONG_S = 10.0
# Reasons of dead letters that took a process down.
KILLED_BY = ("COMPONENT_DIED", "SIDECAR_DIED")
LIMIT_REFUSALS = ("RATE_LIMITED",)


def flow_findings(facts: Facts, of_steps: Sequence[Finding]) -> list[Finding]:
    """`of_steps` are those found of the steps: where there are such, a lack of input says nothing."""
    flow = facts.flow
    assert flow is not None
    found = [*_state(flow), *_draining(flow), *_operation(flow, of_steps), *_refusals(flow), *_letters(flow)]
    if flow.state in ("RUNNING", "SLEEPING") and not found and not of_steps:
        found += _input(facts, flow)
    return found


def _state(flow: FlowFacts) -> list[Finding]:
    if flow.state == "STOPPED":
        evidence = [f"the last decision: {flow.last_decision}"] if flow.last_decision else []
        if flow.parked:
            evidence.append(f"{counted(flow.parked, 'message')} wait for the next start")
        return [Finding(Cause.FLOW_STOPPED, Severity.STALLED, "the flow is stopped", tuple(evidence))]
    suspension = flow.suspension
    if suspension is None:
        return []
    kept = [f"since {shown_s(suspension.for_s)}; {counted(suspension.kept, 'message')} kept"]
    if suspension.reached:
        kept.append(f"its limit is reached ({suspension.reached}): new messages are refused")
    if suspension.step:
        summary = f"a message that failed for good in step {suspension.step!r} has suspended the flow"
        told = (
            f"{suspension.code}: {suspension.error}",
            f"message {suspension.message_id}, execution {suspension.execution_id}",
        )
        return [Finding(Cause.SUSPENDED_BY_MESSAGE, Severity.STALLED, summary, (*told, *kept), step=suspension.step)]
    doing = "is being suspended" if flow.state == "SUSPENDING" else "is suspended"
    return [Finding(Cause.FLOW_SUSPENDED, Severity.STALLED, f"the flow {doing}", tuple(kept))]


def _draining(flow: FlowFacts) -> list[Finding]:
    found = []
    for item in flow.deployments:
        if item.past_limit:
            summary = f"deployment {item.number} drains for longer than it may"
            evidence = (f"for {shown_s(item.phase_s)}; {counted(item.waiting, 'message')} left",)
            severity = Severity.STALLED if flow.state == "STOPPING" or not flow.active else Severity.SLOW
            found.append(Finding(Cause.DRAINING_TOO_LONG, severity, summary, evidence, deployment=item.number))
    return found


def _operation(flow: FlowFacts, of_steps: Sequence[Finding]) -> list[Finding]:
    if not flow.operation or flow.operation_s < OPERATION_LONG_S:
        return []
    summary = f"operation {flow.operation} has been at work for {shown_s(flow.operation_s)}"
    waits = [f"deployment {item.number} is {item.phase} for {shown_s(item.phase_s)}" for item in flow.deployments]
    severity = Severity.NOTICE if of_steps else Severity.SLOW
    return [Finding(Cause.OPERATION_WAITS, severity, summary, tuple(waits))]


def _refusals(flow: FlowFacts) -> list[Finding]:
    limited = sum(flow.refused.get(reason, 0) for reason in LIMIT_REFUSALS)
    if not limited:
        return []
    summary = f"more comes than the flow's rate limit of {flow.rate_limit:g}/s lets in"
    evidence = (f"{counted(limited, 'request')} refused in the last minute",)
    return [Finding(Cause.FLOW_RATE_LIMIT, Severity.SLOW, summary, evidence, weight=limited)]


def _letters(flow: FlowFacts) -> list[Finding]:
    letters = flow.letters
    if letters is None or not letters.lately:
        return []
    if letters.reason in KILLED_BY:
        summary = f"a message took the component of step {letters.step!r} down, and was given up"
        told = (f"dead letter of {shown_s(letters.newest_s)} ago: {letters.reason}", letters.error)
        return [Finding(Cause.POISON_MESSAGE, Severity.SLOW, summary, told, step=letters.step)]
    summary = f"{counted(letters.lately, 'message')} failed for good in the last minute"
    newest = f"the newest {shown_s(letters.newest_s)} ago in step {letters.step!r}: {letters.reason}"
    evidence = (f"{newest}: {letters.error}" if letters.error else newest,)
    return [Finding(Cause.MESSAGES_FAIL, Severity.SLOW, summary, evidence, step=letters.step, weight=letters.lately)]


def _input(facts: Facts, flow: FlowFacts) -> list[Finding]:
    trigger = next((step for step in facts.steps if step.name == flow.trigger and step.deployment == flow.active), None)
    if trigger is None or any(step.has_work or step.moving for step in facts.steps):
        return []
    if trigger.every_s:
        return _timer(flow, trigger)
    seen = [item.since_input_s for item in trigger.instances if item.since_input_s is not None]
    since = min(seen, default=None)
    if since is not None and since < QUIET_S:
        return []
    last = f"its last message came {shown_s(since)} ago" if since is not None else "it has had no message yet"
    what = "step" if trigger.kind == "action" else "trigger"  # an action where the mesh's own trigger leads to it
    evidence = [f"{what} {trigger.name!r} waits for messages: {last}"]
    if flow.since_request_s is not None:
        evidence.append(f"the last HTTP request came {shown_s(flow.since_request_s)} ago")
    if flow.refused:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(flow.refused.items()))
        evidence.append(f"refused in the last minute: {told}")
    return [Finding(Cause.NO_INPUT, Severity.NOTICE, "nothing comes in", tuple(evidence), step=trigger.name)]


def _timer(flow: FlowFacts, trigger: StepFacts) -> list[Finding]:
    late_s = max(TICK_LATE_S, trigger.every_s) + trigger.every_s
    if flow.since_tick_s is None or flow.since_tick_s < late_s:
        return []
    summary = f"ticks are due every {trigger.every_s:g} s and do not come"
    evidence = (f"the last one is from {shown_s(flow.since_tick_s)} ago",)
    return [Finding(Cause.TIMER_LATE, Severity.STALLED, summary, evidence, step=trigger.name)]
