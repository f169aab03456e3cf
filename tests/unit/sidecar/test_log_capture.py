"""Lines of a component, whatever bytes it writes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from headrace.api.flow.v1 import flow_pb2
from headrace.ports import LaneFull
from services.sidecar.log_capture import BURST_LINES, MAX_LINE_BYTES, LogCapture


def capture(clock_s: list[float] | None = None) -> tuple[LogCapture, list[flow_pb2.LogLine]]:
    lines: list[flow_pb2.LogLine] = []
    now = clock_s or [0.0]
    logs = LogCapture(
        flow="f",
        step="s",
        deployment=3,
        instance="i",
        publish=lambda raw: lines.append(flow_pb2.LogLine.FromString(raw)),
        clock=lambda: now[0],
    )
    return logs, lines


LINE_TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r{"), min_size=1).filter(str.strip)


@given(st.lists(LINE_TEXTS, max_size=30), st.integers(1, 50))
def test_lines_are_whole_however_they_are_cut(texts: list[str], size: int) -> None:
    logs, lines = capture()
    raw = "".join(f"{text}\n" for text in texts).encode()
    for first in range(0, len(raw), size):
        logs.feed(raw[first : first + size])
    assert [line.message for line in lines] == texts
    assert logs.last_lines == texts[-20:]


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_bytes_are_taken(chunks: list[bytes]) -> None:
    logs, lines = capture()
    for chunk in chunks:
        logs.feed(chunk)
    logs.end()
    assert all(len(line.message) <= MAX_LINE_BYTES + 2 for line in lines)


def test_the_sdk_lines_keep_level_and_fields() -> None:
    logs, lines = capture()
    logs.feed(json.dumps({"level": "error", "message": "no", "fields": {"sku": "A"}}).encode() + b"\n")
    logs.feed(b'{"message": 5}\n{broken\n')
    assert (lines[0].level, lines[0].message, json.loads(lines[0].fields_json)) == ("error", "no", {"sku": "A"})
    assert [line.level for line in lines[1:]] == ["info", "info"]
    assert (lines[0].flow, lines[0].step, lines[0].deployment, lines[0].instance) == ("f", "s", 3, "i")


def test_kept_lines_read_like_a_terminal() -> None:
    logs, _ = capture()
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no\n'
    logs.feed(json.dumps({"message": "init failed", "sku": "Ä", "traceback": trace}).encode() + b"\n")
    assert logs.last_lines == ['init failed {"sku": "Ä"}', *trace.splitlines()]


def test_long_lines_are_cut_and_fast_ones_counted() -> None:
    now = [0.0]
    logs, lines = capture(now)
    logs.feed(b"x" * 100_000)
    logs.feed(b"y" * 100_000 + b"\nnext\n")
    assert [len(line.message) <= MAX_LINE_BYTES + 2 for line in lines] == [True, True]
    assert lines[1].message == "next"
    logs.feed(b"flood\n" * (BURST_LINES * 2))
    assert len(lines) == BURST_LINES
    assert logs.dropped == BURST_LINES + 2
    now[0] += 10
    logs.feed(b"again\n")
    assert lines[-2].source == "sidecar"
    assert lines[-1].message == "again"


def test_a_line_says_which_call_it_belongs_to_and_hides_secrets() -> None:
    logs, lines = capture()
    logs.mask.learn({"db": {"password": "hunter2-x"}})
    logs.feed(
        json.dumps(
            {
                "level": "warning",
                "message": "login with hunter2-x",
                "fields": {"headers": {"authorization": "Bearer abcdefgh"}, "user": "ada"},
                "execution_id": "e-1",
                "message_id": "m-1",
                "trace_id": "a" * 32,
                "span_id": "b" * 16,
            }
        ).encode()
        + b"\nhunter2-x again\n"
    )
    first, second = lines
    assert (first.execution_id, first.message_id) == ("e-1", "m-1")
    assert (first.trace_id, first.span_id) == ("a" * 32, "b" * 16)
    assert (first.level, first.message) == ("warning", "login with ***")
    assert json.loads(first.fields_json) == {"headers": {"authorization": "***"}, "user": "ada"}
    assert (second.message, second.execution_id) == ("*** again", "")
    assert "hunter2-x" not in " ".join(logs.last_lines)


def test_what_a_flood_lost_is_said_though_nothing_follows() -> None:
    now = [0.0]
    due = []
    logs, lines = capture(now)
    logs._later = lambda delay_s, call: due.append(call)
    logs.feed(b"x\n" * (BURST_LINES + 7))
    assert len(due) == 1
    due[0]()
    assert json.loads(lines[-1].fields_json) == {"dropped": 7}
    assert (lines[-1].source, logs.dropped) == ("sidecar", 7)
    logs.feed(b"x\n" * 3)
    logs.end()
    assert json.loads(lines[-1].fields_json) == {"dropped": 3}


def test_lines_that_the_lane_has_no_room_for_are_counted() -> None:
    def full(raw: bytes) -> None:
        raise LaneFull("no room")

    logs, _ = capture()
    logs.publish = full
    logs.feed(b"one\ntwo\n")
    assert logs.dropped >= 2
