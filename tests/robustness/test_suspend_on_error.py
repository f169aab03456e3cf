"""`on_error: suspend-flow`: a message that fails for good waits and suspends its flow, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.model.errors import Unavailable
from tests.support.eventually import eventually
from tests.support.mesh import start_mesh
from tests.support.small_flow import HEAD, SmallFlow

CODE = """
@component.action
async def act(order: dict, ctx: Context) -> None:
    if order['id'] in Path(r'%s').read_text().split():
        raise ComponentError('BANK_CLOSED', 'the bank is closed', retryable=False)
    with open(r'%s', 'a') as ledger:
        ledger.write(order['id'] + '\\n')
"""


async def suspended(client: AsyncClient, flow: SmallFlow) -> flow_pb2.FlowStatus:
    """Waits until the flow is suspended by a message."""

    async def check() -> flow_pb2.FlowStatus | None:
        try:
            status = await client.get_status(flow.name)
        except Unavailable:
            return None
        found = status.state == flow_pb2.FLOW_STATE_SUSPENDED and status.suspension.step == "act"
        return status if found else None

    return await eventually(check, within_s=30)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("key", ["", "key: 'body:/id'"])
async def test_a_message_that_fails_for_good_waits_and_goes_on_when_it_can(tmp_path: Path, key: str) -> None:
    broken, ledger = tmp_path / "broken", tmp_path / "ledger"
    broken.write_text("bad-1 bad-2")
    ledger.touch()
    sent: list[str] = []
    with start_mesh(tmp_path, ack_wait_s=2.0) as mesh:
        act = "on_error: suspend-flow" + (f", {key}" if key else "")
        flow = SmallFlow.write(mesh, tmp_path / "flow", HEAD + CODE % (broken, ledger), head="", act=act)
        flow.run()
        async with AsyncClient(mesh.api) as client:

            async def send(*ids: str) -> None:
                for name in ids:
                    sent.append(name)
                    await client.inject(flow.name, b'{"id": "%s"}' % name.encode(), request_id=name)

            # The orchestrator does not see it until the sidecar that failed it is dead.
            orchestrator = mesh.pid_of("orchestrator")
            await send("before")
            await eventually(lambda: "before" in ledger.read_text(), within_s=20)
            await send("bad-1", *(f"after-{n}" for n in range(5)))
            os.kill(orchestrator, signal.SIGSTOP)
            mesh.kill("sidecar", flow.name, "act")
            os.kill(orchestrator, signal.SIGCONT)
            status = await suspended(client, flow)
            assert (status.suspension.error_code, status.suspension.error_message) == (
                "BANK_CLOSED",
                "the bank is closed",
            )
            assert any(f"headrace flow resume {flow.name}" in problem for problem in status.problems)
            # Suspended it takes messages; kills change nothing.
            await send("bad-2", *(f"later-{n}" for n in range(5)))
            await eventually(lambda: mesh.pids_of("sidecar", flow.name, "act"))
            mesh.kill("sidecar", flow.name, "act")
            mesh.kill("orchestrator")
            status = await suspended(client, flow)
            assert "bad" not in ledger.read_text()
            # A resume tries again; what still fails suspends again.
            await client.resume(flow.name)
            status = await suspended(client, flow)
            broken.write_text("")
            await client.resume(flow.name)
            await eventually(lambda: set(ledger.read_text().split()) == set(sent), within_s=30)
            if not key:
                assert Counter(ledger.read_text().split()) == Counter(sent)
            # With a key what was done after the bad one waits for its commit, and is done again after a kill: an
            # effect outside the mesh, at the very step that was killed, may repeat.

            async def empty() -> bool:
                return not sum(step.waiting + step.in_flight for step in (await client.get_status(flow.name)).steps)

            await eventually(empty)
            assert (await client.get_status(flow.name)).dead_letters.total == 0
            entries, _ = await client.list_history(flow.name)
            details = [entry.detail for entry in entries if entry.what == "suspended"]
            assert len(details) == 2
            assert set(details) == {"step act: BANK_CLOSED: the bank is closed"}
            assert {entry.who for entry in entries if entry.what == "suspended"} == {"orchestrator"}
