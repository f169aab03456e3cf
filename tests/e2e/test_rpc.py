"""`headrace rpc` beside the real grpcurl, on one mesh: the same text, the same exit status, without Go."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.cli.rpc_describe import Describer
from headrace.cli.rpc_server import RpcServer
from headrace.cli.skeleton import write_component
from headrace.client import Client
from tests.support.commands import headrace
from tests.support.mesh import RunningMesh

FLOWS = "headrace.api.flow.v1.FlowService"
REGISTRY = "headrace.api.registry.v1.RegistryService"

pytestmark = pytest.mark.needs("grpcurl")


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    error: str


@dataclass(frozen=True)
class Both:
    """The two, against one address."""

    grpcurl: str
    address: str

    def ours(self, *words: str, stdin: str = "") -> Said:
        """In this process: what a process of its own would say, without its start."""
        out, error, before = io.StringIO(), io.StringIO(), sys.stdin
        sys.stdin = io.StringIO(stdin)
        try:
            with redirect_stdout(out), redirect_stderr(error):
                status = main.run(["rpc", *words, "--address", self.address])
        finally:
            sys.stdin = before
        return Said(status, out.getvalue(), error.getvalue())

    def theirs(self, *words: str, options: tuple[str, ...] = (), stdin: str = "") -> Said:
        command = [self.grpcurl, "-plaintext", *options, self.address, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, input=stdin)
        return Said(done.returncode, done.stdout, done.stderr)

    def same(self, method: str, request: object, ours: tuple[str, ...] = (), theirs: tuple[str, ...] = ()) -> Said:
        """Calls with both; asserts that they say the same, and answers it."""
        text = json.dumps(request)
        expected = self.theirs(method, options=("-d", text, *theirs))
        found = self.ours(method, text, *ours)
        assert found.out == expected.out
        assert found.error.rstrip("\n") == expected.error.rstrip("\n")
        assert found.status == expected.status
        return found


@pytest.fixture(scope="module")
def both(module_mesh: RunningMesh, grpcurl: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A flow `price` runs, was called once, and wrote a line with signs that JSON escapes."""
    folder = tmp_path_factory.mktemp("rpc") / "price"
    write_component(folder)
    with Client(module_mesh.api) as client:
        client.run(folder)
        client.inject("price", b'{"name": "<Ada & \\u2028 J\\u00f6rg>"}')
        for line in client.tail_logs("price", follow=True):
            if line.message == "greeting":
                break
    return Both(grpcurl, module_mesh.api)


def test_what_there_is(both: Both) -> None:
    assert both.ours("list") == both.theirs("list")
    services = both.ours("list").out.split()
    for service in services:
        assert both.ours("list", service) == both.theirs("list", service)
    assert both.ours("list", "no.such").status == both.theirs("list", "no.such").status == 1
    assert "Symbol not found: no.such" in both.ours("describe", "no.such").error


def test_every_symbol_of_the_flow_api_is_described_in_the_same_words(both: Both) -> None:
    with RpcServer(both.address) as server:
        file = server._database.FindFileContainingSymbol(FLOWS)
        symbols = Describer(file).symbols()
        found = {symbol: server.describe(symbol) + "\n" for symbol in symbols}
    assert len(symbols) > 100
    assert found == {symbol: both.theirs("describe", symbol).out for symbol in symbols}


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (f"{FLOWS}/GetFlow", {"name": "flows/price"}),
        (f"{FLOWS}/ListVersions", {"parent": "flows/price"}),
        (f"{FLOWS}/ListDeployments", {"parent": "flows/price"}),
        (f"{FLOWS}/GetVersion", {"name": "flows/price/versions/1"}),
        (f"{FLOWS}/ListHistory", {"parent": "flows/price"}),
        (f"{FLOWS}/GetServerInfo", {}),
        (f"{REGISTRY}/GetRevision", {"name": "components/price/revisions/1"}),
        ("headrace.api.hop.v1.HopService/GetHops", {"flow": "flows/price"}),
        ("google.longrunning.Operations/ListOperations", {"name": "operations"}),
        ("grpc.health.v1.Health/Check", {"service": FLOWS}),
    ],
)
def test_unary(both: Both, method: str, request_: object) -> None:
    assert both.same(method, request_).out.startswith("{\n")


