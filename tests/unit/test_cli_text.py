"""Tables and plain data of the command line."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from headrace.api.flow.v1 import flow_pb2
from headrace.api.hop.v1 import hop_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.cli.demo_report import SHOWN_DIFFERENCES, DemoResult, verdict_text
from headrace.cli.flow_tables import status_text
from headrace.cli.order_check import Difference
from headrace.cli.plain import plain
from headrace.cli.tables import byte_size, display_width, table

cells = st.text(st.characters(whitelist_categories=["L", "N", "Zs"]), max_size=12)


@given(st.lists(st.tuples(cells, cells, st.integers(0, 10**9)), max_size=6))
def test_columns_are_aligned(rows: list[tuple[str, str, int]]) -> None:
    lines = table(("A", "B", "COUNT"), rows).split("\n")
    assert len(lines) == len(rows) + 1
    width = max(display_width(line) for line in lines)
    if rows:  # the last column is a number, hence at the right edge in every line
        assert all(display_width(line) == width for line in lines)


def test_wide_and_combining_signs_take_their_columns() -> None:
    assert display_width("é") == 1
    assert display_width("e\u0301") == 1
    assert display_width("東京") == 4


def test_byte_sizes() -> None:
    assert [byte_size(count) for count in (0, 1023, 1024, 5 << 20)] == ["0 B", "1023 B", "1.0 KiB", "5.0 MiB"]


def flow_status() -> flow_pb2.FlowStatus:
    status = flow_pb2.FlowStatus(flow="flows/orders", state=flow_pb2.FLOW_STATE_RUNNING, profile="fast")
    status.deployments.add().deployment.MergeFrom(
        flow_pb2.Deployment(number=3, version=2, phase=flow_pb2.DEPLOYMENT_PHASE_ACTIVE, start_ms={"total": 12.5})
    )
    step = status.steps.add(step="price", state=sidecar_pb2.STEP_STATE_RUNNING, waiting=7, newer_revision=2, replicas=2)
    step.pin.MergeFrom(flow_pb2.Pin(component="price", revision_number=1, digest="sha256:" + "ab" * 32))
    step.instances.add(state=sidecar_pb2.STEP_STATE_RUNNING)
    step.instances.add(state=sidecar_pb2.STEP_STATE_FAILED, instance="i", cause="it broke", last_log_lines=["oh"])
    return status


def test_status_says_state_pin_instances_and_what_is_wrong() -> None:
    text = status_text(flow_status())
    assert "orders  RUNNING  version 2  deployment 3  profile fast" in text
    assert "price@1 (2 is newer)" in text
    assert "abababababab" in text
    assert "1/2" in text
    assert "i: it broke\n  | oh" in text


def test_plain_data_has_numbers_words_and_no_unset_messages() -> None:
    facts = plain(flow_status())
    assert json.loads(json.dumps(facts)) == facts
    assert facts["state"] == "RUNNING"
    assert facts["steps"][0]["waiting"] == 7
    assert facts["deployments"][0]["deployment"]["start_ms"] == {"total": 12.5}
    assert "create_time" not in facts["deployments"][0]["deployment"]
    assert "draft" not in plain(flow_pb2.Flow(name="flows/a"))


def test_config_and_durations_are_plain() -> None:
    spec = flow_pb2.FlowSpec()
    spec.reply_timeout.FromMilliseconds(1500)
    spec.steps.add(name="a").config.update({"path": "x", "limit": 3})
    facts = plain(spec)
    assert facts["reply_timeout"] == "1.500s"
    assert facts["steps"][0]["config"] == {"path": "x", "limit": 3}


def test_the_demo_shows_what_differs_order_by_order() -> None:
    cents = [Difference(f"O-{number:04}", "total_cents", "3333", "3334") for number in range(SHOWN_DIFFERENCES + 2)]
    result = DemoResult("fast", 227, cents, {}, flow_pb2.FlowStatus(), hop_pb2.GetHopsResponse(), [])
    lines = verdict_text(result).splitlines()
    assert lines[0] == "12 of 227 orders differ from what is expected"
    assert lines[1:4] == ["O-0000  total_cents", "    expected 3333", "    got      3334"]
    assert lines[-1] == "and 2 more"
    assert len(lines) == 2 + 3 * SHOWN_DIFFERENCES
