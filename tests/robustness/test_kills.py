"""kill -9 of each process during traffic, once each, judged by the ledger.

Flow: webhook → work (holds each message for 50 ms) → effect (a line in a file, and the reply). Sidecar and
component are killed at `work`: what the ledger can count is the effect, which a kill at its own step may
repeat for anyone (a message whose processing was cut off is processed again).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml

from headrace.client import Client
from tests.robustness.faults import InFlight, fault_round
from tests.robustness.ledger import Verdict
from tests.robustness.traffic import Traffic
from tests.support import soak
from tests.support.eventually import eventually
from tests.support.http_connection import serves
from tests.support.mesh import RunningMesh

FLOW = "ledger"
ROUNDS = soak.rounds(one_in=100, short=1)
COMPONENTS = Path(__file__).parent / "components"
WEBHOOK = Path(__file__).parents[2] / "components" / "webhook"


@dataclass
class LedgerMesh:
    """A mesh with two gateways that runs the flow `ledger`."""

    mesh: RunningMesh
    effects: Path


@pytest.fixture(scope="module")
def running(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerMesh]:
    folder = tmp_path_factory.mktemp("kills")
    effects = folder / "effects.jsonl"
    with Client(mesh.api, timeout_s=20) as client:
        client.apply(write_flow(folder, effects))
        client.publish(FLOW)
        client.start(FLOW)
        yield LedgerMesh(mesh, effects)
        client.stop(FLOW, drop=True)


def write_flow(folder: Path, effects: Path) -> Path:
    """The flow file of this module."""
    steps = {
        "hook": {"component": str(WEBHOOK), "function": "receive", "to": ["work"]},
        "work": {"component": str(COMPONENTS / "work"), "to": ["effect"]},
        "effect": {"component": str(COMPONENTS / "effect"), "config": {"path": str(effects)}},
    }
    file = folder / "flow.yaml"
    file.write_text(yaml.safe_dump({"name": FLOW, "type": "realtime", "reply_timeout": "10s", "steps": steps}))
    return file


@pytest.fixture
async def in_flight(running: LedgerMesh) -> AsyncIterator[InFlight]:
    reader = await InFlight.open(running.mesh.endpoints.nats, FLOW, 1)
    yield reader
    await reader.close()


def at_step(step: str) -> Callable[[Traffic], object]:
    return lambda traffic: step


def at_gateway(traffic: Traffic) -> object:
    return traffic.under_way


VICTIMS = {
    "orchestrator": ("", at_step("work")),
    "registry": ("", at_step("work")),
    "sidecar": ("work", at_step("work")),
    "component": ("work", at_step("work")),
    "gateway": ("", at_gateway),
    "broker": ("", at_step("work")),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("role", VICTIMS)
async def test_kill_during_traffic(
    running: LedgerMesh, in_flight: InFlight, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step, held_by = VICTIMS[role]
    for _ in range(ROUNDS):
        result = await fault_round(
            victim=role,
            kill=lambda: running.mesh.kill(role, FLOW if step else "", step),
            held_by=held_by,
            in_flight=in_flight,
            addresses=running.mesh.endpoints.gateways,
            path=f"/hook/{FLOW}",
            effects_file=running.effects,
        )
        with capsys.disabled():
            print("\n" + result.line())
        assert result.held > 0, "the victim held nothing: the round does not count"
        assert result.verdict.ok, describe(result.verdict)
        for address in running.mesh.endpoints.gateways:
            await eventually(partial(serves, address), within_s=20)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("role", ["gateway", "broker"])
async def test_careful_callers_get_everything_done_once(
    running: LedgerMesh, in_flight: InFlight, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Callers that repeat under an Idempotency-Key end with every request acknowledged and effected once."""
    result = await fault_round(
        victim=role,
        kill=lambda: running.mesh.kill(role),
        held_by=VICTIMS[role][1],
        in_flight=in_flight,
        addresses=running.mesh.endpoints.gateways,
        path=f"/hook/{FLOW}",
        effects_file=running.effects,
        repeat_s=30.0,
    )
    with capsys.disabled():
        print("\nrepeating callers, " + result.line())
    assert result.held > 0, "the victim held nothing: the round does not count"
    assert result.verdict.ok, describe(result.verdict)
    assert result.verdict.acknowledged == result.verdict.attempted == result.verdict.effected
    for address in running.mesh.endpoints.gateways:
        await eventually(partial(serves, address), within_s=20)


def describe(verdict: Verdict) -> str:
    """The verdict with a few of the ids that broke it."""
    sets = {"lost": verdict.lost, "duplicated": verdict.duplicated, "unexpected": verdict.unexpected}
    sets["refused"] = verdict.refused
    named = [f"{name}: {sorted(ids)[:10]}" for name, ids in sets.items() if ids]
    return "\n".join([verdict.line(), *named, *map(str, verdict.wrong[:5])])
