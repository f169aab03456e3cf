"""Fault points: what can be asked for, when it happens, and that nothing is there when nothing is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.edge.fault_points import FAILING, POINTS, Fault, FaultPlan, parse_faults
from headrace.edge.faulty_component_stream import events_with_faults, stream_with_faults
from headrace.edge.faulty_lane import lane_with_faults
from headrace.model.errors import InvalidInput

DOCS = Path(__file__).parents[2] / "docs" / "faults.md"


def test_the_text_says_point_action_pass_and_seconds() -> None:
    assert parse_faults("before-ack:kill@7, after-publish:pause=0.5 ,before-publish:error") == (
        Fault("before-ack", "kill", 7),
        Fault("after-publish", "pause", 1, 0.5),
        Fault("before-publish", "error"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("before-lunch:kill", ["before-lunch", *POINTS]),
        ("before-ack:explode", ["explode", "pause=SECONDS"]),
        ("before-ack", ["no action"]),
        ("before-ack:kill@0", ["count from 1"]),
        ("before-ack:kill@x", ["count from 1"]),
        ("before-ack:pause", ["pause needs seconds"]),
        ("before-ack:pause=-1", ["pause needs seconds"]),
        ("before-ack:kill=3", ["takes no value"]),
        ("after-fetch:error", ["cannot fail", *FAILING]),
    ],
)
def test_what_is_wrong_is_refused_with_what_there_is(text: str, words: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_faults(text)
    assert [word for word in words if word not in str(refused.value)] == []


def test_a_fault_happens_once_at_its_pass() -> None:
    done: list[tuple[int, Fault]] = []
    passes = 0
    plan = FaultPlan(parse_faults("before-ack:kill@3,after-ack:stop"), act=lambda fault: done.append((passes, fault)))
    for _ in range(10):
        passes += 1
        plan.reach("before-ack")
        plan.reach("before-publish")
    plan.reach("after-ack")
    assert done == [(3, Fault("before-ack", "kill", 3)), (10, Fault("after-ack", "stop"))]


def test_a_file_is_read_while_the_process_runs_and_is_gone_before_its_fault_happens(tmp_path: Path) -> None:
    file = tmp_path / "default.flow.d1.step.0"
    done: list[bool] = []
    plan = FaultPlan(file=file, act=lambda fault: done.append(file.exists()))
    plan.reach("before-ack")
    file.write_text("before-ack:kill@2")
    plan.reach("before-ack")
    assert done == []
    plan.reach("before-ack")
    assert done == [False]
    file.write_text("before-ack:kill")
    plan.reach("before-ack")
    assert done == [False, False]
    file.write_text("before-ack:kill@2")
    plan.reach("before-ack")
    file.unlink()  # taken back
    plan.reach("before-ack")
    assert done == [False, False]


def test_with_faults_off_lane_and_stream_are_not_wrapped() -> None:
    """What costs nothing: the objects on the path are the very ones that are there without this module."""
    lane, stream = object(), object()
    assert lane_with_faults(lane) is lane
    assert stream_with_faults(stream) is stream

    def on_events(events: object) -> None: ...

    assert events_with_faults(on_events) is on_events


def test_the_docs_have_the_table() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \| (yes)? ?\|$", DOCS.read_text(), re.M)
    assert {name: (text, bool(fails)) for name, text, fails in rows} == {
        name: (text, name in FAILING) for name, text in POINTS.items()
    }
