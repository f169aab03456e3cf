"""The product operated with the real grpcurl alone, as an operator without our code would."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

ROOT = Path(__file__).resolve().parents[2]
FLOWS = "headrace.api.flow.v1.FlowService"

pytestmark = pytest.mark.needs("grpcurl")


class Grpcurl:
    """Runs the real tool against one address."""

    def __init__(self, path: str, address: str) -> None:
        self._path = path
        self._address = address

    def run(self, *arguments: str, data: object = None) -> subprocess.CompletedProcess[str]:
        options = ["-plaintext", "-max-time", "20"]
        if data is not None:
            options += ["-d", json.dumps(data)]
        method = [arguments[-1]] if arguments else []
        command = [self._path, *options, *arguments[:-1], self._address, *method]
        return subprocess.run(command, capture_output=True, text=True, timeout=40)

    def call(self, method: str, data: object) -> Any:
        finished = self.run(method, data=data)
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)


@pytest.fixture
def tool(grpcurl: str, module_mesh: RunningMesh) -> Grpcurl:
    return Grpcurl(grpcurl, module_mesh.api)


def instance_socket(grpcurl: str, mesh: RunningMesh) -> str:
    """The target of some sidecar, as the agent tells it."""
    listed = Grpcurl(grpcurl, mesh.endpoints.agent).call("headrace.api.agent.v1.AgentService/ListInstances", {})
    return str(listed["instances"][0]["address"]).replace("unix:", "unix://")


def test_lists_and_describes_every_service(tool: Grpcurl) -> None:
    listed = tool.run("list").stdout.split()
    assert {
        FLOWS,
        "headrace.api.hop.v1.HopService",
        "headrace.api.registry.v1.RegistryService",
        "google.longrunning.Operations",
        "grpc.health.v1.Health",
    } <= set(listed)
    for service in listed:
        described = subprocess.run(
            [tool._path, "-plaintext", tool._address, "describe", service], capture_output=True, text=True, timeout=20
        )
        assert described.returncode == 0, described.stderr
        if service.startswith("headrace."):
            assert "// " in described.stdout, f"{service} is described without its comments"
    assert tool.call("grpc.health.v1.Health/Check", {"service": FLOWS}) == {"status": "SERVING"}


def test_every_service_tells_what_it_is_and_whether_it_serves(grpcurl: str, module_mesh: RunningMesh) -> None:
    ends = module_mesh.endpoints
    addresses = {"registry.v1.RegistryService": ends.registry, "agent.v1.AgentService": ends.agent}
    for name, address in addresses.items():
        service = f"headrace.api.{name}"
        listed = Grpcurl(grpcurl, address).run("list").stdout.split()
        assert {service, "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} <= {*listed}
        health = Grpcurl(grpcurl, address).call("grpc.health.v1.Health/Check", {"service": service})
        assert health == {"status": "SERVING"}


async def test_starts_and_stops_a_flow(tool: Grpcurl, grpcurl: str, module_mesh: RunningMesh) -> None:
    async with AsyncClient(module_mesh.api) as client:
        await client.push_component(ROOT / "benchmarks" / "components" / "opaque")
    steps = [
        {"name": "start", "component": "bench-opaque", "function": "start", "to": ["answer"]},
        {"name": "answer", "component": "bench-opaque@1", "function": "answer"},
    ]
    spec = {"type": "FLOW_TYPE_REALTIME", "steps": steps, "reply_timeout": "5s"}
    created = tool.call(f"{FLOWS}/CreateFlow", {"flow_id": "by-hand", "spec": spec})
    assert created["name"] == "flows/by-hand"
    tool.call(f"{FLOWS}/PublishFlow", {"name": "flows/by-hand"})
    operation = tool.call(f"{FLOWS}/StartFlow", {"name": "flows/by-hand"})
    done = tool.call("google.longrunning.Operations/WaitOperation", {"name": operation["name"], "timeout": "20s"})
    assert done["done"] is True
    assert done["response"]["message"] == "version 1 runs as deployment 1"

    injected = tool.call(f"{FLOWS}/InjectMessage", {"name": "flows/by-hand", "body": "e30=", "request_id": "one"})
    again = tool.call(f"{FLOWS}/InjectMessage", {"name": "flows/by-hand", "body": "e30=", "request_id": "one"})
    assert again == {**injected, "duplicate": True}
    lot = {"name": "flows/by-hand", "messages": [{"body": "e30=", "request_id": "one"}, {"body": "ew=="}]}
    known, refused = tool.call(f"{FLOWS}/InjectMessages", lot)["outcomes"]
    assert known == {**injected, "duplicate": True}
    assert refused["refusal"]["reason"] == "MALFORMED_JSON"

    async def processed() -> bool:
        status = tool.call(f"{FLOWS}/GetFlowStatus", {"name": "flows/by-hand"})
        assert status["state"] == "FLOW_STATE_RUNNING"
        return [step["instances"][0]["counters"]["processed"] for step in status["steps"]] == ["1", "1"]

    await eventually(processed)
    hops = tool.call("headrace.api.hop.v1.HopService/GetHops", {"flow": "flows/by-hand"})
    assert {"queue", "sidecar-in", "component", "sidecar-out", "publish"} <= {row["phase"] for row in hops["phases"]}
    socket = instance_socket(grpcurl, module_mesh)
    assert Grpcurl(grpcurl, socket).call("grpc.health.v1.Health/Check", {}) == {"status": "SERVING"}
    asked = Grpcurl(grpcurl, socket).run("headrace.api.sidecar.v1.LifecycleService/GetStatus")
    assert json.loads(asked.stdout)["status"]["progress"] == "PROGRESS_ACTIVE", asked.stderr
    operation = tool.call(f"{FLOWS}/StopFlow", {"name": "flows/by-hand"})
    done = tool.call("google.longrunning.Operations/WaitOperation", {"name": operation["name"], "timeout": "20s"})
    assert "response" in done


@pytest.mark.parametrize(
    ("method", "request_", "code", "says"),
    [
        (f"{FLOWS}/GetFlow", {"name": "flows/none"}, "NotFound", "there is no flow 'none'"),
        (f"{FLOWS}/StartFlow", {"name": "none"}, "InvalidArgument", "Use flows/{flow}"),
        (f"{FLOWS}/CreateFlow", {"flow_id": "Bad Name"}, "InvalidArgument", "flow_id"),
        ("headrace.api.registry.v1.RegistryService/GetComponent", {"name": "components/none"}, "NotFound", "none"),
    ],
)
def test_errors_say_what_to_do_next(tool: Grpcurl, method: str, request_: object, code: str, says: str) -> None:
    finished = tool.run(method, data=request_)
    assert finished.returncode != 0
    assert f"Code: {code}" in finished.stderr
    assert says in finished.stderr
    assert "google.rpc.ErrorInfo" in finished.stderr
    assert "Traceback" not in finished.stderr
