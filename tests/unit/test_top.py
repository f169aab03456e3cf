"""What `headrace top` shows and what its keys do, without a terminal or a mesh."""

from __future__ import annotations

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.api.hop.v1 import hop_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.cli.tables import display_width
from headrace.cli.top import Sort, Window
from headrace.cli.top_rows import SORTS, FlowView, rows_of
from headrace.cli.top_screen import keys_in
from headrace.cli.top_state import WINDOWS_S, TopState
from headrace.cli.top_text import age, millis, rate_text

STEPS = {"receive": 120.0, "price": 50.0, "check": 200.0}


def view(flow: str = "orders", *, covered_s: float = 10.0, older: bool = False) -> FlowView:
    status = flow_pb2.FlowStatus(flow=f"flows/{flow}", state=flow_pb2.FLOW_STATE_RUNNING)
    hops = hop_pb2.WatchHopsResponse()
    for seconds in WINDOWS_S:
        window = hops.windows.add(seconds=seconds)
        window.covered.FromMilliseconds(int(covered_s * 1000))
        window.steps.add(step="gateway", rate=120, instances=1)
        for index, (name, rate) in enumerate(STEPS.items()):
            digest = f"sha256:{name}{'0' * 40}"
            step = window.steps.add(step=name, revision=digest, rate=rate, held=1)
            step.oldest_age.FromMilliseconds(40 * (index + 1))
            step.hop.CopyFrom(hop_pb2.Latency(count=10, p50_us=800 * (index + 1), p95_us=2e3, p99_us=9e3, max_us=2e4))
            step.counts.processed = 10
            line = window.phases.add(step=name, phase="hop", receiver="next", revision=digest)
            line.latency.CopyFrom(step.hop)
            line.exemplars.add(execution_id=f"{name}-slow", us=9_000)
        if older:
            window.steps.add(step="price", revision="sha256:old", rate=3, instances=2)
    for name in STEPS:
        step_status = status.steps.add(step=name, state=sidecar_pb2.STEP_STATE_RUNNING, waiting=7, replicas=1)
        step_status.pin.component, step_status.pin.revision_number = name, 3
        step_status.pin.digest = f"sha256:{name}{'0' * 40}"
    running = status.deployments.add().deployment
    running.number, running.version, running.phase = 4, 2, flow_pb2.DEPLOYMENT_PHASE_ACTIVE
    if older:
        gone = status.deployments.add().deployment
        gone.number, gone.phase = 3, flow_pb2.DEPLOYMENT_PHASE_DRAINING
        gone.pins.add(step="price", component="price", revision_number=2, digest="sha256:old")
    return FlowView(flow, status, hops, heard_at=100.0)


def shown(state: TopState, views: list[FlowView], width: int = 120, height: int = 24, now: float = 100.0) -> list[str]:
    lines = state.screen(views, width, height, now)
    assert len(lines) <= height
    return [text for text, _ in lines]


def steps_in(lines: list[str]) -> list[str]:
    return [name for line in lines for name in line.split()[:1] if name in (*STEPS, "gateway")]


def test_rows_follow_the_flow_and_older_code_comes_last() -> None:
    rows = rows_of(view(older=True), 10)
    assert [(row.step, row.state, row.revision) for row in rows] == [
        ("gateway", "-", "-"),
        ("receive", "RUNNING", "receive@3"),
        ("price", "RUNNING", "price@3"),
        ("check", "RUNNING", "check@3"),
        ("price", "DRAINING", "price@2"),
    ]
    assert (rows[2].waiting, rows[2].p50_us, rows[2].oldest_s) == (7, 1600, 0.08)


def test_the_oldest_message_counts_also_where_no_instance_holds_it() -> None:
    found = view()
    assert found.hops is not None
    found.hops.backlogs.add(step="price", stored=9).oldest_age.FromSeconds(70)
    assert [row.oldest_s for row in rows_of(found, 10)][1:3] == [0.04, 70.0]


