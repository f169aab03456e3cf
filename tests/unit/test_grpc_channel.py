"""What channels are opened with: a Unix socket is never pinged, since a component's server need not allow it."""

from __future__ import annotations

from headrace.edge.grpc_channel import channel_options


def pings(target: str) -> bool:
    return any("keepalive" in name for name, _ in channel_options(target))


def test_only_what_can_vanish_unseen_is_pinged() -> None:
    assert pings("127.0.0.1:7001")
    assert pings("ipv4:127.0.0.1:7001,127.0.0.1:7002")
    assert not pings("unix:/run/component.sock")
