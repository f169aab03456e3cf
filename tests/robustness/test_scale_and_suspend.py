"""Scaling 1 → 4 → 1, suspend and resume, and a moved drain, each under traffic, judged by the ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from headrace.client import AsyncClient, Client
from tests.robustness.ledger import Effect, Outcome, Verdict, check, read_effects
from tests.robustness.traffic import Traffic
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

FLOW = "scaled"
RATE = 150
COMPONENTS = Path(__file__).parent / "components"
WEBHOOK = Path(__file__).parents[2] / "components" / "webhook"


@dataclass
class Scaled:
    """A mesh that runs a flow which accepts (202), works for 50 ms a message, four at once, and writes a line."""

    mesh: RunningMesh
    effects: Path

    def traffic(self) -> Traffic:
        return Traffic(self.mesh.endpoints.gateways, f"/hook/{FLOW}", rate=RATE)

    async def judge(self, traffic: Traffic, *, within_s: float = 45.0) -> Verdict:
        """When every accepted message has had its effect; a redelivery may take the ack wait (30 s)."""
        attempts = await traffic.finish()
        accepted = {attempt.id for attempt in attempts if attempt.outcome is Outcome.OK}

        def mine() -> list[Effect]:
            return [effect for effect in read_effects(self.effects) if effect.id.startswith(traffic.run)]

        def all_effected() -> bool:
            return accepted <= {effect.id for effect in mine()}

        await eventually(all_effected, within_s=within_s, every_s=0.2)
        verdict = check(attempts, mine())
        print(verdict.line())
        return verdict


@pytest.fixture(scope="module")
def scaled(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    folder = tmp_path_factory.mktemp("scaled")
    effects = folder / "effects.jsonl"
    steps = {
        "hook": {"component": str(WEBHOOK), "function": "receive", "to": ["work"]},
        "work": {"component": str(COMPONENTS / "work"), "to": ["effect"], "prefetch": 4},
        "effect": {"component": str(COMPONENTS / "effect"), "config": {"path": str(effects)}},
    }
    file = folder / "flow.yaml"
    file.write_text(yaml.safe_dump({"name": FLOW, "type": "realtime", "steps": steps}))
    with Client(mesh.api, timeout_s=20) as client:
        client.apply(file)
        client.publish(FLOW)
        client.start(FLOW)
        yield Scaled(mesh, effects)
        client.stop(FLOW, drop=True)


@pytest.mark.timeout(150)
async def test_scaling_under_traffic_loses_and_doubles_nothing(scaled: Scaled) -> None:
    async with AsyncClient(scaled.mesh.api) as client, scaled.traffic() as traffic:
        pins = [list(item.pins) for item in await client.list_deployments(FLOW)]
        await eventually(lambda: traffic.counted(Outcome.OK) > 50)
        await client.scale(FLOW, "work", 4)
        assert len(scaled.mesh.pids_of("sidecar", FLOW, "work")) == 4
        status = await client.get_status(FLOW)
        work = next(step for step in status.steps if step.step == "work")
        assert {instance.revision for instance in work.instances} == {work.pin.digest}

        async def shared() -> bool:
            status = await client.get_status(FLOW)
            step = next(step for step in status.steps if step.step == "work")
            return all(instance.counters["processed"] for instance in step.instances)

        await eventually(shared)
        await client.scale(FLOW, "work", 1)
        await eventually(lambda: len(scaled.mesh.pids_of("sidecar", FLOW, "work")) == 1)
        more = traffic.counted(Outcome.OK) + 50
        await eventually(lambda: traffic.counted(Outcome.OK) > more)
        assert [list(item.pins) for item in await client.list_deployments(FLOW)] == pins
        verdict = await scaled.judge(traffic)
    assert verdict.ok, verdict.line()
    assert verdict.failed == 0


@pytest.mark.timeout(150)
async def test_suspend_and_resume_under_traffic_lose_and_double_nothing(scaled: Scaled) -> None:
    async with AsyncClient(scaled.mesh.api) as client, scaled.traffic() as traffic:
        before = sorted(os.getpgid(pid) for pid in scaled.mesh.pids_of("sidecar", FLOW, "work"))
        for _ in range(3):
            more = traffic.counted(Outcome.OK) + 50
            await eventually(lambda more=more: traffic.counted(Outcome.OK) > more)  # type: ignore[misc]
            await client.suspend(FLOW)
            effects = len(read_effects(scaled.effects))
            more = traffic.counted(Outcome.OK) + 50
            await eventually(lambda more=more: traffic.counted(Outcome.OK) > more)  # type: ignore[misc]
            assert len(read_effects(scaled.effects)) == effects  # nothing works, all is kept
            await client.resume(FLOW)
        verdict = await scaled.judge(traffic)
        assert sorted(os.getpgid(pid) for pid in scaled.mesh.pids_of("sidecar", FLOW, "work")) == before
    assert verdict.ok, verdict.line()
    assert verdict.failed == 0


@pytest.mark.timeout(150)
async def test_a_move_under_traffic_with_the_orchestrator_killed_loses_and_doubles_nothing(scaled: Scaled) -> None:
    """What waits for the old deployment goes to the new one while the orchestrator dies and traffic goes on."""
    async with AsyncClient(scaled.mesh.api, timeout_s=20) as client, scaled.traffic() as traffic:
        await client.suspend(FLOW)
        more = traffic.counted(Outcome.OK) + 300
        await eventually(lambda: traffic.counted(Outcome.OK) > more)
        await client.resume(FLOW)
        old = (await client.get_flow(FLOW)).active_deployment
        await client.restart(FLOW)
        operation = await client.begin_resolve_drain(FLOW, old, "MOVE", timeout_s=60)
        scaled.mesh.kill("orchestrator")
        result = await client.wait_operation(operation, timeout_s=60)
        print(f"moved {result.moved}, dead-lettered {result.dead_lettered}")
        assert result.moved > 50
        assert result.dead_lettered == 0
        verdict = await scaled.judge(traffic)
    assert verdict.ok, verdict.line()
