"""A real registry process on a real broker, and its stub."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.edge.bundle import pack_folder
from headrace.edge.child_process import ChildProcess, Command, own_module
from headrace.edge.grpc_channel import open_channel

CALL_LIMIT_S = 30.0


@dataclass
class Registry:
    """One process. `kill` ends it the hard way."""

    process: ChildProcess
    channel: grpc.aio.Channel
    address: str

    @property
    def stub(self) -> registry_pb2_grpc.RegistryServiceAsyncStub:
        return registry_pb2_grpc.RegistryServiceStub(self.channel)

    async def push(self, folder: Path) -> registry_pb2.PushRevisionResponse:
        with pack_folder(folder) as packed:
            return await self.push_bytes(packed.path.read_bytes(), packed.component, packed.digest)

    async def push_bytes(
        self, bundle: bytes, component: str = "price", digest: str = ""
    ) -> registry_pb2.PushRevisionResponse:
        return await self.stub.PushRevision(push_parts(bundle, component, digest), timeout=CALL_LIMIT_S)

    async def resolve(self, reference: str) -> registry_pb2.Revision:
        return await self.stub.ResolveReference(registry_pb2.ResolveReferenceRequest(reference=reference))

    async def download(self, digest: str) -> bytes:
        call = self.stub.DownloadBundle(registry_pb2.DownloadBundleRequest(digest=digest), timeout=CALL_LIMIT_S)
        return b"".join([part.chunk async for part in call])

    async def revisions(self, component: str = "price") -> list[registry_pb2.Revision]:
        request = registry_pb2.ListRevisionsRequest(parent=f"components/{component}")
        return list((await self.stub.ListRevisions(request)).revisions)

    async def delete(self, number: int, component: str = "price") -> None:
        name = f"components/{component}/revisions/{number}"
        await self.stub.DeleteRevision(registry_pb2.DeleteRevisionRequest(name=name))

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


async def push_parts(
    bundle: bytes, component: str = "price", digest: str = "", *, step: int = 256 * 1024
) -> AsyncIterator[registry_pb2.PushRevisionRequest]:
    yield registry_pb2.PushRevisionRequest(header=registry_pb2.PushHeader(component=component, digest=digest))
    for start in range(0, len(bundle), step):
        yield registry_pb2.PushRevisionRequest(chunk=bundle[start : start + step])


@contextlib.asynccontextmanager
async def running_registry(nats_url: str, log_file: Path) -> AsyncIterator[Registry]:
    """A registry of this test's own, stopped (or killed) at the end."""
    arguments = own_module("services.registry", "--nats", nats_url)
    process = ChildProcess.spawn(Command(arguments, log_file=log_file), readiness=True)
    try:
        ready = await process.ready(20.0)
        address = str(ready["address"])
        async with open_channel(address) as channel:
            yield Registry(process, channel, address)
    finally:
        await process.end(3.0)


@dataclass(frozen=True)
class Refusal:
    """A refused call: status, reason, text and metadata."""

    code: grpc.StatusCode
    reason: str
    text: str
    metadata: dict[str, str]


@contextlib.asynccontextmanager
async def refused() -> AsyncIterator[list[Refusal]]:
    """The body must be refused; the list then holds how."""
    seen: list[Refusal] = []
    try:
        yield seen
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        info = error_details_pb2.ErrorInfo()
        for detail in status.details if status else ():
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                detail.Unpack(info)
        seen.append(Refusal(error.code(), info.reason, error.details() or "", dict(info.metadata)))
    assert seen, "the call was not refused"
