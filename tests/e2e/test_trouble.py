"""Bad input and trouble, through a real mesh as a person meets it: refused in good time, saying which step, why
and what to type next; nothing half-made stays, and the corrected thing works."""

from __future__ import annotations

import asyncio
import os
import tarfile
import time
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import grpc
import pytest

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient, Client
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.errors import InvalidInput, NotFound
from tests.support.bundles import digest_of, file_entry, raw_bundle, special_entry
from tests.support.commands import ROOT, headrace
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.small_flow import HEAD, REPLIES, SmallFlow, replying

SOCKET_LIMIT_S = 3.0
# A component is imported once more before its push, to get its schemas: only the mesh gives it a socket.
IN_THE_MESH = HEAD + 'if "HEADRACE_COMPONENT_SOCKET" in os.environ:\n'
IN_INIT = HEAD + "@component.init\nasync def init(config: dict) -> None:\n    print('about to connect', flush=True)\n"


@pytest.fixture(scope="module")
def patient_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh that waits 3 s, not 20, for a component's socket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HEADRACE_COMPONENT_START_LIMIT_S", str(SOCKET_LIMIT_S))
        with start_mesh(tmp_path_factory.mktemp("trouble")) as mesh:
            yield mesh


@pytest.mark.parametrize(
    ("code", "cause", "logged"),
    [
        (IN_THE_MESH + "    import not_there\n" + REPLIES % 1, "No module named 'not_there'", "import not_there"),
        (IN_INIT + "    os._exit(0)\n" + REPLIES % 1, "ended (exit status 0) in init", "about to connect"),
        (IN_INIT + "    raise ValueError('no licence')\n" + REPLIES % 1, "ValueError: no licence", "about to connect"),
        (
            IN_THE_MESH + "    print('waiting', flush=True)\n    time.sleep(600)  # tidy: pace\n" + REPLIES % 1,
            f"did not open its socket within {SOCKET_LIMIT_S:g} s",
            "waiting",
        ),
    ],
    ids=["does-not-import", "exits-in-init", "raises-in-init", "opens-no-socket"],
)
async def test_a_component_that_cannot_start_fails_the_start_and_a_correction_works(
    patient_mesh: RunningMesh, tmp_path: Path, code: str, cause: str, logged: str
) -> None:
    flow = SmallFlow.write(patient_mesh, tmp_path, code)
    flow.publish()
    began = time.monotonic()
    done = flow.flow("start")
    assert time.monotonic() - began < SOCKET_LIMIT_S + 7
    assert (done.status, done.out) == (1, "")
    assert "Traceback (most" not in done.error.partition("\n  |")[0]
    first = next(line for line in done.error.splitlines() if line.startswith("headrace: "))
    assert f"start of '{flow.name}' failed: step 'act': " in first
    assert cause in first
    assert any(line.startswith("  | ") and logged in line for line in done.error.splitlines()), done.error
    assert done.error.splitlines()[-1] == f"  Correct it, push, and run: headrace flow start {flow.name}"
    await nothing_is_left(patient_mesh, flow.name)
    assert (await flow.post()).status == 503

    flow.push(replying("corrected"))
    flow.start()
    answer = await flow.post()
    assert (answer.status, answer.json()) == (200, {"said": "corrected"})
    flow.remove()


async def nothing_is_left(mesh: RunningMesh, flow: str) -> None:
    """The flow is stopped, without instances, consumers, pins or ingress."""
    async with grpc.aio.insecure_channel(mesh.endpoints.agent) as channel:
        listed = await agent_pb2_grpc.AgentServiceStub(channel).ListInstances(agent_pb2.ListInstancesRequest())
    assert [instance for instance in listed.instances if instance.spec.flow == flow] == []
    assert mesh.pids_of("component", flow, "act") == []
    broker = await connect_nats(mesh.endpoints.nats, "look")
    try:
        info = await broker.jetstream().stream_info(subjects.flow_stream("default", flow))
        assert info.state.consumer_count == info.state.messages == 0
        assert not any(".in." in subject for subject in info.config.subjects or [])
    finally:
        await close_nats(broker)
    async with AsyncClient(mesh.api) as client:
        assert (await client.get_status(flow)).state == flow_pb2.FLOW_STATE_STOPPED
        (revision,) = await client.list_revisions(flow)
        assert list(revision.pinned_by) == []


