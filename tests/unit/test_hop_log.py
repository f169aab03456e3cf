"""The gateway's histograms stay few, however often a flow is switched."""

from __future__ import annotations

from headrace.wire.envelope import Reply
from services.gateway.hop_log import MOST_REVISIONS, HopLog
from services.gateway.socket_reader import SocketRead


def test_only_the_newest_revisions_are_told_of() -> None:
    log = HopLog("gateway-1")
    for number in range(3 * MOST_REVISIONS):
        for _ in range(2):
            log.replied(
                "orders",
                Reply(
                    execution_id="e", step="price", revision=f"r{number}", sent_at_unix_ns=1, input_stored_at_unix_ns=1
                ),
                arrival=SocketRead(at_mono_ns=5, at_unix_ns=5, arrived_at_unix_ns=4),
                written_at_mono_ns=9,
                read_at_mono_ns=9,
                read_at_unix_ns=10,
            )
    snapshot = log.snapshot("orders")
    assert snapshot is not None
    told = {item.revision: item.count for item in snapshot.histograms if item.phase == "hop"}
    assert told == {f"r{number}": 2 for number in range(2 * MOST_REVISIONS, 3 * MOST_REVISIONS)}
    assert snapshot.counters["processed"] == 6 * MOST_REVISIONS
    assert len(snapshot.histograms) == 2 * MOST_REVISIONS + 3
    assert log.snapshot("unheard-of") is None
