"""What started executions, on a real mesh: filed once whatever dies, bounded, shown, and run again from the start."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import InvalidInput, NotFound, WrongState
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.small_mesh_flow import letters, post, run_flow

SCRIBE = ROOT / "tests" / "support" / "components" / "scribe"
FAILING = ROOT / "tests" / "support" / "components" / "failing"
WEBHOOK = ROOT / "components" / "webhook"
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningMesh, Path]]:
    """A mesh, and the folder in which faults are asked for."""
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "faults").mkdir()
    with start_mesh(folder, ack_wait_s=2.0, HEADRACE_FAULTS=f"@{folder / 'faults'}") as mesh:
        yield mesh, folder / "faults"


def flow_text(name: str, out: Path, history: str = "true", first: str = "", work: Path = SCRIBE) -> str:
    function = "say" if work == SCRIBE else "work"
    return f"""
name: {name}
history: {history}
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [work]{first}}}
  work: {{component: {work}, function: {function}, to: [write]}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
"""


async def filed(client: AsyncClient, flow: str, count: int) -> list[Any]:
    """What is kept, oldest first, once there is so much."""
    found = await client.list_stimuli(flow, limit=500)
    return list(reversed(found.stimuli)) if found.counts.total >= count else []


POINTS = {
    "plain": ("before-publish", "after-publish", "before-publish-ack", "after-publish-ack", "before-ack", "after-ack"),
    "keyed": ("before-commit-ack", "before-publish", "after-publish", "before-ack", "after-ack"),
}


@pytest.mark.parametrize("kind", sorted(POINTS))
async def test_each_stimulus_is_filed_once_whenever_the_sidecar_dies(
    world: tuple[RunningMesh, Path], tmp_path: Path, kind: str
) -> None:
    mesh, faults = world
    async with AsyncClient(mesh.api) as client:
        first = ", key: 'body:/id', slots: 2" if kind == "keyed" else ""
        flow = await run_flow(client, tmp_path / "f.yaml", flow_text(f"filed-{kind}", tmp_path / "out", first=first))
        sent: list[str] = []
        for point in POINTS[kind]:
            pid = await eventually(lambda: mesh.pid_of("sidecar", flow, "receive"))
            (faults / f"default.{flow}.d1.receive.0").write_text(f"{point}:kill@4")
            for number in range(4):
                sent.append(f"{point}-{number}")
                await client.inject(flow, json.dumps({"id": sent[-1]}).encode(), request_id=sent[-1])
            await eventually(lambda pid=pid: mesh.pid_of("sidecar", flow, "receive") != pid, within_s=20)
            await eventually(lambda: len(read_lines(tmp_path / "out")) >= len(sent), within_s=20)
        kept = await eventually(lambda: filed(client, flow, len(sent)), within_s=20)
        bodies = [json.loads((await client.get_stimulus(flow, _number(item))).body)["id"] for item in kept]
        assert Counter(bodies) == Counter(sent)
        assert {item.origin for item in kept} == {"injected"}


async def test_they_are_run_again_from_the_start_and_recorded(world: tuple[RunningMesh, Path], tmp_path: Path) -> None:
    mesh, _ = world
    out = tmp_path / "out"
    async with AsyncClient(mesh.api) as client:
        flow = await run_flow(client, tmp_path / "f.yaml", flow_text("again", out))
        for number in range(3):
            await post(mesh, flow, {"id": number})
        kept = await eventually(lambda: filed(client, flow, 3))
        assert (await client.list_stimuli(flow, text='"id": 1')).stimuli[0].execution_id == kept[1].execution_id
        dry = await client.replay_stimuli(flow, [2, 99], validate_only=True)
        assert [(item.stimulus, item.message_id) for item in dry.replays] == [(f"flows/{flow}/stimuli/2", "")]
        assert [item.reason for item in dry.refusals] == ["NOT_FOUND"]
        answer = await client.replay_stimuli(flow, [2, 1])
        assert [item.execution_id for item in answer.replays] == [kept[1].execution_id, kept[0].execution_id]
        await eventually(lambda: len(read_lines(out)) == 5)
        lines = read_lines(out)
        assert Counter(line["body"]["id"] for line in lines) == {0: 2, 1: 2, 2: 1}
        assert len({line["id"] for line in lines}) == 5
        # Each replay is filed too, and can be replayed; what it is a replay of is said.
        kept = await eventually(lambda: filed(client, flow, 5))
        assert [item.replay_of for item in kept] == ["", "", "", *(f"flows/{flow}/stimuli/{n}" for n in (2, 1))]
        await client.replay_stimuli(flow, [4])
        await eventually(lambda: len(read_lines(out)) == 6)
        assert Counter(line["body"]["id"] for line in read_lines(out))[1] == 3

        async def recorded() -> bool:
            entries, _ = await client.list_history(flow)
            details = [entry.detail for entry in entries if entry.what == "stimuli-replay"]
            return details == ["1 from the start: 4", "2 from the start: 2, 1"]

        await eventually(recorded)
        with pytest.raises(InvalidInput, match="is not 1 to 100"):
            await client.replay_stimuli(flow, [])
        with pytest.raises(NotFound, match="keeps no stimulus 99"):
            await client.get_stimulus(flow, 99)
        await client.stop(flow)
        with pytest.raises(WrongState, match="nothing of it can be replayed from the start") as stopped:
            await client.replay_stimuli(flow, [1])
        assert stopped.value.next_step == f"Start it: headrace flow start {flow}"
        await client.delete_flow(flow)


async def test_only_so_many_are_kept_and_only_where_the_flow_says_so(
    world: tuple[RunningMesh, Path], tmp_path: Path
) -> None:
    mesh, _ = world
    out = tmp_path / "out"
    async with AsyncClient(mesh.api) as client:
        file = tmp_path / "f.yaml"
        flow = await run_flow(client, file, flow_text("bounded", out, "{count: 3, age: 2h}"))
        for number in range(8):
            await post(mesh, flow, {"id": number})
        await eventually(lambda: filed(client, flow, 8))
        found = await client.list_stimuli(flow)
        counts = found.counts
        assert [_number(item) for item in found.stimuli] == [8, 7, 6]
        assert (counts.kept, counts.total, counts.pushed_out, counts.max_count) == (3, 8, 5, 3)
        assert (counts.max_age.seconds, counts.files) == (7200, True)
        # A version that keeps none files none; what is there stays, and can be replayed.
        file.write_text(flow_text("bounded", out, "false"))
        await client.apply(file)
        await client.publish(flow)
        await post(mesh, flow, {"id": 8})
        await eventually(lambda: len(read_lines(out)) == 9)
        await client.replay_stimuli(flow, [8])
        await eventually(lambda: len(read_lines(out)) == 10)
        after = (await client.list_stimuli(flow)).counts
        assert (after.total, after.files) == (8, False)


async def test_letters_are_replayed_from_the_start(world: tuple[RunningMesh, Path], tmp_path: Path) -> None:
    mesh, _ = world
    out = tmp_path / "out"
    async with AsyncClient(mesh.api) as client:
        file = tmp_path / "f.yaml"
        flow = await run_flow(client, file, flow_text("fails", out, "{count: 4}", work=FAILING))
        await post(mesh, flow, {"code": "SOLD_OUT", "id": 1})
        await post(mesh, flow, {"code": "SOLD_OUT", "id": 2})
        await post(mesh, flow, {"code": "SOLD_OUT", "id": 3})
        await eventually(lambda: letters(client, flow, 3))
        await eventually(lambda: filed(client, flow, 3))
        # The step's new code takes them; from the step alone that would do, but whoever wants it runs all of it.
        file.write_text(flow_text("fails", out, "{count: 4}", work=SCRIBE))
        await client.apply(file)
        await client.publish(flow)
        await client.edit_dead_letter(flow, 3, body=b'{"id": 33}')
        dry = await client.replay_dead_letters(flow, all_letters=True, from_start=True, validate_only=True)
        assert [(item.step, item.message_id) for item in dry.replays] == [("receive", "")] * 2
        answer = await client.replay_dead_letters(flow, all_letters=True, from_start=True)
        assert (answer.replayed, [item.reason for item in answer.refusals]) == (2, ["EDITED"])
        await eventually(lambda: len(read_lines(out)) == 2)
        assert sorted(line["body"]["id"] for line in read_lines(out)) == [1, 2]
        # 5 were filed by now, 4 are kept: the first is gone, and its replay has the same execution.
        kept = await eventually(lambda: filed(client, flow, 5))
        assert [item.replay_of for item in kept][-2:] == [f"flows/{flow}/deadLetters/{n}" for n in (1, 2)]
        for number in range(4):
            await post(mesh, flow, {"id": number})
        await eventually(lambda: filed(client, flow, 9))
        await client.edit_dead_letter(flow, 3, revert=True)
        gone = await client.replay_dead_letters(flow, [3], from_start=True)
        assert [item.reason for item in gone.refusals] == ["STIMULUS_GONE"]

        async def recorded() -> bool:
            entries, _ = await client.list_history(flow)
            return "2 letters: all from the start" in [entry.detail for entry in entries]

        await eventually(recorded)
        plain = await run_flow(client, tmp_path / "p.yaml", flow_text("plain", out, "false", work=FAILING))
        await post(mesh, plain, {"code": "SOLD_OUT"})
        await eventually(lambda: letters(client, plain, 1))
        with pytest.raises(WrongState, match="does not keep its stimuli") as refused:
            await client.replay_dead_letters(plain, [1], from_start=True)
        assert (refused.value.reason, "history: true" in refused.value.next_step) == ("NO_HISTORY", True)
        assert (await client.list_dead_letters(plain)).counts.waiting == 1


def _number(item: Any) -> int:
    return int(item.name.rpartition("/")[2])
