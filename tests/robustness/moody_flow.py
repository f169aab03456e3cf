"""Flows whose steps do what their messages say, and the questions asked about them."""

from __future__ import annotations

import json
import os
import secrets
import signal
from dataclasses import dataclass, field
from pathlib import Path

from headrace.api.diagnosis.v1 import diagnosis_pb2
from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.edge.process_table import state_of
from headrace.model.causes import Cause
from headrace.model.errors import Exhausted
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

COMPONENTS = (ROOT / "components" / "webhook", ROOT / "tests" / "support" / "components" / "moody")
CHAIN = {"work": "function: work, to: [last]", "last": "function: last, prefetch: 2"}


@dataclass
class MoodyFlow:
    """webhook → `first`, and what `steps` say. What waits does so while `file` is there. `client` is open."""

    mesh: RunningMesh
    folder: Path
    client: AsyncClient
    steps: dict[str, str] = field(default_factory=lambda: dict(CHAIN))
    first: tuple[str, ...] = ("work",)
    head: str = ""
    name: str = field(default_factory=lambda: f"moody-{secrets.token_hex(3)}")

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.hold"

    def write(self) -> Path:
        path = self.folder / f"{self.name}.yaml"
        lines = [f"  {name}: {{component: moody, {settings}}}" for name, settings in self.steps.items()]
        entry = f"  entry: {{component: webhook, function: receive, to: [{', '.join(self.first)}]}}"
        text = "\n".join([f"name: {self.name}\ntype: realtime\n{self.head}\nsteps:", entry, *lines])
        path.write_text(text.replace("FILE", str(self.file)) + "\n")
        return path

    async def push(self) -> None:
        """The components; once for all flows."""
        for folder in COMPONENTS:
            await self.client.push_component(folder)

    async def publish(self) -> None:
        await self.client.apply(self.write())
        await self.client.publish(self.name)

    async def run(self) -> None:
        await self.publish()
        await self.client.start(self.name)

    async def remove(self) -> None:
        self.release()
        for role in ("component", "sidecar"):
            for step in self.steps:
                for pid in self.mesh.pids_of(role, self.name, step):
                    if state_of(pid) == "T":
                        os.kill(pid, signal.SIGCONT)
        if (await self.client.get_status(self.name)).state != flow_pb2.FLOW_STATE_STOPPED:
            await self.client.stop(self.name, drop=True)
        await self.client.discard_dead_letters(self.name, all_letters=True)
        await self.client.delete_flow(self.name)

    async def inject(self, count: int = 1, **do: str) -> None:
        """Messages that say what each step does with them."""
        body = json.dumps({"file": str(self.file), "do": do}).encode()

        async def one() -> bool:
            try:
                await self.client.inject(self.name, body)
            except Exhausted as full:  # for the moment
                raise AssertionError(full.message) from full
            return True

        for _ in range(count):
            await eventually(one, within_s=5)

    def hold(self) -> None:
        """From now on what waits waits."""
        self.file.touch()

    def release(self) -> None:
        self.file.unlink(missing_ok=True)

    async def why(self, step: str = "") -> diagnosis_pb2.ExplainFlowResponse:
        return await self.client.explain(self.name, step=step)

    async def named(
        self, cause: Cause, step: str = "", *, asking: str = "", within_s: float = 10.0
    ) -> diagnosis_pb2.ExplainFlowResponse:
        """The answer, once `why` names this cause of this step first. `asking` is the step that is asked about."""

        async def first() -> diagnosis_pb2.ExplainFlowResponse:
            answer = await self.why(asking)
            found = answer.findings[0]
            assert (found.cause, found.step) == (cause, step), told(answer)
            return answer

        return await eventually(first, within_s=within_s, every_s=0.1)

    async def is_healthy(self, within_s: float = 20.0) -> None:
        """Until nothing stalls or slows it any more."""

        async def healthy() -> bool:
            answer = await self.why()
            assert answer.healthy, told(answer)
            return True

        await eventually(healthy, within_s=within_s, every_s=0.2)


def told(answer: diagnosis_pb2.ExplainFlowResponse) -> str:
    """What an answer says, for a failed assertion."""
    found = (f"{item.cause} {item.step}: {item.summary} ({' | '.join(item.evidence)})" for item in answer.findings)
    return "; ".join(found)
