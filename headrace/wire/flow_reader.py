"""Turns the loaded YAML of a flow file into a flow, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.model.cron import DEFAULT_ZONE, cron_problem, zone_problem
from headrace.model.durations import format_duration
from headrace.model.flow_graph import (
    FLOW_TYPES,
    MAX_ATTEMPTS,
    MAX_RETRY_DELAY_S,
    MAX_STEP_TIMEOUT_S,
    MAX_WAITING_LIMIT,
)
from headrace.model.flow_spec import (
    CATCH_UP,
    DEFAULT_IDLE_TIMEOUT_S,
    DEFAULT_MAX_WAITING,
    DEFAULT_PREFETCH,
    DEFAULT_TIMEOUT_S,
    LATEST,
    MAX_CONFIG_NESTING,
    MAX_EVERY_S,
    MAX_HISTORY_AGE_S,
    MAX_HISTORY_COUNT,
    MAX_IDLE_TIMEOUT_S,
    MAX_PREFETCH,
    MAX_REPLICAS,
    MAX_REPLY_TIMEOUT_S,
    MAX_STEPS,
    MIN_EVERY_S,
    MIN_HISTORY_AGE_S,
    FlowSpec,
    HistorySpec,
    RetryPolicy,
    StepSpec,
)
from headrace.model.json_values import is_nested_deeper
from headrace.model.mesh_trigger import mesh_trigger_problems, needs_process, stock_component
from headrace.model.names import check_function, check_name, parse_reference
from headrace.model.rates import parse_rate
from headrace.model.retry_codes import retried_codes_problem
from headrace.model.slots import DEFAULT_SLOTS, MAX_SLOTS, check_key
from headrace.wire.edge_reader import EdgeReader

FLOW_KEYS = (
    "name",
    "type",
    "description",
    "reply_timeout",
    "max_waiting",
    "rate_limit",
    "passthrough",
    "on_error",
    "history",
    "steps",
)
STEP_KEYS = (
    "component", "function", "config", "to", "prefetch", "replicas", "timeout", "retry", "every", "rate_limit",
    "key", "slots", "exactly_once", "on_error", "cron", "time_zone", "catch_up",
    "credential", "idle_timeout",
)  # fmt: skip
# Of a trigger without component.
MESH_TRIGGER_KEYS = ("to", "every", "cron", "time_zone", "catch_up")
HISTORY_KEYS = ("count", "age")
RETRY_KEYS = ("attempts", "backoff", "max_delay", "jitter", "on")


EXACT_NUMBERS = 2**53
"""Whole numbers below it are exact as doubles."""


class FlowReader(EdgeReader):
    """Turns loaded YAML into a flow, one method per part."""

    reason = "BAD_FLOW_FILE"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, data: Any) -> tuple[str, FlowSpec, dict[str, Path]]:
        """Name, flow, and the folders of its own components by step."""
        flow = self.mapping("", data, FLOW_KEYS)
        name = self.checked("name", check_name, self.text("name", flow.get("name")))
        steps = self.mapping("steps", flow.get("steps"))
        if not steps:
            self.fail("steps", flow.get("steps"), "has no step", "Write one block per step: `order: {component: ...}`")
        if len(steps) > MAX_STEPS:
            self.fail("steps", len(steps), f"steps are more than {MAX_STEPS}", "Split the flow")
        kind = flow.get("type", "realtime")
        if kind not in FLOW_TYPES:
            self.fail("type", kind, "is not a flow type", f"Use {' or '.join(FLOW_TYPES)}")
        folders: dict[str, Path] = {}
        spec = FlowSpec(
            type=kind,
            steps=tuple(self._step(step, value, folders, steps) for step, value in steps.items()),
            reply_timeout_s=self._reply_timeout(flow),
            max_waiting=self.count("max_waiting", flow, DEFAULT_MAX_WAITING, 1, MAX_WAITING_LIMIT),
            description=self.text("description", flow.get("description", "")),
            rate_limit=self._rate("rate_limit", flow),
            passthrough=self.switch("passthrough", flow),
            error_step=self.error_step("on_error", flow["on_error"], steps) if "on_error" in flow else None,
            history=self._history(flow),
        )
        self._check_mesh_trigger(spec, steps)
        return name, spec, folders

    def _history(self, flow: Mapping[str, Any]) -> HistorySpec | None:
        given, default = flow.get("history", False), HistorySpec()
        if isinstance(given, bool):
            return default if given else None
        history = self.mapping("history", given, HISTORY_KEYS)
        age_s = self.duration("age", history, default.age_s, "history")
        if not MIN_HISTORY_AGE_S <= age_s <= MAX_HISTORY_AGE_S:
            self.fail("history.age", history["age"], "is not between 1m and 720h", "Leave it out for 168h")
        return HistorySpec(self.count("count", history, default.count, 1, MAX_HISTORY_COUNT, "history"), age_s)

    def _reply_timeout(self, flow: Mapping[str, Any]) -> float:
        seconds = self.duration("reply_timeout", flow, 0.0)
        if "reply_timeout" in flow and not 0 < seconds <= MAX_REPLY_TIMEOUT_S:
            problem = f"is not more than 0 and at most {MAX_REPLY_TIMEOUT_S:g} seconds"
            self.fail("reply_timeout", flow["reply_timeout"], problem, "Leave it out to answer 202 at once")
        return seconds

    def _step(self, name: Any, value: Any, folders: dict[str, Path], steps: Mapping[str, Any]) -> StepSpec:
        field = f"steps.{name}"
        self.checked(field, check_name, self.text(field, name))
        step = self.mapping(field, value, STEP_KEYS)
        component = self._component(f"{field}.component", step, steps, name)
        if not component:
            pass  # the mesh's own trigger
        elif component.startswith((".", "/")):
            folders[name] = self._component_folder(f"{field}.component", component)
        else:
            self.checked(f"{field}.component", parse_reference, component)
        function = self.text(f"{field}.function", step.get("function", ""))
        if function:
            self.checked(f"{field}.function", check_function, function)
        timeout_s = self.duration("timeout", step, DEFAULT_TIMEOUT_S, field)
        if not 0 < timeout_s <= MAX_STEP_TIMEOUT_S:
            problem = f"is not more than 0 and at most {MAX_STEP_TIMEOUT_S:g} seconds"
            self.fail(f"{field}.timeout", step.get("timeout"), problem, "Write for example 30s")
        key, slots, exactly_once = self._keying(field, step)
        cron, time_zone, catch_up = self._cron(field, step, steps, name)
        to, edges = self.receivers(f"{field}.to", _given(step, "to", []), steps)
        on_error, error_step = self.on_error(f"{field}.on_error", step, steps)
        replicas = self.count("replicas", step, 1, 1, MAX_REPLICAS, field)
        if slots and replicas > slots:
            problem = f"is more than its {slots} slots, each of which has one owner"
            self.fail(f"{field}.replicas", replicas, problem, f"Write {slots} at most, or more `slots`")
        return StepSpec(
            name=name,
            component=component,
            function=function,
            config=self._config(f"{field}.config", _given(step, "config", {})),
            to=to,
            edges=edges,
            cron=cron,
            time_zone=time_zone,
            catch_up=catch_up,
            prefetch=self.count("prefetch", step, DEFAULT_PREFETCH, 1, MAX_PREFETCH, field),
            replicas=replicas,
            timeout_s=timeout_s,
            retry=self._retry(f"{field}.retry", _given(step, "retry", {})),
            every_s=self._every(f"{field}.every", field, step, steps, name),
            key=key,
            slots=slots,
            exactly_once=exactly_once,
            rate_limit=self._rate(f"{field}.rate_limit", step),
            on_error=on_error,
            error_step=error_step,
            credential=self._credential(f"{field}.credential", step),
            idle_timeout_s=self._idle_timeout(field, step),
        )

    def _credential(self, field: str, step: Mapping[str, Any]) -> str:
        name = self.text(field, step.get("credential", ""))
        if "credential" in step:
            self.checked(field, check_name, name)
        return name

    def _idle_timeout(self, field: str, step: Mapping[str, Any]) -> float:
        seconds = self.duration("idle_timeout", step, DEFAULT_IDLE_TIMEOUT_S, field)
        if seconds > MAX_IDLE_TIMEOUT_S:
            problem = f"is longer than {format_duration(MAX_IDLE_TIMEOUT_S)}"
            next_step = "A step that is never to sleep belongs in a flow of type realtime"
            self.fail(f"{field}.idle_timeout", step["idle_timeout"], problem, next_step)
        return seconds

    def _keying(self, field: str, step: Mapping[str, Any]) -> tuple[str, int, bool]:
        """`key`, `slots` (0 where the step is not keyed) and `exactly_once` of a step."""
        key = self.text(f"{field}.key", step.get("key", ""))
        if "key" in step:
            self.checked(f"{field}.key", check_key, key)
        exactly_once = self.switch("exactly_once", step, field)
        if key or exactly_once:
            return key, self.count("slots", step, DEFAULT_SLOTS, 1, MAX_SLOTS, field), exactly_once
        if "slots" in step:
            self.fail(
                f"{field}.slots", step["slots"], "has no meaning without key", "Add `key` or `exactly_once: true`"
            )
        return "", 0, False

    def _config(self, field: str, value: Any) -> dict[str, Any]:
        config = dict(self.mapping(field, value))
        if is_nested_deeper(config, MAX_CONFIG_NESTING):
            problem = f"is nested deeper than {MAX_CONFIG_NESTING} levels"
            self.refuse(field, problem, "Give the component text that it reads by itself, or a flatter config")
        for path, number in _inexact(field, config):
            self.fail(path, number, "is a number that would not arrive exactly", "Put it in quotes")
        return config

    def _every(self, path: str, field: str, step: Mapping[str, Any], steps: Mapping[str, Any], name: str) -> float:
        if "every" not in step:
            return 0.0
        seconds = self.duration("every", step, 0.0, field)
        if not MIN_EVERY_S <= seconds <= MAX_EVERY_S or abs(seconds * 1000 - round(seconds * 1000)) > 1e-6:
            problem = "is not between 10ms and 24h in whole milliseconds"
            self.fail(path, step["every"], problem, "Write for example 5s")
        self._first(path, step["every"], steps, name)
        return seconds

    def _first(self, path: str, value: Any, steps: Mapping[str, Any], name: str) -> None:
        sender = next((other for other, step in steps.items() if _sends_to(step, name)), None)
        if sender is not None:
            problem = f"makes a timer of a step that receives from {sender!r}"
            self.fail(path, value, problem, "Only the flow's first step can be a timer")

    def _cron(self, field: str, step: Mapping[str, Any], steps: Mapping[str, Any], name: str) -> tuple[str, str, str]:
        """Schedule, zone and what becomes of late ticks."""
        cron = self.text(f"{field}.cron", step.get("cron", ""))
        zone = self.text(f"{field}.time_zone", step.get("time_zone", DEFAULT_ZONE))
        catch_up = self.text(f"{field}.catch_up", step.get("catch_up", LATEST))
        if "cron" in step:
            if "every" in step:
                self.fail(f"{field}.cron", cron, "stands beside `every`", "A timer goes by one of them")
            if problem := cron_problem(cron):
                next_step = "Write for example `cron: 30 6 * * MON-FRI`, or with seconds `*/10 * * * * *`"
                self.fail(f"{field}.cron", cron, problem, next_step, "BAD_CRON")
            self._first(f"{field}.cron", cron, steps, name)
        elif "time_zone" in step:
            self.fail(f"{field}.time_zone", zone, "has no meaning without cron", "", "BAD_TIME_ZONE")
        if problem := zone_problem(zone):
            self.fail(f"{field}.time_zone", zone, problem, "Names are those of the IANA database", "BAD_TIME_ZONE")
        if "catch_up" in step and not {"cron", "every"} & {*step}:
            self.fail(f"{field}.catch_up", catch_up, "has a meaning only for a timer", "Add `cron` or `every`")
        if catch_up not in CATCH_UP:
            self.fail(f"{field}.catch_up", catch_up, f"is not one of {', '.join(CATCH_UP)}", "Leave it out for latest")
        return cron, zone, catch_up

    def _retry(self, field: str, value: Any) -> RetryPolicy:
        retry = self.mapping(field, value, RETRY_KEYS)
        default = RetryPolicy()
        backoff_s = self._retry_delay("backoff", retry, default.backoff_s, field)
        max_delay_s = self._retry_delay("max_delay", retry, max(default.max_delay_s, backoff_s), field)
        if max_delay_s < backoff_s:
            problem = f"is shorter than the first delay, backoff {format_duration(backoff_s)}"
            self.fail(f"{field}.max_delay", retry["max_delay"], problem, "Write a longer max_delay, or leave it out")
        return RetryPolicy(
            attempts=self.count("attempts", retry, default.attempts, 1, MAX_ATTEMPTS, field),
            backoff_s=backoff_s,
            max_delay_s=max_delay_s,
            jitter=self.fraction("jitter", retry, default.jitter, field),
            on=self._codes(f"{field}.on", _given(retry, "on", [])),
        )

    def _retry_delay(self, key: str, retry: Mapping[str, Any], default: float, field: str) -> float:
        seconds = self.duration(key, retry, default, field)
        if seconds > MAX_RETRY_DELAY_S:
            problem = f"is longer than {format_duration(MAX_RETRY_DELAY_S)}"
            self.fail(f"{field}.{key}", retry[key], problem, "A component that must wait longer asks for a rebound")
        return seconds

    def _codes(self, field: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.fail(field, value, "is not a list of error codes", "Write for example `on: [TIMEOUT, BUSY]`")
        wrong = retried_codes_problem(value)
        if wrong is not None:
            index, text = wrong
            path = f"{field}[{index}]" if index >= 0 else field
            self.refuse(path, text, "Without `on`, what the component calls retryable is retried, and TIMEOUT")
        return tuple(value)

    def _rate(self, path: str, mapping: Mapping[str, Any]) -> float:
        return self.checked(path, parse_rate, mapping["rate_limit"]) if "rate_limit" in mapping else 0.0

    def _component(self, field: str, step: Mapping[str, Any], steps: Mapping[str, Any], name: str) -> str:
        """Empty for a trigger that names none."""
        first = not any(_sends_to(other, name) for other in steps.values())
        if first and "component" not in step:
            return ""
        if step.get("component") is None:
            what = "Name one, or leave the line out" if first else "Only the flow's first step can do without"
            self.refuse(field, "is missing", what, "MISSING_FIELD")
        text = self.text(field, step["component"])
        return text or self.checked(field, parse_reference, text).component

    def _check_mesh_trigger(self, spec: FlowSpec, steps: Mapping[str, Any]) -> None:
        for step in spec.steps:
            if step.has_process:
                continue
            path, next_step = f"steps.{step.name}", f"Add `component: {stock_component(step)}`"
            for field, problem in mesh_trigger_problems(spec, step):
                self.refuse(f"{path}.{field}", problem, next_step, "TRIGGER_NEEDS_COMPONENT")
            for key in steps[step.name].keys() - {*MESH_TRIGGER_KEYS}:  # also one that has its default
                self.refuse(f"{path}.{key}", needs_process(step), next_step, "TRIGGER_NEEDS_COMPONENT")

    def _component_folder(self, field: str, text: str) -> Path:
        path = (self._folder / text).resolve()
        if not path.is_dir():
            self.fail(field, text, "is not a folder", f"Looked for {path}; a pushed component is named without `./`")
        return path


def _sends_to(step: Any, receiver: str) -> bool:
    to = step.get("to") if isinstance(step, dict) else None
    return isinstance(to, list) and any(
        (item.get("step") if isinstance(item, dict) else item) == receiver for item in to
    )


def _inexact(field: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Numbers that a protobuf Struct, which has doubles only, would change without a word."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _inexact(f"{field}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _inexact(f"{field}[{index}]", item)
    elif (isinstance(value, int) and abs(value) >= EXACT_NUMBERS) or (isinstance(value, float) and value - value != 0):
        yield field, value


def _given(mapping: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value; the default where the key is not there or has nothing behind it."""
    value = mapping.get(key)
    return default if value is None else value
