"""Bad input and trouble, through a real mesh as a person meets it: refused in good time, saying which step, why
and what to type next; nothing half-made stays, and the corrected thing works."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
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
    odd.append(await flow.post(b"x" * (512 * 1024 + 1)))  # comes by reference, and is no JSON either
    assert [(answer.status, answer.json()["error"]["code"]) for answer in odd] == [
        (400, "BAD_INPUT"),
        (400, "MALFORMED_JSON"),
        (400, "BAD_INPUT"),
    ]
    flow.remove()
