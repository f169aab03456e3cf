"""Order by key across scaling 1 → 4 → 2, kill -9 of sidecar, component and orchestrator, and three warm switches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient, Client
from tests.robustness.keyed_callers import KeyedCallers
from tests.support import soak
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh

FLOW = "keyed"
ROUNDS = soak.rounds(one_in=200, short=1)
COMPONENTS = Path(__file__).parent / "components"
WEBHOOK = Path(__file__).parents[2] / "components" / "webhook"


@dataclass
class Keyed:
    """A mesh that runs a flow whose every step is keyed; `work` holds each message for a moment."""

    mesh: RunningMesh
    effects: Path


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keyed")
    effects = folder / "effects.jsonl"
    steps = {
        "hook": {"component": str(WEBHOOK), "function": "receive", "to": ["work"], "key": "body:/key", "slots": 4},
        "work": {
            "component": str(COMPONENTS / "work"), "to": ["effect"], "key": "body:/key", "config": {"seconds": 0.005},
        },
        "effect": {"component": str(COMPONENTS / "effect"), "config": {"path": str(effects)}, "key": "body:/key"},
    }  # fmt: skip
    file = folder / "flow.yaml"
    file.write_text(yaml.safe_dump({"name": FLOW, "type": "realtime", "steps": steps}))
    with start_mesh(folder, ack_wait_s=10.0) as mesh:
        with Client(mesh.api) as client:
            client.apply(file)
            client.publish(FLOW)
            client.start(FLOW)
        yield Keyed(mesh, effects)


async def work_of(client: AsyncClient) -> flow_pb2.StepStatus:
    status = await client.get_status(FLOW)
    return next(step for step in status.steps if step.step == "work")


async def owners_of(client: AsyncClient) -> list[int]:
    """How many slots each replica of `work` owns."""
    owners = [slot.owner for slot in (await work_of(client)).slots]
    return sorted(owners.count(owner) for owner in set(owners))


async def more(callers: KeyedCallers, count: int = 60) -> None:
    enough = callers.sent + count
    await eventually(lambda: callers.sent >= enough, within_s=40)


@pytest.mark.timeout(240 * ROUNDS)
async def test_order_is_kept_by_scaling_kills_and_switches(keyed: Keyed) -> None:
    mesh = keyed.mesh
    async with AsyncClient(mesh.api, timeout_s=20) as client:
        async with KeyedCallers(mesh.endpoints.gateways, f"/hook/{FLOW}") as callers:
            for _ in range(ROUNDS):
                await more(callers)
                result = await client.scale(FLOW, "work", 4)
                print(result.message)
                assert await owners_of(client) == [2, 2, 2, 2]
                await more(callers)
                mesh.kill("sidecar", FLOW, "work")
                await client.restart(FLOW, timeout_s=60)
                await more(callers)
                mesh.kill("component", FLOW, "work")
                await more(callers)
                operation = await client.begin_restart(FLOW, timeout_s=60)
                mesh.kill("orchestrator")
                await client.wait_operation(operation, timeout_s=60)
                operation = await client.begin_scale(FLOW, "work", 2)
                mesh.kill("orchestrator")
                result = await client.wait_operation(operation, timeout_s=60)
                print(result.message)
                assert await owners_of(client) == [4, 4]
                mesh.kill("sidecar", FLOW, "work")
                await client.restart(FLOW, timeout_s=60)
                await more(callers)
                await client.scale(FLOW, "work", 1)
            await callers.finish()

        def all_effected() -> bool:
            verdict = callers.verdict(keyed.effects)
            return verdict.lost == 0

        try:
            await eventually(all_effected, within_s=60, every_s=0.2)
        finally:
            verdict = callers.verdict(keyed.effects)
            soak.TOTALS.judge(
                verdict.sent, lost=verdict.lost, duplicated=verdict.doubled, disordered=verdict.inversions
            )
            print(verdict.line(), f"longest wait of a caller {callers.longest_s:.2f} s")
    assert verdict.ok, verdict.line()
