"""Two orchestrators under traffic: leader and standby killed in turn, the leader stopped past its lease and continued.

The data plane must not notice: every request is answered, once, by the same deployment, and the pause that callers
see is no longer than in quiet times (on a busy machine: than three such pauses).
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import HeadraceError
from tests.robustness.ledger import Attempt, Outcome, check, counted, read_effects
from tests.robustness.test_kills import FLOW, describe, write_flow
from tests.robustness.traffic import Traffic
from tests.support import soak
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh

ROUNDS = soak.rounds(one_in=100, short=1)
FAIL_OVER_LIMIT_S = 5.0
# A run of hours on a busy machine has its moments.
LONGEST_PAUSE_S = 1.5 if soak.ASKED else 0.5
RATE = 80.0
ROLES = ("orchestrator", "orchestrator-2")


async def leader_seen(client: AsyncClient, *, not_epoch: int = 0, within_s: float = 15.0) -> tuple[str, int]:
    """Who leads, in which epoch; waits until there is a leader in another epoch than that one."""

    async def asked() -> tuple[str, int] | None:
        try:
            info = await client.server_info()
        except HeadraceError:
            return None
        return (info.leader, int(info.epoch)) if info.leader and info.epoch != not_epoch else None

    found = await eventually(asked, within_s=within_s)
    assert found is not None
    return found


@pytest.mark.timeout(240)
async def test_nothing_in_the_data_plane_notices_a_fail_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    effects = tmp_path / "effects.jsonl"
    times: dict[str, list[float]] = {"killed": [], "stopped": []}
    with start_mesh(tmp_path, "fast", "--orchestrators", "2") as mesh:
        ends = mesh.endpoints
        assert len(ends.apis) == 2
        async with AsyncClient(ends.any_api, user="ann", timeout_s=20.0) as client:
            await client.apply(write_flow(tmp_path, effects))
            await client.publish(FLOW)
            await client.start(FLOW)
            async with Traffic(ends.gateways, f"/hook/{FLOW}", rate=RATE) as traffic:
                await eventually(lambda: traffic.counted(Outcome.OK) >= 150, within_s=20)
                quiet_s = longest_pause(traffic.attempts)
                for _ in range(ROUNDS):
                    times["killed"].append(await kill_leader(mesh, client))
                    await kill_standby(mesh, client)
                    times["stopped"].append(await stop_leader(mesh, client))
                attempts = await traffic.finish()
            deployments = [item.number for item in await client.list_deployments(FLOW)]
            status = await client.get_status(FLOW)
            entries, _ = await client.list_history(limit=500)
        mine = [effect for effect in read_effects(effects) if effect.id.startswith(f"{traffic.run}-")]
    verdict = counted(check(attempts, mine))
    soak.TOTALS.round(kills=3 * ROUNDS)
    pause_s = longest_pause(attempts)
    with capsys.disabled():
        print(
            f"\nfail-over: killed {_seconds(times['killed'])}, stopped past its lease {_seconds(times['stopped'])}; "
            f"longest pause between answers {pause_s * 1000:.0f} ms, before {quiet_s * 1000:.0f} ms; {verdict.line()}"
        )
    assert verdict.ok, describe(verdict)
    assert verdict.acknowledged == verdict.attempted, "a request was refused or not answered"
    assert pause_s < max(LONGEST_PAUSE_S, 3 * quiet_s)
    assert max([*times["killed"], *times["stopped"]]) < FAIL_OVER_LIMIT_S
    assert deployments == [1]
    assert not status.problems
    assert all(len(step.instances) == 1 and step.instances[0].component_starts == 1 for step in status.steps)
    words = [entry.what for entry in entries]
    assert words.count("fail-over") >= ROUNDS
    assert {"failed", "retired", "ingress-repaired", "strays-moved"}.isdisjoint(words)


def longest_pause(attempts: list[Attempt]) -> float:
    """Seconds without an answer."""
    answered = sorted(attempt.answered_at for attempt in attempts if attempt.outcome is Outcome.OK)
    return max(after - before for before, after in itertools.pairwise(answered))


async def kill_leader(mesh: RunningMesh, client: AsyncClient) -> float:
    """Seconds until somebody leads again."""
    await both_run(mesh)
    leader, epoch = await leader_seen(client)
    mesh.kill(leader)
    began = time.monotonic()
    await leader_seen(client, not_epoch=epoch)
    return time.monotonic() - began


async def kill_standby(mesh: RunningMesh, client: AsyncClient) -> None:
    """The leader stays what it is."""
    await both_run(mesh)
    leader, epoch = await leader_seen(client)
    mesh.kill(next(role for role in ROLES if role != leader))
    await client.get_status(FLOW)
    await both_run(mesh)
    assert await leader_seen(client) == (leader, epoch)


async def stop_leader(mesh: RunningMesh, client: AsyncClient) -> float:
    """SIGSTOP until another leads, then SIGCONT: it stands by from then on. Seconds until the other led."""
    await both_run(mesh)
    leader, epoch = await leader_seen(client)
    other = next(role for role in ROLES if role != leader)
    async with AsyncClient(mesh.endpoints.apis[ROLES.index(other)], timeout_s=20.0) as standby:
        pid = mesh.kill(leader, number=signal.SIGSTOP)
        began = time.monotonic()
        try:
            taken = await leader_seen(standby, not_epoch=epoch)
            took_s = time.monotonic() - began
            await standby.inject(FLOW, b'{"id": "by hand"}')
        finally:
            os.kill(pid, signal.SIGCONT)
        assert taken[0] == other
    async with AsyncClient(mesh.endpoints.apis[ROLES.index(leader)], timeout_s=20.0) as zombie:
        assert await leader_seen(zombie, not_epoch=epoch) == taken
        await zombie.get_status(FLOW)
    return took_s


async def both_run(mesh: RunningMesh) -> None:
    """Both orchestrators answer."""
    for address in mesh.endpoints.apis:
        async with AsyncClient(address, timeout_s=10.0) as client:
            await leader_seen(client)


def _seconds(times: list[float]) -> str:
    return ", ".join(f"{took_s:.2f} s" for took_s in times)
