"""An error step on a real mesh: what it gets, who is answered, what becomes of its own failures, kills in between."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer, fetch
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.small_mesh_flow import letters, run_flow

FAILING = ROOT / "tests" / "support" / "components" / "failing"
WEBHOOK = ROOT / "components" / "webhook"
JSON = "application/json"
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningMesh, Path]]:
    """A mesh, and the folder in which faults are asked for."""
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "faults").mkdir()
    with start_mesh(folder, ack_wait_s=2.0, HEADRACE_FAULTS=f"@{folder / 'faults'}") as mesh:
        yield mesh, folder / "faults"


def flow_text(name: str, out: Path, work: str = "", handler: str = "", head: str = "on_error: {step: complain}") -> str:
    return f"""
name: {name}
reply_timeout: 10s
{head}
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [work]}}
  work: {{component: {FAILING}, function: work, retry: {{attempts: 2, backoff: 1ms}}{work}}}
  complain: {{component: {FAILING}, function: complain, config: {{path: {out}}}{handler}}}
"""


async def ask(mesh: RunningMesh, flow: str, body: Any, content_type: str = JSON, **headers: str) -> HttpAnswer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await fetch(mesh.gateway, "POST", f"/hook/{flow}", raw, {"content-type": content_type, **headers})


async def counted(client: AsyncClient, flow: str, step: str) -> Counter[str]:
    status = await client.get_status(flow)
    return Counter({k: v for s in status.steps if s.step == step for i in s.instances for k, v in i.counters.items()})


@pytest.mark.parametrize("key", ["", ", key: 'header:customer'"], ids=["plain", "keyed"])
async def test_the_error_step_gets_what_failed_and_the_caller_an_answer(
    world: tuple[RunningMesh, Path], tmp_path: Path, key: str
) -> None:
    mesh, _ = world
    out = tmp_path / "out"
    name = "handled-keyed" if key else "handled"
    handler = ", key: 'body:/input/customer'" if key else ""
    async with AsyncClient(mesh.api) as client:
        flow = await run_flow(client, tmp_path / "flow.yaml", flow_text(name, out, key, handler))
        told = {"code": "SOLD_OUT", "text": "no tea", "again": 1, "handler": "replies", "customer": "ann"}
        answer = await ask(mesh, flow, told, customer="ann")
        assert (answer.status, answer.json()) == (200, {"sorry": "SOLD_OUT"})
        [line] = read_lines(out)
        body = line["body"]
        pin = next(step.pin for step in (await client.get_status(flow)).steps if step.step == "work")
        assert body["error"] == {"code": "SOLD_OUT", "message": "no tea", "status": 500}
        assert (body["input"], body["step"], body["revision"]) == (told, "work", pin.digest)
        assert [(item["attempt"], item["code"]) for item in body["attempts"]] == [(1, "SOLD_OUT"), (2, "SOLD_OUT")]
        assert line["headers"]["customer"] == "ann"
        # One that says nothing leaves the caller the error that it got.
        silent = await ask(mesh, flow, {"code": "NO_MONEY", "status": 503})
        assert (silent.status, silent.json()["error"]["code"]) == (503, "NO_MONEY")
        # A caller's own mistake is the caller's answer, and nothing else.
        mistake = await ask(mesh, flow, {"code": "BAD_ORDER", "status": 422})
        assert (mistake.status, len(read_lines(out))) == (422, 2)
        # What is no JSON: text, or base64.
        assert (await ask(mesh, flow, b"plain words", "text/plain")).status == 500
        assert (await ask(mesh, flow, b"\xff\x00", "image/png", fail="ODD")).status == 500
        shown = [line["body"]["input"] for line in read_lines(out)[2:]]
        assert shown == ["plain words", {"base64": "/wA="}]
        assert not (await client.list_dead_letters(flow)).dead_letters
        # What does not fit is left out, and kept as a letter.
        large = json.dumps({"code": "TOO_BIG", "pad": "x" * (512 * 1024 - 200)}).encode()
        assert (await ask(mesh, flow, large)).status == 500
        last = read_lines(out)[-1]["body"]
        assert (last["input"], last["input_omitted"], last["input_size"]) == (None, True, len(large))
        [letter] = await eventually(lambda: letters(client, flow, 1))
        assert (letter.step, letter.reason, letter.body_size) == ("work", "TOO_BIG", len(large))
        # The error step's own failures are dead letters, and its caller hears of them.
        broken = await ask(mesh, flow, {"code": "SOLD_OUT", "handler": "fails"})
        assert (broken.status, broken.json()["error"]["code"]) == (500, "HANDLER_BROKEN")
        found = await eventually(lambda: letters(client, flow, 2))
        assert sorted((item.step, item.reason) for item in found) == [
            ("complain", "HANDLER_BROKEN"), ("work", "TOO_BIG"),
        ]  # fmt: skip

        async def all_counted() -> bool:
            counts = await counted(client, flow, "work")
            return (counts["handed_over"], counts["dead_lettered"], counts["rejected"]) == (5, 1, 1)

        await eventually(all_counted)
        execution = broken.json()["error"]["execution"]

        async def traced() -> bool:
            attempts = (await client.get_trace(execution, flow=flow)).attempts
            outcomes = {attempt.step: attempt.outcome for attempt in attempts}
            return outcomes == {"receive": "processed", "work": "handed_over", "complain": "dead_lettered"}

        await eventually(traced)


async def test_a_step_may_have_its_own_error_step_and_keep_the_letter(
    world: tuple[RunningMesh, Path], tmp_path: Path
) -> None:
    mesh, _ = world
    out = tmp_path / "out"
    async with AsyncClient(mesh.api) as client:
        work = ", on_error: {step: complain, dead_letter: true}"
        flow = await run_flow(client, tmp_path / "flow.yaml", flow_text("kept", out, work, head=""))
        await ask(mesh, flow, {"code": "SOLD_OUT"})
        [letter] = await eventually(lambda: letters(client, flow, 1))
        assert (letter.step, letter.reason, len(read_lines(out))) == ("work", "SOLD_OUT", 1)
        # A replay of it fails again, and is handed over again.
        await client.replay_dead_letters(flow, [1])
        await eventually(lambda: len(read_lines(out)) == 2)
        assert len({line["id"] for line in read_lines(out)}) == 2
        status = await client.get_status(flow)
        policy = next(step.policy for step in status.steps if step.step == "work")
        assert policy.error_step == flow_pb2.ErrorStep(step="complain", dead_letter=True)


POINTS = {
    "plain": ("after-publish", "before-publish-ack", "after-publish-ack", "before-ack", "after-ack"),
    "keyed": ("before-commit", "after-commit", "before-commit-ack", "before-ack"),
}


@pytest.mark.parametrize("kind", sorted(POINTS))
async def test_each_failure_comes_once_whenever_the_sidecar_dies(
    world: tuple[RunningMesh, Path], tmp_path: Path, kind: str
) -> None:
    """kill -9 of the failing step's sidecar at each moment between the failure and its acknowledgement."""
    mesh, faults = world
    out = tmp_path / "out"
    async with AsyncClient(mesh.api) as client:
        key = ", key: 'body:/id', slots: 2" if kind == "keyed" else ""
        flow = await run_flow(client, tmp_path / "flow.yaml", flow_text(f"killed-{kind}", out, key, key))
        sent: list[str] = []
        for point in POINTS[kind]:
            pid = await eventually(lambda: mesh.pid_of("sidecar", flow, "work"))
            (faults / f"default.{flow}.d1.work.0").write_text(f"{point}:kill@2")
            for number in range(4):
                sent.append(f"{point}-{number}")
                body = json.dumps({"code": "SOLD_OUT", "id": sent[-1]}).encode()
                await client.inject(flow, body, request_id=sent[-1])
            await eventually(lambda pid=pid: mesh.pid_of("sidecar", flow, "work") != pid, within_s=20)
            await eventually(lambda: {x["body"]["input"]["id"] for x in read_lines(out)} >= {*sent}, within_s=20)

        async def empty() -> bool:
            return not sum(step.waiting + step.in_flight for step in (await client.get_status(flow)).steps)

        await eventually(empty, within_s=20)
        assert Counter(line["body"]["input"]["id"] for line in read_lines(out)) == Counter(sent)
        assert (await client.get_status(flow)).dead_letters.total == 0
