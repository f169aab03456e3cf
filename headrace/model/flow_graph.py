"""Checks a flow's graph and its limits: what can be said without knowing any component.

The trigger is the one step that receives from no other; flows are acyclic. The entry is the step that stimuli go to:
the trigger, or where that is the mesh's own, its receiver (`headrace.model.mesh_trigger`). All problems are reported at
once, each under its path (`steps[1].to[0]`).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.model.cron import DEFAULT_ZONE, cron_problem, zone_problem
from headrace.model.error_steps import error_steps, successors
from headrace.model.errors import FieldViolation, HeadraceError, InvalidInput
from headrace.model.expressions import MAX_FLOW_EXPRESSIONS, syntax_problem
from headrace.model.flow_spec import (
    CATCH_UP,
    MAX_CONFIG_NESTING,
    MAX_EVERY_S,
    MAX_FLOW_SLOTS,
    MAX_HISTORY_AGE_S,
    MAX_HISTORY_COUNT,
    MAX_IDLE_TIMEOUT_S,
    MAX_PREFETCH,
    MAX_RATE,
    MAX_REPLICAS,
    MAX_REPLY_TIMEOUT_S,
    MAX_STEPS,
    MIN_EVERY_S,
    MIN_HISTORY_AGE_S,
    MIN_RATE,
    ON_ERROR,
    ORDINARY,
    REALTIME,
    FlowSpec,
    RetryPolicy,
    StepSpec,
)
from headrace.model.json_values import is_nested_deeper
from headrace.model.mesh_trigger import entry_of, mesh_trigger_problems
from headrace.model.names import check_function, check_name, parse_reference
from headrace.model.retry_codes import retried_codes_problem
from headrace.model.slots import MAX_SLOTS, check_key
from headrace.model.suggestion import did_you_mean

FLOW_TYPES = (ORDINARY, REALTIME)
MAX_WAITING_LIMIT = 1_000_000
MAX_STEP_TIMEOUT_S = 3600.0
MAX_ATTEMPTS = 100
MAX_RETRY_DELAY_S = 3600.0
MAX_CONFIG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FlowGraph:
    """The trigger step, all steps in an order in which every sender comes before its receivers, and the entry."""

    trigger: str
    order: tuple[str, ...]
    entry: str


@dataclass(frozen=True, slots=True)
class _Problem:
    path: str
    text: str
    reason: str


def check_flow(spec: FlowSpec) -> FlowGraph:
    """Returns the graph of a valid flow; InvalidInput with one violation per problem otherwise."""
    problems = [*_check_limits(spec), *_check_names(spec)]
    if spec.steps and not any(problem.reason == "DUPLICATE_STEP" for problem in problems):
        problems += _check_edges(spec)
    if problems:
        raise _as_error(problems)
    trigger = find_trigger(spec)
    return FlowGraph(trigger, _order(spec), entry_of(spec, trigger).name)


def find_trigger(spec: FlowSpec) -> str:
    """Name of the trigger step of a flow that was checked."""
    return _sources(spec)[0].name


def find_entry(spec: FlowSpec) -> StepSpec:
    """The step that stimuli go to, of a flow that was checked."""
    return entry_of(spec, find_trigger(spec))


def _as_error(problems: list[_Problem]) -> InvalidInput:
    first, others = problems[0], len(problems) - 1
    more = f" (and {others} more)" if others else ""
    return InvalidInput(
        f"{first.path}: {first.text}{more}",
        reason=first.reason,
        next_step="Correct the flow and send it again",
        violations=[FieldViolation(problem.path, problem.text) for problem in problems],
    )


def _within(path: str, value: float, low: float, high: float) -> list[_Problem]:
    if low <= value <= high:
        return []
    return [_Problem(path, f"{value!r} is not between {low:g} and {high:g}", "OUT_OF_RANGE")]


def _check_limits(spec: FlowSpec) -> list[_Problem]:
    problems: list[_Problem] = []
    if spec.type not in FLOW_TYPES:
        problems.append(_Problem("type", f"{spec.type!r} is not a flow type; use realtime or ordinary", "BAD_TYPE"))
    if not spec.steps:
        problems.append(_Problem("steps", "the flow has no steps; it needs a trigger at least", "NO_TRIGGER"))
    if len(spec.steps) > MAX_STEPS:
        problems.append(_Problem("steps", f"{len(spec.steps)} steps are more than {MAX_STEPS}", "TOO_MANY_STEPS"))
    slots = sum(step.slot_count for step in spec.steps if step.keyed)
    if slots > MAX_FLOW_SLOTS:
        problems.append(_Problem("steps", f"{slots} slots in all are more than {MAX_FLOW_SLOTS}", "TOO_MANY_SLOTS"))
    problems += _within("reply_timeout", spec.reply_timeout_s, 0, MAX_REPLY_TIMEOUT_S)
    problems += _within("max_waiting", spec.max_waiting, 1, MAX_WAITING_LIMIT)
    problems += _check_rate("rate_limit", spec.rate_limit)
    problems += _check_expressions(spec)
    if spec.history is not None:
        problems += _within("history.count", spec.history.count, 1, MAX_HISTORY_COUNT)
        problems += _within("history.age", spec.history.age_s, MIN_HISTORY_AGE_S, MAX_HISTORY_AGE_S)
    for index, step in enumerate(spec.steps):
        problems += _check_step_limits(f"steps[{index}]", step)
    return problems


def _check_step_limits(path: str, step: StepSpec) -> list[_Problem]:
    problems = _within(f"{path}.prefetch", step.prefetch, 1, MAX_PREFETCH)
    problems += _within(f"{path}.replicas", step.replicas, 1, MAX_REPLICAS)
    problems += _within(f"{path}.timeout", step.timeout_s, 0.001, MAX_STEP_TIMEOUT_S)
    problems += _check_rate(f"{path}.rate_limit", step.rate_limit)
    problems += _check_retry(f"{path}.retry", step.retry)
    if step.every_s:
        problems += _within(f"{path}.every", step.every_s, MIN_EVERY_S, MAX_EVERY_S)
        if not problems and abs(step.every_s * 1000 - round(step.every_s * 1000)) > 1e-6:
            problems.append(_Problem(f"{path}.every", f"{step.every_s!r} s is not whole milliseconds", "OUT_OF_RANGE"))
    problems += _within(f"{path}.idle_timeout", step.idle_timeout_s, 0, MAX_IDLE_TIMEOUT_S)
    problems += _check_cron(path, step)
    problems += _check_key(path, step)
    problems += _refused(check_name, f"{path}.credential", step.credential) if step.credential else []
    if step.on_error and step.on_error not in ON_ERROR:
        problems.append(
            _Problem(f"{path}.on_error", f"{step.on_error!r} is not one of {', '.join(ON_ERROR)}", "BAD_VALUE")
        )
    elif step.on_error and step.error_step is not None:
        text = f"{step.on_error!r} stands beside the error step {step.error_step.step!r}: a failure goes one way"
        problems.append(_Problem(f"{path}.on_error", text, "TWO_ERROR_POLICIES"))
    if is_nested_deeper(step.config, MAX_CONFIG_NESTING):
        text = f"is nested deeper than {MAX_CONFIG_NESTING} levels"
        return [*problems, _Problem(f"{path}.config", text, "CONFIG_TOO_DEEP")]
    size = len(msgspec.json.encode(step.config))
    if size > MAX_CONFIG_BYTES:
        problems.append(_Problem(f"{path}.config", f"is {size} bytes, more than {MAX_CONFIG_BYTES}", "CONFIG_TOO_BIG"))
    return problems


def _check_cron(path: str, step: StepSpec) -> list[_Problem]:
    problems: list[_Problem] = []
    if step.cron and step.every_s:
        text = f"{step.cron!r} stands beside `every`: a timer goes by one of them"
        problems.append(_Problem(f"{path}.cron", text, "TWO_SCHEDULES"))
    elif step.cron and (wrong := cron_problem(step.cron)):
        problems.append(_Problem(f"{path}.cron", f"{step.cron!r} {wrong}", "BAD_CRON"))
    if step.time_zone != DEFAULT_ZONE and not step.cron:
        text = f"{step.time_zone!r} has a meaning only with cron"
        problems.append(_Problem(f"{path}.time_zone", text, "BAD_TIME_ZONE"))
    elif wrong := zone_problem(step.time_zone):
        problems.append(_Problem(f"{path}.time_zone", f"{step.time_zone!r} {wrong}", "BAD_TIME_ZONE"))
    if step.catch_up not in CATCH_UP:
        text = f"{step.catch_up!r} is not one of {', '.join(CATCH_UP)}"
        problems.append(_Problem(f"{path}.catch_up", text, "BAD_VALUE"))
    return problems


def _check_key(path: str, step: StepSpec) -> list[_Problem]:
    problems = _refused(check_key, f"{path}.key", step.key) if step.key else []
    if step.slots and not step.keyed:
        problems.append(_Problem(f"{path}.slots", "has a meaning only with key or exactly_once", "SLOTS_WITHOUT_KEY"))
    elif step.keyed:
        problems += _within(f"{path}.slots", step.slot_count, 1, MAX_SLOTS)
        if not problems and step.slot_count < step.replicas <= MAX_REPLICAS:
            text = f"{step.replicas} are more than its {step.slot_count} slots, each of which has one owner"
            problems.append(_Problem(f"{path}.replicas", text, "TOO_FEW_SLOTS"))
    return problems


def _check_expressions(spec: FlowSpec) -> list[_Problem]:
    size = sum(len(edge.condition) + len(edge.mapping) for step in spec.steps for edge in step.edges.values())
    if size > MAX_FLOW_EXPRESSIONS:
        text = f"their expressions have {size} characters in all, more than {MAX_FLOW_EXPRESSIONS}"
        return [_Problem("steps", text, "EXPRESSIONS_TOO_LONG")]
    problems: list[_Problem] = []
    for index, step in enumerate(spec.steps):
        for receiver, edge in step.edges.items():
            if receiver not in step.to:
                there = ", ".join(step.to) or "nobody"
                text = f"{receiver!r} is not in `to` of step {step.name!r}, which sends to {there}"
                problems.append(_Problem(f"steps[{index}].edges.{receiver}", text, "UNKNOWN_EDGE"))
                continue
            path = f"steps[{index}].to[{step.to.index(receiver)}]"
            for name, source in (("condition", edge.condition), ("mapping", edge.mapping)):
                if source and (problem := syntax_problem(source)):
                    problems.append(_Problem(f"{path}.{name}", problem, "BAD_EXPRESSION"))
    return problems


def _check_rate(path: str, rate: float) -> list[_Problem]:
    if rate == 0 or MIN_RATE * 0.999_999 <= rate <= MAX_RATE:
        return []
    return [_Problem(path, f"{rate!r} per second is not between 1/h and 100000/s (0: no limit)", "OUT_OF_RANGE")]


def _check_retry(path: str, retry: RetryPolicy) -> list[_Problem]:
    problems = _within(f"{path}.attempts", retry.attempts, 1, MAX_ATTEMPTS)
    delays = _within(f"{path}.backoff", retry.backoff_s, 0, MAX_RETRY_DELAY_S)
    delays += _within(f"{path}.max_delay", retry.max_delay_s, 0, MAX_RETRY_DELAY_S)
    if not delays and retry.max_delay_s < retry.backoff_s:
        text = f"{retry.max_delay_s:g} s is shorter than the first delay, backoff, {retry.backoff_s:g} s"
        delays.append(_Problem(f"{path}.max_delay", text, "OUT_OF_RANGE"))
    problems += delays
    problems += _within(f"{path}.jitter", retry.jitter, 0, 1)
    wrong = retried_codes_problem(retry.on)
    if wrong is not None:
        index, text = wrong
        problems.append(_Problem(f"{path}.on[{index}]" if index >= 0 else f"{path}.on", text, "BAD_ERROR_CODE"))
    return problems


def _check_names(spec: FlowSpec) -> list[_Problem]:
    problems: list[_Problem] = []
    first_use: dict[str, int] = {}
    sources = {step.name for step in _sources(spec)}
    for index, step in enumerate(spec.steps):
        path = f"steps[{index}]"
        problems += _refused(check_name, f"{path}.name", step.name)
        if step.has_process:
            problems += _refused(parse_reference, f"{path}.component", step.component)
        elif step.name in sources:
            problems += [
                _Problem(f"{path}.{field}", text, "TRIGGER_NEEDS_COMPONENT")
                for field, text in mesh_trigger_problems(spec, step)
            ]
        else:
            text = f"is missing: step {step.name!r} receives from another step; only a flow's trigger can do without"
            problems.append(_Problem(f"{path}.component", text, "MISSING_FIELD"))
        if step.function:
            problems += _refused(check_function, f"{path}.function", step.function)
        if step.name in first_use:
            text = f"{step.name!r} is the name of steps[{first_use[step.name]}] already"
            problems.append(_Problem(f"{path}.name", text, "DUPLICATE_STEP"))
        first_use.setdefault(step.name, index)
    return problems


def _refused(check: object, path: str, value: str) -> list[_Problem]:
    try:
        check(path, value)  # type: ignore[operator]
    except HeadraceError as error:
        text = str(error).removeprefix(f"{path}: ")
        return [_Problem(path, text, error.reason)]
    return []


def _check_edges(spec: FlowSpec) -> list[_Problem]:
    known = {step.name for step in spec.steps}
    problems: list[_Problem] = []
    for index, step in enumerate(spec.steps):
        for position, receiver in enumerate(step.to):
            path = f"steps[{index}].to[{position}]"
            if receiver == step.name:
                problems.append(_Problem(path, f"step {step.name!r} sends to itself", "SELF_EDGE"))
            elif receiver not in known:
                hint = did_you_mean(receiver, sorted(known)) or f"Steps are {', '.join(sorted(known))}"
                text = f"{receiver!r} is not a step of this flow. {hint}"
                problems.append(_Problem(path, text, "UNKNOWN_RECEIVER"))
            elif receiver in step.to[:position]:
                problems.append(_Problem(path, f"{receiver!r} is named twice", "DUPLICATE_EDGE"))
        if step.error_step is not None:
            problems += _check_error_step(f"steps[{index}].on_error.step", step.error_step.step, step.name, known)
    if spec.error_step is not None:
        problems += _check_error_step("on_error.step", spec.error_step.step, "", known)
    return problems or _check_shape(spec)


def _check_error_step(path: str, handler: str, step: str, known: set[str]) -> list[_Problem]:
    if handler == step:
        return [_Problem(path, f"step {step!r} sends to itself", "SELF_EDGE")]
    if handler not in known:
        hint = did_you_mean(handler, sorted(known)) or f"Steps are {', '.join(sorted(known))}"
        return [_Problem(path, f"{handler!r} is not a step of this flow. {hint}", "UNKNOWN_RECEIVER")]
    return []


def _check_shape(spec: FlowSpec) -> list[_Problem]:
    cycle = _find_cycle(spec)
    if cycle:
        index = next(index for index, step in enumerate(spec.steps) if step.name == cycle[0])
        to = spec.steps[index].to
        path = f"steps[{index}].to[{to.index(cycle[1])}]" if cycle[1] in to else f"steps[{index}].on_error.step"
        text = f"the steps form a cycle: {' -> '.join(cycle)}; flows are acyclic"
        return [_Problem(path, text, "CYCLE")]
    sources = _sources(spec)
    if spec.error_step is not None and spec.error_step not in error_steps(spec).values():
        text = (
            f"no step hands its failures to {spec.error_step.step!r}: each leads away from it, or says something else"
        )
        return [_Problem("on_error.step", text, "UNUSED_ERROR_STEP")]
    problems = [
        _Problem(
            f"steps[{index}].{'cron' if step.cron else 'every'}",
            f"step {step.name!r} receives from other steps: it is no timer",
            "NOT_A_TIMER",
        )
        for index, step in enumerate(spec.steps)
        if (step.every_s or step.cron) and step not in sources
    ]
    # Without a cycle there is a step that receives from nobody, and what it does not reach has another one.
    trigger = next((step for step in sources if step.to), sources[0])
    for step in sources:
        if step is trigger:
            continue
        path = f"steps[{spec.steps.index(step)}]"
        if step.to:
            text = f"step {step.name!r} receives from nobody, and so does {trigger.name!r}: a flow has one trigger"
            problems.append(_Problem(path, text, "TWO_TRIGGERS"))
        else:
            text = f"step {step.name!r} is not reached from the trigger {trigger.name!r}; name it in a step's `to`"
            problems.append(_Problem(path, text, "UNREACHABLE_STEP"))
    return problems


def _sources(spec: FlowSpec) -> list[StepSpec]:
    receivers = {receiver for following in successors(spec).values() for receiver in following}
    return [step for step in spec.steps if step.name not in receivers]


def _find_cycle(spec: FlowSpec) -> list[str]:
    """One cycle as names, first = last; empty when there is none. Without recursion: flows may be long."""
    edges = successors(spec)
    done: set[str] = set()
    for start in edges:
        if start in done:
            continue
        path, positions, pending = [start], {start: 0}, [iter(edges[start])]
        while pending:
            receiver = next(pending[-1], None)
            if receiver is None:
                pending.pop()
                name = path.pop()
                positions.pop(name)
                done.add(name)
            elif receiver in positions:
                return [*path[positions[receiver] :], receiver]
            elif receiver not in done:
                positions[receiver] = len(path)
                path.append(receiver)
                pending.append(iter(edges[receiver]))
    return []


def _order(spec: FlowSpec) -> tuple[str, ...]:
    incoming = {step.name: 0 for step in spec.steps}
    edges = successors(spec)
    for following in edges.values():
        for receiver in following:
            incoming[receiver] += 1
    ready = [name for name, count in incoming.items() if count == 0]
    order: list[str] = []
    while ready:
        name = ready.pop(0)
        order.append(name)
        for receiver in edges[name]:
            incoming[receiver] -= 1
            if incoming[receiver] == 0:
                ready.append(receiver)
    return tuple(order)
