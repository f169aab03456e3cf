"""What a flow may ask of the revision it names: function, kind, config, replicas. Slow to import (JSON Schema)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jsonschema
import jsonschema.exceptions
import referencing
import referencing.exceptions

from headrace.api.component.v1 import component_pb2
from headrace.api.registry.v1 import registry_pb2
from headrace.model.errors import FieldViolation, InvalidInput
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.model.suggestion import did_you_mean

_KINDS = {
    component_pb2.FUNCTION_KIND_ACTION: "action",
    component_pb2.FUNCTION_KIND_TRIGGER: "trigger",
    component_pb2.FUNCTION_KIND_LISTENER: "listener",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What the registry has for one step."""

    step: StepSpec
    revision: registry_pb2.Revision
    function: registry_pb2.Function


def kind_of(function: registry_pb2.Function) -> str:
    """`action`, `trigger` or `listener`."""
    return _KINDS.get(function.kind, "action")


def listens(found: Sequence[Found]) -> bool:
    """Whether the flow begins with a listener; no other step can be one."""
    return any(kind_of(item.function) == "listener" for item in found)


def flow_problems(spec: FlowSpec, functions: Iterable[registry_pb2.Function]) -> list[InvalidInput]:
    """What the flow as a whole may not ask of its steps' functions."""
    if spec.history is None or not any(kind_of(function) == "listener" for function in functions):
        return []
    return [
        InvalidInput.at(
            "history",
            True,
            "has no meaning: the flow begins with a listener, whose source keeps what it gave",
            reason="HISTORY_OF_LISTENER",
            next_step="Leave it out, and read the source again",
        )
    ]


def choose_function(index: int, step: StepSpec, manifest: registry_pb2.Manifest) -> registry_pb2.Function:
    """The function that a step means; InvalidInput names those there are."""
    functions = list(manifest.functions)
    path = f"steps[{index}].function"
    known = sorted(function.name for function in functions)
    if not step.function:
        if len(functions) == 1:
            return functions[0]
        raise InvalidInput(
            f"{path}: does not say which function of {step.component!r}; it has {', '.join(known) or 'none'}",
            reason="FUNCTION_NOT_NAMED",
            next_step=f"Write for example `function: {known[0]}`" if known else "",
            violations=[FieldViolation(path, "does not say which")],
        )
    for function in functions:
        if function.name == step.function:
            return function
    raise InvalidInput.at(
        path,
        step.function,
        f"is not a function of {step.component!r}; it has {', '.join(known) or 'none'}",
        reason="FUNCTION_NOT_FOUND",
        next_step=did_you_mean(step.function, known),
    )


def unresolved(field: str, reference: str, why: str) -> InvalidInput:
    """A reference that leads to no revision."""
    return InvalidInput.at(
        field,
        reference,
        f"cannot be resolved: {why}",
        reason="COMPONENT_NOT_FOUND",
        next_step="Push it first: headrace component push FOLDER",
    )


def problems_of(index: int, step: StepSpec, function: registry_pb2.Function, is_trigger: bool) -> list[InvalidInput]:
    path = f"steps[{index}]"
    kind = kind_of(function)
    problems: list[InvalidInput] = []
    if is_trigger and kind == "action":
        problems.append(
            InvalidInput.at(
                f"{path}.function",
                function.name,
                f"is an action, but step {step.name!r} starts the flow: it must be a trigger or a listener",
                reason="NOT_A_TRIGGER",
                next_step="Begin the flow with a trigger, such as webhook or timer",
            )
        )
    if not is_trigger and kind != "action":
        problems.append(
            InvalidInput.at(
                f"{path}.function",
                function.name,
                f"is a {kind}, but step {step.name!r} receives from other steps: it must be an action",
                reason="NOT_AN_ACTION",
                next_step="Name an action, or take the step out of every `to`",
            )
        )
    if step.keyed and kind == "listener":
        problems.append(
            InvalidInput.at(
                f"{path}.key" if step.key else f"{path}.exactly_once",
                step.key or step.exactly_once,
                f"has no meaning: step {step.name!r} is a listener, nothing is stored for it",
                reason="KEY_ON_LISTENER",
                next_step="Give a `key` to the steps that receive from it",
            )
        )
    if step.error_step is not None and kind == "listener":
        problems.append(
            InvalidInput.at(
                f"{path}.on_error.step",
                step.error_step.step,
                f"has no meaning: step {step.name!r} is a listener, nothing is stored for it that could fail",
                reason="ERROR_STEP_OF_LISTENER",
                next_step="Give `on_error` to the steps that receive from it, or to the flow",
            )
        )
    if (step.every_s or step.cron) and kind != "trigger":
        problems.append(
            InvalidInput.at(
                f"{path}.cron" if step.cron else f"{path}.every",
                step.cron or step.every_s,
                f"makes step {step.name!r} a timer, but {function.name!r} is a {kind}; name a trigger, such as timer",
                reason="NOT_A_TRIGGER",
                next_step="Use the stock component timer",
            )
        )
    if function.exclusive and step.replicas > 1:
        problems.append(
            InvalidInput.at(
                f"{path}.replicas",
                step.replicas,
                "is more than 1, but the function is exclusive",
                reason="EXCLUSIVE",
                next_step="Leave replicas out",
            )
        )
    if function.config_schema_json:
        problems += _config_problems(path, step, json.loads(function.config_schema_json))
    return problems


def _config_problems(path: str, step: StepSpec, schema: object) -> list[InvalidInput]:
    if not isinstance(schema, dict):
        return []
    try:
        # Without a registry, references to other documents would be fetched from wherever a manifest says.
        validator = jsonschema.validators.validator_for(schema)(schema, registry=referencing.Registry())
        errors = sorted(validator.iter_errors(step.config), key=lambda error: [str(part) for part in error.path])
    except (RecursionError, referencing.exceptions.Unresolvable, re.error) as broken:
        why = _why_unusable(broken)
        return [
            InvalidInput(
                f"{path}.config: the config schema of {step.component!r} cannot be used, {why}",
                reason="BAD_SCHEMA",
                next_step="Correct the schema in the component's manifest and push it again",
                violations=[FieldViolation(f"{path}.config", "the component's config schema cannot be used")],
            )
        ]
    problems = []
    for error in errors:
        field = f"{path}.config" + "".join(f".{part}" for part in error.path)
        # The message shows the value; a config holds no secrets (credentials are references).
        problems.append(
            InvalidInput(
                f"{field}: {error.message}",
                reason="CONFIG_INVALID",
                next_step="Correct it after the function's config schema",
                violations=[FieldViolation(field, error.message)],
            )
        )
    return problems


def _why_unusable(broken: Exception) -> str:
    if isinstance(broken, RecursionError):
        return "it refers to itself for ever"
    if isinstance(broken, re.error):
        return f"a pattern is no regular expression: {broken}"
    return f"a reference leads nowhere: {broken}"


def merged(problems: list[InvalidInput]) -> InvalidInput:
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidInput(
        first.message + more,
        reason=first.reason,
        next_step=first.next_step,
        violations=[violation for problem in problems for violation in problem.violations],
    )
