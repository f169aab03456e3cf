"""Snapshots on a real mesh: saved once per message whatever dies, kept across versions, shown and reset."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import NotFound, WrongState
from tests.support.commands import ROOT, headrace
from tests.support.eventually import eventually
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import letters, post, run_flow

SCRIBE = ROOT / "tests" / "support" / "components" / "scribe"
WEBHOOK = ROOT / "components" / "webhook"
pytestmark = pytest.mark.timeout(90)


def counting(name: str, out: Path, settings: str) -> str:
    return f"""
name: {name}
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [count]}}
  count: {{component: {SCRIBE}, function: count, to: [write], {settings}}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
"""


async def kept(client: AsyncClient, flow: str) -> dict[str, Any]:
    found = await client.list_snapshots(flow)
    return {item.key: json.loads(item.json) for item in found.snapshots}


STEPS = {
    "plain": "prefetch: 1",
    "careful": "prefetch: 16, retry: {attempts: 100, backoff: 1ms}, config: {careful: true}",
    "keyed": "key: body:/key, slots: 4",
}


async def test_every_message_is_counted_once_through_kills(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """A plain step one message after the other, one that saves only over what it read, and one with a key."""
    keys, each = ["a", "b", "c"], 18
    async with AsyncClient(module_mesh.api) as client:
        flows = [
            await run_flow(client, tmp_path / f"{name}.yaml", counting(f"count-{name}", tmp_path / name, settings))
            for name, settings in STEPS.items()
        ]
        for number in range(each):
            for flow in flows:
                await post(module_mesh, flow, {"key": keys[number % 3], "n": number})
                if number in (4, 12):
                    await eventually(partial(module_mesh.kill, "sidecar", flow, "count"))
                if number == 8:
                    await eventually(partial(module_mesh.kill, "component", flow, "count"))
        for flow, name in zip(flows, STEPS, strict=True):
            wanted = {"": {"n": each}} if name != "keyed" else {key: {"n": each // 3} for key in keys}
            await eventually(partial(is_kept, client, flow, wanted), within_s=20)
            await eventually(lambda name=name: len(read_lines(tmp_path / name)) >= each)
            bodies = [line["body"] for line in read_lines(tmp_path / name)]
            emitted = Counter((body["key"] if name == "keyed" else "", body["n"]) for body in bodies)
            assert emitted == Counter((key, n + 1) for key, value in wanted.items() for n in range(value["n"])), name
            await client.stop(flow)


async def test_it_is_kept_across_versions_and_reset_while_stopped(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        file = tmp_path / "flow.yaml"
        flow = await run_flow(client, file, counting("versions", out, "prefetch: 1"))
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"": {"n": 1}}))
        file.write_text(counting("versions", out, "prefetch: 2"))
        await client.apply(file)
        await client.publish(flow)
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"": {"n": 2}}))
        [item] = (await client.list_snapshots(flow, "count")).snapshots
        assert (item.revision, item.version, item.step) == (2, 2, "count")
        shown = headrace("snapshot", "show", flow, data=module_mesh.data).ok()
        assert '{"n":2}' in shown
        with pytest.raises(WrongState, match="is RUNNING: its steps go by the snapshots they know"):
            await client.reset_snapshots(flow, "count")
        await client.stop(flow)
        with pytest.raises(NotFound, match="keeps no snapshot"):
            await client.reset_snapshots(flow, "write")
        done = headrace("snapshot", "reset", flow, "count", "--yes", data=module_mesh.data)
        assert done.ok() == "count: 1 snapshot forgotten\n"
        await client.start(flow)
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"": {"n": 1}}))
        await client.stop(flow)
        await client.delete_flow(flow)


@pytest.mark.parametrize(("name", "settings"), [("plain", "prefetch: 4"), ("keyed", "key: body:/key")])
async def test_what_may_not_be_saved_fails_its_message(
    module_mesh: RunningMesh, tmp_path: Path, name: str, settings: str
) -> None:
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(client, tmp_path / "flow.yaml", counting(f"refused-{name}", out, settings))
        await post(module_mesh, flow, {"key": "a", "save": [1]})
        await eventually(lambda: is_kept(client, flow, {"a" if name == "keyed" else "": [1]}))
        await post(module_mesh, flow, {"key": "a", "save": "x" * 65_535})
        [letter] = await eventually(lambda: letters(client, flow, 1))
        assert (letter.reason, letter.attempt_count) == ("SNAPSHOT_REFUSED", 1)
        assert "a snapshot of 65537 bytes, more than 65536" in letter.error
        await client.discard_dead_letters(flow, all_letters=True)
        module_mesh.kill("sidecar", flow, "count")
        await post(module_mesh, flow, {"key": "a", "save": {"n": 7}})
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"a" if name == "keyed" else "": {"n": 8}}))
        await client.stop(flow)


async def is_kept(client: AsyncClient, flow: str, wanted: dict[str, Any]) -> bool:
    assert await kept(client, flow) == wanted
    return True
