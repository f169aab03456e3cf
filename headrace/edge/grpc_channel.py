"""gRPC channels: one per peer, keepalive on both sides of a network, a default deadline for every unary call."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.edge.grpc_server import MAX_MESSAGE_BYTES
from headrace.model.errors import InvalidInput

DEFAULT_TIMEOUT_S = 10.0
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # gRPC's limit of one attempt to connect, in spite of its name: a busy machine needs more than a moment.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class _DefaultDeadline(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        if client_call_details.timeout is None:
            client_call_details = client_call_details._replace(timeout=self._timeout_s)
        return await continuation(client_call_details, request)


def _any_of(targets: str) -> str:
    """gRPC's own list of addresses, which must be numeric and of one family."""
    found: list[str] = []
    for target in targets.split(","):
        host, _, port = target.strip().rpartition(":")
        try:
            resolved = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise InvalidInput.at("address", target, "is not HOST:PORT of a known host") from error
        family, _, _, _, place = resolved[0]
        numeric = str(place[0])
        found.append(f"[{numeric}]:{port}" if family == socket.AF_INET6 else f"{numeric}:{port}")
    scheme = "ipv6" if found[0].startswith("[") else "ipv4"
    return f"{scheme}:{','.join(item for item in found if item.startswith('[') == (scheme == 'ipv6'))}"


def open_channel(
    target: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, keepalive: bool | None = None
) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:/path`; unary calls without a timeout get `timeout_s`.

    `keepalive`: whether the peer is pinged; see `channel_options`.
    Of several `host:port` with commas between, the first that answers is used, and the next when it goes away.
    """
    target = _found(target)
    options = channel_options(target, keepalive)
    return grpc.aio.insecure_channel(target, options=options, interceptors=[_DefaultDeadline(timeout_s)])


def open_blocking_channel(target: str) -> grpc.Channel:
    """The same without asyncio, and without a default limit."""
    target = _found(target)
    return grpc.insecure_channel(target, options=channel_options(target))


def channel_options(target: str, keepalive: bool | None = None) -> list[tuple[str, int]]:
    """What a channel to this target is opened with. Unless told, a Unix socket is not pinged: its other end cannot
    vanish unseen, and may be a component in any language, whose server takes pings without data amiss: gRPC's default
    is to end a connection (`Too many pings`) that is idle for three of them."""
    pinged = not target.startswith("unix:") if keepalive is None else keepalive
    return [option for option in CHANNEL_OPTIONS if pinged or "keepalive" not in option[0]]


def _found(target: str) -> str:
    return _any_of(target) if "," in target else target
