"""Dead letters replayed through a named revision, on a real mesh: that revision and no other, whatever is killed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import Conflict, DeadlineExceeded, InvalidInput, Unavailable, WrongState
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import letters, run_flow

SCRIBE = ROOT / "tests" / "support" / "components" / "scribe"
WEBHOOK = ROOT / "components" / "webhook"
FAILING = "raise ComponentError('BROKEN', 'as revision %s', retryable=False)"
CODE = """
from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.action
async def work(body: dict, ctx: Context) -> None:
    %s
"""
pytestmark = pytest.mark.timeout(120)


class Rig:
    """A flow whose second step can be given other code."""

    def __init__(self, client: AsyncClient, folder: Path, name: str) -> None:
        self.client, self.folder, self.name = client, folder, name
        self.out = folder / "out"
        (folder / "work").mkdir()
        (folder / "work" / "component.yaml").write_text(f"name: {name}\nfunctions: {{work: {{kind: action}}}}\n")

    async def push(self, body: str) -> int:
        (self.folder / "work" / "component.py").write_text(CODE % body)
        return int((await self.client.push_component(self.folder / "work")).revision.number)

    async def run(self, settings: str = "") -> None:
        text = f"""
name: {self.name}
passthrough: true
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [work]}}
  work:
    component: {self.name}@1
    {settings}
    to:
      - step: write
        condition: body.id >= 0
        mapping: "{{'id': body.id, 'by': body.by, 'of': steps.receive.body.id}}"
  write: {{component: {SCRIBE}, function: write, config: {{path: {self.out}}}}}
"""
        await run_flow(self.client, self.folder / "flow.yaml", text)

    async def fail(self, ids: range) -> None:
        before = (await self.client.list_dead_letters(self.name)).counts.total
        for number in ids:
            await self.client.inject(self.name, json.dumps({"id": number}).encode())
        await eventually(lambda: self._kept(before + len(ids)), within_s=30)

    async def _kept(self, count: int) -> bool:
        return (await self.client.list_dead_letters(self.name)).counts.total == count

    def written(self) -> list[Any]:
        return [line["body"] for line in read_lines(self.out)]

    async def alone(self) -> bool:
        """Only the deployment that runs is left."""
        status = await self.client.get_status(self.name)
        return len(status.deployments) == 1


def emits(word: str) -> str:
    return f"await ctx.emit({{'id': body['id'], 'by': '{word}'}})"


async def test_letters_go_through_exactly_the_revision_that_is_named(module_mesh: RunningMesh, tmp_path: Path) -> None:
    async with AsyncClient(module_mesh.api) as client:
        rig = Rig(client, tmp_path, "through")
        await rig.push(FAILING % 1)
        await rig.run()
        await rig.fail(range(4))
        mended, broken = await rig.push(emits("two")), await rig.push(FAILING % 3)
        newest = await client.get_revision("through", mended)
        dry = await client.replay_dead_letters(
            "through", all_letters=True, step="work", revision="2", validate_only=True
        )
        assert {(item.revision, item.same_revision, item.message_id) for item in dry.replays} == {
            (newest.digest, False, "")
        }
        assert await rig.alone()
        answer = await client.replay_dead_letters("through", [1, 2], revision=str(mended))
        assert {(item.step, item.deployment, item.revision) for item in answer.replays} == {("work", 2, newest.digest)}
        await eventually(lambda: len(rig.written()) == 2, within_s=20)
        assert sorted(rig.written(), key=lambda body: body["id"]) == [{"id": n, "by": "two", "of": n} for n in (0, 1)]
        # What runs is as it was; what was made for the letters goes.
        await eventually(rig.alone, within_s=30)
        status = await client.get_status("through")
        assert {step.pin.revision_number for step in status.steps if step.step == "work"} == {1}
        # Fails again: a new letter, of the revision that failed it.
        await client.replay_dead_letters("through", [3], revision=str(broken))
        found = await eventually(partial(letters, client, "through", 2), within_s=20)
        again = next(letter for letter in found if letter.name.endswith("/5"))
        assert (again.error, again.revision) == ("as revision 3", (await client.get_revision("through", broken)).digest)
        # What was replayed is gone; what does not fit is refused and changes nothing.
        for asked, said in (
            ({"revision": "99"}, "cannot be resolved"),
            ({"revision": "nosuch"}, "cannot be resolved"),
            ({"revision": "2", "from_start": True}, "cannot go with from_start"),
        ):
            with pytest.raises(InvalidInput, match=said):
                await client.replay_dead_letters("through", [4], **asked)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="is needed with revision"):
            await client.replay_dead_letters("through", all_letters=True, revision="2")
        await eventually(rig.alone, within_s=30)
        await client.stop("through")
        with pytest.raises(WrongState, match="cannot be replayed"):
            await client.replay_dead_letters("through", [4], revision="2")
        await client.delete_revision("through", mended)
        await client.start("through")
        with pytest.raises(InvalidInput, match="cannot be resolved"):
            await client.replay_dead_letters("through", [4], revision="2")
        assert (await client.list_dead_letters("through")).counts.waiting == 2


@pytest.mark.parametrize("settings", ["", "key: body:/id\n    slots: 2"], ids=["plain", "keyed"])
async def test_nothing_is_lost_or_doubled_when_all_die_meanwhile(
    module_mesh: RunningMesh, tmp_path: Path, settings: str
) -> None:
    """kill -9 of the orchestrator while letters are sent, and of the sidecar that handles them; and a restart."""
    name = "killed-keyed" if settings else "killed"
    async with AsyncClient(module_mesh.api) as client:
        rig = Rig(client, tmp_path, name)
        await rig.push(FAILING % 1)
        await rig.run(settings)
        await rig.fail(range(40))
        await rig.push(f"from asyncio import sleep as pause\n    await pause(0.02)\n    {emits('two')}")

        async def replayed() -> bool:
            try:
                await client.replay_dead_letters(name, all_letters=True, step="work", revision="2")
            except (Unavailable, Conflict, DeadlineExceeded):
                return False
            return not (await client.list_dead_letters(name)).counts.waiting

        # As a person who tries again while the mesh is away, or busy.
        replay = asyncio.create_task(eventually(replayed, within_s=60))
        await eventually(lambda: module_mesh.pids_of("sidecar", name, "work", 2), within_s=20)
        module_mesh.kill("orchestrator")
        await eventually(lambda: len(rig.written()) > 3, within_s=30)
        await eventually(partial(module_mesh.kill, "sidecar", name, "work", deployment=2))
        await replay
        await client.restart(name)
        await eventually(lambda: len(rig.written()) >= 40, within_s=40)
        await eventually(rig.alone, within_s=40)
        assert Counter(body["id"] for body in rig.written()) == Counter(range(40))
        assert {body["by"] for body in rig.written()} == {"two"}
        assert (await client.list_dead_letters(name)).counts.waiting == 0
