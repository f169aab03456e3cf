"""Who is in doubt, and which broker processes are remembered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.sidecar.domain.doubt import KEPT_SERVERS, in_doubt, note_server

LOST_TOGETHER = {
    "attempt": 2,
    "stored_at": 100.0,
    "broker_since": 110.0,
    "started_at": 111.0,
    "now": 112.0,
    "window_s": 120.0,
    "replicas": 1,
}


def doubt(**changes: float) -> bool:
    return in_doubt(**{**LOST_TOGETHER, **changes})  # type: ignore[arg-type]


def test_broker_and_sidecar_lost_together() -> None:
    assert doubt()
    assert not doubt(attempt=1)
    assert not doubt(stored_at=110.5), "stored after the restart: the ids of its outputs are remembered"
    assert not doubt(started_at=99.0), "this very process had it before"
    assert doubt(started_at=99.0, replicas=2), "a sibling may have had it"
    assert not doubt(broker_since=0.0), "the broker's process is not known, and the window is not over"


def test_a_redelivery_after_the_window() -> None:
    assert not doubt(broker_since=1.0, now=219.9)
    assert doubt(broker_since=1.0, now=220.0)
    assert doubt(now=500.0)
    assert not doubt(now=500.0, started_at=99.0), "this very process had it before"


@given(st.lists(st.sampled_from("abcdefghijklm"), max_size=40))
def test_the_newest_brokers_are_kept(met: list[str]) -> None:
    known: dict[str, float] = {}
    for now, server in enumerate(met):
        noted = note_server(known, server, float(now))
        if server in known:
            assert noted is None
            continue
        assert noted is not None
        assert noted[server] == now
        assert len(noted) <= KEPT_SERVERS
        assert {name: at for name, at in noted.items() if name != server}.items() <= known.items()
        known = noted