def test_fields_that_have_their_default(both: Both) -> None:
    for method, request in (("GetFlow", {"name": "flows/price"}), ("GetVersion", {"name": "flows/price/versions/1"})):
        both.same(f"{FLOWS}/{method}", request, ("--emit-defaults",), ("-emit-defaults",))


def test_a_server_stream(both: Both) -> None:
    said = both.same(f"{FLOWS}/TailLogs", {"name": "flows/price", "lines": 5})
    assert "\\u003cAda \\u0026" in said.out
    assert "Jörg" in said.out
    request = json.dumps({"name": "flows/price"})
    watched = both.ours(f"{FLOWS}/WatchFlowStatus", request, "--max-time", "0.7")
    expected = both.theirs(f"{FLOWS}/WatchFlowStatus", options=("-d", request, "-max-time", "0.7"))
    assert watched.status == expected.status == 64 + 4
    assert watched.error.splitlines()[:2] == expected.error.splitlines()[:2] == ["ERROR:", "  Code: DeadlineExceeded"]
    assert list(json.JSONDecoder().raw_decode(watched.out)[0]["status"]) == list(
        json.JSONDecoder().raw_decode(expected.out)[0]["status"]
    )


@pytest.mark.parametrize(
    ("method", "request_", "status"),
    [
        (f"{FLOWS}/GetFlow", {"name": "flows/none"}, 69),
        (f"{FLOWS}/CreateFlow", {"flow_id": "Bad Name"}, 67),
        (f"{FLOWS}/PublishFlow", {"name": "flows/price"}, 73),
        (f"{FLOWS}/CreateFlow", {"flow_id": "two", "spec": {"steps": [{"name": "a"}, {"name": "a"}]}}, 67),
        (f"{REGISTRY}/DeleteRevision", {"name": "components/price/revisions/1"}, 73),
    ],
)
def test_errors_with_their_details(both: Both, method: str, request_: object, status: int) -> None:
    said = both.same(method, request_)
    assert said.status == status
    assert "google.rpc.ErrorInfo" in said.error
    assert both.same(method, request_, ("--json",), ("-format-error",)).status == status


def test_a_client_stream_and_standard_input(both: Both) -> None:
    messages = '{"header": {"component": "price"}}\n{"chunk": "AAAA"}'
    found = both.ours(f"{REGISTRY}/PushRevision", "@", stdin=messages)
    expected = both.theirs(f"{REGISTRY}/PushRevision", options=("-d", "@"), stdin=messages)
    assert found.status == expected.status == 67
    assert found.error.rstrip() == expected.error.rstrip()


def test_names_may_be_short_where_they_are_unique(both: Both) -> None:
    request = json.dumps({"name": "flows/price"})
    assert both.ours("GetFlow", request) == both.ours("FlowService/GetFlow", request)
    assert both.ours("GetFlow", request).status == 0
    assert "does not include a method named" in both.ours(f"{FLOWS}/NoSuch").error
    assert "does not expose service" in both.ours("no.Such/Method").error


def test_a_request_that_does_not_fit_is_refused_before_the_call(both: Both) -> None:
    for request in ('{"nam": "x"}', '{"name": 7}', '{"name": ', "[]", '{"name": "a"} {"name": "b"}'):
        said = both.ours("GetFlow", request)
        assert said.status == both.theirs(f"{FLOWS}/GetFlow", options=("-d", request)).status == 1
        assert said.error.startswith("headrace: ")
        assert "Traceback" not in said.error


def test_as_a_command_with_nobody_there(tmp_path: Path) -> None:
    assert "headrace up" in headrace("rpc", "list", "--address", "127.0.0.1:1").refused(3)
    assert headrace("rpc", "GetFlow", "--header", "nocolon", "--address", "127.0.0.1:1").refused(2)
