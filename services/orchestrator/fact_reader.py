"""The flow's part of the facts: from a snapshot, what sidecars answered, and a few questions to the broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from headrace.api.agent.v1 import agent_pb2
from headrace.api.diagnosis.v1.diagnosis_pb2 import FlowTraffic
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets
from headrace.model import subjects
from headrace.model.cron import CronSchedule
from headrace.model.deployment import DeploymentPhase, DeploymentPlan
from headrace.model.errors import HeadraceError
from headrace.model.pages import Page
from services.orchestrator.domain.drain_choice import drain_problem
from services.orchestrator.domain.facts import (
    DeploymentFacts,
    FlowFacts,
    LetterFacts,
    StepFacts,
    SuspensionFacts,
)
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.sleeping import is_asleep
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot
from services.orchestrator.domain.suspension import kept
from services.orchestrator.domain.tick_plan import wanted_timer
from services.orchestrator.fact_views import instance_facts
from services.orchestrator.history_log import HistoryReader
from services.orchestrator.letter_store import EVERY_LETTER, LetterStore
from services.orchestrator.slot_view import durables_of
from services.orchestrator.stores import Stores

# By instance: its answer, and when it came (Unix seconds).
Answers = Mapping[str, tuple[sidecar_pb2.ExamineResponse, float]]
LATELY_S = 60.0
LETTERS_LOOKED_AT = 20
OVER = (DeploymentPhase.RETIRED, DeploymentPhase.FAILED)


@dataclass
class FlowFactReader:
    """What a snapshot does not have is asked for: ages of messages, dead letters, the history's last line."""

    stores: Stores
    assets: JetStreamAssets
    letters: LetterStore
    history: HistoryReader

    async def read(
        self,
        snapshot: Snapshot,
        instances: Mapping[str, agent_pb2.Instance],
        before: Answers,
        after: Answers,
        traffic: Sequence[FlowTraffic],
    ) -> tuple[FlowFacts, tuple[StepFacts, ...]]:
        """The flow and the steps of its deployments that are not over, the one that runs first."""
        flow = snapshot.flow
        numbers = sorted(flow.live, key=lambda number: (number != (flow.active or flow.target), -number))
        views = [snapshot.deployments[number] for number in numbers if number in snapshot.deployments]
        alive = [view for view in views if view.state is not None and view.state.phase not in OVER]
        steps = [step for view in alive for step in await self._steps(snapshot, view, instances, before, after)]
        letters, decision, tick = await asyncio.gather(
            self._letters(snapshot), self._decision(snapshot), self._since_tick(snapshot)
        )
        record, operation = flow.suspension, flow.operation
        counts = snapshot.stream.counts if snapshot.stream else {}
        shown = snapshot.deployments.get(flow.active or flow.target)
        plan = shown.plan if shown is not None else None
        facts = FlowFacts(
            flow.flow,
            str(flow.state),
            trigger=plan.entry if plan is not None else "",
            active=flow.active,
            parked=sum(count for (owner, _, _), count in counts.items() if owner[0] == "p"),
            operation=operation.verb if operation is not None else "",
            operation_s=snapshot.now - operation.created_at if operation is not None else 0.0,
            suspension=SuspensionFacts(
                snapshot.now - record.since,
                kept(snapshot),
                record.reached,
                record.step,
                record.message_id,
                record.execution_id,
                record.error_code,
                record.error_message,
            )
            if record is not None
            else None,
            deployments=tuple(_deployment(snapshot, view) for view in alive),
            letters=letters,
            rate_limit=plan.rate_limit if plan is not None else 0.0,
            refused=_refused(traffic),
            since_request_s=_since_request(traffic, snapshot.now),
            since_tick_s=tick,
            last_decision=decision,
        )
        return facts, tuple(steps)

    async def _steps(
        self,
        snapshot: Snapshot,
        view: DeploymentView,
        instances: Mapping[str, agent_pb2.Instance],
        before: Answers,
        after: Answers,
    ) -> list[StepFacts]:
        if view.plan is None or view.state is None:
            return []
        wanted = snapshot.wanted_instances(view.number)
        owners = snapshot.owners_of(view.number)
        found: list[StepFacts] = []
        for step in view.plan.steps:
            stored = sum(snapshot.stream.stored(owner, step.name) for owner in owners) if snapshot.stream else 0
            consumers = [snapshot.consumers.get(name) for name in durables_of(view, step.name)]
            in_flight = sum(consumer.in_flight for consumer in consumers if consumer is not None)
            oldest = await self._oldest_s(snapshot, owners, step.name) if stored else None
            found.append(
                StepFacts(
                    step.name,
                    view.number,
                    receivers=step.successors,
                    kind=step.kind,
                    every_s=_tick_gap_s(view.plan, snapshot.now) if step.name == view.plan.entry else 0.0,
                    rate_limit=step.rate_limit,
                    timeout_s=step.timeout_s,
                    max_waiting=view.plan.max_waiting,
                    waiting=max(0, stored - in_flight),
                    in_flight=in_flight,
                    oldest_s=oldest,
                    asleep=is_asleep(snapshot, view, step.name),
                    paused=any(consumer is not None and consumer.paused for consumer in consumers),
                    instances=tuple(
                        instance_facts(
                            item.name,
                            instances.get(item.name),
                            before[item.name][0] if item.name in before else None,
                            after[item.name][0] if item.name in after else None,
                            (after.get(item.name) or before.get(item.name) or (None, 0.0))[1],
                        )
                        for item in wanted
                        if item.step == step.name
                    ),
                )
            )
        return found

    async def _oldest_s(self, snapshot: Snapshot, owners: tuple[str, ...], step: str) -> float | None:
        """How long the oldest message stored for a step has been there; None where the broker does not say."""
        workspace, flow = snapshot.workspace, snapshot.flow.flow
        stream = subjects.flow_stream(workspace, flow)
        ages = []
        for owner in owners:
            body = {"seq": 1, "next_by_subj": subjects.all_slots(workspace, flow, owner, step)}
            try:
                answer = await self.assets.request(f"STREAM.MSG.GET.{stream}", body)
                stored = datetime.fromisoformat(answer["message"]["time"][:26].rstrip("Z") + "+00:00")
            except (JetStreamApiError, HeadraceError, ValueError, KeyError):
                continue
            ages.append(max(0.0, snapshot.now - stored.timestamp()))
        return max(ages, default=None)

    async def _letters(self, snapshot: Snapshot) -> LetterFacts | None:
        if snapshot.letters is None:
            return None
        try:
            found, _ = await self.letters.page(snapshot.flow.flow, EVERY_LETTER, LETTERS_LOOKED_AT, "")
        except HeadraceError:
            return None
        fresh = [item.content for item in found if snapshot.now - item.content.at_unix_ns / 1e9 < LATELY_S]
        if not fresh:
            return None
        newest = fresh[0]
        error = newest.attempts[-1].message if newest.attempts else ""
        age = max(0.0, snapshot.now - newest.at_unix_ns / 1e9)
        return LetterFacts(len(fresh), newest.step, newest.reason, error[:300], age)

    async def _decision(self, snapshot: Snapshot) -> str:
        """The newest line of the history, where the flow is stopped: why it is."""
        if snapshot.flow.state != FlowState.STOPPED:
            return ""
        try:
            page = Page.asked("the history for a diagnosis", 1, "", default=1, most=1)
            lines = await self.history.read(snapshot.flow.flow, page)
        except HeadraceError:
            return ""
        if not lines:
            return ""
        entry = lines[0][1]
        detail = entry.detail.partition("\n")[0]
        return f"{entry.what} by {entry.who}" + (f": {detail}" if detail else "")

    async def _since_tick(self, snapshot: Snapshot) -> float | None:
        """How long ago the timer's last tick was, or the flow began to run without any; None where it is no timer."""
        spec = wanted_timer(snapshot)
        if spec is None:
            return None
        found = await self.stores.tick_cursor(snapshot.flow.flow)
        settled_ns = found[0].settled_ns if found is not None else 0
        return snapshot.now - max(settled_ns, spec.running_since_ns, spec.active_since_ns) / 1e9


