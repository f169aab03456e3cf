"""Reads everything about one flow, at once: documents, stream, consumers, and what is reported already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan
from headrace.model.flow_graph import find_entry
from headrace.model.ingress_owner import NOBODY, decode_owner, is_fenced
from headrace.model.route import Route
from services.orchestrator.domain.assets import consumer_view, stream_view
from services.orchestrator.domain.dead_letters import (
    DEFAULT_LIMITS,
    LetterLimits,
    LettersView,
    letter_stream_config,
    letters_view,
)
from services.orchestrator.domain.documents import FlowDocument, OperationDocument, VersionDocument
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.snapshot import ConsumerView, DeploymentView, Snapshot, StreamView, Suspicion
from services.orchestrator.domain.stimuli import newest_history, stimulus_stream_config
from services.orchestrator.domain.stuck_messages import suspicions
from services.orchestrator.domain.suspension import LIMIT_REASON
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.stores import Stores
from services.orchestrator.wall_clock import WallClock


@dataclass
class SnapshotReader:
    """Plans and versions are immutable, so they are read once. Remembers which durables are suspected since when."""

    stores: Stores
    assets: JetStreamAssets
    observer: InstanceObserver
    clock: WallClock
    epoch: Callable[[], int] = lambda: 0
    letter_limits: LetterLimits = DEFAULT_LIMITS
    group_commits: Callable[[], bool] = lambda: False
    nudged: Callable[[str], frozenset[str]] = lambda flow: frozenset()
    _plans: dict[tuple[str, int], DeploymentPlan] = field(default_factory=dict)
    _versions: dict[tuple[str, int], VersionDocument] = field(default_factory=dict)
    _suspicions: dict[str, dict[str, Suspicion]] = field(default_factory=dict)

    async def read(self, name: str) -> Snapshot | None:
        """None when there is no such flow."""
        found = await self.stores.flow(name)
        if found is None:
            return None
        document, revision = found
        numbers = set(document.live) | ({document.operation.deployment} if document.operation else set()) - {0}
        if document.target:  # so that what the version ran with before can be compared
            numbers |= {document.last_deployments.get(str(document.target_version), 0)} - {0}
        intents = [*document.overtaken, *([document.operation] if document.operation else [])]
        views, (stream, letters), consumers, route, operations, wanted_route = await asyncio.gather(
            asyncio.gather(*(self._deployment(document, number) for number in sorted(numbers))),
            self._streams(document),
            self._consumers(document),
            self.stores.route(name),
            asyncio.gather(*(self.stores.operation(intent.id) for intent in intents)),
            self._wanted_route(document),
        )
        deployments = {view.number: view for view in views}
        stimuli = await self._stimuli(document, deployments)
        instances, statuses = self.observer.views_of(name)
        now = self.clock.now()
        return Snapshot(
            now=now,
            workspace=self.stores.workspace,
            flow=document,
            flow_revision=revision,
            deployments=deployments,
            stream=stream,
            consumers=consumers,
            agent_known=self.observer.agent_known,
            instances=instances,
            statuses=statuses,
            route=route[0],
            route_revision=route[1],
            wanted_route=wanted_route,
            operations=_operations([found[0] for found in operations if found is not None]),
            epoch=self.epoch(),
            stream_copies=self.assets.copies,
            letters=letters,
            stimuli=stimuli,
            letter_limits=self.letter_limits,
            suspicions=self._suspected(name, stream, consumers, now),
            nudged=self.nudged(name),
        )

    async def version(self, flow: str, number: int) -> VersionDocument:
        """A version, from memory after the first time."""
        key = (flow, number)
        if key not in self._versions:
            self._versions[key] = await self.stores.version(flow, number)
        return self._versions[key]

    def forget(self, flow: str) -> None:
        """Drops what is remembered of a deleted flow."""
        self._suspicions.pop(flow, None)
        self._plans = {key: plan for key, plan in self._plans.items() if key[0] != flow}
        self._versions = {key: version for key, version in self._versions.items() if key[0] != flow}

    async def plan(self, flow: str, number: int) -> DeploymentPlan | None:
        key = (flow, number)
        if key not in self._plans:
            plan = await self.stores.plan(flow, number)
            if plan is None:
                return None
            self._plans[key] = plan
        return self._plans[key]

    async def _deployment(self, document: FlowDocument, number: int) -> DeploymentView:
        flow = document.flow
        plan, state = await asyncio.gather(self.plan(flow, number), self.stores.state(flow, number))
        if state is not None and plan is None:
            plan = await self.plan(flow, number)  # written before the state: it may just have come
        digest = self.stores.digest_of(plan) if plan is not None else ""
        hooks = None
        if number in document.live and state is not None:
            ends = state[0].phase == DeploymentPhase.DRAINING and number in document.closed
            if ends or state[0].phase == DeploymentPhase.FAILED:
                hooks = await self.stores.hooks(flow, number)
        return DeploymentView(number, plan, state[0] if state else None, state[1] if state else 0, digest, hooks)

    async def _streams(self, document: FlowDocument) -> tuple[StreamView | None, LettersView | None]:
        return await asyncio.gather(self._stream(document), self.letters(document))

    async def _stream(self, document: FlowDocument) -> StreamView | None:
        if not document.has_stream:
            return None
        workspace = self.stores.workspace
        everything = subjects.all_data(workspace, document.flow)
        stream = subjects.flow_stream(workspace, document.flow)
        if not is_fenced(self.assets.copies):
            info = await self.assets.stream_info(stream, everything)
            return stream_view(info) if info is not None else None
        said = subjects.ingress_owner_subject(workspace, document.flow, 0)
        info, owner = await asyncio.gather(
            self.assets.stream_info(stream, everything), self.assets.last_message(stream, said)
        )
        return (
            stream_view(info, decode_owner(owner.data) if owner is not None else NOBODY) if info is not None else None
        )

    async def letters(self, document: FlowDocument) -> LettersView | None:
        """The stream of the flow's dead letters."""
        if not document.has_stream:
            return None
        wanted = letter_stream_config(self.stores.workspace, document.flow, self.letter_limits, self.assets.copies)
        info = await self.assets.stream_info(str(wanted["name"]))
        return letters_view(info, wanted) if info is not None else None

    async def _stimuli(self, document: FlowDocument, deployments: Mapping[int, DeploymentView]) -> LettersView | None:
        history = newest_history(document.live, deployments)
        if history is None or not document.has_stream:
            return None
        wanted = stimulus_stream_config(self.stores.workspace, document.flow, history, self.assets.copies)
        info = await self.assets.stream_info(str(wanted["name"]))
        return letters_view(info, wanted) if info is not None else None

    async def _consumers(self, document: FlowDocument) -> dict[str, ConsumerView]:
        if not document.has_stream:
            return {}
        infos = await self.assets.consumers(subjects.flow_stream(self.stores.workspace, document.flow))
        return {str(info["name"]): consumer_view(info) for info in infos}

    def _suspected(
        self, flow: str, stream: StreamView | None, consumers: dict[str, ConsumerView], now: float
    ) -> dict[str, Suspicion]:
        found = suspicions(stream, consumers, self._suspicions.get(flow, {}), now)
        if found:
            self._suspicions[flow] = found
        else:
            self._suspicions.pop(flow, None)
        return found

    def begin_suspicion_anew(self, flow: str, durable: str) -> None:
        """Something was done about it: from now on it has to be found again, and for as long."""
        found = self._suspicions.get(flow, {})
        self._suspicions[flow] = {name: suspicion for name, suspicion in found.items() if name != durable}

    async def _wanted_route(self, document: FlowDocument) -> Route:
        """Follows from the flow document and the version that runs (or is being started)."""
        number = document.active_version or document.target_version or document.latest_version
        if number == 0 or not document.has_stream:
            return Route(document.flow, str(FlowState.STOPPED), epoch=document.leader_epoch)
        spec = (await self.version(document.flow, number)).spec
        entry = find_entry(spec)
        listens = await self.started_by_listener(document)
        return Route(
            document.flow,
            # Gateways need not know who sleeps: they send, and that wakes it.
            str(FlowState.RUNNING if document.state == FlowState.SLEEPING else document.state),
            trigger="" if listens else entry.name,
            key=entry.key,
            slots=entry.slot_count,
            reply_timeout_s=spec.reply_timeout_s,
            version=number,
            deployment=document.active or document.target,
            refuses=LIMIT_REASON if document.suspension is not None and document.suspension.reached else "",
            rate_limit=spec.rate_limit,
            epoch=document.leader_epoch,
            fenced=is_fenced(self.assets.copies),
            group_commits=self.group_commits(),
        )

    async def started_by_listener(self, document: FlowDocument) -> bool:
        """True where the deployment that works, or the newest of the latest version, begins with a listener: what
        is stored for that would wait for ever, since a listener is never called. False while none is known."""
        number = document.active or document.target or document.last_deployments.get(str(document.latest_version), 0)
        plan = await self.plan(document.flow, number) if number else None
        if plan is None and number and number == document.target:
            return document.listens  # its references are not resolved yet
        return plan is not None and any(step.name == plan.entry and step.kind == "listener" for step in plan.steps)


def _operations(documents: list[OperationDocument]) -> dict[str, OperationDocument]:
    return {document.id: document for document in documents}
