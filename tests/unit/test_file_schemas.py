"""The JSON Schemas say what the readers of flow files and manifests say, as far as a schema can."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from headrace.api.flow.v1 import flow_pb2
from headrace.model.errors import InvalidInput
from headrace.model.flow_graph import MAX_ATTEMPTS
from headrace.model.flow_spec import MAX_PREFETCH, MAX_STEPS
from headrace.model.manifest import read_manifest
from headrace.wire.edge_reader import EDGE_KEYS, ERROR_KEYS
from headrace.wire.file_schemas import COMPONENT, FLOW, file_schema
from headrace.wire.flow_file import parse_flow_file
from headrace.wire.flow_reader import FLOW_KEYS, HISTORY_KEYS, RETRY_KEYS, STEP_KEYS
from tools.file_schemas import place, render

ROOT = Path(__file__).parents[2]
FLOWS = sorted([*ROOT.glob("examples/*/flow.yaml"), *ROOT.glob("benchmarks/**/flow.yaml")])
MANIFESTS = sorted(
    [*ROOT.glob("examples/*/*/component.yaml"), *ROOT.glob("components/*/component.yaml"),
     *ROOT.glob("tests/**/component.yaml")]
)  # fmt: skip
VALIDATORS = {kind: Draft7Validator(file_schema(kind)) for kind in (FLOW, COMPONENT)}


def errors(kind: str, data: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in VALIDATORS[kind].iter_errors(data)]


@pytest.mark.parametrize("kind", [FLOW, COMPONENT])
def test_the_files_are_what_the_readers_say(kind: str) -> None:
    assert place(kind).read_text() == render(kind), "run: python -m tools.file_schemas"
    Draft7Validator.check_schema(file_schema(kind))


def test_a_flow_file_can_say_what_the_api_can() -> None:
    def names(message: Any) -> set[str]:
        return {field.name for field in message.DESCRIPTOR.fields}

    # A file has edges in `to`, and an error step in `on_error`.
    assert {*FLOW_KEYS} - {"on_error"} == names(flow_pb2.FlowSpec) - {"error_step"} | {"name"}
    assert set(STEP_KEYS) == names(flow_pb2.Step) - {"name", "edges", "error_step"}
    assert set(HISTORY_KEYS) == names(flow_pb2.History)
    assert set(ERROR_KEYS) == names(flow_pb2.ErrorStep)
    assert set(EDGE_KEYS) == names(flow_pb2.Edge) | {"step"}
    assert set(RETRY_KEYS) == names(flow_pb2.RetryPolicy)


@pytest.mark.parametrize("file", FLOWS, ids=str)
def test_flow_files_of_this_repository_fit(file: Path) -> None:
    assert errors(FLOW, yaml.safe_load(file.read_text())) == []


@pytest.mark.parametrize("file", MANIFESTS, ids=str)
def test_manifests_of_this_repository_fit(file: Path) -> None:
    assert errors(COMPONENT, yaml.safe_load(file.read_text())) == []


EVERYTHING = """\
name: orders
type: ordinary
description: all there is
reply_timeout: 10s
max_waiting: 500
passthrough: true
rate_limit: 100/s
steps:
  order:
    component: timer
    to: [price]
    cron: 30 6 * * MON-FRI
    time_zone: Europe/Berlin
    catch_up: all
  price:
    component: price@1.2.0
    to: [check]
    config: {currency: EUR}
    prefetch: 32
    replicas: 2
    timeout: 1.5s
    retry: {attempts: 5, backoff: 250ms, max_delay: 1m, jitter: 0.5, "on": [BUSY]}
    rate_limit: 30 / m
    key: body:/id
    slots: 4
    exactly_once: true
    on_error: suspend-flow
  audit:
    component: audit@3
    to: [{step: check, condition: body.total > 1, mapping: "{'n': body.total}"}]
  check: {component: check@3, config: null, to: null}
