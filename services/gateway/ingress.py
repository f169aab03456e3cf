"""Publishes stimuli to a flow's ingress, repeating the same id until the broker has said what became of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from headrace.edge.clock_pair import read_clocks
from headrace.edge.ingress_publisher import IngressPublisher, IngressTransport
from headrace.model import subjects
from headrace.model.route import Route
from headrace.ports import LaneFull, PublishRefused, PublishUnknown, ReadFailed, Stored
from headrace.wire.envelope import seal
from headrace.wire.jetstream import DUPLICATE_IN_PROCESS, MESSAGE_TOO_LARGE
from services.gateway.domain import refusals
from services.gateway.reply_desk import NotStored, Waiter
from services.gateway.routes import Routes

# A whole attempt: a healthy broker answers in a millisecond, a cluster without a leader in up to nine seconds.
ATTEMPT_LIMIT_S = 2.0
FIRST_DELAY_S = 0.02
LONGEST_DELAY_S = 0.25
STOPPED_STATES = frozenset({"STOPPED", "STOPPING"})


class Placement(NamedTuple):
    """What follows from a route for one stimulus: where it goes, under which id."""

    trigger: str
    message_id: str
    traceparent: str
    slot: int = subjects.SINGLE_SLOT


@dataclass(slots=True)
class Stimulus:
    """What goes to the trigger, and until when (the loop's clock) it is tried.

    `shared` is the envelope without its id and time of writing (headrace.wire.envelope.encode_shared). `place` says
    where it goes by a route; asked again when the route has changed and nothing was stored for certain.
    """

    route: Route
    execution: str
    shared: bytes
    deadline: float
    place: Callable[[Route], Placement]
    written_at_mono_ns: int = 0

    @property
    def flow(self) -> str:
        return self.route.flow


class Ingress:
    """`publish` ends in Stored or in a Refusal that says whether the outcome is known."""

    def __init__(self, transport: IngressTransport, workspace: str, routes: Routes) -> None:
        self._publisher = IngressPublisher(transport, workspace)
        self._routes = routes

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        # Asking for it costs a system call (Python 3.11), which on the path of every request is as dear as an id.
        return asyncio.get_running_loop()

    def begin(self, stimulus: Stimulus, waiter: Waiter) -> LaneFull | None:
        """Writes it a first time, without waiting: a reply says as well that it was stored. What the broker answers is
        told to the waiter; an error is for `publish`, and so is what this answers. Not for a fenced route."""
        at = stimulus.place(stimulus.route)
        limit_s = self._attempt_limit(stimulus)
        written_at_unix_ns, stimulus.written_at_mono_ns = read_clocks()
        try:
            self._publisher.publish_told(
                stimulus.flow,
                at.trigger,
                at.slot,
                seal(stimulus.shared, at.message_id, written_at_unix_ns),
                Waiter.told,
                waiter,
                together=stimulus.route.group_commits,
                message_id=at.message_id,
                traceparent=at.traceparent,
                timeout_s=limit_s,
            )
        except LaneFull as full:
            return full
        return None

    async def publish(self, stimulus: Stimulus, gave_up: Callable[[], bool], first: NotStored | None = None) -> Stored:
        """Stored, or Refusal 429, 413, 503 (not stored, for certain) or 504 (nobody knows). `first`: how the
        attempt that `begin` made ended.

        Repeats the id on timeouts, lost connections, missing responders and 10158, until the deadline or until
        `gave_up()` (the caller has gone). Missing responders mean a stopped flow only if its route, read again, says
        so; where it names another trigger or other slots, and nothing can have been stored, it goes there.
        """
        loop = self._loop
        execution = stimulus.execution
        at = stimulus.place(stimulus.route)
        delay = FIRST_DELAY_S
        uncertain = False
        while True:
            try:
                if first is not None:
                    failed, first = first, None
                    raise failed
                return await self._attempt(stimulus, at)
            except PublishRefused as refused:
                if refused.edge_full:
                    raise refusals.edge_full(stimulus.flow) from refused
                if refused.code == MESSAGE_TOO_LARGE:
                    raise refusals.body_too_large(len(stimulus.shared)) from refused
                uncertain = uncertain or refused.code == DUPLICATE_IN_PROCESS
            except PublishUnknown as unknown:
                uncertain = uncertain or not unknown.no_responders
                if not uncertain:
                    at = await self._refused_or_placed(stimulus, unknown) or at
            except (LaneFull, ReadFailed):
                pass  # nothing was stored
            pause = delay * random.uniform(0.5, 1.0)  # noqa: S311
            if loop.time() + pause >= stimulus.deadline or gave_up():
                if uncertain:
                    raise refusals.outcome_unknown(execution)
                raise refusals.broker_unavailable(execution)
            await asyncio.sleep(pause)
            delay = min(delay * 2, LONGEST_DELAY_S)

    async def _refused_or_placed(self, stimulus: Stimulus, unknown: PublishUnknown) -> Placement | None:
        """After missing responders: the refusal that the route asks for, or where the stimulus goes by it now."""
        route = await self._routes.read_again(stimulus.flow)
        if route is None:
            return None
        if route.state in STOPPED_STATES:
            raise refusals.flow_stopped(stimulus.flow, route.state) from unknown
        if route.refuses:
            raise refusals.flow_suspended(stimulus.flow) from unknown
        if not route.trigger or _way(route) == _way(stimulus.route):
            return None
        stimulus.route = route
        return stimulus.place(route)

    def _attempt_limit(self, stimulus: Stimulus) -> float:
        return min(ATTEMPT_LIMIT_S, max(0.05, stimulus.deadline - self._loop.time()))

    async def _attempt(self, stimulus: Stimulus, at: Placement) -> Stored:
        limit_s = self._attempt_limit(stimulus)
        written_at_unix_ns, stimulus.written_at_mono_ns = read_clocks()
        return await self._publisher.publish(
            stimulus.flow,
            at.trigger,
            at.slot,
            seal(stimulus.shared, at.message_id, written_at_unix_ns),
            fenced=stimulus.route.fenced,
            together=stimulus.route.group_commits,
            message_id=at.message_id,
            traceparent=at.traceparent,
            timeout_s=limit_s,
        )


def _way(route: Route) -> tuple[str, str, int, bool]:
    return route.trigger, route.key, route.slots, route.fenced
