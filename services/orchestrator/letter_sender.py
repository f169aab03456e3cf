"""How one dead letter is sent again: from the step that failed it, or its execution from the start."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass

import msgspec

from headrace.edge.jetstream_assets import EDGE_FULL, JetStreamApiError, JetStreamAssets, NoResponders
from headrace.model.deployment import DeploymentPlan
from headrace.model.errors import Exhausted, NotFound, Unavailable, WrongState
from headrace.wire.envelope import Envelope
from services.orchestrator.domain.dead_letters import ReplayTarget, replay_target
from services.orchestrator.domain.letter_ledger import ReplayWay
from services.orchestrator.letter_edits import LetterEdits
from services.orchestrator.letter_replay import LetterRefused, Replayed, ReplayMessage, letter_name, replay_envelope
from services.orchestrator.letter_store import Letter
from services.orchestrator.side_deployments import SideDeployments
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stimulus_replay import Start, StimulusReplay
from services.orchestrator.stimulus_store import Stimulus, StimulusStore
from services.orchestrator.stores import Stores
from services.orchestrator.wall_clock import WallClock

FULL_PAUSE_S = 0.05


class StepFull(Exception):
    """The receiving step takes no more now."""


@dataclass
class LetterSender:
    """Of one workspace."""

    stores: Stores
    assets: JetStreamAssets
    edits: LetterEdits
    reader: SnapshotReader
    clock: WallClock
    stimuli: StimulusStore
    starts: StimulusReplay
    sides: SideDeployments

    async def check(self, flow: str, way: ReplayWay) -> None:
        """WrongState where no letter of the flow can be sent that way now."""
        if way.revision:
            await self.sides.planned(flow, way.step, way.revision)
            return
        if not way.from_start:
            await self._target(flow, 0)
            return
        start = await self.starts.start(flow)
        plan = await self.reader.plan(flow, start.flow.active) if start.flow.active else None
        keeps = plan is not None and plan.history is not None
        if not keeps and not await self.stimuli.has_any(flow):
            raise WrongState(
                f"flow {flow!r} does not keep its stimuli, so nothing of it can be replayed from the start",
                reason="NO_HISTORY",
                next_step="Replay from the step that failed, without --from-start; so that later ones can be, write "
                "`history: true` into the flow's file and publish it",
            )

    async def prepared(self, flow: str, way: ReplayWay) -> ReplayWay:
        """With the deployment that the letters go to, where they need one of their own."""
        if not way.revision:
            return way
        return msgspec.structs.replace(way, deployment=await self.sides.make(flow, way.step, way.revision))

    async def preview(self, flow: str, letter: Letter, way: ReplayWay) -> Replayed:
        """What `send` would tell, without a message id. LetterRefused for a letter that stays."""
        if way.from_start:
            start, _, envelope = await self._from_start(flow, letter, 0)
            told = self._told(start, letter, envelope)
        elif way.revision:
            plan = await self.sides.planned(flow, way.step, way.revision)
            told = (await self._beside(flow, letter, 0, plan, way)).told
        else:
            told = (await self._message(flow, letter, 0, letter.content.deployment))[0].told
        return dataclasses.replace(told, message_id="")

    async def send(self, flow: str, letter: Letter, incarnation: int, deadline: float, way: ReplayWay) -> Replayed:
        """Publishes one; while its step is full until `deadline` of the loop's clock, then StepFull. LetterRefused for
        a letter that stays, Unavailable when nobody knows whether it is stored."""
        loop = asyncio.get_running_loop()
        closed = False
        while True:
            try:
                if way.from_start:
                    return await self._start(flow, letter, incarnation)
                if way.revision:
                    return await self._through(flow, letter, incarnation, way)
                return await self._again(flow, letter, incarnation, closed=closed)
            except StepFull:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(FULL_PAUSE_S)
            except _Closed:
                closed = True  # its own deployment has just been closed: to the one that runs

    async def _again(self, flow: str, letter: Letter, incarnation: int, *, closed: bool) -> Replayed:
        message, target = await self._message(flow, letter, incarnation, 0 if closed else letter.content.deployment)
        await self._keep(flow, letter)
        try:
            await self._publish(message)
        except NoResponders as error:
            if not closed and target.own:
                raise _Closed from error
            raise Unavailable(
                f"flow {flow!r} takes no messages at present", next_step="Try again in a moment"
            ) from error
        return message.told

    async def _publish(self, message: ReplayMessage) -> None:
        """StepFull where it does not fit; NoResponders where nobody stores it."""
        try:
            await self.assets.publish(message.subject, message.payload, message.headers)
        except JetStreamApiError as error:
            if error.code == EDGE_FULL:
                raise StepFull from error
            raise Unavailable(f"the broker refused a replayed message: {error}") from error

    async def _keep(self, flow: str, letter: Letter) -> None:
        """What the message names is kept by its letter, which may go as soon as the message is stored, or before."""
        try:
            await self.starts.injector.attachments.keep_named(flow, letter.content.original)
        except NotFound as error:
            raise LetterRefused(error.reason, error.message) from error

    async def _message(
        self, flow: str, letter: Letter, incarnation: int, deployment: int
    ) -> tuple[ReplayMessage, ReplayTarget]:
        target = await self._target(flow, deployment)
        edit, _ = await self.edits.of(flow, letter)
        message = replay_envelope(self.stores.workspace, target, letter, incarnation, self.clock.now(), edit)
        return message, target

    async def _target(self, flow: str, deployment: int) -> ReplayTarget:
        document, _ = await self.stores.existing_flow(flow)
        numbers = {deployment, document.active} & {*document.live}
        plans, phases = {}, {}
        for number in numbers:
            plans[number] = await self.reader.plan(flow, number)
            state = await self.stores.state(flow, number)
            phases[number] = str(state[0].phase) if state is not None else ""
        return replay_target(document, plans, phases, deployment)

    # Through a named revision

    async def _through(self, flow: str, letter: Letter, incarnation: int, way: ReplayWay) -> Replayed:
        plan = await self.reader.plan(flow, way.deployment)
        if plan is None:
            raise LetterRefused("DEPLOYMENT_GONE", f"deployment {way.deployment} is gone; try again")
        message = await self._beside(flow, letter, incarnation, plan, way)
        await self._keep(flow, letter)
        try:
            await self._publish(message)
        except NoResponders as error:  # its subjects are about to be listed
            raise StepFull from error
        return message.told

    async def _beside(
        self, flow: str, letter: Letter, incarnation: int, plan: DeploymentPlan, way: ReplayWay
    ) -> ReplayMessage:
        if letter.content.step != way.step:
            raise LetterRefused("OTHER_STEP", f"it is of step {letter.content.step!r}, not of {way.step!r}")
        edit, _ = await self.edits.of(flow, letter)
        target = ReplayTarget(plan, own=False)
        return replay_envelope(self.stores.workspace, target, letter, incarnation, self.clock.now(), edit)

    # From the start

    async def _start(self, flow: str, letter: Letter, incarnation: int) -> Replayed:
        start, stimulus, envelope = await self._from_start(flow, letter, incarnation)
        try:
            await self.starts.send(start, stimulus, envelope)
        except Exhausted as error:
            raise StepFull from error
        except NotFound as error:
            raise LetterRefused(error.reason, error.message) from error
        return self._told(start, letter, envelope)

    async def _from_start(self, flow: str, letter: Letter, incarnation: int) -> tuple[Start, Stimulus, Envelope]:
        edit, _ = await self.edits.of(flow, letter)
        if edit is not None:
            text = f"its edit is of what step {letter.content.step!r} gets: replay it from there, or take the edit back"
            raise LetterRefused("EDITED", f"{text}: headrace dead-letters edit {flow} {letter.number} --revert")
        stimulus = await self.stimuli.of_execution(flow, letter.content.original.execution_id)
        if stimulus is None:
            text = "what started its execution is not kept (any more): replay it from its step, without --from-start"
            raise LetterRefused("STIMULUS_GONE", text)
        start = await self.starts.start(flow)
        return start, stimulus, self.starts.again(start, stimulus, incarnation, letter_name(flow, letter.number))

    def _told(self, start: Start, letter: Letter, envelope: Envelope) -> Replayed:
        """Which deployment gets it is the broker's decision: the one that runs is told of."""
        return Replayed(
            letter.number,
            start.entry.name,
            start.flow.active or start.flow.target,
            start.flow.active_version or start.flow.target_version,
            "",
            False,
            envelope.id,
            envelope.execution_id,
            False,
        )


class _Closed(Exception):
    """The letter's own deployment takes no messages any more."""