def test_what_is_not_known_yet_is_shown_as_such() -> None:
    fresh = FlowView("orders")
    assert "waiting for the mesh" in "\n".join(shown(TopState(), [fresh]))
    young = view(covered_s=0)
    assert rows_of(young, 10)[0].step == "receive"
    assert "last 0 of 10 s" in shown(TopState(), [young])[0]


def test_keys_sort_filter_open_and_leave() -> None:
    views, state = [view()], TopState()
    assert steps_in(shown(state, views)) == ["gateway", *STEPS]
    state.press("s", views)
    assert state.sort == "rate"
    assert steps_in(shown(state, views)) == ["check", "gateway", "receive", "price"]
    state.press("r", views)
    assert steps_in(shown(state, views)) == ["price", "receive", "gateway", "check"]
    state.press("S", views)
    for key in ("/", "p", "r", "x", "backspace"):
        state.press(key, views)
    assert shown(state, views)[-1] == "filter: pr_"
    state.press("enter", views)
    assert steps_in(shown(state, views)) == ["price"]
    state.press("enter", views)
    assert any(line.startswith("hop ") for line in shown(state, views))
    state.press("t", views)
    assert shown(state, views)[-1] == "headrace trace price-slow"
    state.press("t", views)
    assert state.traces == ["headrace trace price-slow"]
    state.press("esc", views)
    state.press("esc", views)
    assert not state.wanted
    for key in ("w", "?", "x", "p", "unheard-of"):
        assert state.press(key, views)
    assert (state.seconds, state.helping, state.paused) == (60, False, True)
    assert not state.press("q", views)


def test_the_selection_stays_with_its_step_and_is_always_seen() -> None:
    views = [view(f"flow-{number}") for number in range(8)]
    state = TopState()
    for _ in range(30):
        state.press("down", views)
        lines = state.screen(views, 100, 8, 100.0)
        (selected,) = [text for text, style in lines if style == "selected"]
    assert selected.split()[:2] == ["flow-7", "price"]
    state.press("s", views)
    (selected,) = [text for text, style in state.screen(views, 100, 8, 100.0) if style == "selected"]
    assert selected.split()[:2] == ["flow-7", "price"]
    state.press("home", views)
    state.press("end", views)
    assert state.selected is not None
    views.pop()  # its flow is gone
    assert [style for _, style in state.screen(views, 100, 8, 100.0)].count("selected") == 1


@pytest.mark.parametrize("height", range(14))
@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_it_fits_into_any_terminal(width: int, height: int) -> None:
    several = [view(), view("other", older=True)]
    for views in ([view(older=True)], several, []):
        for keys in ((), ("enter",), ("?",), ("/",)):
            state = TopState()
            for key in keys:
                state.press(key, views)
            lines = state.screen(views, width, height, 100.0)
            assert len(lines) == height
    if width >= 40 and height >= 3:
        lines = shown(TopState(), several, width, height)
        assert any(display_width(line) <= width and line.split()[0] == "FLOW" for line in lines if line)


def test_an_answer_that_does_not_come_is_said() -> None:
    lines = shown(TopState(), [view()], now=109.0)
    assert "has not answered for 9 s" in lines[1]


def test_keys_as_terminals_send_them() -> None:
    assert keys_in(b"\x1b[Aj\x1bOB\r\x1b[5~/\xc3\xa9\x7f \x1b[200~\x1b") == [
        "up", "j", "down", "enter", "page-up", "/", "é", "backspace", "space", "esc",
    ]  # fmt: skip
    assert keys_in(b"\x00\x01") == []


def test_figures_are_short_and_choices_complete() -> None:
    assert [millis(us) for us in (None, 0.0, 512.0, 12_345.0, 250_000.0)] == ["-", "0.00", "0.51", "12.3", "250"]
    assert [rate_text(rate) for rate in (0, 0.25, 12.34, 5200.4)] == ["0", "0.25", "12.3", "5200"]
    assert [age(s) for s in (None, 0.004, 2.5, 600, 9000)] == ["-", "4 ms", "2.5 s", "10 m", "2 h"]
    assert [item.value for item in Sort] == list(SORTS)
    assert [int(item.value) for item in Window] == list(WINDOWS_S)
