"""Wires the registry: broker, stores, collector, gRPC server; ordered stop."""

from __future__ import annotations

import asyncio
import time

from nats.aio.client import Client

from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.own_metrics import OwnMetrics
from headrace.edge.readiness import report_ready
from headrace.edge.request_book import RequestBook
from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.names import DEFAULT_WORKSPACE
from services.registry.bundle_store import BundleStore
from services.registry.catalogue import Catalogue
from services.registry.collector import Collector
from services.registry.component_store import ComponentStore
from services.registry.rpc import RegistryRpc

log = get_logger(__name__)

SERVICE_NAME = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name
STOP_GRACE_S = 1.0


class RegistryApp:
    """The registry as a service of `run_service`."""

    def __init__(
        self,
        nats_url: str,
        listen: str,
        *,
        workspace: str = DEFAULT_WORKSPACE,
        replicas: int = 0,
        metrics: str = "",
        admin: str = "",
    ) -> None:
        """`metrics` and `admin` are addresses of ports for operators; empty: none."""
        self._nats_url = nats_url
        self._listen = listen
        self._workspace = workspace
        self._replicas = replicas
        self._metrics_address, self._admin = metrics, admin
        self._metrics: OwnMetrics | None = None
        self._connection: Client | None = None
        self._server: GrpcServer | None = None
        self._collecting: asyncio.Task[None] | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        self._connection = await connect_nats(self._nats_url, "headrace-registry")
        catalogue, requests = await asyncio.gather(
            self._open_catalogue(self._connection), RequestBook.open(self._connection, self._workspace)
        )
        server, stopping = GrpcServer(), asyncio.Event()
        server.add(
            registry_pb2_grpc.add_RegistryServiceServicer_to_server,
            RegistryRpc(catalogue, requests, stopping),
            SERVICE_NAME,
        )
        server.on_stop(stopping.set)
        address = await server.start(self._listen)
        self._server = server
        if self._admin:
            await server.serve_admin(self._admin)
        self._metrics = OwnMetrics(lambda: not stopping.is_set(), calls=lambda: server.calls.counts)
        await self._metrics.start(self._metrics_address)
        self._collecting = tasks.create_task(Collector(catalogue).run(), name="collector")
        report_ready({"address": address})
        log.info("registry serves", address=address)

    async def _open_catalogue(self, connection: Client) -> Catalogue:
        workspace, replicas = self._workspace, self._replicas
        components = await KvBucket.open(connection, bucket_names.component_bucket(workspace), replicas=replicas)
        pins = await KvBucket.open(connection, bucket_names.pin_bucket(workspace), replicas=replicas)
        bundles = await BundleStore.open(connection, bucket_names.bundle_store(workspace), replicas=replicas)
        return Catalogue(ComponentStore(components), bundles, pins, time.time)

    async def stop(self) -> None:
        """Refuses new calls, waits for those in flight, then leaves the broker."""
        if self._collecting is not None:
            self._collecting.cancel()
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
        if self._metrics is not None:
            await self._metrics.stop()
        if self._connection is not None:
            await close_nats(self._connection)
