"""The demo's second act: new code arrives while orders flow, and runs when a person says so, not before.

Orders flow; a new `price` is pushed (nothing changes); a restart takes it (no gap); a rollback takes it back; the
component and the orchestrator are killed with kill -9 (the pins hold).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from headrace.cli.demo_example import Example
from headrace.cli.mesh import Mesh
from headrace.cli.pinning_check import Moment, PinningResult, judge_pinning
from headrace.cli.steady_orders import SteadyOrders
from headrace.client import AsyncClient
from headrace.model.errors import DeadlineExceeded, HeadraceError

STEP = "price"
REVISION = re.compile(r'^REVISION = "price-r(\d+)"$', re.M)
RATE = 100.0
STEADY_ORDERS = 80
LOOK_S = 0.02
LIMIT_S = 30.0


def has_second_act(example: Example) -> bool:
    """Whether the example has a price step whose code says which revision it is."""
    return _revision_of(example) is not None


def _revision_of(example: Example) -> int | None:
    folder = example.flow_file.folders.get(STEP)
    try:
        found = REVISION.search((folder / "component.py").read_text(encoding="utf-8")) if folder else None
    except OSError:
        return None
    return int(found[1]) if found else None


class PinningAct:
    """`await PinningAct(...).run()`; `say` gets a line for each thing done."""

    def __init__(
        self, mesh: Mesh, client: AsyncClient, example: Example, host: str, port: int, say: Callable[[str], None]
    ) -> None:
        self._mesh, self._client, self._example, self._say = mesh, client, example, say
        self._orders = SteadyOrders(
            example.plain_orders(), path=f"/hook/{example.flow}", host=host, port=port, rate=RATE, timeout_s=LIMIT_S
        )
        self._constants: dict[str, str] = {}
        self._switches: list[Moment] = []
        self._kills: list[Moment] = []

    async def run(self) -> PinningResult:
        """HeadraceError where the mesh refuses what the act asks for."""
        number = _revision_of(self._example)
        assert number is not None
        first, second = f"price-r{number}", f"price-r{number + 1}"
        flow = await self._client.get_flow(self._example.flow)
        self._constants[(await self._pins(flow.active_deployment))[STEP]] = first
        self._orders.start()
        try:
            await self._more_orders()
            await self._push(second)
            await self._switch("restart", second)
            await self._switch("rollback", first)
            await self._kill("component", first)
            await self._kill("orchestrator", first)
        finally:
            calls = await asyncio.to_thread(self._orders.stop)
        await self._settled()
        return judge_pinning(
            calls, self._example.read_effects(), await self._pinned(), switches=self._switches, others=self._kills
        )

    async def _push(self, revision: str) -> None:
        folder = self._example.flow_file.folders[STEP]
        with tempfile.TemporaryDirectory(prefix="headrace-demo-") as place:
            copy = Path(place) / STEP
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
            code = copy / "component.py"
            code.write_text(REVISION.sub(f'REVISION = "{revision}"', code.read_text(encoding="utf-8")), "utf-8")
            pushed = await self._client.push_component(copy)
        self._constants[pushed.revision.digest] = revision
        before = len(self._orders.calls)
        await self._more_orders()
        by_new = sum(_answered_by(call.answer.body) == revision for call in self._orders.calls[before:])
        after = len(self._orders.calls) - before
        self._say(
            f"pushed {revision} (price@{pushed.revision.number}): {after} orders later {by_new} were priced by it"
        )

    async def _switch(self, verb: str, revision: str) -> None:
        async with self._during(verb, self._switches) as took:
            if verb == "restart":
                result = await self._client.restart(self._example.flow)
            else:
                version = (await self._client.get_flow(self._example.flow)).running_version
                result = await self._client.rollback(self._example.flow, version)
        before = len(self._orders.calls)
        await self._more_orders()
        newest = self._orders.calls[before:]
        by_it = sum(_answered_by(call.answer.body) == revision for call in newest)
        self._say(
            f"{verb}: deployment {result.deployment} took over in {took():.2f} s; of the next {len(newest)} orders "
            f"{by_it} were priced by {revision}"
        )

    async def _kill(self, role: str, revision: str) -> None:
        status = await self._client.get_status(self._example.flow)
        instances = [instance for step in status.steps if step.step == STEP for instance in step.instances]
        pid = instances[0].component_pid if role == "component" else self._mesh.pid_of(role)
        pins = await self._pins(status.steps[0].deployment)
        async with self._during(f"kill -9 of the {role}", self._kills) as took:
            os.kill(pid, signal.SIGKILL)
            await self._more_orders()
            await self._until_pid_is_not(role, pid)
        held = await self._pins(status.steps[0].deployment) == pins
        by_it = sum(_answered_by(call.answer.body) == revision for call in self._orders.calls[-STEADY_ORDERS // 2 :])
        self._say(
            f"kill -9 of the {'price component' if role == 'component' else role} (pid {pid}): back after "
            f"{took():.2f} s, pins {'as before' if held else 'CHANGED'}, {by_it} of the last {STEADY_ORDERS // 2} "
            f"orders priced by {revision}"
        )

    async def _until_pid_is_not(self, role: str, pid: int) -> None:
        async def is_back() -> bool:
            if role != "component" and self._mesh.pid_of(role) in (0, pid):
                return False
            try:
                status = await self._client.get_status(self._example.flow)
            except HeadraceError:
                return False
            pids = [instance.component_pid for step in status.steps for instance in step.instances]
            return all(pids) and (role != "component" or pid not in pids)

        deadline = time.monotonic() + LIMIT_S
        while not await is_back():
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the {role} is not back after {LIMIT_S:g} s", next_step="See its log")
            await asyncio.sleep(LOOK_S)

    @asynccontextmanager
    async def _during(self, what: str, moments: list[Moment]) -> AsyncIterator[Callable[[], float]]:
        began = time.perf_counter_ns()
        ended = 0
        yield lambda: (ended - began) / 1e9
        ended = time.perf_counter_ns()
        moments.append(Moment(what, began, ended))

    async def _more_orders(self, count: int = STEADY_ORDERS) -> None:
        """Waits until so many more orders were answered."""
        wanted = len(self._orders.calls) + count
        deadline = time.monotonic() + LIMIT_S
        while len(self._orders.calls) < wanted:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"orders are not answered any more: fewer than {count} in {LIMIT_S:g} s")
            await asyncio.sleep(LOOK_S)

    async def _settled(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while True:
            status = await self._client.get_status(self._example.flow)
            if not any(item.waiting or item.in_flight for item in status.deployments):
                return
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"messages still wait {LIMIT_S:g} s after the last order")
            await asyncio.sleep(LOOK_S)

    async def _pins(self, deployment: int) -> dict[str, str]:
        for found in await self._client.list_deployments(self._example.flow):
            if found.number == deployment:
                return {pin.step: pin.digest for pin in found.pins}
        return {}

    async def _pinned(self) -> dict[int, str]:
        """Deployment to the constant of the price code that it pins."""
        return {
            found.number: self._constants.get(pin.digest, pin.digest)
            for found in await self._client.list_deployments(self._example.flow)
            for pin in found.pins
            if pin.step == STEP
        }


def _answered_by(body: bytes) -> str:
    try:
        return str(json.loads(body)["revisions"][STEP])
    except (ValueError, KeyError, TypeError):
        return ""
