"""What waits in each flow, by step: read from streams, never from consumers (asking those costs them work).

One request tells of all streams (a page of 256); a flow costs requests of its own only while messages are stored in
it: one for the counts, one for the oldest message of each step that has some.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import HeadraceError
from services.orchestrator.domain.assets import stream_view
from services.orchestrator.domain.flow_metrics import FlowBacklog, StepBacklog
from services.orchestrator.domain.snapshot import StreamView

log = get_logger(__name__)

AT_ONCE = 16
LIMIT_S = 5.0


class Backlogs:
    """Reads all flows of one workspace at once."""

    def __init__(self, assets: JetStreamAssets, workspace: str) -> None:
        self._assets, self._workspace = assets, workspace
        self._places = asyncio.Semaphore(AT_ONCE)

    async def read(self, flows: Iterable[str]) -> dict[str, FlowBacklog]:
        """Unavailable when the broker does not answer at all."""
        states = await self._assets.stream_states(f"{subjects.ROOT}.{self._workspace}.>")
        found: dict[str, FlowBacklog] = {}
        with_messages: list[str] = []
        for flow in flows:
            own = states.get(subjects.flow_stream(self._workspace, flow), {})
            letters = states.get(subjects.dead_letter_stream(self._workspace, flow), {})
            found[flow] = FlowBacklog(
                messages=int(own.get("messages", 0)),
                size=int(own.get("bytes", 0)),
                letters_kept=int(letters.get("messages", 0)),
                letters_stored=int(letters.get("last_seq", 0)),
            )
            if found[flow].messages:
                with_messages.append(flow)
        for flow, (messages, steps) in (await self._read_steps(with_messages)).items():
            known = found[flow]
            found[flow] = FlowBacklog(messages, known.size, known.letters_kept, known.letters_stored, steps)
        return found

    async def _read_steps(self, flows: list[str]) -> dict[str, tuple[int, Mapping[str, StepBacklog] | None]]:
        tasks = {flow: asyncio.create_task(self.steps_of(flow), name=f"backlog {flow}") for flow in flows}
        if not tasks:
            return {}
        _, late = await asyncio.wait(tasks.values(), timeout=LIMIT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        found: dict[str, tuple[int, Mapping[str, StepBacklog] | None]] = {}
        for flow, task in tasks.items():
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, HeadraceError):
                raise error
            steps = None if task.cancelled() or error is not None else task.result()
            found[flow] = (sum(step.stored for step in steps.values()) if steps is not None else 0, steps)
        return found

    async def steps_of(self, flow: str) -> dict[str, StepBacklog]:
        """Of one flow: the steps for which something is stored. Unavailable when the broker does not answer."""
        stream = subjects.flow_stream(self._workspace, flow)
        async with self._places:
            info = await self._assets.stream_info(stream, f"{subjects.ROOT}.{self._workspace}.{flow}.>")
        if info is None:
            return {}
        counts = _by_step(stream_view(info))
        found: dict[str, StepBacklog] = {}
        for step, owners in counts.items():
            async with self._places:
                times = [
                    await self._assets.oldest_time(stream, f"{subjects.ROOT}.{self._workspace}.{flow}.{owner}.{step}.*")
                    for owner in owners
                ]
            oldest = min((unix_seconds(time) for time in times if time), default=0.0)
            found[step] = StepBacklog(sum(owners.values()), oldest)
        return found


def _by_step(stream: StreamView) -> dict[str, dict[str, int]]:
    """Messages by step and owner; what lies under the ingress itself belongs to no step."""
    found: dict[str, dict[str, int]] = {}
    for (owner, step, _), count in stream.counts.items():
        if count and not step.startswith("_") and owner != subjects.INGRESS:
            owners = found.setdefault(step, {})
            owners[owner] = owners.get(owner, 0) + count
    return found


def unix_seconds(rfc3339: str) -> float:
    """Of the broker's times, which have nanoseconds."""
    whole, _, rest = rfc3339.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")