"""
WRONG = [
    ("max_waiting: 500", "max_wating: 500"),
    ("type: ordinary", "type: quick"),
    ("name: orders", "name: Orders"),
    ("name: orders", f"name: o{'x' * 63}"),
    ("name: orders\n", ""),
    ("reply_timeout: 10s", "reply_timeout: 10"),
    ("reply_timeout: 10s", "reply_timeout: 10 minutes"),
    ("rate_limit: 100/s", "rate_limit: 100"),
    ("  price:\n", "  Price:\n"),
    ("    component: price@1.2.0\n", ""),
    ("component: price@1.2.0", "component: price@"),
    ("to: [check]", "to: check"),
    ("to: [check]", "to: [check, check]"),
    ("to: [check]", "tо: [check]"),
    ("config: {currency: EUR}", "config: [1]"),
    ("prefetch: 32", "prefetch: 0"),
    ("prefetch: 32", f"prefetch: {MAX_PREFETCH + 1}"),
    ("prefetch: 32", "prefetch: yes"),
    ("prefetch: 32", "prefetch: '32'"),
    ("attempts: 5", f"attempts: {MAX_ATTEMPTS + 1}"),
    ("attempts: 5", "attemps: 5"),
    ("jitter: 0.5", "jitter: 20"),
    ("[BUSY]", "[busy]"),
    ("[BUSY]", "[COMPONENT_DIED]"),
    ("[BUSY]", "[BUSY, BUSY]"),
    ("key: body:/id", "key: id"),
    ("slots: 4", "slots: 65"),
    ("exactly_once: true", "exactly_once: 1"),
    ("on_error: suspend-flow", "on_error: stop"),
    ("on_error: suspend-flow", "on_error: {dead_letter: true}"),
    ("on_error: suspend-flow", "on_error: {step: check, dead_letters: true}"),
    ("type: ordinary", "on_error: dead-letter"),
    ("type: ordinary", "history: {count: 0}"),
    ("type: ordinary", "history: {age: 7 days}"),
    ("type: ordinary", "history: 10"),
    ("passthrough: true", "passthrough: 1"),
    ("cron: 30 6 * * MON-FRI", "cron: 30 6 *"),
    ("time_zone: Europe/Berlin", "time_zone: 1"),
    ("catch_up: all", "catch_up: some"),
    ("{step: check, cond", "{stp: check, cond"),
    ("step: check, cond", "cond"),
    ("condition: body.total > 1", "condition: ''"),
    ("condition: body.total > 1", "condition: 7"),
    ("mapping: \"{'n': body.total}\"", "mapping: {n: body.total}"),
]


def test_everything_a_flow_file_can_say_fits() -> None:
    assert errors(FLOW, yaml.safe_load(EVERYTHING)) == []
    parse_flow_file(EVERYTHING, source="flow.yaml", folder=ROOT)


@pytest.mark.parametrize(("right", "wrong"), WRONG)
def test_reader_and_schema_refuse_the_same(right: str, wrong: str) -> None:
    assert right in EVERYTHING
    text = EVERYTHING.replace(right, wrong, 1)
    with pytest.raises(InvalidInput):
        parse_flow_file(text, source="flow.yaml", folder=ROOT)
    assert errors(FLOW, yaml.safe_load(text))


def test_a_misspelt_field_is_named_with_its_place() -> None:
    (error,) = errors(FLOW, yaml.safe_load(EVERYTHING.replace("prefetch", "prefech")))
    assert error.startswith("steps.price: ")
    assert "'prefech' was unexpected" in error


def test_too_many_steps_do_not_fit() -> None:
    steps = {f"s{number}": {"component": "webhook"} for number in range(MAX_STEPS + 1)}
    assert errors(FLOW, {"name": "long", "steps": steps})


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 2000), st.floats(0, 2), st.text(max_size=8),
                   st.sampled_from(["10s", "5/m", "price", "price@1", "./x", "header:a", "body:/a", "webhook"]),
                   st.lists(st.sampled_from(["a", "b", "BUSY"]), max_size=3),
                   st.dictionaries(st.sampled_from(RETRY_KEYS), st.integers(0, 3) | st.just("1s"), max_size=3),
)  # fmt: skip
STEPS = st.dictionaries(st.sampled_from([*STEP_KEYS, "compnent"]), VALUES, max_size=4).map(
    lambda step: {"component": "webhook", **step}
)
FLOW_FILES = st.builds(
    lambda top, steps: {"name": "a", "steps": steps, **top},
    st.dictionaries(st.sampled_from([key for key in FLOW_KEYS if key != "steps"]), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), STEPS, min_size=1, max_size=3),
)


@given(FLOW_FILES)
@settings(max_examples=300, deadline=None)
def test_what_the_reader_takes_the_schema_takes(data: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidInput):
        parse_flow_file(yaml.safe_dump(data), source="flow.yaml", folder=ROOT)
        assert errors(FLOW, data) == []


MANIFEST = {"name": "price", "version": "1.2.0", "functions": {"price": {"kind": "action", "config": {}}},
            "requirements": ["httpx>=0.27", "psycopg[binary]==3.3.9 ; python_version>'3'"]}  # fmt: skip
WRONG_MANIFESTS: list[dict[str, Any]] = [
    {"name": "Price"},
    {"titel": "x"},
    {"title": "x" * 201},
    {"version": "1.2"},
    {"version": 1},
    {"language": "cobol"},
    {"entrypoint": "component"},
    {"functions": {}},
    {"functions": {"9": {"kind": "action"}}},
    {"functions": {"price": {"kind": "actor"}}},
    {"functions": {"price": {}}},
    {"functions": {"price": {"kind": "action", "exclusive": True}}},
    {"functions": {"price": {"kind": "action", "config": {"type": "strng"}}}},
    {"requirements": ["git+https://example.org/x.git"]},
    {"requirements": "httpx"},
]


def test_a_manifest_fits() -> None:
    assert errors(COMPONENT, MANIFEST) == []
    read_manifest(yaml.safe_dump(MANIFEST).encode())


@pytest.mark.parametrize("wrong", WRONG_MANIFESTS, ids=str)
def test_manifest_reader_and_schema_refuse_the_same(wrong: dict[str, Any]) -> None:
    data = {**MANIFEST, **wrong}
    with pytest.raises(InvalidInput, match=r"^component.yaml:\d+:\d+: "):
        read_manifest(yaml.safe_dump(data).encode())
    assert errors(COMPONENT, data)


def test_patterns_mean_the_same_to_an_editor() -> None:
    """Editors use the regular expressions of JavaScript: nothing in them is Python's alone."""
    for kind in (FLOW, COMPONENT):
        assert not re.search(r"\(\?[P<:!=#]|\\A|\\Z|\\\\w", render(kind))
