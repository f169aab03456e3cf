"""A flow whose answers say which code made them, and what its deployments pin, as seen through the API.

webhook → work (`pinned-work`) → effect (`pinned-effect`): each step writes its deployment and the constant of its
own code into the message; the last one writes a line to a file and replies.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client import AsyncClient, Client
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.wire.flow import flow_spec_to_proto
from tests.robustness.ledger import Attempt, Effect, Verdict, check, counted, read_effects
from tests.robustness.pin_check import PinVerdict, Reign, check_pins
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

COMPONENTS = Path(__file__).parent / "components"
WEBHOOK = Path(__file__).parents[2] / "components" / "webhook"
CONSTANT = re.compile(r'^REVISION = "r0"$', re.M)
WORK, EFFECT = "pinned-work", "pinned-effect"


@dataclass(frozen=True, slots=True)
class Pushed:
    """A revision in the registry. `constant` is what its code writes into messages."""

    component: str
    number: int
    digest: str
    constant: str

    @property
    def reference(self) -> str:
        return f"{self.component}@{self.number}"


class PinnedFlow:
    """`flow.use(client)`, `await flow.begin()`, then `push`, `publish`, `judge`. One flow, one effects file."""

    client: AsyncClient

    def __init__(self, name: str, folder: Path, **work_config: Any) -> None:
        self.name = name
        self.effects_file = folder / f"{name}.effects.jsonl"
        self.work_config = work_config
        self.reply_timeout_s = 10.0
        self.constants: dict[str, str] = {}
        self.pushes = 0
        self.reigns: dict[int, Reign] = {}
        self._pins: dict[int, dict[str, str]] = {}

    def use(self, client: AsyncClient) -> PinnedFlow:
        """The client for all calls from now on."""
        self.client = client
        return self

    @property
    def path(self) -> str:
        return f"/hook/{self.name}"

    async def begin(self) -> Reign:
        """Pushes first revisions, creates the flow, publishes and starts it."""
        await self.client.push_component(WEBHOOK)
        await self.push(WORK)
        await self.push(EFFECT)
        await self.client.create_flow(self.name, flow_spec_to_proto(self.spec()))
        await self.client.publish(self.name)
        began = time.monotonic()
        result = await self.client.start(self.name)
        return await self.note(result, began)

    def spec(self, work: str = f"{WORK}@latest", effect: str = f"{EFFECT}@latest") -> FlowSpec:
        """What the flow is, with these references."""
        steps = (
            StepSpec("hook", "webhook@latest", "receive", to=("work",)),
            StepSpec("work", work, config=self.work_config, to=("effect",)),
            StepSpec("effect", effect, config={"path": str(self.effects_file)}),
        )
        return FlowSpec("realtime", steps, reply_timeout_s=self.reply_timeout_s)

    async def push(self, component: str, extra: str = "") -> Pushed:
        """Pushes content that was never pushed before; `latest` moves to it. `extra` is added to its code."""
        self.pushes += 1
        constant = f"{self.name}-r{self.pushes}"
        source = COMPONENTS / component.replace("-", "_")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for file in source.glob("*.*"):
                (folder / file.name).write_bytes(file.read_bytes())
            code = CONSTANT.sub(f'REVISION = "{constant}"', (source / "component.py").read_text())
            (folder / "component.py").write_text(code + extra)
            answer = await self.client.push_component(folder)
        self.constants[answer.revision.digest] = constant
        return Pushed(component, answer.revision.number, answer.revision.digest, constant)

    async def draft(self, work: str = f"{WORK}@latest", effect: str = f"{EFFECT}@latest") -> None:
        await self.client.update_draft(self.name, flow_spec_to_proto(self.spec(work, effect)))

    async def publish(
        self, work: str = f"{WORK}@latest", effect: str = f"{EFFECT}@latest", *, timeout_s: float = 60.0, **how: Any
    ) -> Reign:
        """Publishes a draft with these references and waits until its deployment took over."""
        await self.draft(work, effect)
        began = time.monotonic()
        return await self.note(await self.client.publish(self.name, timeout_s=timeout_s, **how), began)

    async def restart(self, **how: Any) -> Reign:
        began = time.monotonic()
        return await self.note(await self.client.restart(self.name, **how), began)

    async def rollback(self, version: int, **how: Any) -> Reign:
        began = time.monotonic()
        return await self.note(await self.client.rollback(self.name, version, **how), began)

    async def resolve_drain(
        self, deployment: int, choice: flow_pb2.DrainChoice.ValueType
    ) -> flow_pb2.FlowOperationResult:
        """A person's choice for what waits for a deployment that does not drain."""
        request = flow_pb2.ResolveDrainRequest(name=f"flows/{self.name}/deployments/{deployment}", choice=choice)
        operation = await flow_pb2_grpc.FlowServiceStub(self.client.channel).ResolveDrain(request)
        return await self.client.wait_operation(operation, timeout_s=70.0)

    async def note(self, result: flow_pb2.FlowOperationResult, began: float) -> Reign:
        """The reign that an operation which is done has begun."""
        took_over = time.monotonic()
        await self.observe()
        reign = self.reigns[result.deployment]
        assert reign.version == result.version
        self.reigns[result.deployment] = replace(reign, began=began, took_over=took_over)
        return self.reigns[result.deployment]

    async def observe(self) -> list[flow_pb2.Deployment]:
        """Reads what every deployment pins; AssertionError when a pin set has changed."""
        deployments = await self.client.list_deployments(self.name)
        for deployment in deployments:
            if not deployment.pins:
                continue  # not resolved (yet)
            pins = {pin.step: pin.digest for pin in deployment.pins}
            known = self._pins.setdefault(deployment.number, pins)
            assert known == pins, f"the pins of d{deployment.number} changed from {known} to {pins}"
            # What a digest's code says is known as soon as its push was answered, which may be later.
            constants = {step: self.constants[digest] for step, digest in pins.items() if digest in self.constants}
            reign = self.reigns.get(deployment.number, Reign(deployment.number, deployment.version, {}, began=0.0))
            self.reigns[deployment.number] = replace(reign, pins=constants)
        return deployments

    async def active(self) -> int:
        """The deployment that runs."""
        return (await self.client.get_flow(self.name)).active_deployment

    def effects(self, run: str) -> list[Effect]:
        """Effects of one traffic run."""
        return [effect for effect in read_effects(self.effects_file) if effect.id.startswith(f"{run}-")]

    async def judge(self, run: str, attempts: list[Attempt], *, within_s: float = 20.0) -> tuple[Verdict, PinVerdict]:
        """Waits until every effect that is due is there, then asks both checkers."""
        due = {attempt.id for attempt in attempts if attempt.outcome.value == "OK"}
        with contextlib.suppress(AssertionError):  # the verdict names what is lost
            await eventually(lambda: due <= {effect.id for effect in self.effects(run)}, within_s=within_s, every_s=0.1)
        effects = self.effects(run)
        await self.observe()
        return counted(check(attempts, effects)), check_pins(attempts, effects, self.reigns.values())


def stop(mesh: RunningMesh, flow: PinnedFlow) -> None:
    """Stops the flow if it was begun, whatever waits, so that the mesh is free for others."""
    if flow.reigns:
        with Client(mesh.api, timeout_s=20) as client:
            client.stop(flow.name, drop=True)
