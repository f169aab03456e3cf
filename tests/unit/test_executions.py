"""What many processes remember of an execution, put together and drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.api.trace.v1 import trace_pb2
from headrace.cli.waterfall import WIDTH, execution_text
from headrace.model.hop_record import HopOutcome, Record, Site
from headrace.wire.executions import merge_parts, parts_of
from tests.support.records import PRICE, START, execution, hop, root
from tools.jaeger import Span
from tools.trace_drawing import draw_graph, draw_trace

CHECK = Site("checking", "default", "orders", 2, 3, "check", "checking", "sha256:" + "cd" * 32, 4, "a.check.0")
MS = 1_000_000
FAILED = hop(at_ns=START + MS, took_ns=2 * MS, outcome=HopOutcome.RETRIED, code="NO_PRICE")._replace(
    retry_after_ns=5 * MS
)
AGAIN = hop(at_ns=START + 8 * MS, took_ns=2 * MS, attempt=2)._replace(span_id="1" * 16)
LAST = hop(site=CHECK, sender=PRICE, at_ns=START + 11 * MS, took_ns=3 * MS)
RECORDS: list[Record] = [root(took_ns=20 * MS), FAILED, AGAIN, LAST]


def whole(records: list[Record]) -> trace_pb2.Execution:
    (found,) = merge_parts(parts_of(records))
    return found


@given(st.permutations(RECORDS), st.integers(0, 4), st.integers(0, 4))
def test_who_remembered_what_makes_no_difference(records: list[Record], cut: int, again: int) -> None:
    parts = parts_of(records[:cut]) + parts_of(records[cut:]) + parts_of(records[:again])
    (found,) = merge_parts(parts)
    assert found == whole(RECORDS)


def test_an_attempt_that_was_made_up_for_is_no_failure() -> None:
    found = whole(RECORDS)
    assert (found.name, found.outcome, found.code) == (f"flows/orders/executions/{execution(0)}", "processed", "")
    assert [(each.step, each.attempt) for each in found.attempts] == [("price", 1), ("price", 2), ("check", 1)]
    assert (found.version, found.deployment, found.attempt_count) == (2, 3, 3)
    assert found.begin_time.ToNanoseconds() == START
    assert found.duration.ToNanoseconds() == 20 * MS
    failed = whole([FAILED, LAST])
    assert (failed.outcome, failed.code, failed.code_step) == ("retried", "NO_PRICE", "price")


def test_the_phases_of_an_attempt_add_up() -> None:
    for attempt in whole(RECORDS).attempts:
        phases = {phase.name: phase.duration.ToNanoseconds() for phase in attempt.phases}
        total = sum(took for name, took in phases.items() if name not in ("publish", "ack"))
        assert total == attempt.duration.ToNanoseconds()


def test_what_is_forgotten_is_named() -> None:
    assert list(whole([root(), LAST]).missing_steps) == ["price"]


def test_newest_first_and_each_flow_by_itself() -> None:
    found = merge_parts(parts_of([hop(1, at_ns=START), hop(2, at_ns=START + MS), hop(1, site=CHECK, at_ns=START + 5)]))
    assert [each.name[-32:] for each in found] == [execution(2), execution(1)]


def test_a_waterfall_names_what_happened() -> None:
    found = whole(RECORDS)
    found.link = "http://jaeger/trace/1"
    text = execution_text(found)
    lines = text.splitlines()
    assert lines[0] == f"execution {execution(0)}  orders version 2, deployment 3"
    assert lines[1].startswith("processed in 20.00 ms, begun 2023-11-14 22:13:20.000")
    bars = [line.split("|")[1] for line in lines if line.endswith("|")]
    assert [len(bar) for bar in bars] == [WIDTH] * 4
    assert all("#" in bar for bar in bars[1:])
    assert bars[3].index("#") > bars[2].index("#") > bars[1].index("#"), "one scale of time"
    why = "price attempt 1: NO_PRICE: it failed; again after 5.00 ms"
    for words in ("pricing@7", "1 retried NO_PRICE", "    check", why):
        assert words in text


@given(st.lists(st.tuples(st.integers(-(10**9), 10**12), st.integers(-(10**9), 10**12)), min_size=1, max_size=5))
def test_any_times_can_be_drawn(times: list[tuple[int, int]]) -> None:
    records: list[Record] = [hop(0, at_ns=START + at, took_ns=took) for at, took in times]
    lines = execution_text(whole(records)).splitlines()
    assert all(len(line.split("|")[1]) == WIDTH for line in lines if line.endswith("|"))


def test_a_trace_of_jaeger_is_a_tree_and_the_graph_the_flow() -> None:
    def span(name: str, number: str, parent: str, begin_ms: int, end_ms: int, error: str = "") -> Span:
        return Span(name, name, "t", number, parent, "internal", begin_ms * MS, end_ms * MS, {}, {}, error)

    spans = [span("root", "1", "", 0, 10), span("late", "3", "1", 6, 9, "boom"), span("early", "2", "1", 1, 4)]
    lines = draw_trace(spans).splitlines()
    assert [line.strip().split()[0] for line in lines[3:]] == ["root", "early", "late"]
    assert "late  ERROR boom" in lines[-1]
    assert draw_trace([]) == "no spans"
    edges = {("gateway", "a"): 3, ("a", "b"): 2, ("a", "c"): 1, ("b", "d"): 1, ("c", "d"): 1, ("a", "a"): 9}
    assert draw_graph(edges).splitlines() == [
        "gateway", "└─▶ a  3", "    ├─▶ b  2", "    │   └─▶ d  1", "    └─▶ c  1", "        └─▶ d  1",
    ]  # fmt: skip
