"""One instance: what is wanted of it (by the orchestrator or by the deployment's state) and how it gets there.

Calls set what is wanted and return; one task does the work, level-based: fetch, build, start, warm, and then
pull. The delivery loop and the supervisor report here; the status board tells everybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.errors import HeadraceError, Unavailable, WrongState
from services.sidecar.bundle_cache import disk_refuses
from services.sidecar.component_supervisor import ComponentSupervisor, Program, SupervisorEvents
from services.sidecar.credential_refresh import CredentialRefresh
from services.sidecar.domain.lifecycle import Happening, Stage, admit_generation
from services.sidecar.domain.retry_delay import restart_delay_s
from services.sidecar.flow_hooks import FlowHooks
from services.sidecar.idleness import Idleness
from services.sidecar.plan_source import PlanSource, step_of
from services.sidecar.secret_events import TakeAll, masked_events, masked_spans
from services.sidecar.slot import SlotLease
from services.sidecar.stage_course import StageCourse
from services.sidecar.status_board import StatusBoard

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, DeploymentState, StepPlan
    from headrace.ports import ComponentStream
    from services.sidecar.bundle_cache import BundleCache
    from services.sidecar.component_process import ComponentFacts, ComponentProcess
    from services.sidecar.credentials import StepCredentials
    from services.sidecar.data_plane import DataPlane
    from services.sidecar.environment import EnvironmentCache
    from services.sidecar.log_capture import LogCapture
    from services.sidecar.settings import Settings
    from services.sidecar.spare_component import SpareComponent

log = get_logger(__name__)

# A registry or broker that is being restarted does not make the instance FAILED.
UNAVAILABLE_FOR_S = 8.0
COMPONENT_STOP_LIMIT_S = 3.0


class Wanted(IntEnum):
    NOTHING = 0
    WARM = 1
    ACTIVE = 2
    DRAINED = 3


class Instance:
    """`make_plane` builds the data plane once the plan is known; `stop_event` ends the process."""

    def __init__(
        self,
        settings: Settings,
        plans: PlanSource,
        bundles: BundleCache,
        environments: EnvironmentCache,
        logs: LogCapture,
        make_plane: Callable[[DeploymentPlan, StepPlan, Instance], DataPlane],
        *,
        first: ComponentProcess | None = None,
        spare: SpareComponent | None = None,
        credentials: StepCredentials | None = None,
    ) -> None:
        self._settings = settings
        self._plans = plans
        self._bundles = bundles
        self._environments = environments
        self.logs = logs
        self._make_plane = make_plane
        self.resumed = 0
        self._first = first
        self._spare = spare
        self.credentials = credentials
        self.refresh = CredentialRefresh(credentials, plans) if credentials is not None else None
        self.status = StatusBoard()
        self._course = StageCourse(self.status, settings.instance)
        self.plane: DataPlane | None = None
        self.supervisor: ComponentSupervisor | None = None
        self._idleness: Idleness | None = None
        self.hooks: FlowHooks | None = None
        self._wanted = Wanted.NOTHING
        self._wanted_changed = asyncio.Event()
        self._preparation_failed = False
        self._stopping = False
        self.gave_way = False
        self._leases: tuple[SlotLease, ...] = ()
        self._work_done = asyncio.Event()
        self.shutdown_requested = asyncio.Event()
        self.shutdown_grace_s = 2.0

    @property
    def idle(self) -> bool:
        """It may sleep: an instance of an ordinary flow that has had nothing to do for its step's timeout."""
        return self._idleness is not None and self._idleness.idle

    # What is wanted

    def admit(self, generation: int) -> None:
        """Raises WrongState STALE_GENERATION for a decision older than one seen."""
        known = self.status.board.generation
        self.status.board.generation = admit_generation(known, generation)
        if generation > known:
            self._plans.ask_again()  # how many replicas there are may have changed

    def own(self, leases: Sequence[SlotLease]) -> None:
        """All slots of a keyed step that this instance owns now."""
        self._leases = tuple(leases)
        if self.plane is not None:
            self.plane.own(self._leases)

    def own_by_state(self, state: DeploymentState) -> None:
        """What the deployment's state says of its slots, unless it is older than what this instance was told; and
        whether the flow was resumed."""
        if state.resumed > self.resumed:
            self.resume(state.resumed)
        if self.refresh is not None:
            self.refresh.follow(state.credentials.get(self._settings.step, 0))
        if state.generation < self.status.board.generation:
            return
        owners = state.slots.get(self._settings.step, ())
        replica = self._settings.replica
        self.own([SlotLease(slot, o.generation) for slot, o in enumerate(owners) if o.replica == replica])

    def prepare(self) -> None:
        """Wants it WARM at least."""
        self._want(Wanted.WARM)

    def activate(self) -> None:
        """Wants it to work; needs WARM. Repeating it is fine, also while a crash loop makes it FAILED."""
        if self._wanted >= Wanted.ACTIVE:
            return
        if self.status.stage is not Stage.WARM:
            board = self.status.board
            because = f": {board.cause}" if board.cause and board.stage is Stage.FAILED else ""
            raise WrongState(
                f"instance {self._settings.instance} is {board.stage.value}, not WARM{because}",
                reason="NOT_WARM",
                next_step="Call Prepare and wait until WatchStatus shows PROGRESS_WARM",
            )
        self._want(Wanted.ACTIVE)
        self._act()

    def drain(self) -> None:
        """Wants it to finish what there is; a puller goes on pulling."""
        self._want(Wanted.DRAINED)
        self._act()

    def give_way(self) -> None:
        """Wants it to finish what it holds and to begin nothing more: its siblings do the rest."""
        self.gave_way = True
        self._want(Wanted.DRAINED)
        if self.plane is not None:
            self.plane.give_way()
        self._act()
        self.status.touch()

    def resume(self, resumed: int) -> None:
        """The flow was resumed so often: what failed for good is tried again, if it was not since then."""
        self.resumed = max(self.resumed, resumed)
        if self.plane is not None:
            self.plane.loop.resume(self.resumed)
        self.status.touch()

    def shut_down(self, grace_s: float) -> None:
        """Wants the process to end."""
        self.shutdown_grace_s = grace_s
        if self.status.stage not in (Stage.SHUTTING_DOWN, Stage.ENDED):
            self.status.move(Happening.SHUT_DOWN)
        self.shutdown_requested.set()

    def go_on_by_itself(self, *, draining: bool) -> None:
        """The deployment's state says that this instance works: no orchestrator is needed."""
        self._want(Wanted.DRAINED if draining else Wanted.ACTIVE)

    def _want(self, wanted: Wanted) -> None:
        if self._stopping or self.status.stage in (Stage.SHUTTING_DOWN, Stage.ENDED):
            raise WrongState("the instance is shutting down", reason="SHUTTING_DOWN")
        if wanted > self._wanted:
            self._wanted = wanted
            self._wanted_changed.set()

    # Work

    async def work(self) -> None:
        """Prepares when wanted, then keeps the component running until `stop`."""
        try:
            await self._wanted_changed.wait()
            while not self._stopping:
                prepared = await self._prepare()
                if prepared is None or self._stopping:
                    return
                await prepared.run()
        finally:
            self._work_done.set()

    async def stop(self) -> None:
        """Stops pulling, finishes what is in flight within the grace, ends the component."""
        self._stopping = True
        if self.status.stage not in (Stage.SHUTTING_DOWN, Stage.ENDED):
            self.status.move(Happening.SHUT_DOWN)
        self._wanted_changed.set()
        if self._idleness is not None:
            self._idleness.close()
        if self.refresh is not None:
            await self.refresh.close()
        if self.hooks is not None:
            await self.hooks.close()
        if self.plane is not None:
            await self.plane.finish(self.shutdown_grace_s)
        if self.supervisor is not None:
            await self.supervisor.stop(COMPONENT_STOP_LIMIT_S)
        elif self._first is not None:
            await self._first.end()
        self.status.move(Happening.ENDED)

    async def _prepare(self) -> ComponentSupervisor | None:
        """Tries until it has a program to run; None when it is being stopped."""
        tries = 0
        began = asyncio.get_running_loop().time()
        self._course.begin()
        while not self._stopping:
            try:
                return await self._supervisor()
            except (HeadraceError, OSError) as caught:
                error = caught if isinstance(caught, HeadraceError) else disk_refuses(caught)
                tries += 1
                since_s = asyncio.get_running_loop().time() - began
                passing = isinstance(error, Unavailable) and since_s < UNAVAILABLE_FOR_S
                log.warning("cannot be prepared", error=str(error), reason=error.reason, tries=tries)
                if not passing:
                    self._preparation_failed = True
                    self._failed(error)
                self._wanted_changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(restart_delay_s(tries)):
                        await self._wanted_changed.wait()
        return None

    async def _supervisor(self) -> ComponentSupervisor:
        plan = await self._plans.plan()
        step = step_of(plan, self._settings.step)
        if self.credentials is not None:
            self.credentials.planned = step.credential
            await self.credentials.load(self._plans.credential_of(step))
        await self._program(step, self._course.progress)
        if self.plane is None:
            self.plane = self._make_plane(plan, step, self)
            self.plane.own(self._leases)
            self.plane.loop.resume(self.resumed)
            if plan.may_sleep(step.name):
                self._idleness = Idleness(step.idle_timeout_s, self.status.touch)
            if self._settings.replica == 0 and step.name == plan.entry:
                key = bucket_names.hooks_key(plan.flow, plan.deployment)
                self.hooks = FlowHooks(self._plans.bucket, key, self.logs, self._act, self.status.touch)
            if self.gave_way:
                self.plane.give_way()
        self.status.board.revision = step.pin.digest
        first, self._first = self._first, None
        on_events: TakeAll = self.plane.loop.on_events
        on_spans: TakeAll | None = self.plane.component_spans.take if self.plane.component_spans is not None else None
        if step.credential is not None:
            on_events = masked_events(self.logs.mask, on_events)
            on_spans = masked_spans(self.logs.mask, on_spans) if on_spans is not None else None
        events = SupervisorEvents(
            progress=self._course.progress,
            ready=self._ready,
            lost=self._lost,
            failed=self._failed,
            recovered=self._recovered,
            events=on_events,
            spans=on_spans,
            busy=lambda: self.plane is not None and self.plane.loop.calls_run,
        )
        self.supervisor = ComponentSupervisor(
            self._settings,
            plan,
            step,
            partial(self._program, step),
            self.logs,
            events,
            first=first,
            spare=self._spare,
            credentials=self.credentials,
        )
        return self.supervisor

    async def _program(self, step: StepPlan, progress: Callable[[Happening], None] = lambda _: None) -> Program:
        """The pinned bundle, checked file by file, and its interpreter."""
        bundle = await self._bundles.fetch(step.pin.digest)
        progress(Happening.FETCHED)
        python = await self._environments.build(bundle.path)
        progress(Happening.BUILT)
        return Program(bundle.path, python, bundle.entrypoint)

    # What happened

    def _ready(self, process: ComponentProcess, stream: ComponentStream, facts: ComponentFacts) -> None:
        self.status.board.sdk, self.status.board.interpreter = facts.sdk, facts.interpreter
        assert self.plane is not None
        if self.hooks is not None:
            self.hooks.process_ready(process)
        self.plane.component_ready(process, stream)
        if self.refresh is not None:
            self.refresh.component_ready(process)
        if self._preparation_failed:
            self._preparation_failed = False
            self._recovered()
        self._act()
        self.status.touch()

    def _lost(self, cause: str, reason: str) -> bool:
        assert self.plane is not None
        if self.refresh is not None:
            self.refresh.component_lost()
        cause = self.logs.mask.known(cause)
        if self.hooks is not None:
            self.hooks.process_ready(None)
        blamed = self.plane.component_lost(cause)
        if not self._stopping:
            self.status.blame(f"the component {cause}", reason)
        self.status.touch()
        return blamed

    def _failed(self, error: HeadraceError) -> None:
        if not self._stopping:
            self._course.fail(error)

    def _recovered(self) -> None:
        if self._course.recover():
            self._act()

    def _act(self) -> None:
        """Takes the steps that what is wanted allows in the present stage."""
        stage = self.status.stage
        if stage is Stage.WARM and self._wanted >= Wanted.ACTIVE and (self.hooks is None or self.hooks.may_begin()):
            assert self.plane is not None
            self.status.move(Happening.ACTIVATE)
            self.plane.activate()
            if self._idleness is not None:
                self._idleness.begin(empty=self.plane.drained)
        if self.status.stage is Stage.ACTIVE and self._wanted is Wanted.DRAINED:
            assert self.plane is not None
            self.status.move(Happening.DRAIN)
            self.plane.drain()
        self.occupancy_changed()

    def occupancy_changed(self) -> None:
        """Draining: drained while nothing is held."""
        if self.plane is None:
            return
        self.status.work_came()
        if self.supervisor is not None:
            self.supervisor.work_came()
        stage, empty = self.status.stage, self.plane.drained
        if self._idleness is not None:
            self._idleness.occupancy_changed(empty=empty)
        if stage is Stage.DRAINING and empty:
            self.status.move(Happening.EMPTIED)
        elif stage is Stage.DRAINED and not empty:
            self.status.move(Happening.FILLED)
