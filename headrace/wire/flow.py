"""FlowSpec between proto and model: absent fields become defaults, JSON numbers keep being integers."""

from __future__ import annotations

from typing import Any

from google.protobuf import duration_pb2, struct_pb2
from google.protobuf.message import Message

from headrace.api.flow.v1 import flow_pb2
from headrace.model.cron import DEFAULT_ZONE
from headrace.model.errors import InvalidInput
from headrace.model.flow_spec import (
    ALL,
    DEAD_LETTER,
    DEFAULT_IDLE_TIMEOUT_S,
    DEFAULT_MAX_WAITING,
    DEFAULT_PREFETCH,
    DEFAULT_TIMEOUT_S,
    LATEST,
    NONE,
    SUSPEND_FLOW,
    EdgeSpec,
    ErrorStep,
    FlowSpec,
    HistorySpec,
    RetryPolicy,
    StepSpec,
)

_TYPE_NAMES = {
    flow_pb2.FLOW_TYPE_UNSPECIFIED: "",
    flow_pb2.FLOW_TYPE_ORDINARY: "ordinary",
    flow_pb2.FLOW_TYPE_REALTIME: "realtime",
}
_TYPES = {name: value for value, name in _TYPE_NAMES.items()}


_ON_ERROR: dict[int, str] = {
    flow_pb2.ON_ERROR_UNSPECIFIED: "",
    flow_pb2.ON_ERROR_DEAD_LETTER: DEAD_LETTER,
    flow_pb2.ON_ERROR_SUSPEND_FLOW: SUSPEND_FLOW,
}


_CATCH_UP: dict[int, str] = {
    flow_pb2.CATCH_UP_UNSPECIFIED: LATEST,
    flow_pb2.CATCH_UP_LATEST: LATEST,
    flow_pb2.CATCH_UP_NONE: NONE,
    flow_pb2.CATCH_UP_ALL: ALL,
}


def flow_type_to_proto(name: str) -> flow_pb2.FlowType.ValueType:
    return _TYPES.get(name, flow_pb2.FLOW_TYPE_UNSPECIFIED)


def flow_type_from_proto(value: int) -> str:
    """InvalidInput for anything but a type."""
    name = _TYPE_NAMES.get(value, "")  # type: ignore[call-overload]
    if not name:
        raise InvalidInput.at("type", value, "is not FLOW_TYPE_ORDINARY or FLOW_TYPE_REALTIME", reason="BAD_TYPE")
    return str(name)


def flow_spec_from_proto(message: flow_pb2.FlowSpec) -> FlowSpec:
    """Unset numbers become the documented defaults; validity is checked by `flow_graph.check_flow`."""
    return FlowSpec(
        type=_TYPE_NAMES.get(message.type, ""),
        steps=tuple(_step_from_proto(step) for step in message.steps),
        reply_timeout_s=_seconds(message, "reply_timeout", 0.0),
        max_waiting=message.max_waiting or DEFAULT_MAX_WAITING,
        description=message.description,
        rate_limit=message.rate_limit,
        passthrough=message.passthrough,
        error_step=_error_step_from_proto(message),
        history=_history_from_proto(message),
    )


def flow_spec_to_proto(spec: FlowSpec) -> flow_pb2.FlowSpec:
    """All fields are written out, also those that have their default."""
    message = flow_pb2.FlowSpec(
        type=flow_type_to_proto(spec.type),
        steps=[_step_to_proto(step) for step in spec.steps],
        max_waiting=spec.max_waiting,
        description=spec.description,
        rate_limit=spec.rate_limit,
        passthrough=spec.passthrough,
        error_step=error_step_to_proto(spec.error_step),
    )
    if spec.reply_timeout_s:
        message.reply_timeout.CopyFrom(duration_from_seconds(spec.reply_timeout_s))
    if spec.history is not None:
        message.history.count = spec.history.count
        message.history.age.CopyFrom(duration_from_seconds(spec.history.age_s))
    return message


def _history_from_proto(message: flow_pb2.FlowSpec) -> HistorySpec | None:
    if not message.HasField("history"):
        return None
    default = HistorySpec()
    return HistorySpec(message.history.count or default.count, _seconds(message.history, "age", default.age_s))


def duration_from_seconds(seconds: float) -> duration_pb2.Duration:
    nanos = round(seconds * 1e9)
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), 1_000_000_000)
    return duration_pb2.Duration(seconds=sign * whole, nanos=sign * rest)


def seconds_from_duration(duration: duration_pb2.Duration) -> float:
    return float((duration.seconds * 1_000_000_000 + duration.nanos) / 1e9)


