"""The process of a trial (`python -m services.sidecar --trial`): serves TrialService to its agent until it is ended."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from headrace.api.sidecar.v1 import trial_pb2, trial_pb2_grpc
from headrace.edge.child_process import adopt_orphans
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.readiness import report_ready
from headrace.edge.structured_log import mask_with
from headrace.model import bucket_names
from headrace.model.errors import WrongState
from services.sidecar.bundle_cache import BundleCache
from services.sidecar.credentials import StepCredentials
from services.sidecar.environment import EnvironmentCache
from services.sidecar.trial import TrialRun

if TYPE_CHECKING:
    from nats.aio.client import Client

    from services.sidecar.settings import Settings
    from services.sidecar.spare_component import SpareComponent

SERVICE_NAME = trial_pb2.DESCRIPTOR.services_by_name["TrialService"].full_name


class TrialApp(trial_pb2_grpc.TrialServiceServicer):
    """See headrace.edge.service_runner.Service. The broker is asked only where a credential is needed."""

    def __init__(self, settings: Settings, spare: SpareComponent | None) -> None:
        self._settings = settings
        self._spare = spare
        self._run: TrialRun | None = None
        self._server: GrpcServer | None = None
        self._connection: Client | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        self._settings.run_dir.mkdir(parents=True, exist_ok=True)
        adopt_orphans(reap_at_once=False)
        self._server = GrpcServer(keepalive=False)
        self._server.add(trial_pb2_grpc.add_TrialServiceServicer_to_server, self, SERVICE_NAME)
        await self._server.start(self._settings.lifecycle_address)
        report_ready({"address": self._settings.lifecycle_address})

    async def stop(self) -> None:
        if self._run is not None:
            await self._run.end()
        if self._server is not None:
            await self._server.stop(0.1)
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await close_nats(self._connection)

    async def RunTrial(self, request: trial_pb2.RunTrialRequest, context: Any) -> trial_pb2.RunTrialResponse:
        if self._run is not None:
            raise WrongState("this process has had its trial", reason="TRIAL_OVER", next_step="Ask the agent anew")
        settings = self._settings
        bundles = BundleCache(settings.cache_dir, settings.registry)
        run = self._run = TrialRun(settings, bundles, EnvironmentCache(settings.cache_dir), request.trial, self._spare)
        mask_with(run.mask.known)
        credentials = StepCredentials(settings.workspace, self._open_credentials, run.mask)
        try:
            return trial_pb2.RunTrialResponse(result=await run.work(credentials))
        finally:
            await run.end()

    async def _open_credentials(self) -> KvBucket:
        self._connection = await connect_nats(self._settings.nats_url, self._settings.instance)
        return await KvBucket.open(self._connection, bucket_names.credential_bucket(self._settings.workspace))