def _refused(traffic: Sequence[FlowTraffic]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for gateway in traffic:
        total.update(gateway.refused)
    return dict(total)


def _since_request(traffic: Sequence[FlowTraffic], now: float) -> float | None:
    seen = [item.last_request_time.ToNanoseconds() for item in traffic if item.HasField("last_request_time")]
    return max(0.0, now - max(seen) / 1e9) if seen else None


def _deployment(snapshot: Snapshot, view: DeploymentView) -> DeploymentFacts:
    assert view.state is not None
    waiting = snapshot.waiting_of(view.number) if view.plan is not None else 0
    drains = view.state.phase is DeploymentPhase.DRAINING
    problem = drain_problem(snapshot, view, waiting, 0) if drains else ""
    since = view.state.changed_at or view.state.created_at
    return DeploymentFacts(
        view.number, str(view.state.phase), max(0.0, snapshot.now - since), waiting, past_limit=bool(problem)
    )


def _tick_gap_s(plan: DeploymentPlan, now: float) -> float:
    """Between the next two ticks; 0 where the flow has no timer."""
    timer = plan.timer
    if timer is None or not timer.cron:
        return timer.every_s if timer is not None else 0.0
    schedule = CronSchedule(timer.cron, timer.time_zone)
    first = schedule.next_after(int(now * 1e9))
    return (schedule.next_after(first) - first) / 1e9