def _seconds(message: Message, field: str, default: float) -> float:
    return seconds_from_duration(getattr(message, field)) if message.HasField(field) else default


def _step_from_proto(step: flow_pb2.Step) -> StepSpec:
    return StepSpec(
        name=step.name,
        component=step.component,
        function=step.function,
        config=struct_to_dict(step.config),
        to=tuple(step.to),
        prefetch=step.prefetch or DEFAULT_PREFETCH,
        replicas=step.replicas or 1,
        timeout_s=_seconds(step, "timeout", DEFAULT_TIMEOUT_S),
        retry=_retry_from_proto(step.retry),
        every_s=_seconds(step, "every", 0.0),
        key=step.key,
        slots=step.slots,
        exactly_once=step.exactly_once,
        rate_limit=step.rate_limit,
        on_error=on_error_from_proto(step.on_error),
        cron=step.cron,
        time_zone=step.time_zone or DEFAULT_ZONE,
        catch_up=catch_up_from_proto(step.catch_up),
        credential=step.credential,
        edges={name: EdgeSpec(edge.condition, edge.mapping) for name, edge in sorted(step.edges.items())},
        error_step=_error_step_from_proto(step),
        idle_timeout_s=_seconds(step, "idle_timeout", DEFAULT_IDLE_TIMEOUT_S),
    )


def _error_step_from_proto(message: flow_pb2.FlowSpec | flow_pb2.Step) -> ErrorStep | None:
    if not message.HasField("error_step"):
        return None
    return ErrorStep(message.error_step.step, message.error_step.dead_letter)


def error_step_to_proto(value: ErrorStep | None) -> flow_pb2.ErrorStep | None:
    return None if value is None else flow_pb2.ErrorStep(step=value.step, dead_letter=value.dead_letter)


def on_error_from_proto(value: int) -> str:
    """An unknown number stays one, so that validation names it."""
    return _ON_ERROR.get(value, str(value))


def on_error_to_proto(value: str) -> Any:
    return flow_pb2.OnError.Value(f"ON_ERROR_{value.replace('-', '_').upper() or 'UNSPECIFIED'}")


def catch_up_from_proto(value: int) -> str:
    """An unknown number stays one, so that validation names it."""
    return _CATCH_UP.get(value, str(value))


def catch_up_to_proto(value: str) -> Any:
    return flow_pb2.CatchUp.Value(f"CATCH_UP_{value.upper()}")


def _step_to_proto(step: StepSpec) -> flow_pb2.Step:
    message = flow_pb2.Step(
        name=step.name,
        component=step.component,
        function=step.function,
        to=list(step.to),
        prefetch=step.prefetch,
        replicas=step.replicas,
        key=step.key,
        slots=step.slot_count if step.keyed else step.slots,
        exactly_once=step.exactly_once,
        timeout=duration_from_seconds(step.timeout_s),
        idle_timeout=duration_from_seconds(step.idle_timeout_s),
        retry=retry_policy_to_proto(step.retry),
        rate_limit=step.rate_limit,
        on_error=on_error_to_proto(step.on_error),
        cron=step.cron,
        time_zone=step.time_zone if step.cron else "",
        catch_up=catch_up_to_proto(step.catch_up if step.cron or step.every_s else "unspecified"),
        credential=step.credential,
        edges={name: flow_pb2.Edge(condition=e.condition, mapping=e.mapping) for name, e in step.edges.items()},
        error_step=error_step_to_proto(step.error_step),
    )
    if step.every_s:
        message.every.CopyFrom(duration_from_seconds(step.every_s))
    if step.config:
        message.config.update(step.config)
    return message


def _retry_from_proto(retry: flow_pb2.RetryPolicy) -> RetryPolicy:
    default = RetryPolicy()
    backoff_s = _seconds(retry, "backoff", default.backoff_s)
    return RetryPolicy(
        attempts=retry.attempts or default.attempts,
        backoff_s=backoff_s,
        max_delay_s=_seconds(retry, "max_delay", max(default.max_delay_s, backoff_s)),
        jitter=retry.jitter if retry.HasField("jitter") else default.jitter,
        on=tuple(retry.on),
    )


def retry_policy_to_proto(retry: RetryPolicy) -> flow_pb2.RetryPolicy:
    """All fields are written out."""
    return flow_pb2.RetryPolicy(
        attempts=retry.attempts,
        backoff=duration_from_seconds(retry.backoff_s),
        max_delay=duration_from_seconds(retry.max_delay_s),
        jitter=retry.jitter,
        on=list(retry.on),
    )


def struct_to_dict(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as plain values; whole numbers become integers, since JSON Schemas ask for them."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return struct_to_dict(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    return None
