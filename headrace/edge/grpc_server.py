"""A gRPC aio server with health, reflection (v1 and v1alpha), error translation and a two-phase stop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from headrace.edge.call_bounds import CallBounds
from headrace.edge.call_counts import CallCounts
from headrace.edge.error_interceptor import ErrorInterceptor
from headrace.edge.health_service import HealthService, HealthSource
from headrace.edge.server_reflection import ServerReflection
from headrace.model.errors import InvalidInput

CHANNELZ = "grpc.channelz.v1.Channelz"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)
KEEPALIVE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class GrpcServer:
    """Add services, `start`, `stop`. Addresses are `host:port` (port 0 for a free one) or `unix:/path`."""

    def __init__(
        self,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        bounds: CallBounds | None = None,
        keepalive: bool = True,
    ) -> None:
        """Without `keepalive` callers are not pinged: for a Unix socket, whose other end cannot vanish unseen."""
        self.bounds = bounds or CallBounds()
        self.calls = CallCounts()
        options = [*SERVER_OPTIONS, *(KEEPALIVE_OPTIONS if keepalive else ())]
        self._server = grpc.aio.server(
            interceptors=[self.calls, ErrorInterceptor(), self.bounds, *interceptors], options=options
        )
        self._health = HealthService()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = [health.SERVICE_NAME]
        self._before_stop: list[Callable[[], None]] = []
        self._admin: GrpcServer | None = None
        self.address = ""

    def add(self, register: Callable[[Any, Any], None], servicer: object, service_name: str) -> None:
        """`register` is the generated add_..._to_server, `service_name` the full proto name."""
        register(servicer, self._server)
        self._services.append(service_name)

    def announce(self, service_name: str) -> None:
        """Lists a service in reflection and health that is served by a generic handler."""
        self._services.append(service_name)

    def add_generic(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def tell_health_of(self, source: HealthSource) -> None:
        """Of things that come and go, beside the services."""
        self._health.source = source

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Called when the stop begins: end open streams here, so that they end with OK."""
        self._before_stop.append(callback)

    async def start(self, address: str) -> str:
        """Binds and serves; answers the address with the real port. InvalidInput when it cannot bind."""
        self._server.add_generic_rpc_handlers((ServerReflection(self._services),))
        path = address.removeprefix("unix:")
        if path != address:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise InvalidInput.at(
                "listen", address, "cannot be bound", next_step="Is the port taken? Choose another"
            ) from error
        if path != address:
            self.address = address
        else:
            self.address = f"{address.rpartition(':')[0]}:{port}"
        await self._server.start()
        for name in self._services:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return self.address

    async def serve_admin(self, address: str) -> str:
        """A second port, on loopback, which tells of all connections of this process (channelz) and ends with this
        server; answers its address. InvalidInput for any other host."""
        from grpc_channelz.v1 import channelz

        host = address.rpartition(":")[0].strip("[]")
        if not (host in ("localhost", "::1") or host.startswith("127.")):
            raise InvalidInput.at("admin", address, "is not a loopback address", next_step="Use 127.0.0.1:PORT")
        self._admin = GrpcServer()
        channelz.add_channelz_servicer(self._admin._server)
        self._admin.announce(CHANNELZ)
        return await self._admin.start(address)

    async def stop(self, grace_s: float = 1.0) -> None:
        """NOT_SERVING, then end streams, then wait for calls in flight up to the grace."""
        await self._health.enter_graceful_shutdown()
        for callback in self._before_stop:
            callback()
        await self._server.stop(grace_s)
        if self._admin is not None:
            await self._admin.stop(0.0)
