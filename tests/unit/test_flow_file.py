"""Flow files: what they mean, and that every refusal names file, line, field and value."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.api.flow.v1 import flow_pb2
from headrace.model.durations import format_duration, parse_duration
from headrace.model.errors import FieldViolation, InvalidInput, NotFound
from headrace.model.flow_graph import check_flow
from headrace.model.flow_spec import MAX_RATE, MIN_RATE, RetryPolicy
from headrace.model.json_values import is_nested_deeper
from headrace.model.rates import format_rate, parse_rate
from headrace.wire.flow import flow_spec_from_proto, flow_spec_to_proto
from headrace.wire.flow_file import FlowFile, load_flow_file, parse_flow_file

ORDERS = """\
name: orders
type: realtime
reply_timeout: 10s
max_waiting: 500
steps:
  order:  {component: webhook, function: receive, to: [price]}
  price:
    component: ./price
    to: [check, notify]
    config: {currency: EUR}
    prefetch: 32
    timeout: 30s
    retry: {attempts: 5, backoff: 250ms, max_delay: 1m, jitter: 0.5, on: [BUSY]}
    rate_limit: 30/m
  check:  {component: check@1.2.0}
  notify: {component: notify@3}
"""


def read(text: str, folder: Path) -> FlowFile:
    return parse_flow_file(text, source="flow.yaml", folder=folder)


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "price").mkdir()
    flow = read(ORDERS, tmp_path)
    assert (flow.name, flow.spec.type, flow.spec.reply_timeout_s, flow.spec.max_waiting) == (
        "orders", "realtime", 10.0, 500,
    )  # fmt: skip
    price = flow.spec.steps[1]
    assert price.to == ("check", "notify")
    assert price.config == {"currency": "EUR"}
    assert price.retry == RetryPolicy(attempts=5, backoff_s=0.25, max_delay_s=60.0, jitter=0.5, on=("BUSY",))
    assert (price.rate_limit, flow.spec.rate_limit) == (0.5, 0)
    assert price.timeout_s == 30.0
    assert flow.folders == {"price": tmp_path / "price"}
    assert flow.spec.steps[0].function == "receive"
    assert flow.spec.steps[0].every_s == 0
    timed = read(ORDERS.replace("function: receive", "every: 250ms"), tmp_path)
    assert timed.spec.steps[0].every_s == 0.25
    keyed = read(ORDERS.replace("prefetch: 32", "key: body:/id\n    slots: 4"), tmp_path).spec.steps[1]
    assert (keyed.key, keyed.slots, keyed.slot_count, keyed.exactly_once) == ("body:/id", 4, 4, False)
    assert (
        read(ORDERS.replace("prefetch: 32", "on_error: suspend-flow"), tmp_path).spec.steps[1].on_error
        == "suspend-flow"
    )
    once = read(ORDERS.replace("prefetch: 32", "exactly_once: true"), tmp_path).spec.steps[1]
    assert (once.key, once.slot_count, once.exactly_once, once.keyed) == ("", 8, True, True)
    assert not price.keyed
    assert price.slot_count == 1


@pytest.mark.parametrize(
    ("line", "wrong", "said"),
    [
        ("function: receive", "every: 9ms", ["flow.yaml:6", "steps.order.every: '9ms'", "10ms and 24h"]),
        ("function: receive", "every: 25h", ["flow.yaml:6", "10ms and 24h"]),
        ("function: receive", "every: 5", ["flow.yaml:6", "not a duration"]),
        ("prefetch: 32", "every: 5s", ["flow.yaml:11", "receives from 'order'", "Only the flow's first step"]),
        ("max_waiting: 500", "max_wating: 500", ["flow.yaml:4", "max_wating", "Did you mean `max_waiting`?"]),
        ("reply_timeout: 10s", "reply_timeout: 10", ["flow.yaml:3", "reply_timeout: 10 is not a duration", "10s"]),
        ("reply_timeout: 10s", "reply_timeout: 10m", ["flow.yaml:3", "300"]),
        ("type: realtime", "type: quick", ["flow.yaml:2", "'quick'", "realtime"]),
        ("name: orders", "name: Orders!", ["flow.yaml:1", "name: 'Orders!'"]),
        ("name: orders", "{}: 1", ["flow.yaml:1"]),
        ("to: [check, notify]", "to: [chek, notify]", ["flow.yaml:9:10", "steps.price.to[0]", "`check`"]),
        ("to: [check, notify]", "to: check", ["flow.yaml:9", "steps.price.to", "to: [price]"]),
        ("to: [check, notify]", "to: [check, check]", ["flow.yaml:9", "steps.price.to[1]", "twice"]),
        ("prefetch: 32", "prefetch: yes", ["flow.yaml:11", "steps.price.prefetch", "True"]),
        ("prefetch: 32", "prefetch: 0", ["flow.yaml:11", "steps.price.prefetch: 0"]),
        ("backoff: 250ms", "backof: 250ms", ["flow.yaml:13", "steps.price.retry.backof", "`backoff`"]),
        ("jitter: 0.5", "jitter: 20", ["flow.yaml:13", "steps.price.retry.jitter: 20", "from 0 to 1", "0.2"]),
        ("jitter: 0.5", "jitter: .nan", ["steps.price.retry.jitter: nan"]),
        (
            "max_delay: 1m",
            "max_delay: 100ms",
            ["steps.price.retry.max_delay: '100ms'", "backoff 250ms"],
        ),
        ("backoff: 250ms", "backoff: 2h", ["steps.price.retry.backoff: '2h'", "longer than 1h", "rebound"]),
        ("on: [BUSY]", "on: [busy]", ["steps.price.retry.on[0]: 'busy' is not an error code", "TIMEOUT"]),
        ("on: [BUSY]", "on: [BUSY, BUSY]", ["flow.yaml:13", "on[1]", "twice"]),
        ("on: [BUSY]", "on: BUSY", ["not a list", "on: [TIMEOUT, BUSY]"]),
        ("on: [BUSY]", "on: [COMPONENT_DIED]", ["on[0]: 'COMPONENT_DIED' cannot be retried by policy", "three"]),
        ("30/m", "30", ["flow.yaml:14", "steps.price.rate_limit: 30 is not a rate", "100/s"]),
        ("30/m", "0/s", ["steps.price.rate_limit: '0/s'", "1/h", "suspend"]),
        ("max_waiting: 500", "rate_limit: 1000000/s", ["flow.yaml:4", "rate_limit: '1000000/s'", "100000/s"]),
        ("component: ./price", "component: ./prize", ["flow.yaml:8", "steps.price.component", "./prize"]),
        ("component: check@1.2.0", "component: check@", ["flow.yaml:15", "steps.check.component"]),
        ("component: check@1.2.0", "to: []", ["flow.yaml:15", "steps.check.component: is missing"]),
        (
            "    prefetch: 32",
            "    prefetch: 32\n    prefetch: 33",
            ["flow.yaml:12:5", "'prefetch' is repeated (first on line 11)"],
        ),
        ("prefetch: 32", "key: customer", ["flow.yaml:11", "steps.price.key: 'customer'", "header:NAME"]),
        ("prefetch: 32", "key: ''", ["flow.yaml:11", "steps.price.key: ''"]),
        ("prefetch: 32", "slots: 4", ["flow.yaml:11", "steps.price.slots: 4", "Add `key`"]),
        ("prefetch: 32", "on_error: stop", ["flow.yaml:11", "steps.price.on_error: 'stop' is not one of"]),
        ("prefetch: 32", "exactly_once: 1", ["flow.yaml:11", "steps.price.exactly_once: 1"]),
        (
            "    prefetch: 32",
            "    key: header:c\n    slots: 2\n    replicas: 3",
            ["flow.yaml:13", "steps.price.replicas: 3", "its 2 slots", "Write 2 at most"],
        ),
        ("    prefetch: 32", "    key: header:c\n    slots: 65", ["flow.yaml:12", "steps.price.slots: 65", "1 to 64"]),
        ("steps:", "steps: [", ["flow.yaml:", "not valid YAML"]),
    ],
)
def test_refusals_name_file_line_field_and_next_step(line: str, wrong: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "price").mkdir()
    assert line in ORDERS
    with pytest.raises(InvalidInput) as refused:
        read(ORDERS.replace(line, wrong, 1), tmp_path)
    for part in said:
        assert part in str(refused.value)


def test_what_the_mesh_finds_is_told_at_its_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "price").mkdir()
    flow = read(ORDERS, tmp_path)
    wrong = "'total' is no setting"
    both = [FieldViolation("steps[1].config.currency", wrong), FieldViolation("steps[2].function", "is an action")]
    told = flow.located(InvalidInput(f"steps[1].config.currency: {wrong}", violations=both, reason="CONFIG_INVALID"))
    assert told.message == f"flow.yaml:10:14: steps.price.config.currency: {wrong}"
    assert told.metadata == {"file": "flow.yaml", "line": "10", "column": "14"}
    assert told.reason == "CONFIG_INVALID"
    # A field that the file does not write is told at the step it would stand in.
    assert told.violations[1] == FieldViolation("steps.check.function", "is an action (line 15, column 3)")
    name = flow.located(InvalidInput.at("steps[3].name", "notify", "is taken"))
    assert (name.violations[0].field, name.metadata["line"]) == ("steps.notify", "16")
    other = InvalidInput.at("etag", "7", "is stale")
    assert flow.located(other) is other


def test_graph_problems_are_told_at_their_places(tmp_path: Path) -> None:
    (tmp_path / "price").mkdir()
    flow = read(ORDERS.replace("notify@3}", "notify@3, to: [price]}"), tmp_path)
    with pytest.raises(InvalidInput, match=r"flow.yaml:9:\d+: steps.price.to\[1\]: the steps form a cycle"):
        flow.check()


@pytest.mark.parametrize(
    "levels",
    [
        "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 30)),
        "  l0: &l0 [*l0]\n",
    ],
)
def test_aliases_are_refused_before_anything_is_built(levels: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"flow.yaml:\d+:\d+: .*aliases \(\*l0\) are not allowed"):
        read(f"name: a\nlaughs:\n  x: &l0 [ha]\n{levels}", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "name: x\nsteps: {}", "name: x", "\t", "a: !!python/object:os.system x"])
def test_nonsense_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        read(text, tmp_path)


def test_load_takes_a_folder_and_names_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text("name: a\nsteps: {one: {component: webhook}}\n")
    assert load_flow_file(tmp_path).name == "a"
    with pytest.raises(NotFound, match=r"none\.yaml"):
        load_flow_file(tmp_path / "none.yaml")


@given(st.integers(min_value=0, max_value=30 * 86_400_000))
def test_durations_round_trip(millis: int) -> None:
    assert parse_duration("d", format_duration(millis / 1000)) == pytest.approx(millis / 1000, abs=1e-9)


def test_a_long_backoff_takes_max_delay_along(tmp_path: Path) -> None:
    (tmp_path / "price").mkdir()
    price = read(ORDERS.replace("250ms, max_delay: 1m", "45s"), tmp_path).spec.steps[1]
    assert (price.retry.backoff_s, price.retry.max_delay_s) == (45, 45)


@given(st.floats(min_value=MIN_RATE, max_value=MAX_RATE))
def test_rates_round_trip(rate: float) -> None:
    assert parse_rate("r", format_rate(rate)) == pytest.approx(rate, rel=1e-5)


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        read(text, Path("/nonexistent"))


@pytest.mark.parametrize("number", ["9007199254740993", "-10000000000000000000", ".nan", ".inf"])
def test_a_number_of_the_config_that_would_arrive_as_another_one_is_refused(number: str) -> None:
    """Found by fuzzing: account numbers of 17 digits were rounded without a word."""
    with pytest.raises(InvalidInput, match=r"a\.config\.accounts\[0\]: .* would not arrive exactly\. Put it in quotes"):
        read(f"name: x\nsteps:\n  a: {{component: a, config: {{accounts: [{number}]}}}}\n", Path("/nonexistent"))


def test_a_receiver_that_is_no_text_is_refused() -> None:
    """Found by fuzzing: `to: [a: b]` was a TypeError."""
    with pytest.raises(InvalidInput, match="'b' is not a known key"):
        read("name: x\nsteps:\n  a: {component: a, to: [b: c]}\n  b: {component: b}\n", Path("/nonexistent"))


def test_the_example_of_the_guide_is_a_flow(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    text = guide.partition("```yaml\n")[2].partition("```")[0]
    flow = read(text, tmp_path)
    price = flow.spec.steps[1]
    assert (flow.spec.rate_limit, price.rate_limit, price.retry.on) == (200, 10, ("TIMEOUT", "BUSY"))
    check_flow(flow.spec)


@pytest.mark.parametrize("levels", [24, 30, 200, 100_000])
def test_a_config_that_fits_no_message_is_refused_by_name(levels: int, tmp_path: Path) -> None:
    (tmp_path / "price").mkdir()
    deep = "[" * levels + "]" * levels
    text = ORDERS.replace("{currency: EUR}", f"{{currency: {deep}}}")
    if levels == 24:
        spec = read(text, tmp_path).spec
        raw = flow_pb2.CreateFlowRequest(spec=flow_spec_to_proto(spec)).SerializeToString()
        assert flow_spec_from_proto(flow_pb2.CreateFlowRequest.FromString(raw).spec) == spec
        return
    with pytest.raises(InvalidInput, match=r"flow.yaml:10:[0-9]+: .*nested deeper than (25|50)"):
        read(text, tmp_path)


def test_nesting_is_measured_as_deep_as_it_is() -> None:
    value: Any = {"x": {}}
    for levels in range(1, 40):
        assert is_nested_deeper(value, levels - 1)
        assert not is_nested_deeper(value, levels)
        value = {"x": value} if levels % 2 else [1, value, "y"]
