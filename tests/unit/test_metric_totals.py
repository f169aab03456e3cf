"""Totals over processes that come and go never fall, and count everything once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.api.hop.v1.hop_pb2 import HopSnapshot
from headrace.api.metrics.v1.metrics_pb2 import AnswerCount, FlowMetrics, GatewayMetrics, ProcessMetrics
from headrace.model.histogram import Histogram
from headrace.model.metric_readings import Readings
from headrace.model.metric_totals import FORGET_AFTER_S, HistogramTotals, Totals
from headrace.wire.hops import phase_to_proto
from headrace.wire.process_metrics import ProcessTotals, parts

# What happens to one of three processes: it counts some more, or is replaced by a successor.
STEPS = st.lists(st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 9))), max_size=40)


@given(STEPS)
def test_totals_survive_their_processes(steps: list[tuple[int, int | None]]) -> None:
    totals: Totals[str] = Totals()
    counts, births, whole, before = [0, 0, 0], [0, 0, 0], 0, 0
    for process, counted in steps:
        if counted is None:
            counts[process], births[process] = 0, births[process] + 1
        else:
            counts[process] += counted
            whole += counted
        totals.take(f"p{process}", str(births[process]), {"key": counts[process]})
        assert totals.items().get("key", 0) >= before
        before = totals.items().get("key", 0)
    assert before == whole


def test_a_count_that_fell_began_anew() -> None:
    totals: Totals[str] = Totals()
    for count in (5, 2, 4):
        totals.take("p", "same", {"key": count})
    assert totals.items() == {"key": 9}


def test_what_nobody_tells_of_is_forgotten() -> None:
    totals: Totals[str] = Totals()
    totals.next_look(0.0)
    totals.take("old", "1", {"gone": 3, "shared": 1})
    totals.next_look(FORGET_AFTER_S + 1)
    totals.take("new", "1", {"shared": 1})
    assert totals.items() == {"shared": 1}


def test_histograms_are_added_bucket_by_bucket_with_negative_samples() -> None:
    totals: HistogramTotals[str] = HistogramTotals()
    first, second = Histogram(), Histogram()
    first.record(1000)
    totals.take("p", "1", {"phase": first})
    first.record(-50_000)
    totals.take("p", "1", {"phase": first})
    second.record(7)
    totals.take("p", "2", {"phase": second})
    found = totals.items()["phase"]
    assert (found.count, found.sum_ns, found.skewed) == (3, 1000 - 50_000 + 7, 1)
    assert sum(found.sparse().values()) == 3
    assert found.max_ns >= 1000


def report(name: str, flows: int) -> ProcessMetrics:
    histogram = Histogram()
    histogram.record(1_000_000)
    phases = [phase_to_proto(("price", "queue", "", "sha256:" + "ab" * 32), histogram)]
    return ProcessMetrics(
        process=name,
        incarnation="1",
        gateway=GatewayMetrics(requests_in_work=2),
        flows=[
            FlowMetrics(
                flow=f"flow-{number}",
                hops=HopSnapshot(histograms=phases),
                answers=[AnswerCount(status="4xx", reason="RATE_LIMITED", count=3)],
            )
            for number in range(flows)
        ],
    )


def test_a_long_report_is_told_in_parts_which_are_the_same_together() -> None:
    whole, several = ProcessTotals(), ProcessTotals()
    whole.take([report("gateway-1", 50)], 1.0)
    told = list(parts(report("gateway-1", 50), most_bytes=400))
    assert len(told) > 5
    assert max(part.ByteSize() for part in told) < 800
    several.take(told, 1.0)
    one, other = Readings(), Readings()
    whole.fill(one)
    several.fill(other)
    for name in ("gateway_requests_total", "gateway_requests_in_work", "metrics_processes", "gateways"):
        assert one.values(name) == other.values(name)
    assert one.values("gateway_requests_total")["flow-7", "4xx", "RATE_LIMITED"] == 3
    assert one.values("gateway_requests_in_work") == {(): 2.0}


def test_dead_letters_are_told_by_reasons_of_which_there_are_few() -> None:
    letters = {
        "dead_lettered": 9,
        "dead_lettered.TIMEOUT": 2,
        "dead_lettered.component": 4,
        "dead_lettered.NEWER_CODE": 3,
    }
    hops = HopSnapshot(step="price", counters=letters)
    totals, readings = ProcessTotals(), Readings()
    totals.take([ProcessMetrics(process="p", incarnation="1", flows=[FlowMetrics(flow="orders", hops=hops)])], 1.0)
    totals.fill(readings)
    assert readings.values("step_dead_letters_total") == {
        ("orders", "price", "TIMEOUT"): 2,
        ("orders", "price", "component"): 7,
    }
    assert readings.values("step_messages_total")["orders", "price", "dead_lettered"] == 9
