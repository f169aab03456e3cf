"""What operators see of one real mesh: metrics, a real Prometheus over them, health, probes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import headrace.edge.grpc_environment
from headrace.client import AsyncClient
from headrace.edge.broker_process import free_port
from headrace.edge.data_directory import locate
from headrace.edge.grpc_server import GrpcServer
from headrace.model.errors import InvalidInput
from headrace.model.metric_table import METRICS
from tests.support.commands import headrace
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.prometheus import run_prometheus
from tests.support.small_flow import HEAD, SmallFlow
from tests.unit.test_deploy import ALERTS
from tools import grafana_dashboards

CODE = (
    HEAD
    + """
@component.action
async def act(order: dict, ctx: Context) -> None:
    if order.get("crash"):
        os._exit(3)
    if order.get("bad"):
        raise ComponentError("BAD", "it is bad", retryable=False)
    await ctx.reply({"said": order.get("n")})
"""
)
OPEN_METRICS = {"accept": "application/openmetrics-text;version=1.0.0"}
# What a healthy mesh with one flow that works need not tell: nothing of the kind has happened.
SILENT = {"headrace_hop_clock_skew_total", "headrace_metrics_overflowed_total"}

Samples = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    with start_mesh(folder, "fast", ack_wait_s=2.0) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def flow(running: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> SmallFlow:
    made = SmallFlow.write(running, tmp_path_factory.mktemp("flow"), CODE, head="reply_timeout: 10s")
    made.run()
    return made


@pytest.fixture
async def health(running: RunningMesh) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(running.api) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def samples(mesh: RunningMesh) -> Samples:
    """Of all metrics by the samples' names."""
    answer = await fetch(mesh.endpoints.metrics[0], "GET", "/metrics", headers=OPEN_METRICS)
    assert answer.status == 200
    found: Samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    """The sum over what has these labels; AssertionError where there is none."""
    fitting = [number for with_labels, number in found.get(name, []) if labels.items() <= with_labels.items()]
    assert fitting, f"no {name} with {labels}"
    return sum(fitting)


async def metric(mesh: RunningMesh, name: str, **labels: str) -> float:
    return value(await samples(mesh), name, **labels)


async def test_metrics_are_what_happened(running: RunningMesh, flow: SmallFlow) -> None:
    for number in range(20):
        assert (await flow.post(b'{"n": %d}' % number)).status == 200
    assert (await flow.post(b'{"bad": true}')).status == 500
    assert (await flow.post(b"{]", content_type="application/json")).status == 400
    assert (await fetch(running.gateway, "POST", "/hook/nobody")).status == 404
    name = flow.name

    async def everything_is_counted() -> Samples:
        found = await samples(running)
        assert value(found, "headrace_step_messages_total", flow=name, step="act", outcome="processed") == 20
        assert value(found, "headrace_step_messages_total", flow=name, step="act", outcome="dead_lettered") == 1
        return found

    found = await eventually(everything_is_counted)
    requests = "headrace_gateway_requests_total"
    assert value(found, requests, flow=name, status="2xx", reason="replied") == 20
    assert value(found, requests, flow=name, status="4xx", reason="MALFORMED_JSON") == 1
    assert value(found, requests, flow="", status="4xx", reason="UNKNOWN_FLOW") == 1
    assert not any("nobody" in str(labels) for rows in found.values() for labels, _ in rows), "a caller's text"
    hops = "headrace_hop_phase_duration_seconds_count"
    assert value(found, hops, flow=name, step="act", phase="component") == 21
    assert value(found, hops, flow=name, step="act", phase="hop", receiver="gateway") >= 20
    assert value(found, "headrace_step_waiting_messages", flow=name) == 0
    assert value(found, "headrace_step_dead_letters_total", flow=name, step="act", reason="component") == 1
    assert value(found, "headrace_flow_dead_letters_kept", flow=name) == 1
    assert value(found, "headrace_flow_dead_letters_total", flow=name) == 1
    assert value(found, "headrace_flow_dead_letters_pushed_out", flow=name) == 0
    assert value(found, "headrace_flow_state", flow=name, state="RUNNING") == 1
    assert value(found, "headrace_flow_serving", flow=name) == 1
    assert value(found, "headrace_step_instances", flow=name, step="act", state="RUNNING") == 1
    assert value(found, "headrace_metrics_processes") == 3  # two sidecars, a gateway
    told = {metric.name for metric in METRICS if set(metric.sample_names()) & set(found)}
    assert {metric.name for metric in METRICS} - told <= SILENT


