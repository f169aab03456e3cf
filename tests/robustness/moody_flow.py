"""A flow whose middle step does what its messages say, and the questions asked about it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headrace.api.diagnosis.v1 import diagnosis_pb2
from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient, Client
from headrace.model.causes import Cause
from headrace.model.errors import Exhausted
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

MOODY = ROOT / "tests" / "support" / "components" / "moody"
WITHIN_S = 10.0


@dataclass
class MoodyFlow:
    """webhook → work → last. Messages wait for `file`; `release` removes it."""

    mesh: RunningMesh
    folder: Path
    head: str = ""
    work: str = ""
    name: str = field(default_factory=lambda: f"moody-{secrets.token_hex(3)}")

    @property
    def file(self) -> Path:
        return self.folder / "hold"

    def write(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.yaml"
        path.write_text(
            f"name: {self.name}\ntype: realtime\n{self.head}\nsteps:\n"
            f"  entry: {{component: {ROOT}/components/webhook, function: receive, to: [work]}}\n"
            f"  work: {{component: {MOODY}, function: work, to: [last]{self.work and ', ' + self.work}}}\n"
            f"  last: {{component: {MOODY}, function: last, prefetch: 2}}\n"
        )
        return path

    def run(self) -> None:
        with Client(self.mesh.api) as client:
            client.run(self.write())

    def remove(self) -> None:
        self.release()
        with Client(self.mesh.api) as client:
            if client.get_status(self.name).state != flow_pb2.FLOW_STATE_STOPPED:
                client.stop(self.name, drop=True)
            client.discard_dead_letters(self.name, all_letters=True)
            client.delete_flow(self.name)

    async def inject(self, count: int = 1, **body: str) -> None:
        """Messages; `do` says what `work` does with them, `last` what `last` does."""
        async with AsyncClient(self.mesh.api) as client:
            for _ in range(count):
                await eventually(partial(self._one, client, body), within_s=5)

    async def _one(self, client: AsyncClient, body: dict[str, str]) -> bool:
        try:
            await client.inject(self.name, json.dumps({"file": str(self.file), **body}).encode())
        except Exhausted as full:  # for the moment
            raise AssertionError(full.message) from full
        return True

    def hold(self) -> None:
        """From now on what waits waits."""
        self.file.touch()

    def release(self) -> None:
        self.file.unlink(missing_ok=True)

    async def why(self, step: str = "") -> diagnosis_pb2.ExplainFlowResponse:
        async with AsyncClient(self.mesh.api) as client:
            return await client.explain(self.name, step=step)

    async def named(self, cause: Cause, step: str = "", *, within_s: float = WITHIN_S) -> diagnosis_pb2.Finding:
        """The finding, once `why` names this cause first."""

        async def first() -> diagnosis_pb2.Finding:
            answer = await self.why()
            found = answer.findings[0]
            told = [(item.cause, item.step, item.summary, list(item.evidence)) for item in answer.findings]
            assert (found.cause, found.step) == (cause, step), told
            return found

        return await eventually(first, within_s=within_s, every_s=0.1)

    async def is_healthy(self, within_s: float = 20.0) -> None:
        """Until nothing stalls or slows it any more."""

        async def healthy() -> bool:
            answer = await self.why()
            assert answer.healthy, [(item.cause, item.step, item.summary) for item in answer.findings]
            return True

        await eventually(healthy, within_s=within_s, every_s=0.2)
