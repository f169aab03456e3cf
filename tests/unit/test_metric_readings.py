"""Readings: bounded series, buckets, and the text that Prometheus' own parser takes."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as older_parser

from headrace.edge.open_metrics import render
from headrace.model.histogram import Histogram
from headrace.model.metric_readings import Exemplar, Readings, SeriesBound, Timings, bound_of
from headrace.model.metric_table import BOUNDS_S, BY_NAME, METRICS, OTHER, Kind
from headrace.model.metric_totals import FORGET_AFTER_S

OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


def timings_of(*seconds: float, exemplars: dict[int, Exemplar] | None = None) -> Timings:
    histogram = Histogram()
    for value in seconds:
        histogram.record(int(value * 1e9))
    return Timings(histogram, exemplars or {})


def lines_of(readings: Readings, accept: str = OPEN_METRICS) -> list[str]:
    text, _ = render(readings, accept)
    return [line for line in text.decode().splitlines() if line.startswith("headrace_")]


def test_names_and_units_are_those_of_prometheus() -> None:
    assert len(BY_NAME) == len(METRICS), "a name is there twice"
    assert len({metric.family for metric in METRICS}) == len(METRICS), "a gauge and a counter would share a family"
    for metric in METRICS:
        assert re.fullmatch(r"headrace_[a-z][a-z_]*[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        if metric.unit:
            assert metric.family.endswith(f"_{metric.unit}")
        assert not re.search(r"(_ms|_us|_ns|_kb|_mb|milli|micro)", metric.name)
        assert set(metric.labels) <= {
            *("flow", "step", "phase", "receiver", "revision", "outcome", "state", "part", "stage"),
            *("status", "reason", "method", "code", "server", "metric"),
        }, f"{metric.name}: a label whose values nobody bounds?"


@given(st.lists(st.floats(0, 100), max_size=60))
def test_buckets_rise_and_are_half_a_bucket_off_at_most(values: list[float]) -> None:
    counts = timings_of(*values).cumulative()
    assert counts == sorted(counts)
    assert counts[-1] == len(values)
    for bound, count in zip(BOUNDS_S, counts, strict=False):
        assert sum(value < bound * 0.968 for value in values) <= count
        assert count <= sum(value <= bound * 1.033 for value in values)


def test_text_is_what_both_parsers_of_prometheus_take() -> None:
    readings = Readings()
    exemplar = Exemplar("ab" * 16, "e1", 0.0009, 1_700_000_000.5)
    labels = ("orders", "price", "component", "", "0123456789ab")
    timings = timings_of(0.0009, 0.02, 99.0, exemplars={bound_of(0.0009): exemplar})
    readings.put_timings("hop_phase_duration_seconds", timings, *labels)
    readings.put("step_messages_total", 7, "orders", "price", "processed")
    readings.put("flow_serving", True, "orders")
    readings.finish()
    text, content_type = render(readings, OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    hops = families["headrace_hop_phase_duration_seconds"]
    assert (hops.type, hops.unit) == ("histogram", "seconds")
    assert hops.documentation
    samples = {(sample.name, sample.labels.get("le")): sample for sample in hops.samples}
    assert samples["headrace_hop_phase_duration_seconds_count", None].value == 3
    assert samples["headrace_hop_phase_duration_seconds_bucket", "30.0"].value == 2
    shown = samples["headrace_hop_phase_duration_seconds_bucket", "0.001"].exemplar
    assert shown is not None
    assert shown.labels == {"trace_id": "ab" * 16, "execution_id": "e1"}
    assert families["headrace_step_messages"].samples[0].value == 7
    older, content_type = render(readings, "text/plain")
    assert content_type.startswith("text/plain")
    assert {family.name for family in older_parser(older.decode())} == set(families)


def test_label_values_are_escaped() -> None:
    readings = Readings()
    readings.put("flow_serving", 1, 'a"b\\c\nd')
    *_, family = text_string_to_metric_families(render(readings, OPEN_METRICS)[0].decode())
    assert family.samples[0].labels == {"flow": 'a"b\\c\nd'}


@settings(max_examples=25)
@given(flows=st.integers(1, 60), most=st.integers(1, 300))
def test_series_stay_within_their_bound_and_nothing_is_lost(flows: int, most: int) -> None:
    readings = Readings(SeriesBound(most))
    for number in range(flows):
        readings.add("step_received_total", 1, f"flow-{number}", "price")
        readings.put_timings("hop_phase_duration_seconds", timings_of(0.1), f"flow-{number}", "price", "queue", "", "")
    readings.finish()
    lines = lines_of(readings)
    # Over the bound come at most `_other` of each metric, and how often that happened.
    assert len(lines) <= most + 1 + (len(BOUNDS_S) + 3) + 2
    received = sum(float(line.split()[-1]) for line in lines if line.startswith("headrace_step_received_total"))
    hops = sum(
        float(line.split()[-1]) for line in lines if line.startswith("headrace_hop_phase_duration_seconds_count")
    )
    assert (received, hops) == (flows, flows)
    other = any(OTHER in line for line in lines)
    told = any(line.startswith("headrace_metrics_overflowed_total") for line in lines)
    assert other == told


def test_a_series_once_told_is_told_again_until_it_rests() -> None:
    bound = SeriesBound(2)
    for now in range(3):
        bound.next_answer(now)
        readings = Readings(bound)
        for flow in ("first", "second", f"late-{now}"):
            readings.put("flow_serving", 1, flow)
        assert list(readings.values("flow_serving")) == [("first",), ("second",), (OTHER,)]
    assert bound.overflowed == {"headrace_flow_serving": 3}
    bound.next_answer(FORGET_AFTER_S + 10)
    readings = Readings(bound)
    readings.put("flow_serving", 1, "another")
    assert list(readings.values("flow_serving")) == [("another",)]
    assert bound.lines == 1