STEP_LINES = {
    "cycle": (
        "a: {component: webhook, function: receive, to: [b]}",
        "b: {component: webhook, function: pass, to: [c]}",
        "c: {component: webhook, function: pass, to: [b]}",
    ),
    "unreachable": (
        "a: {component: webhook, function: receive, to: [b]}",
        "b: {component: webhook}",
        "c: {component: webhook, to: [d]}",
        "d: {component: webhook, to: [c]}",
    ),
    "two-triggers": (
        "a: {component: webhook, function: receive, to: [c]}",
        "b: {component: webhook, function: receive, to: [c]}",
        "c: {component: webhook}",
    ),
    "unknown-step": ("a: {component: webhook, function: receive, to: [bb]}", "b: {component: webhook}"),
    "unknown-component": ("a: {component: webhok, function: receive}",),
    "unknown-revision": ("a: {component: webhook@99, function: receive}",),
    "unknown-function": ("a: {component: webhook, function: recieve}",),
    "action-first": ("a: {component: action-only}",),
}


@pytest.fixture(scope="module")
def stocked_mesh(patient_mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """Two components are pushed: the webhook, and one without a trigger."""
    only = tmp_path_factory.mktemp("only")
    (only / "component.yaml").write_text("name: action-only\nfunctions: {only: {kind: action}}\n")
    (only / "component.py").write_text(HEAD + "@component.action\ndef only(body: bytes) -> None: ...\n")
    for folder in (ROOT / "components" / "webhook", only):
        headrace("component", "push", folder, data=patient_mesh.data).ok()
    return patient_mesh


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("cycle", ["cycle", "b -> c -> b", "acyclic"]),
        ("unreachable", ["cycle", "c -> d -> c"]),
        ("two-triggers", ["'b'", "'a'", "one trigger"]),
        ("unknown-step", ["flow.yaml:4", "'bb' is not a step", "`b`"]),
        ("unknown-component", ["'webhok' cannot be resolved", "headrace component push FOLDER"]),
        ("unknown-revision", ["'webhook@99' cannot be resolved", "Tags: latest"]),
        ("unknown-function", ["'recieve' is not a function of 'webhook'", "receive"]),
        ("action-first", ["'only' is an action", "trigger"]),
    ],
)
def test_a_flow_that_cannot_be_is_refused_and_gets_no_version(
    stocked_mesh: RunningMesh, tmp_path: Path, case: str, words: list[str]
) -> None:
    name = f"wrong-{case}"
    steps = "\n".join(f"  {line}" for line in STEP_LINES[case])
    (tmp_path / "flow.yaml").write_text(f"name: {name}\ntype: realtime\nsteps:\n{steps}\n")
    done = headrace("flow", "apply", tmp_path / "flow.yaml", data=stocked_mesh.data)
    drafted = done.status == 0
    if drafted:
        done = headrace("flow", "publish", name, data=stocked_mesh.data)
    error = done.refused()
    assert [word for word in words if word not in error] == [], error
    with Client(stocked_mesh.api) as client:
        if drafted:
            assert client.list_versions(name) == []
            assert "publish" in headrace("flow", "start", name, data=stocked_mesh.data).refused()
            client.delete_flow(name)
        else:
            with pytest.raises(NotFound):
                client.get_flow(name)


