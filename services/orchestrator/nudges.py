"""What wakes sleeping steps: the publish itself, and a slow look at the streams.

While a step sleeps the leader has a subscription on the subjects under which messages are stored for it, so the broker
hands it a copy of the first one: no sender has to know who sleeps, and a step that is awake costs nobody anything. A
message may be heard of a moment before it is stored, so for a moment the step counts as having work. What was missed
(the connection was down) the look at the newest sequence of all streams finds, one request for all flows together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model import subjects
from headrace.model.errors import HeadraceError
from services.orchestrator.domain.sleeping import sleepers
from services.orchestrator.domain.snapshot import Snapshot

log = get_logger(__name__)

# So long a step that was published to counts as having work: longer than a publish that is being stored.
FRESH_S = 2.0
LOOK_S = 15.0


@dataclass
class _Sleeping:
    """The sleeping steps of one flow: their subscriptions, and the newest sequence of its stream when it was seen."""

    heard: dict[str, Subscription | None] = field(default_factory=dict)
    last_sequence: int = 0
    task: asyncio.Task[None] | None = None


class Nudges:
    """Told by the reconcile loops who sleeps (`observe`). Between `start` and `stop` it listens."""

    def __init__(
        self, connection: Client, assets: JetStreamAssets, workspace: str, wake: Callable[[str], None]
    ) -> None:
        self._connection, self._assets, self._workspace, self._wake = connection, assets, workspace, wake
        self._flows: dict[str, _Sleeping] = {}
        self._fresh: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look(), name="look for sleepers' messages")

    async def stop(self) -> None:
        """Hears nothing any more."""
        if self._task is not None:
            await end_tasks([self._task])
            self._task = None
        sleeping, self._flows = list(self._flows.values()), {}
        self._fresh.clear()
        await end_tasks([item.task for item in sleeping if item.task is not None])
        for item in sleeping:
            for subscription in item.heard.values():
                await _unsubscribe(subscription)

    def fresh(self, flow: str) -> frozenset[str]:
        """Steps to which something was published a moment ago."""
        now = asyncio.get_running_loop().time()
        self._fresh = {key: since for key, since in self._fresh.items() if now - since < FRESH_S}
        return frozenset(step for name, step in self._fresh if name == flow)

    def observe(self, snapshot: Snapshot) -> None:
        """A loop has looked at its flow; where other steps sleep than before it is woken once they are listened for:
        what was stored before that nobody heard."""
        if self._task is None:
            return
        flow, asleep = snapshot.flow.flow, sleepers(snapshot)
        for key in [key for key in self._fresh if key[0] == flow and key[1] not in asleep]:
            del self._fresh[key]  # it woke: the nudge has done its work
        known = self._flows.get(flow)
        if known is None:
            if not asleep:
                return
            known = self._flows[flow] = _Sleeping()
        known.last_sequence = snapshot.stream.last_sequence if snapshot.stream else 0
        # One that was heard of, and sleeps all the same (it could not be started), is listened for again.
        deaf = {step for step, subscription in known.heard.items() if subscription is None} - self.fresh(flow)
        for step in deaf:
            del known.heard[step]
        if asleep != known.heard.keys() and known.task is None:
            known.task = asyncio.create_task(self._listen(flow, known, asleep), name=f"nudges of {flow}")

    async def _listen(self, flow: str, known: _Sleeping, asleep: frozenset[str]) -> None:
        try:
            for step in [step for step in known.heard if step not in asleep]:
                await _unsubscribe(known.heard.pop(step))
            new = [step for step in sorted(asleep) if step not in known.heard]
            for step in new:
                known.heard[step] = await self._subscribe(flow, step)
            if not known.heard:
                self._flows.pop(flow, None)
            elif new:
                self._wake(flow)
        except NatsError as error:
            log.warning("a sleeping step is not listened for, its messages are found a little later",
                        flow=flow, error=repr(error)[:200])  # fmt: skip
        finally:
            known.task = None

    async def _subscribe(self, flow: str, step: str) -> Subscription:
        async def heard(message: Msg) -> None:
            self._fresh[flow, step] = asyncio.get_running_loop().time()
            known = self._flows.get(flow)
            if known is not None and known.heard.get(step) is subscription:
                known.heard[step] = None  # the broker has ended it
            self._wake(flow)

        subject = subjects.all_slots(self._workspace, flow, "*", step)
        subscription = await self._connection.subscribe(subject, cb=heard)
        await subscription.unsubscribe(limit=1)
        return subscription

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._flows:
                continue
            try:
                states = await self._assets.stream_states(f"{subjects.ROOT}.{self._workspace}.>")
            except HeadraceError as error:
                log.debug("streams not read", error=str(error)[:200])
                continue
            for flow, known in list(self._flows.items()):
                state = states.get(subjects.flow_stream(self._workspace, flow), {})
                if int(state.get("last_seq", 0)) != known.last_sequence:
                    self._wake(flow)


async def _unsubscribe(subscription: Subscription | None) -> None:
    if subscription is None:
        return
    try:
        await subscription.unsubscribe()
    except NatsError as error:  # it has ended, or the connection has
        log.debug("not unsubscribed", error=repr(error)[:200])
