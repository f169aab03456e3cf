"""The orchestrator's API as clients meet it: reflection, registry calls passed on, operations, logs, hops, watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.api.hop.v1 import hop_pb2
from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.client import AsyncClient
from headrace.edge.bundle import pack_folder
from headrace.edge.grpc_channel import open_channel
from headrace.model import subjects
from headrace.model.histogram import Histogram
from headrace.wire.flow import flow_spec_to_proto
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import WORK, OrchestratorRig, chain, orchestrator_rig, published
from tests.support.registry_rig import push_parts


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


@pytest.fixture
async def channel(rig: OrchestratorRig) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(rig.address) as opened:
        yield opened


async def reflected(channel: grpc.aio.Channel, request: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type,operator]
    async for answer in stub.ServerReflectionInfo(iter([request]), timeout=5):
        return answer
    raise AssertionError("no answer")


async def test_reflection_lists_every_service_and_describes_any_contents(channel: grpc.aio.Channel) -> None:
    answer = await reflected(channel, reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in answer.list_services_response.service}
    assert {
        "headrace.api.diagnosis.v1.DiagnosisService",
        "headrace.api.flow.v1.FlowService",
        "headrace.api.hop.v1.HopService",
        "headrace.api.registry.v1.RegistryService",
        "google.longrunning.Operations",
        "grpc.health.v1.Health",
    } <= names
    for symbol in (
        "headrace.api.registry.v1.RegistryService",
        "headrace.api.flow.v1.FlowService.StartFlow",
        "headrace.api.flow.v1.FlowOperationMetadata",
        "headrace.api.flow.v1.FlowOperationResult",
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RetryInfo",
    ):
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        assert (await reflected(channel, request)).file_descriptor_response.file_descriptor_proto, symbol


async def test_requests_that_fuzzing_found_are_refused_and_not_an_internal_error(
    rig: OrchestratorRig, channel: grpc.aio.Channel
) -> None:
    async with AsyncClient(rig.address) as client:
        await client.create_flow("orders", flow_spec_to_proto(chain("a", "b")))
    flows = "headrace.api.flow.v1.FlowService"
    requests: dict[str, Any] = {
        f"{flows}/TailLogs": flow_pb2.TailLogsRequest(name="flows/orders", step="."),
        f"{flows}/GetVersion": flow_pb2.GetVersionRequest(name="flows/orders/versions/\N{SUPERSCRIPT TWO}"),
        f"{flows}/DeleteVersion": flow_pb2.DeleteVersionRequest(name="flows/orders/versions/" + "9" * 5000),
        f"{flows}/ListHistory": flow_pb2.ListHistoryRequest(page_token="\N{SUPERSCRIPT TWO}"),
        "google.longrunning.Operations/GetOperation": operations_pb2.GetOperationRequest(
            name="operations/\N{SUPERSCRIPT TWO}"
        ),
    }
    for method, request in requests.items():
        call: Any = channel.unary_stream(f"/{method}")(request.SerializeToString(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
    for version in ("v1", "v1alpha"):
        call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")(timeout=5)
        await call.write(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, version
    listed = await channel.unary_unary("/grpc.health.v1.Health/List")(b"", timeout=5)
    assert flows.encode() in listed


async def test_registry_calls_pass_through_with_streams_statuses_and_deadlines(
    rig: OrchestratorRig, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    stub = registry_pb2_grpc.RegistryServiceStub(channel)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "component.yaml").write_text(WORK)
    (folder / "component.py").write_text("x = 1\n")
    with pack_folder(folder) as packed:
        bundle = packed.path.read_bytes()
    pushed = await stub.PushRevision(push_parts(bundle, "work", step=100), timeout=10)
    assert pushed.created
    download = stub.DownloadBundle(registry_pb2.DownloadBundleRequest(digest=pushed.revision.digest), timeout=10)
    assert b"".join([part.chunk async for part in download]) == bundle
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.ResolveReference(registry_pb2.ResolveReferenceRequest(reference="nowhere"), timeout=5)
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    status = rpc_status.from_call(refusal.value)  # type: ignore[arg-type]
    assert status is not None
    assert any(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in status.details)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.ListComponents(registry_pb2.ListComponentsRequest(), timeout=0.0001)
    assert refusal.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_repeated_request_id_answers_the_same_operation(
    rig: OrchestratorRig, channel: grpc.aio.Channel
) -> None:
    flows = flow_pb2_grpc.FlowServiceStub(channel)
    operations = operations_pb2_grpc.OperationsStub(channel)
    async with rig.client() as client:
        await published(rig, client, "orders-3", chain("order"))
        request = flow_pb2.StartFlowRequest(name="flows/orders-3", request_id="7d9a")
        first, second = await asyncio.gather(flows.StartFlow(request), flows.StartFlow(request))
        assert first.name == second.name
        wait = operations_pb2.WaitOperationRequest(name=first.name)
        wait.timeout.FromSeconds(20)
        done = await operations.WaitOperation(wait, timeout=25)
        assert done.done
        result = flow_pb2.FlowOperationResult()
        assert done.response.Unpack(result)
        assert (result.deployment, result.flow) == (1, "flows/orders-3")
        again = await flows.StartFlow(request)
        assert (again.name, again.done) == (first.name, True)
        assert len(await client.list_deployments("orders-3")) == 1
        page = await operations.ListOperations(operations_pb2.ListOperationsRequest(name="operations", page_size=1))
        assert len(page.operations) == 1
        assert page.next_page_token
        await operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=first.name))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await operations.GetOperation(operations_pb2.GetOperationRequest(name=first.name))
        assert refusal.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_start_that_is_cancelled_is_undone(rig: OrchestratorRig, channel: grpc.aio.Channel) -> None:
    rig.agent.hold.add("order")
    operations = operations_pb2_grpc.OperationsStub(channel)
    async with rig.client() as client:
        await published(rig, client, "orders-4", chain("order"))
        begun = await client.begin_start("orders-4")
        await eventually(lambda: len(rig.agent.sidecars) == 1)

        async def progress() -> bool:
            metadata = flow_pb2.FlowOperationMetadata()
            found = await operations.GetOperation(operations_pb2.GetOperationRequest(name=begun.name))
            return bool(found.metadata.Unpack(metadata)) and metadata.steps.get("order") == "init"

        await eventually(progress)
        await operations.CancelOperation(operations_pb2.CancelOperationRequest(name=begun.name))
        wait = operations_pb2.WaitOperationRequest(name=begun.name)
        done = await operations.WaitOperation(wait, timeout=10)
        assert done.error.code == grpc.StatusCode.CANCELLED.value[0]
        await eventually(lambda: not rig.agent.sidecars)


async def test_a_watch_shows_each_change_and_ends_with_the_server(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-5", chain("order"))
        seen: list[str] = []

        async def watch() -> None:
            async with contextlib.aclosing(client.watch_status("orders-5")) as statuses:
                async for status in statuses:
                    seen.append(flow_pb2.FlowState.Name(status.state))

        watching = asyncio.create_task(watch())
        await eventually(lambda: seen == ["FLOW_STATE_STOPPED"])
        await client.start("orders-5")
        await eventually(lambda: seen[-1] == "FLOW_STATE_RUNNING", within_s=2)
        await client.stop("orders-5")
        await eventually(lambda: seen[-1] == "FLOW_STATE_STOPPED", within_s=2)
        await rig.registry.kill()
        async with open_channel(rig.address) as channel:
            stub = registry_pb2_grpc.RegistryServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.ListComponents(registry_pb2.ListComponentsRequest(), timeout=1)
            assert refusal.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        began = time.monotonic()
        await rig.process.end(5.0)
        assert time.monotonic() - began < 3
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_logs_come_back_last_lines_first_then_as_they_are_written(rig: OrchestratorRig) -> None:
    async def write(number: int, step: str = "price") -> None:
        line = flow_pb2.LogLine(flow="orders-6", step=step, message=f"line {number}", level="info")
        subject = subjects.log_subject("default", "orders-6", step)
        await rig.connection.jetstream().publish(subject, line.SerializeToString())

    async with rig.client() as client:
        await published(rig, client, "orders-6", chain("order"))
        assert [line async for line in client.tail_logs("orders-6")] == []
        for number in range(30):
            await write(number, "price" if number % 2 else "check")
        tail = [line.message async for line in client.tail_logs("orders-6", lines=3)]
        assert tail == ["line 27", "line 28", "line 29"]
        assert [line.message async for line in client.tail_logs("orders-6", step="check", lines=1)] == ["line 28"]
        seen: list[str] = []

        async def follow() -> None:
            async with contextlib.aclosing(client.tail_logs("orders-6", lines=1, follow=True)) as lines:
                async for line in lines:
                    seen.append(line.message)

        following = asyncio.create_task(follow())
        await eventually(lambda: seen == ["line 29"])
        await write(30)
        await eventually(lambda: seen == ["line 29", "line 30"])
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_hops_of_all_instances_are_merged(rig: OrchestratorRig) -> None:
    def snapshot(instance: str, deployment: int, *samples: int) -> bytes:
        histogram = Histogram()
        for sample in samples:
            histogram.record(sample)
        item = hop_pb2.PhaseHistogram(
            step="price",
            phase="component",
            count=histogram.count,
            sum_ns=histogram.sum_ns,
            max_ns=histogram.max_ns,
            buckets=histogram.sparse(),
        )
        return hop_pb2.HopSnapshot(instance=instance, deployment=deployment, histograms=[item]).SerializeToString()

    answers = {"a": snapshot("a", 1, 1000, 2000), "b": snapshot("b", 1, 3000, 10_000_000), "old": snapshot("old", 9, 5)}

    def answering(raw: bytes) -> Any:
        async def answer(message: Any) -> None:
            await message.respond(raw)

        return answer

    async with rig.client() as client:
        await published(rig, client, "orders-7", chain("order"))
        assert list((await client.hops("orders-7")).phases) == []
        for raw in answers.values():
            await rig.connection.subscribe(subjects.hop_request_subject("default", "orders-7"), cb=answering(raw))
        await rig.connection.flush()
        hops = await client.hops("orders-7", deployment=1)
    assert list(hops.instances) == ["a", "b"]
    (phase,) = hops.phases
    assert (phase.step, phase.phase, phase.count) == ("price", "component", 4)
    assert phase.max_us == pytest.approx(10_000)
    assert phase.mean_us == pytest.approx((1 + 2 + 3 + 10_000) / 4)
    assert phase.p50_us == pytest.approx(2, rel=0.05)


async def test_status_counts_what_waits_and_names_the_webhook(rig: OrchestratorRig) -> None:
    async def answer(message: Any) -> None:
        await message.respond(b"127.0.0.1:8080")

    await rig.connection.subscribe(subjects.gateway_presence_subject("default"), cb=answer)
    async with rig.client() as client:
        await published(rig, client, "orders-8", chain("order", "price"))
        await client.start("orders-8")
        status = await client.get_status("orders-8")
        assert status.webhook_url == "http://127.0.0.1:8080/hook/orders-8"
        assert (await client.server_info()).gateways == 1
        await rig.assets.pause_consumer("hr_default_orders-8", "d1_price", paused=True)
        for number in range(3):
            envelope = subjects.data_subject("default", "orders-8", "d1", "price")
            await rig.connection.jetstream().publish(envelope, str(number).encode())

        async def waiting() -> bool:
            seen = await client.get_status("orders-8")
            steps = {step.step: step.waiting + step.in_flight for step in seen.steps}
            return steps == {"order": 0, "price": 3} or bool(rig.agent.handled)

        await eventually(waiting)
        await rig.push(WORK)

        async def newer() -> bool:
            return (await client.get_status("orders-8")).steps[1].newer_revision > 0

        await eventually(newer)


async def test_messages_under_the_ingress_itself_are_an_alarm(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-9", chain("order"))
        await client.start("orders-9")
        config = await rig.stream_config("orders-9")
        bare = {key: value for key, value in config.items() if key != "subject_transform"}
        await rig.assets.ensure_stream(bare)
        await rig.connection.jetstream().publish(subjects.ingress_subject("default", "orders-9", "order"), b"{}")

        async def alarmed() -> bool:
            status = await client.get_status("orders-9")
            return any("under the ingress" in problem for problem in status.problems)

        await eventually(alarmed)
        log_file = rig.folder / "orchestrator.log"
        await eventually(lambda: "stored under the ingress" in log_file.read_text(), within_s=8)


async def test_many_flows_start_at_once(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "flow-0", chain("order", "price"))
        for number in range(1, 10):
            await client.create_flow(f"flow-{number}", flow_spec_to_proto(chain("order", "price")))
            await client.publish(f"flow-{number}")
        await asyncio.gather(*(_start(client, f"flow-{number}") for number in range(10)))
        assert len(rig.agent.sidecars) == 20
        await asyncio.gather(*(client.stop(f"flow-{number}") for number in range(10)))
        assert rig.agent.sidecars == {}


async def _start(client: AsyncClient, flow: str) -> None:
    assert (await client.start(flow)).deployment == 1
