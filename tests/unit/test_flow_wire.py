"""FlowSpec to proto and back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.api.flow.v1 import flow_pb2
from headrace.model.flow_spec import EdgeSpec, ErrorStep, FlowSpec, HistorySpec, RetryPolicy, StepSpec
from headrace.wire.flow import (
    duration_from_seconds,
    flow_spec_from_proto,
    flow_spec_to_proto,
    seconds_from_duration,
    struct_to_dict,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
milliseconds = st.integers(1, 3_600_000).map(lambda count: count / 1000)
error_steps = st.none() | st.builds(ErrorStep, st.sampled_from(["a", "b"]), st.booleans())
steps = st.builds(
    StepSpec,
    name=st.sampled_from(["a", "b", "c"]),
    component=st.sampled_from(["price", "price@3"]),
    function=st.sampled_from(["", "run"]),
    config=st.dictionaries(st.text(max_size=6), json_values, max_size=3),
    to=st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple),
    prefetch=st.integers(1, 1000),
    replicas=st.integers(1, 64),
    timeout_s=milliseconds,
    retry=st.builds(
        RetryPolicy,
        attempts=st.integers(1, 9),
        backoff_s=milliseconds,
        max_delay_s=milliseconds,
        jitter=st.floats(0, 1),
        on=st.lists(st.sampled_from(["BUSY", "TIMEOUT"]), unique=True).map(tuple),
    ),
    every_s=st.just(0.0) | milliseconds,
    key=st.sampled_from(["", "header:customer", "body:/a~1b/0"]),
    slots=st.integers(1, 64),
    exactly_once=st.booleans(),
    on_error=st.sampled_from(["", "dead-letter", "suspend-flow"]),
    error_step=error_steps,
    rate_limit=st.just(0.0) | st.floats(0.001, 1e5),
    cron=st.just("30 6 * * MON-FRI"),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin"]),
    catch_up=st.sampled_from(["latest", "none", "all"]),
    edges=st.dictionaries(st.sampled_from(["a", "b"]), st.builds(EdgeSpec, st.text(max_size=5), st.text(max_size=5))),
)
specs = st.builds(
    FlowSpec,
    type=st.sampled_from(["ordinary", "realtime"]),
    steps=st.lists(steps, max_size=3).map(tuple),
    reply_timeout_s=st.just(0.0) | milliseconds,
    max_waiting=st.integers(1, 10**6),
    description=st.text(max_size=10),
    rate_limit=st.just(0.0) | st.floats(0.001, 1e5),
    passthrough=st.booleans(),
    error_step=error_steps,
    history=st.none() | st.builds(HistorySpec, st.integers(1, 100_000), milliseconds),
)


@given(specs)
def test_a_spec_survives_the_wire(spec: FlowSpec) -> None:
    raw = flow_spec_to_proto(spec).SerializeToString()
    assert flow_spec_from_proto(flow_pb2.FlowSpec.FromString(raw)) == spec


def test_absent_fields_become_the_documented_defaults() -> None:
    message = flow_pb2.FlowSpec(type=flow_pb2.FLOW_TYPE_REALTIME, steps=[flow_pb2.Step(name="a", component="price")])
    assert flow_spec_from_proto(message) == FlowSpec("realtime", (StepSpec("a", "price"),))


def test_whole_numbers_in_a_config_stay_integers() -> None:
    step = flow_pb2.Step()
    step.config.update({"limit": 3, "rate": 0.5, "deep": {"list": [1, "x", None, True]}})
    found: dict[str, Any] = struct_to_dict(step.config)
    assert found == {"limit": 3, "rate": 0.5, "deep": {"list": [1, "x", None, True]}}
    assert isinstance(found["limit"], int)


@given(st.integers(-(10**12), 10**12))
def test_durations_keep_microseconds(microseconds: int) -> None:
    duration = duration_from_seconds(microseconds / 1e6)
    assert round(seconds_from_duration(duration) * 1e6) == microseconds