def zeros(count: int) -> bytes:
    """A bundle that unpacks to so many MiB: one compressed mebibyte, over and over."""
    entry = tarfile.TarInfo("zeros")
    entry.size = count << 20
    manifest, body = file_entry("component.yaml", b"name: hostile\nfunctions: {hostile: {kind: action}}\n")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = packer.compress(manifest.tobuf() + body.ljust(512, b"\0") + entry.tobuf())
    head += packer.flush(zlib.Z_FULL_FLUSH)  # from here on nothing refers to what was before
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.compress(bytes(1024)) + packer.flush()
    return b"\x1f\x8b\x08" + bytes(7) + head + mebibyte * count + end + bytes(8)  # refused long before the checksum


MANIFEST = b"name: hostile\nfunctions: {hostile: {kind: action}}\n"
HOSTILE = {
    "dotdot": raw_bundle(file_entry("../escaped", b"x"), manifest=MANIFEST),
    "absolute": raw_bundle(file_entry("/tmp/escaped", b"x"), manifest=MANIFEST),
    "link": raw_bundle(special_entry("link", b"2", "../../etc/passwd"), manifest=MANIFEST),
}


@pytest.mark.parametrize("case", [*HOSTILE, "wrong-digest", "two-gigabytes-of-zeros"])
async def test_a_hostile_bundle_is_refused_through_the_api_and_leaves_nothing(
    patient_mesh: RunningMesh, tmp_path: Path, case: str
) -> None:
    if case == "two-gigabytes-of-zeros":
        bundle = zeros(2048)
        digest = "sha256:" + sha256(b"never looked at").hexdigest()
    else:
        bundle = HOSTILE.get(case) or raw_bundle(manifest=MANIFEST)
        digest = digest_of(raw_bundle(file_entry("other", b"x"))) if case == "wrong-digest" else digest_of(bundle)
    (tmp_path / "bundle").write_bytes(bundle)
    async with AsyncClient(patient_mesh.api) as client:
        began = time.monotonic()
        with pytest.raises(InvalidInput) as refused:
            await client.push_bundle(tmp_path / "bundle", component="hostile", digest=digest)
        assert time.monotonic() - began < 10
        assert refused.value.violations
        with pytest.raises(NotFound):
            await client.get_component("hostile")


FAILING = (
    HEAD
    + """
@component.action
async def act(order: dict, ctx: Context) -> None:
    match order["do"]:
        case "refuse":
            raise ComponentError("NO_STOCK", "nothing left", status=409)
        case "raise":
            raise RuntimeError("a bug")
        case "die":
            os._exit(9)
        case "hang":
            await asyncio.sleep(60)  # tidy: pace
    await ctx.reply({"done": order["n"]})
"""
)


async def test_an_order_that_fails_is_answered_to_its_caller_and_to_no_other(
    patient_mesh: RunningMesh, tmp_path: Path
) -> None:
    flow = SmallFlow.write(patient_mesh, tmp_path, FAILING, act="timeout: 1s, retry: {attempts: 2, backoff: 10ms}")
    flow.run()

    async def order(do: str, number: int) -> tuple[int, object]:
        answer = await flow.post(b'{"do": "%b", "n": %d}' % (do.encode(), number))
        assert "headrace-execution" in answer.headers
        said = answer.json()
        return answer.status, said["error"]["code"] if "error" in said else said["done"]

    wrong = {"refuse": (409, "NO_STOCK"), "raise": (500, "COMPONENT_ERROR"), "hang": (504, "TIMEOUT")}
    wrong["die"] = (502, "COMPONENT_DIED")
    kinds = [*wrong, *["well"] * 40]
    answers = await asyncio.gather(*(order(do, number) for number, do in enumerate(kinds)))
    expected = [wrong.get(do, (200, number)) for number, do in enumerate(kinds)]
    assert answers == expected
    odd = [await flow.post(b"[1]"), await flow.post(b"{nonsense", content_type="application/json")]
    odd.append(await flow.post(b"x" * (512 * 1024 + 1)))
    assert [(answer.status, answer.json()["error"]["code"]) for answer in odd] == [
        (400, "BAD_INPUT"),
        (400, "MALFORMED_JSON"),
        (413, "BODY_TOO_LARGE"),
    ]
    flow.remove()
