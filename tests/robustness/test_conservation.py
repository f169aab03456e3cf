"""Nothing is lost and nothing is counted twice: what a flow accepted is processed, waits, is a dead letter, was
discarded or was dropped, from the API's own counters and the component's ledger, under errors and kill -9."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.model.errors import HeadraceError
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.small_flow import HEAD, SmallFlow

CODE = """
@component.action
async def act(order: dict, ctx: Context) -> None:
    if order['bad'] and Path(r'%s').exists():
        raise ComponentError('BAD_ORDER', f"order {order['id']} is bad", retryable=order['id'] %% 2 == 0)
    with open(r'%s', 'a') as ledger:
        ledger.write(f"{order['id']}\\n")
"""
BATCH = 60
VICTIMS = ("component", "sidecar", "broker", "orchestrator", "sidecar")


class Accounts:
    """Sends numbered orders, every third of them bad, and does the sums."""

    def __init__(self, client: AsyncClient, flow: SmallFlow, ledger: Path) -> None:
        self.client, self.flow, self.ledger = client, flow, ledger
        self.accepted = 0

    async def send(self, count: int) -> None:
        """Until each is accepted: the same request id, also through a killed orchestrator or broker."""
        first, self.accepted = self.accepted, self.accepted + count
        await asyncio.gather(*(self._send(number) for number in range(first, first + count)))

    async def _send(self, number: int) -> None:
        body = b'{"id": %d, "bad": %s}' % (number, b"true" if number % 3 == 0 else b"false")

        async def accepted() -> bool:
            with contextlib.suppress(HeadraceError):
                await self.client.inject(self.flow.name, body, request_id=str(number))
                return True
            return False

        await eventually(accepted, within_s=30)

    def processed(self) -> Counter[str]:
        return Counter(self.ledger.read_text().split())

    async def balance(self, *, kept: int = 0) -> flow_pb2.FlowStatus:
        """The flow's status once only `kept` messages wait and the sum is right."""

        async def even() -> flow_pb2.FlowStatus | None:
            try:
                status = await self.client.get_status(self.flow.name)
            except HeadraceError:
                return None
            letters, processed = status.dead_letters, self.processed()
            assert set(processed.values()) <= {1}, "processed twice"
            assert letters.total == letters.waiting + letters.replayed + letters.discarded + letters.pushed_out
            waiting = sum(item.waiting + item.in_flight for item in status.deployments)
            gone = letters.waiting + letters.discarded + letters.pushed_out + status.dropped
            self.line = f"{self.accepted} accepted = {len(processed)} processed + {waiting} waiting + {gone} given up"
            right = self.accepted == len(processed) + waiting + gone
            return status if right and waiting == kept else None

        status = await eventually(even, within_s=60, every_s=0.1)
        print(self.line)
        return status


async def strike(mesh: RunningMesh, victim: str, flow: SmallFlow) -> None:
    """kill -9 of a running process; `up` and agent start it again."""
    if victim in ("component", "sidecar"):
        await eventually(lambda: mesh.pids_of(victim, flow.name, "act"), within_s=20)
        mesh.kill(victim, flow.name, "act")
    else:
        mesh.kill(victim)


@pytest.mark.timeout(150)
async def test_what_was_accepted_is_somewhere_and_counted_once(tmp_path: Path) -> None:
    broken, ledger = tmp_path / "broken", tmp_path / "ledger"
    broken.touch()
    ledger.touch()
    with start_mesh(tmp_path, ack_wait_s=1.0) as mesh:
        retry = "retry: {attempts: 2, backoff: 10ms}"
        flow = SmallFlow.write(mesh, tmp_path / "flow", HEAD + CODE % (broken, ledger), head="", act=retry)
        flow.run()
        async with AsyncClient(mesh.api) as client:
            books = Accounts(client, flow, ledger)
            for victim in VICTIMS:
                sending = asyncio.create_task(books.send(BATCH))
                await strike(mesh, victim, flow)
                await sending
            status = await books.balance()
            bad = books.accepted // 3
            assert status.dead_letters.total == bad

            # Replayed and still bad: they come back, under new numbers.
            answer = await client.replay_dead_letters(flow.name, [1, 2, 3])
            assert answer.replayed == 3

            async def back() -> bool:
                return (await client.get_status(flow.name)).dead_letters.waiting == bad

            await eventually(back, within_s=20)
            status = await books.balance()
            assert (status.dead_letters.total, status.dead_letters.replayed) == (bad + 3, 3)
            assert (await client.discard_dead_letters(flow.name, [4, 5])).discarded == 2
            await books.balance()

            # Mended and replayed, while the sidecar is killed.
            broken.unlink()
            replaying = asyncio.create_task(client.replay_dead_letters(flow.name, all_letters=True))
            await strike(mesh, "sidecar", flow)
            assert (await replaying).replayed == bad - 2
            await eventually(lambda: len(books.processed()) == books.accepted - 2, within_s=30)
            await books.balance()

            # Suspended, then dropped.
            await client.suspend(flow.name)
            await books.send(BATCH)
            status = await books.balance(kept=BATCH)
            assert status.suspension.kept == BATCH
            await client.stop(flow.name, drop=True)
            status = await books.balance()
            assert (status.dropped, status.dead_letters.discarded, status.dead_letters.waiting) == (BATCH, 2, 0)
