"""The agent's disk is full while a deployment is prepared: the publish fails with that cause and leaves what runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import HeadraceError
from tests.robustness.ledger import Outcome
from tests.robustness.pinned_flow import WORK, PinnedFlow, stop
from tests.robustness.settled import Inspector
from tests.robustness.traffic import Traffic, answers_by
from tests.support import small_disk
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

PADDING = "\n# " + "x" * 40_000 + "\n"


@pytest.mark.needs(small_disk.NEED)
@pytest.mark.timeout(90)
async def test_a_full_disk_fails_the_publish_and_leaves_what_runs(mesh: RunningMesh, tmp_path: Path) -> None:
    cache = mesh.data / "cache"
    flow = PinnedFlow("full", tmp_path)
    seen = small_disk.place(mesh.process.pid, cache)
    async with AsyncClient(mesh.api) as client, Inspector(mesh) as inspector:
        first = await flow.use(client).begin()
        filler = small_disk.fill(seen)
        try:
            pushed = await flow.push(WORK, PADDING)
            async with Traffic(mesh.endpoints.gateways, flow.path, rate=60) as traffic:
                await eventually(lambda: traffic.counted(Outcome.OK) >= 10, within_s=20)
                with pytest.raises(HeadraceError) as refused:
                    await flow.publish(pushed.reference, timeout_s=30)
                # What runs is not harmed by a crash of its parts either: its code is on the disk already.
                for role in ("component", "sidecar"):
                    mesh.kill(role, flow.name, "work", deployment=first.deployment)
                    await answers_by(traffic, first.deployment, after=traffic.sent, within_s=45)
                filler.unlink()
                second = await flow.publish(pushed.reference)
                await answers_by(traffic, second.deployment)
                attempts = await traffic.finish()
        finally:
            filler.unlink(missing_ok=True)
        await eventually(lambda: inspector.settled(flow), within_s=30, every_s=0.1)
        ledger, pins = await flow.judge(traffic.run, attempts)
    halves = [path.name for path in seen.rglob("*") if "part" in path.name or "broken" in path.name]
    stop(mesh, flow)
    print(f"refused: {refused.value.message}\n{ledger.line()}; {pins.line()}")
    assert refused.value.reason == "DISK_FULL"
    assert "'work'" in refused.value.message
    assert "No space left on device" in refused.value.message
    assert halves == []
    assert ledger.ok, ledger.line()
    assert pins.ok, pins.complaints()
