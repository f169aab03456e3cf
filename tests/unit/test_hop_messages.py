"""What a watcher of hops asks for, and gets: no broker, no clock."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from headrace.api.hop.v1 import hop_pb2
from headrace.edge.hop_recorder import HopRecorder
from headrace.model.errors import InvalidInput
from headrace.wire.hops import decode_snapshot, look_of
from services.orchestrator.hop_feed import HopFeed
from services.orchestrator.hop_messages import hops_message, period_of, view_of

Request = hop_pb2.WatchHopsRequest


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(windows=[5]), "windows"),
        (Request(phases=["everything"]), "phases"),
        (Request(period=Duration(nanos=500_000_000)), "period"),
        (Request(period=Duration(seconds=61)), "period"),
        (Request(period=Duration(seconds=1, nanos=1)), "period"),
        (Request(period=Duration(seconds=-1)), "period"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(request_: Request, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        _ = view_of(request_), period_of(request_)
    assert refused.value.violations[0].field == field


def test_whoever_asks_for_nothing_gets_ten_seconds_of_all_every_second() -> None:
    view = view_of(Request())
    assert (view.spans, view.step, view.phases, period_of(Request())) == ((10,), "", frozenset(), 1)
    assert view == view_of(Request(windows=[10, 10]))
    assert period_of(Request(period=Duration(seconds=5))) == 5


def recorders() -> list[tuple[HopRecorder, dict[str, int]]]:
    """With what each counts."""
    found = []
    for replica, revision in enumerate(("old", "old", "new")):
        recorder = HopRecorder(f"default.orders.d1.price.{replica}", 1, "price")
        counters = {"processed": 0, "failed": 0, "useless": 3}
        recorder.count_with(lambda counters=counters: counters, lambda: (2, 10**9), revision=revision)  # type: ignore[misc]
        found.append((recorder, counters))
    return found


async def test_steps_and_phases_are_merged_over_instances_and_kept_apart_by_revision() -> None:
    feed = HopFeed(None, "default", "orders", None)  # type: ignore[arg-type]
    instances = recorders()

    def tick(now_s: float) -> None:
        looks = [look_of(decode_snapshot(one.snapshot().SerializeToString())) for one, _ in instances]
        feed.windows.tick(now_s, looks)

    tick(0.0)
    for (recorder, counters), revision in zip(instances, ("old", "old", "new"), strict=True):
        counters.update(processed=10, failed=1)
        for receiver in ("check", "gateway"):
            hop = recorder.phase("price", "hop", receiver, revision)
            hop.record(1_000_000)
            hop.mark(1_000_000, 1, "e1", b"\x01" * 16)
        recorder.record("price", "queue", "", revision, -5)
    tick(2.0)
    message = hops_message(feed, view_of(Request(windows=[1, 60])))
    assert [(window.seconds, window.covered.ToMilliseconds()) for window in message.windows] == [(1, 2000), (60, 2000)]
    old, new = sorted(message.windows[0].steps, key=lambda step: -step.instances)
    assert (old.revision, old.instances, old.rate, old.error_rate) == ("old", 2, 10.0, 1.0)
    assert (new.revision, new.instances, new.rate) == ("new", 1, 5.0)
    assert (old.hop.count, old.held, old.counts.processed) == (4, 4, 20)
    assert old.oldest_age.ToSeconds() > 10**8
    phases = [(line.phase, line.receiver, line.revision, line.latency.count) for line in message.windows[0].phases]
    assert phases == [
        ("queue", "", "new", 1),
        ("queue", "", "old", 2),
        ("hop", "check", "new", 1),
        ("hop", "check", "old", 2),
        ("hop", "gateway", "new", 1),
        ("hop", "gateway", "old", 2),
    ]
    assert message.windows[0].phases[1].latency.skewed == 2
    (exemplar, *_) = message.windows[0].phases[2].exemplars
    assert (exemplar.trace_id, exemplar.execution_id, exemplar.us) == ("01" * 16, "e1", 1000.0)
    narrow = hops_message(feed, view_of(Request(step="price", phases=["hop"])))
    assert {line.phase for line in narrow.windows[0].phases} == {"hop"}
    assert not hops_message(feed, view_of(Request(step="other"))).windows[0].steps
