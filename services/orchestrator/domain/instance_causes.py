"""Troubles of one instance of a step: the first rule that fits says what holds it up."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from headrace.model.causes import Cause
from services.orchestrator.domain.facts import CallFacts, Facts, InstanceFacts, StackFacts, StepFacts
from services.orchestrator.domain.finding import Finding, Severity, counted, shown_s

# What is younger than this belongs to an operation that has just begun.
SETTLING_S = 3.0
WARM_UP_LONG_S = 3.0
BUSY_S = 2.0
FULLY_BUSY_S = 1.0
RETRY_LONG_S = 0.3
UNANSWERED_S = 1.0
FULL_S = 0.2
ERROR_AGE_S = 30.0
SHOWN_FRAMES = 3
_STARTING_STAGES = ("FETCHING", "BUILDING", "STARTING", "INIT", "SELF_CHECK")
_DOING = {
    "FETCHING": "fetching its bundle",
    "BUILDING": "building its environment",
    "STARTING": "starting its component",
    "INIT": "in its component's init hook",
    "SELF_CHECK": "in its self-check",
}
_REFUSED = re.compile(
    r"unauthori[sz]ed|unauthenticated|authentication (failed|required)|invalid (password|credentials|api key|token)|"
    r"(password|permission|access) (was )?(denied|rejected)|wrong (password|credentials)|\b401\b|\b403\b|forbidden",
    re.IGNORECASE,
)

Rule = Callable[[Facts, StepFacts, InstanceFacts], Finding | None]


def step_findings(facts: Facts, step: StepFacts) -> list[Finding]:
    """Of all its instances: one each, and one for each edge that is full."""
    found: list[Finding] = []
    if step.asleep and not step.has_work:
        return found
    for instance in step.instances:
        first = next((finding for rule in RULES if (finding := rule(facts, step, instance)) is not None), None)
        if first is not None:
            found.append(first)
        found += _full_edges(step, instance)
    return found


def _finding(
    cause: Cause,
    step: StepFacts,
    instance: InstanceFacts,
    summary: str,
    *evidence: str,
    severity: Severity | None = None,
) -> Finding:
    worst = Severity.SLOW if step.moving else Severity.STALLED
    name = instance.name if len(step.instances) > 1 else ""
    told = tuple(text for text in evidence if text)
    return Finding(
        cause, severity or worst, summary, told, step=step.name, instance=name, deployment=step.deployment,
        weight=step.waiting + step.in_flight,
        replicas=len(step.instances),
    )  # fmt: skip


def _begins(facts: Facts, step: StepFacts) -> bool:
    """Its deployment, or an operation on the flow, has just begun."""
    flow = facts.flow
    assert flow is not None
    if flow.operation and flow.operation_s < SETTLING_S:
        return True
    return any(item.number == step.deployment and item.phase_s < SETTLING_S for item in flow.deployments)


def _not_scheduled(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if instance.known or not facts.mesh.agent_known or _begins(facts, step):
        return None
    running = sum(other.known for other in step.instances)
    summary = f"step {step.name!r} has {running} of {counted(len(step.instances), 'instance')} that are wanted"
    return _finding(Cause.NOT_SCHEDULED, step, instance, summary, f"the agent does not know {instance.name}")


def _gone(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if not instance.known or instance.up or (_begins(facts, step) and instance.starts <= 1):
        return None
    summary = f"the sidecar of step {step.name!r} is gone, and is being started again"
    ended = f"it {instance.last_exit}" if instance.last_exit else "it is not up"
    return _finding(Cause.SIDECAR_GONE, step, instance, summary, f"{ended}; started {instance.starts} times")


def _silent(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if not instance.up or instance.answers:
        return None
    summary = f"the sidecar of step {step.name!r} does not answer"
    asked = f"process {instance.pid} was asked twice, and was silent" if instance.pid else "it was asked twice"
    found = _finding(Cause.SIDECAR_SILENT, step, instance, summary, asked)
    return replace(found, pid=instance.pid)


def _cut_off(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if (
        not instance.answers
        or facts.mesh.broker_problem
        or (instance.broker_connected and instance.broker_ms is not None)
    ):
        return None
    summary = f"the sidecar of step {step.name!r} does not reach the broker"
    how = "its connection is down" if not instance.broker_connected else "its ping of the broker was not answered"
    return _finding(Cause.SIDECAR_CUT_OFF, step, instance, summary, how, "the orchestrator reaches it")


def _poison(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    suspect = next((call for call in instance.suspects if call.crashes >= 2), None)
    if suspect is None:
        return None
    summary = f"a message takes the component of step {step.name!r} down"
    crashes = f"{_message(suspect)} was in work at {suspect.crashes} crashes in a row"
    return _finding(Cause.POISON_MESSAGE, step, instance, summary, crashes, instance.cause)


def _failed(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if instance.state != "FAILED":
        return None
    if instance.cause_reason == "COMPONENT_CRASH_LOOP":
        summary = f"the component of step {step.name!r} dies again and again"
        starts = f"started {instance.component_starts} times"
        return _finding(Cause.CRASH_LOOP, step, instance, summary, instance.cause, starts)
    if _REFUSED.search(instance.cause):
        summary = f"step {step.name!r} cannot start: it is refused by what it talks to"
        return _finding(Cause.WRONG_CREDENTIALS, step, instance, summary, instance.cause)
    summary = f"step {step.name!r} cannot start"
    return _finding(Cause.START_FAILED, step, instance, summary, instance.cause, instance.cause_reason)


def _dead(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    works = instance.stage in ("ACTIVE", "DRAINING", "DRAINED", "WARM")
    if not works or (instance.component_pid and instance.component_process != "gone"):
        return None
    summary = f"the component of step {step.name!r} is gone, and is being started again"
    starts = f"started {instance.component_starts} times so far"
    return _finding(Cause.COMPONENT_DEAD, step, instance, summary, instance.cause, starts)


def _stopped(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if instance.component_process != "stopped":
        return None
    summary = f"the component of step {step.name!r} is stopped: its process gets no turn (SIGSTOP, or a debugger)"
    found = _finding(Cause.COMPONENT_STOPPED, step, instance, summary, f"process {instance.component_pid} is stopped")
    return replace(found, pid=instance.component_pid)


def _blocked(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    oldest = instance.running[0] if instance.running else None
    silent = oldest is not None and oldest.runs_s >= FULLY_BUSY_S and instance.stacks_how == "signal"
    if instance.cause_reason != "NOT_RESPONDING" and not silent:
        return None
    summary = f"the component of step {step.name!r} does not answer: plain code blocks its event loop"
    evidence = [*_stack(instance, 0), instance.cause]
    if oldest is not None:
        evidence.append(f"{_message(oldest)}: its call has run for {shown_s(oldest.runs_s)}")
    return _finding(Cause.COMPONENT_BLOCKED, step, instance, summary, *evidence)


def _warming(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if instance.stage not in _STARTING_STAGES or instance.stage_s < WARM_UP_LONG_S:
        return None
    doing = _DOING[instance.stage]
    summary = f"step {step.name!r} has been {doing} for {shown_s(instance.stage_s)}"
    return _finding(Cause.WARM_UP_SLOW, step, instance, summary, *_stack(instance, 0), instance.cause)


def _busy(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if not instance.running:
        return None
    oldest = instance.running[0]
    full = instance.held.get("running", 0) >= instance.prefetch and step.waiting > 0
    if oldest.runs_s < (FULLY_BUSY_S if full else BUSY_S):
        return None
    summary = f"the component of step {step.name!r} is busy: a call has run for {shown_s(oldest.runs_s)}"
    running = instance.held.get("running", 0)
    evidence = (
        _message(oldest),
        *_stack(instance, oldest.call),
        f"{counted(running, 'call')} of at most {instance.prefetch} run; {step.waiting} messages wait",
        f"{counted(instance.given_up, 'call')} ran over the limit and never ended" if instance.given_up else "",
    )
    easy = step.moving and step.waiting == 0 and oldest.runs_s < step.timeout_s / 2
    severity = Severity.NOTICE if easy else None
    return _finding(Cause.COMPONENT_BUSY, step, instance, summary, *evidence, severity=severity)


def _refused(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    recent = instance.error_s is not None and instance.error_s < ERROR_AGE_S
    told = f"{instance.error_code}: {instance.error_text}"
    if not recent or not _REFUSED.search(told.replace("_", " ")):
        return None
    summary = f"calls of step {step.name!r} fail: what it talks to does not take its credentials"
    ago = f"{shown_s(instance.error_s or 0.0)} ago"
    return _finding(Cause.WRONG_CREDENTIALS, step, instance, summary, f"{told} ({ago})", *_waiting_for_retry(instance))


def _retrying(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if not instance.retrying:
        return None
    count = instance.held.get("retrying", len(instance.retrying))
    first = instance.retrying[0]
    if first.due_s < RETRY_LONG_S and step.moving and not step.waiting:
        return None
    rebound = all(call.rebound for call in instance.retrying)
    cause = Cause.REBOUND_DELAY if rebound else Cause.RETRY_DELAY
    why = "asked to be called again later" if rebound else "failed, next attempt later"
    summary = f"{counted(count, 'message')} of step {step.name!r}: {why}"
    error = f"{first.code}: {first.error}" if first.code else ""
    return _finding(cause, step, instance, summary, *_waiting_for_retry(instance), error)


def _waiting_for_retry(instance: InstanceFacts) -> tuple[str, ...]:
    if not instance.retrying:
        return ()
    first = instance.retrying[0]
    return (f"{_message(first)} is due in {shown_s(first.due_s)}",)


def _paced(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if not instance.paced or not step.rate_limit:
        return None
    summary = f"step {step.name!r} may make {step.rate_limit:g} calls per second, and more comes"
    waits = f"{counted(instance.paced, 'message')} wait for their turn, {step.waiting} more at the broker"
    return _finding(Cause.STEP_RATE_LIMIT, step, instance, summary, waits, severity=Severity.SLOW)


def _undelivered(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    if instance.cause_reason not in ("NOTHING_DELIVERED", "SLOT_LOST"):
        return None
    summary = f"step {step.name!r} is given nothing"
    return _finding(Cause.NOTHING_DELIVERED, step, instance, summary, instance.cause)


def _unanswered(facts: Facts, step: StepFacts, instance: InstanceFacts) -> Finding | None:
    edge = next((edge for edge in instance.edges if edge.why == "unanswered" and edge.for_s >= UNANSWERED_S), None)
    if edge is None or facts.mesh.broker_problem or facts.mesh.store_problem:
        return None
    summary = f"the broker does not acknowledge what step {step.name!r} sends"
    waits = f"{counted(edge.waiting, 'output')} to {edge.receiver or 'the dead letters'}, for {shown_s(edge.for_s)}"
    return _finding(Cause.OUTPUT_UNANSWERED, step, instance, summary, waits)


def _full_edges(step: StepFacts, instance: InstanceFacts) -> list[Finding]:
    found = []
    for edge in instance.edges:
        if edge.why != "full" or edge.for_s < FULL_S or not edge.receiver:
            continue
        summary = f"step {step.name!r} waits for step {edge.receiver!r}, which has as many messages as it may"
        waits = f"{counted(edge.waiting, 'output')} wait; the edge is full for {shown_s(edge.for_s)}"
        base = _finding(Cause.DOWNSTREAM_FULL, step, instance, summary, waits)
        found.append(replace(base, receiver=edge.receiver))
    return found


def _message(call: CallFacts) -> str:
    attempt = f", attempt {call.attempt}" if call.attempt > 1 else ""
    return f"message {call.message_id} of execution {call.execution_id}{attempt}"


def _stack(instance: InstanceFacts, call: int) -> tuple[str, ...]:
    """Where it stands, in one line: the call's own stack, else that of a thread."""
    if instance.stacks_problem:
        return (f"where it stands is not known: {instance.stacks_problem}",)
    of_call = [stack for stack in instance.stacks if stack.call and stack.call == call]
    threads = [stack for stack in instance.stacks if not stack.call]
    chosen: list[StackFacts] = of_call or threads or list(instance.stacks)
    if not chosen or not chosen[0].frames:
        return ()
    return (f"it stands at {' < '.join(chosen[0].frames[:SHOWN_FRAMES])}",)


RULES: tuple[Rule, ...] = (
    _not_scheduled,
    _gone,
    _silent,
    _cut_off,
    _poison,
    _failed,
    _dead,
    _stopped,
    _blocked,
    _warming,
    _busy,
    _refused,
    _retrying,
    _paced,
    _undelivered,
    _unanswered,
)
