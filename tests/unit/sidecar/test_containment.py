"""The pure parts of keeping a component in its bounds: floods, limits of outputs, deaths of the sidecar, back-off."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from headrace.model.limits import MAX_BODY_BYTES, MAX_HEADERS_BYTES, MAX_OUTPUT_BYTES, MAX_OUTPUTS
from services.sidecar.domain.crash_loop import CrashRecord
from services.sidecar.domain.delivery import check_output, check_reply
from services.sidecar.domain.flood import FloodGauge
from services.sidecar.domain.sidecar_deaths import LAST_SOLO_DEATH, SidecarDeaths
from services.sidecar.log_capture import BURST_BYTES, BYTES_PER_S, LogCapture, parse_line


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 5000)), max_size=60))
def test_a_flood_is_more_than_the_burst_and_what_time_has_added(steps: list[tuple[float, int]]) -> None:
    gauge = FloodGauge(per_s=100, burst=1000)
    gauge.start(0.0)
    now, left = 0.0, 1000.0
    for passed_s, count in steps:
        now += passed_s
        left = min(1000.0, left + passed_s * 100) - count
        if abs(left) > 1e-3:
            assert gauge.take(count, now) is (left > 0)
        else:
            gauge.take(count, now)


def test_bounds_of_an_output_are_inclusive_and_name_what_is_too_much() -> None:
    assert check_output(MAX_OUTPUTS - 1, MAX_BODY_BYTES, MAX_HEADERS_BYTES) is None
    assert check_output(0, 100, 0, MAX_OUTPUT_BYTES - 100) is None
    for refused, words in (
        (check_output(MAX_OUTPUTS, 1), "more than 1000 outputs"),
        (check_output(0, MAX_BODY_BYTES + 1), "send a smaller body"),
        (check_output(0, 1, MAX_HEADERS_BYTES + 1), "bytes of headers"),
        (check_output(0, 100, 1, MAX_OUTPUT_BYTES - 100), "the outputs of one input"),
        (check_reply(1, 200, MAX_HEADERS_BYTES + 1), "bytes of headers"),
    ):
        assert refused is not None
        assert refused.code == "OUTPUT_REFUSED"
        assert words in refused.message


HAPPENINGS = st.one_of(
    st.tuples(st.just("runs"), st.sampled_from("abc")),
    st.tuples(st.just("ended"), st.sampled_from("abc")),
    st.tuples(st.just("died"), st.just("")),
)


@given(st.lists(HAPPENINGS, max_size=40))
def test_only_who_was_alone_at_two_deaths_is_given_up(happenings: list[tuple[str, str]]) -> None:
    deaths = SidecarDeaths()
    alone: dict[str, int] = dict.fromkeys("abc", 0)
    runs = ""
    for what, message in happenings:
        if what == "runs":
            if deaths.careful and not runs:
                deaths.runs = runs = message
        elif what == "ended":
            deaths.ended(message)
            alone[message] = 0
            runs = "" if runs == message else runs
        else:
            deaths.died()
            if runs:
                alone[runs] += 1
            runs = ""
        for name, count in alone.items():
            assert deaths.is_guilty(name) == (count >= LAST_SOLO_DEATH)


def test_a_crash_that_one_message_did_delays_nobody_else() -> None:
    record = CrashRecord()
    assert [record.crashed(float(number)) for number in range(3)] == [0.1, 0.2, 0.4]
    assert record.crashed(4.0, blamed=True) == 0.1
    assert record.crashed(5.0) == 0.2
    record.finished_message()
    assert record.crashed(6.0) == 0.1


def test_a_log_line_nested_as_deep_as_it_is_long_is_a_line_of_text() -> None:
    line = '{"message": "deep", "fields": ' + "[" * 7000
    assert parse_line(line) == ("info", line, {})
    assert parse_line(json.dumps({"message": "flat", "level": "error"})) == ("error", "flat", {})


def test_a_flood_of_output_is_read_as_slowly_as_it_may_be_and_a_burst_at_once() -> None:
    now = [0.0]
    logs = LogCapture(flow="f", step="s", deployment=1, instance="i", publish=lambda line: None, clock=lambda: now[0])
    chunk = (b"x" * 199 + b"\n") * 320
    assert logs.feed(chunk) == 0.0
    taken = len(chunk)
    for _ in range(1000):
        now[0] += logs.feed(chunk)
        taken += len(chunk)
    assert abs(now[0] - (taken - BURST_BYTES) / BYTES_PER_S) < 0.1
    now[0] += 60.0
    assert logs.feed(chunk) == 0.0
