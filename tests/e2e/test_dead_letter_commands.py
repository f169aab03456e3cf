"""`headrace dead-letters` on a mesh whose component refuses what it is given, as a person types it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace.client import Client
from tests.support.commands import COMMAND, headrace
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh
from tests.support.small_flow import HEAD, SmallFlow

CODE = """
@component.action
async def act(order: dict, ctx: Context) -> None:
    if Path(r'%s').exists():
        raise ComponentError('OUT_OF_STOCK', f"none of {order['item']} is left", retryable=False)
    with Path(r'%s').open('a') as seen:
        print(order['item'], file=seen)
"""


def edits_and_refusals(name: str, data: Path) -> None:
    """One letter is edited, and edited again; what cannot be is refused and changes nothing."""

    def edit(*words: str, status: int = 0) -> str:
        run = headrace("dead-letters", "edit", name, *words, data=data)
        return run.refused(status) if status else run.ok()

    assert f"headrace dead-letters replay {name} 2" in edit("2", "--set", '/item="cocoa"')
    edit("2", "--set", '/item="coffee"', "--header", "shop=west")
    shown = headrace("dead-letters", "show", name, "2", data=data).ok()
    assert '{"item": "tea-' in shown
    assert '{"item": "coffee"}' in shown
    assert "a replay sends instead" in shown
    assert "the original again" in edit("3", "--revert")
    assert "is not JSON" in edit("3", "--body", str(Path(__file__)), status=1)
    assert "leads nowhere at 'a'" in edit("3", "--set", "/a/b/c=1", status=1)
    assert "a text needs quotes" in edit("3", "--set", "/item=tea", status=2)
    assert "say what changes" in edit("3", status=2)
    assert "keeps no dead letter 99" in edit("99", "--revert", status=1)


@pytest.mark.timeout(150)
async def test_letters_are_looked_at_replayed_and_discarded(module_mesh: RunningMesh, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    flow = SmallFlow.write(module_mesh, tmp_path / "flow", HEAD + CODE % (broken, tmp_path / "seen"), head="")
    flow.run()
    data = module_mesh.data
    assert "dead letters 0" in headrace("dead-letters", "list", flow.name, data=data).ok()
    with Client(module_mesh.api) as client:
        for number in range(3):
            client.inject(flow.name, b'{"item": "tea-%d"}' % number, headers={"shop": "east"}, request_id=f"r{number}")
        await eventually(lambda: client.get_status(flow.name).dead_letters.waiting == 3, within_s=20)
        out = headrace("dead-letters", "list", flow.name, data=data).ok()
        assert out.count("OUT_OF_STOCK") == 3
        assert f"headrace dead-letters show {flow.name} 3" in out
        assert flow.name in headrace("dead-letters", "list", data=data).ok()
        shown = headrace("dead-letters", "show", flow.name, "1", data=data).ok()
        for part in ("none of tea-", "shop: east", '{"item": "tea-', "deployment 1", "pins act="):
            assert part in shown
        facts = headrace("dead-letters", "show", flow.name, "1", "--json", data=data).json()
        assert (facts["reason"], facts["attempt_count"], facts["headers"]) == ("OUT_OF_STOCK", 1, {"shop": "east"})
        missing = headrace("dead-letters", "show", flow.name, "99", data=data).refused()
        assert f"headrace dead-letters list {flow.name}" in missing
        assert "3 letters" not in headrace("dead-letters", "replay", flow.name, data=data).refused(2)
        watch = [*COMMAND, "dead-letters", "list", flow.name, "--follow", "--limit", "1", "--data", str(data)]
        follower = await asyncio.create_subprocess_exec(*watch, stdout=asyncio.subprocess.PIPE)
        assert follower.stdout is not None
        async with asyncio.timeout(60):
            while not (await follower.stdout.readline()).startswith(b"send all again"):
                pass
            again = headrace("dead-letters", "replay", flow.name, "1", data=data).ok()  # fails again
            assert "1 replayed" in again
            assert "to step act of deployment 1 (version 1, the revision that failed it)" in again
            assert (await follower.stdout.readline()).split()[0] == b"4"
            follower.terminate()
            await follower.wait()
        name = flow.name
        replay_all = ("dead-letters", "replay", name, "--all", "--dry-run")
        assert "3 would be replayed" in headrace(*replay_all, "--text", "tea-", "--since", "1h", data=data).ok()
        assert "0 would be replayed" in headrace(*replay_all, "--until", "1h", data=data).ok()
        assert client.get_status(name).dead_letters.waiting == 3
        edits_and_refusals(name, data)
        broken.unlink()
        done = headrace("dead-letters", "replay", flow.name, "--all", "--json", data=data).json()
        assert (done["replayed"], done["refusals"]) == (3, [])
        assert [item["edited"] for item in done["replays"]].count(True) == 1
        await eventually(lambda: "coffee\n" in (tmp_path / "seen").read_text(), within_s=20)
        broken.touch()
        client.inject(flow.name, b'{"item": "tea-9"}', request_id="r9")
        await eventually(lambda: client.get_status(flow.name).dead_letters.waiting == 1, within_s=20)
        assert "Add --yes" in headrace("dead-letters", "discard", flow.name, "--all", data=data).refused(2)
        assert "1 discarded" in headrace("dead-letters", "discard", flow.name, "--all", "--yes", data=data).ok()
        status = headrace("flow", "status", flow.name, data=data).ok()
        assert "ever 5: 4 replayed, 1 discarded, 0 pushed out" in status
        assert "dead-letters-discard" in headrace("flow", "history", flow.name, data=data).ok()
        assert "no message was ever in doubt" in headrace("dead-letters", "in-doubt", flow.name, data=data).ok()
    flow.remove()