async def test_a_hop_has_an_exemplar_that_can_be_looked_at(running: RunningMesh, flow: SmallFlow) -> None:
    sent: set[str] = set()

    async def execution_of_an_exemplar() -> bool:
        sent.add((await flow.post(b'{"n": 1}')).headers["headrace-execution"])
        text = (await fetch(running.endpoints.metrics[0], "GET", "/metrics", headers=OPEN_METRICS)).body.decode()
        shown = re.findall(r'phase="hop".* # \{.*execution_id="(\w+)"', text)
        return bool(sent & set(shown))

    await eventually(execution_of_an_exemplar)


async def test_what_waits_is_told_with_its_age(running: RunningMesh, flow: SmallFlow) -> None:
    async with AsyncClient(running.api) as client:
        await client.suspend(flow.name)
        try:
            for number in range(5):
                await client.inject(flow.name, b'{"n": %d}' % number)

            async def they_wait() -> bool:
                found = await samples(running)
                assert value(found, "headrace_step_waiting_messages", flow=flow.name, step="receive") == 5
                assert value(found, "headrace_flow_stored_messages", flow=flow.name) == 5
                assert value(found, "headrace_flow_state", flow=flow.name, state="SUSPENDED") == 1
                return value(found, "headrace_step_oldest_message_age_seconds", flow=flow.name, step="receive") > 0.2

            await eventually(they_wait)
        finally:
            await client.resume(flow.name)

    async def nothing_waits() -> bool:
        found = await samples(running)
        ages = value(found, "headrace_step_oldest_message_age_seconds", flow=flow.name)
        return ages == 0 and value(found, "headrace_step_waiting_messages", flow=flow.name) == 0

    await eventually(nothing_waits)


async def test_totals_survive_the_processes_that_count(running: RunningMesh, flow: SmallFlow) -> None:
    done = {"flow": flow.name, "step": "act", "outcome": "processed"}
    before = await metric(running, "headrace_step_messages_total", **done)
    assert before > 0
    running.kill("sidecar", flow.name, "act")

    async def answers_again() -> bool:
        return (await flow.post(b'{"n": 1}')).status == 200

    await eventually(answers_again, within_s=20)

    async def counted() -> bool:
        now = await metric(running, "headrace_step_messages_total", **done)
        assert now >= before, "a counter fell"
        return now > before

    await eventually(counted)
    restarts = {"flow": flow.name, "step": "act", "part": "sidecar"}
    assert await eventually(lambda: metric(running, "headrace_step_restarts_total", **restarts)) >= 1


async def test_health_of_a_flow_follows_it(running: RunningMesh, flow: SmallFlow, health: Any) -> None:
    states = health_pb2.HealthCheckResponse.ServingStatus
    name = f"flows/{flow.name}"
    seen: list[str] = []

    async def watch() -> None:
        async for answer in health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30):
            seen.append(states.Name(answer.status))

    async def check(service: str) -> str:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return str(states.Name(answer.status))

    watching = asyncio.create_task(watch())
    try:
        await eventually(lambda: seen == ["SERVING"])
        async with AsyncClient(running.api) as client:
            await client.suspend(flow.name)
            assert await check(name) == "NOT_SERVING"
            await eventually(lambda: seen[1:] == ["NOT_SERVING"])
            assert headrace("health", flow.name, data=running.data).status == 1
            await client.resume(flow.name)
        assert headrace("health", flow.name, "--wait", "10", data=running.data).status == 0
        await eventually(lambda: seen[2:] == ["SERVING"])
    finally:
        watching.cancel()
    assert await check("") == "SERVING"
    assert await check("headrace.api.flow.v1.FlowService") == "SERVING"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await check("flows/nobody")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="flows/nobody"), timeout=5)
    assert states.Name((await unknown.read()).status) == "SERVICE_UNKNOWN"
    unknown.cancel()


async def test_a_component_tells_its_health_on_its_own_socket(running: RunningMesh, flow: SmallFlow) -> None:
    (socket, *_) = locate(running.data).run.glob("*.c*.sock")
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "headrace.api.component.v1.ComponentService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_probes_answer_and_nothing_else_does(running: RunningMesh) -> None:
    port, gateway = running.endpoints.metrics[0], running.gateway
    for address in (port, gateway):
        for path in ("/healthz", "/readyz"):
            assert (await fetch(address, "GET", path)).status == 200
    assert (await fetch(port, "GET", "/secret")).status == 404
    assert (await fetch(port, "POST", "/metrics")).status == 405


