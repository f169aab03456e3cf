"""What a push means for flows that run: who keeps which revision, and what takes the new one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.model.errors import NotFound

if TYPE_CHECKING:
    from headrace.api.registry.v1 import registry_pb2
    from headrace.client import AsyncClient

FLOWS_AT_ONCE = 8
MOST_FLOWS = 100


@dataclass(frozen=True, slots=True)
class Keeper:
    """A flow whose active deployment runs an older revision; `reference` is what its version says."""

    flow: str
    revision: int
    reference: str
    takes: str
    """The command by which it takes the pushed one."""

    def words(self, pushed: int) -> str:
        """`flow orders keeps revision 3; headrace flow restart orders takes 4`."""
        return f"flow {self.flow} keeps revision {self.revision}; `{self.takes}` takes {pushed}"


async def find_keepers(client: AsyncClient, component: str, pushed: registry_pb2.Revision) -> list[Keeper]:
    """Flows that run another revision of the component than the one pushed; at most 100 are looked at."""
    pinning: dict[str, dict[int, int]] = {}
    for revision in await client.list_revisions(component):
        if revision.number == pushed.number:
            continue
        for holder in revision.pinned_by:
            parts = holder.split("/")
            if len(parts) == 4 and parts[2] == "deployments" and parts[3].isdigit():
                pinning.setdefault(parts[1], {})[int(parts[3])] = revision.number
    slots = asyncio.Semaphore(FLOWS_AT_ONCE)

    async def look(flow: str, deployments: dict[int, int]) -> Keeper | None:
        async with slots:
            return await _keeper(client, component, pushed, flow, deployments)

    found = await asyncio.gather(*(look(flow, pinning[flow]) for flow in sorted(pinning)[:MOST_FLOWS]))
    return [keeper for keeper in found if keeper is not None]


async def _keeper(
    client: AsyncClient, component: str, pushed: registry_pb2.Revision, flow: str, deployments: dict[int, int]
) -> Keeper | None:
    try:
        now = await client.get_flow(flow)
        revision = deployments.get(now.active_deployment, 0)
        if not revision:
            return None
        version = await client.get_version(flow, now.running_version)
    except NotFound:
        return None
    references = [step.component for step in version.spec.steps if step.component.partition("@")[0] == component]
    follows = [reference for reference in references if follows_latest(reference)]
    reference = (follows or references or [component])[0]
    takes = f"headrace flow restart {flow}"
    if not follows:
        takes = f"headrace component upgrade {flow} && headrace flow publish {flow}"
    return Keeper(flow, revision, reference, takes)


def follows_latest(reference: str) -> bool:
    """Whether a reference means the newest revision each time it is resolved."""
    return reference.partition("@")[2] in ("", "latest")
