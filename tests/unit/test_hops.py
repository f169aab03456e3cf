"""Recorder, snapshots and their merge; no broker."""

from __future__ import annotations

import pytest

from headrace.edge.hop_recorder import HopRecorder
from headrace.model.errors import InvalidInput
from headrace.wire.hops import decode_snapshot, merge_snapshots


def test_merged_rows_follow_the_message_and_add_up() -> None:
    first, second = HopRecorder("default.orders.d1.price.0", 1), HopRecorder("default.orders.d1.price.1", 1)
    for recorder, shift in ((first, 0), (second, 1_000)):
        for phase, ns in (("component", 50_000), ("queue", 200_000), ("sidecar-in", 30_000)):
            handle = recorder.phase("price", phase, revision="sha256:aa")
            for _ in range(100):
                handle.record(ns + shift)
    gateway = HopRecorder("gateway-1", 0)
    gateway.record("gateway", "gateway-in", "", "", 40_000)
    snapshots = [decode_snapshot(each.snapshot().SerializeToString()) for each in (first, second, gateway, first)]
    merged = merge_snapshots(snapshots, deployment=1)
    assert [(row.step, row.phase, row.count) for row in merged.phases] == [
        ("gateway", "gateway-in", 1),
        ("price", "queue", 200),
        ("price", "sidecar-in", 200),
        ("price", "component", 200),
    ]
    assert merged.phases[1].mean_us == pytest.approx(200.5)
    assert merged.phases[1].p50_us == pytest.approx(200, rel=0.05)
    assert merged.phases[1].max_us == pytest.approx(201.0)
    assert merged.phases[1].revision == "sha256:aa"
    assert list(merged.instances) == ["default.orders.d1.price.0", "default.orders.d1.price.1", "gateway-1"]


def test_other_deployments_and_unused_phases_are_left_out() -> None:
    old, new = HopRecorder("i1", 1), HopRecorder("i2", 2)
    for recorder in (old, new):
        recorder.record("price", "publish", "check", "r", -5)
        recorder.phase("price", "hop")
    merged = merge_snapshots([old.snapshot(), new.snapshot()], deployment=2)
    assert list(merged.instances) == ["i2"]
    assert [(row.phase, row.receiver, row.count, row.skewed) for row in merged.phases] == [("publish", "check", 1, 1)]
    assert merged.phases[0].mean_us == pytest.approx(-0.005)


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\x1a\x06\x4a\x04\x08\xff\x7f\x10\x01"[:7], b"\x1a\x07\x4a\x05\x08\xff\x7f\x10\x01"]
)
def test_malformed_snapshots_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_snapshot(raw)