async def test_status_is_one_screen_and_names_what_is_wrong(running: RunningMesh, flow: SmallFlow) -> None:
    facts = json.loads(headrace("status", "--json", data=running.data).out)
    (shown,) = facts["flows"]
    assert (shown["flow"], shown["state"], shown["health"]) == (flow.name, "RUNNING", "SERVING")
    assert shown["processed"] > 0
    assert facts["broker"]["up"]
    assert int(facts["broker"]["servers"][0]["disk_size_bytes"]) > 0
    async with AsyncClient(running.api) as client:
        await client.suspend(flow.name)
        await client.inject(flow.name, b"{}")

        async def told() -> str:
            text = headrace("status", data=running.data).out
            assert re.search(rf"{flow.name} +SUSPENDED +NOT_SERVING +1 +\d+ +1 +0 +\d", text), text
            return text

        text = await eventually(told)
        await client.resume(flow.name)
    assert "leader: orchestrator at" in text
    assert "of the disk free" in text
    assert f"http://{running.endpoints.metrics[0]}/metrics" in text
    assert len(text.splitlines()) <= 24


async def test_every_process_can_have_a_metrics_port_and_channelz(running: RunningMesh, tmp_path: Path) -> None:
    """A second registry and gateway beside those of the mesh: as on a cluster, each with ports of its own."""
    ports = [free_port() for _ in range(3)]
    registry = ["--metrics", f"127.0.0.1:{ports[0]}", "--admin", f"127.0.0.1:{ports[1]}"]
    gateway = ["--metrics", f"127.0.0.1:{ports[2]}"]
    with (
        service("services.registry", running.endpoints.nats, *registry),
        service("services.gateway", running.endpoints.nats, *gateway),
    ):
        for port in (ports[0], ports[2]):
            await eventually(lambda port=port: answers(f"127.0.0.1:{port}", "/readyz"))
        own = await fetch(f"127.0.0.1:{ports[2]}", "GET", "/metrics", headers=OPEN_METRICS)
        assert b"headrace_gateway_requests_in_work" in own.body
        assert b"process_resident_memory_bytes" in own.body
        assert b"headrace_flow_state" not in own.body, "that is the leader's to tell"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
            stub: Any = channelz_pb2_grpc.ChannelzStub(channel)
            servers = await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=5)
            assert len(servers.server) == 2  # its API, and this port itself
    with pytest.raises(InvalidInput, match="loopback"):
        await GrpcServer().serve_admin("0.0.0.0:0")


async def answers(address: str, path: str) -> bool:
    with contextlib.suppress(OSError):
        return (await fetch(address, "GET", path)).status == 200
    return False


@contextlib.contextmanager
def service(module: str, nats: str, *options: str) -> Iterator[None]:
    command = [sys.executable, "-m", module, "--nats", nats, *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.needs("prometheus")
async def test_a_real_prometheus_finds_every_expression_and_no_alarm(
    running: RunningMesh, flow: SmallFlow, tmp_path: Path
) -> None:
    with run_prometheus(tmp_path, running.endpoints.metrics[0]) as prometheus:
        await eventually(lambda: prometheus.scrapes() >= 1, within_s=20)
        for number in range(20):
            await flow.post(b'{"n": %d}' % number)
        await eventually(lambda: prometheus.scrapes() >= 3, within_s=20)
        for expression in grafana_dashboards.expressions():
            empty = any(name in expression for name in SILENT)
            assert bool(prometheus.query(expression)) != empty, expression
        for rule in ALERTS.values():
            prometheus.query(rule["expr"])
        firing = prometheus.query('ALERTS{alertname!="HeadraceDeadLetters"}')
        assert not firing, "a healthy mesh is in alarm"
        rules = prometheus.get("rules")["groups"]
        assert [item["lastError"] for group in rules for item in group["rules"] if item["health"] != "ok"] == []
        rate = f'sum(increase(headrace_gateway_requests_total{{flow="{flow.name}"}}[1m]))'
        assert float(prometheus.query(rate)[0]["value"][1]) > 0
        exemplars = prometheus.get(
            "query_exemplars", query="headrace_hop_phase_duration_seconds_bucket", start="0", end="9999999999"
        )
        assert exemplars, "no exemplars were stored"
