"""One trial: the component is started with the plan's code, asked one thing (or called once), and ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.api.flow.v1 import flow_pb2
from headrace.api.sidecar.v1 import trial_pb2
from headrace.edge.task_ending import end_tasks
from headrace.model.deployment import DeploymentPlan, StepPlan, decode_plan
from headrace.model.errors import DeadlineExceeded, InvalidInput
from headrace.model.step_snapshot import StepSnapshot
from headrace.ports import ComponentInput, ComponentStream
from services.sidecar.component_calls import ComponentFailed
from services.sidecar.component_process import ComponentProcess, identity_of
from services.sidecar.log_capture import LogCapture
from services.sidecar.plan_source import step_of
from services.sidecar.process_watch import Excess, ProcessWatch
from services.sidecar.secret_events import masked_events

if TYPE_CHECKING:
    from headrace.model.secret_mask import SecretMask
    from services.sidecar.bundle_cache import BundleCache
    from services.sidecar.credentials import ClearCredential, StepCredentials
    from services.sidecar.environment import EnvironmentCache
    from services.sidecar.settings import Settings
    from services.sidecar.spare_component import SpareComponent

CALL = 1
MAX_LINES = 500
MAX_EVENT_BYTES = 8 * 1024 * 1024
# What a component may need beyond its call's own limit to say that it gave up.
GRACE_S = 1.0
DEFAULT_LIMIT_S = 30.0


class TrialRun:
    """`work` once; `end` leaves nothing behind, whatever happened."""

    def __init__(
        self,
        settings: Settings,
        bundles: BundleCache,
        environments: EnvironmentCache,
        trial: trial_pb2.Trial,
        spare: SpareComponent | None,
    ) -> None:
        self._settings = settings
        self._bundles = bundles
        self._environments = environments
        self._trial = trial
        self._spare = spare
        self._process: ComponentProcess | None = None
        self._stream: ComponentStream | None = None
        self._result = trial_pb2.TrialResult()
        self._excess: Excess | None = None
        self._lap_at = time.monotonic()
        self._logs = LogCapture(
            flow="", step=trial.step, deployment=0, instance=settings.instance, publish=self._keep_line
        )

    @property
    def mask(self) -> SecretMask:
        """Knows the credential's values once it was opened."""
        return self._logs.mask

    async def work(self, credentials: StepCredentials) -> trial_pb2.TrialResult:
        """What came of it; ComponentFailed where the component cannot be asked, DeadlineExceeded past the limit."""
        plan, step = self._read_plan()
        self._logs.of(plan, step)
        self._logs.mask.learn(step.config)
        await credentials.load(step.credential)
        self._lap("credential")
        bundle = await self._bundles.fetch(step.pin.digest)
        self._lap("fetch")
        python = await self._environments.build(bundle.path)
        self._lap("build")
        process = self._process = ComponentProcess.spawn(
            self._settings,
            bundle=bundle.path,
            python=python,
            entrypoint=bundle.entrypoint,
            logs=self._logs,
            spare=self._spare,
        )
        guard = asyncio.create_task(self._guard(process), name="guard")
        try:
            await process.wait_for_socket()
            await process.handshake(step.function)
            self._lap("start")
            if self._trial.WhichOneof("kind") == "input":
                await self._call(process, plan, step, credentials.present)
            else:
                await self._ask(process, plan, step, credentials.present)
        except ComponentFailed as error:
            if self._excess is None:
                raise
            raise ComponentFailed(f"the component {self._excess.cause}", reason=self._excess.reason) from error
        finally:
            await end_tasks([guard])
        self._logs.end()
        return self._result

    async def _guard(self, process: ComponentProcess) -> None:
        """Kills the component when it and what it started use more than an instance's may."""
        self._excess = await ProcessWatch(process.pid, self._settings.component_limits, lambda: True).run()
        process.kill()

    async def end(self) -> None:
        """Ends the component."""
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    def _read_plan(self) -> tuple[DeploymentPlan, StepPlan]:
        try:
            plan = decode_plan(self._trial.plan_json)
        except msgspec.MsgspecError as error:
            raise InvalidInput.at("trial.plan_json", "...", f"cannot be read: {error}") from error
        return plan, step_of(plan, self._trial.step)

    @property
    def _limit_s(self) -> float:
        given = self._trial.timeout
        return given.seconds + given.nanos / 1e9 or DEFAULT_LIMIT_S

    # Questions

    async def _ask(
        self, process: ComponentProcess, plan: DeploymentPlan, step: StepPlan, credential: ClearCredential
    ) -> None:
        kind = self._trial.WhichOneof("kind")
        method = {"verify": "Verify", "metadata": "GetMetadata", "model": "SelectModel"}.get(str(kind))
        if method is None:
            raise InvalidInput.at("trial.kind", kind, "asks nothing")
        request = getattr(self._trial, str(kind))
        request.config_json, request.credentials_json = json.dumps(step.config), credential.text
        request.step.CopyFrom(identity_of(plan, step, self._settings.instance))
        if kind != "model":
            request.function = step.function
        answer = await process.ask(method, request, self._limit_s)
        answer.problem.message = self.mask.known(answer.problem.message)
        if not answer.problem.message:
            answer.ClearField("problem")
        getattr(self._result, str(kind)).CopyFrom(answer)
        self._lap("ask")

    # A call

    async def _call(
        self, process: ComponentProcess, plan: DeploymentPlan, step: StepPlan, credential: ClearCredential
    ) -> None:
        await process.initialise(plan, step, self._settings.instance, credential=credential, dry_run=True)
        self._lap("init")
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        result, size = self._result.call, 0

        def take(events: Sequence[Any]) -> None:
            nonlocal size
            for event in events:
                size += event.ByteSize()
                is_end = event.WhichOneof("kind") == "end"
                if is_end or size <= MAX_EVENT_BYTES:
                    result.events.add().CopyFrom(event)
                result.truncated = result.truncated or size > MAX_EVENT_BYTES
                if is_end and not over.done():
                    over.set_result(None)

        def closed(error: Exception) -> None:
            if not over.done():
                over.set_exception(error)

        stream = self._stream = await process.open_stream(masked_events(self.mask, take), closed)
        began = time.monotonic()
        stream.send([self._input()])
        try:
            async with asyncio.timeout(self._limit_s + GRACE_S):
                await over
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the call took longer than {self._limit_s:g} s", reason="TIMEOUT", next_step="Give more --timeout"
            ) from error
        except ConnectionError as error:
            ending = await process.wait() if not process.running else str(error)
            raise ComponentFailed(
                self.mask.known(f"the component ended in the call ({ending})"), reason="COMPONENT_DIED"
            ) from error
        result.duration.FromNanoseconds(int((time.monotonic() - began) * 1e9))
        self._lap("call")

    def _input(self) -> ComponentInput:
        given = self._trial.input
        snapshot = None
        if given.HasField("snapshot"):
            snapshot = StepSnapshot(value=msgspec.Raw(given.snapshot.json.encode()), revision=given.snapshot.revision)
        return ComponentInput(
            call=CALL,
            body=given.body,
            content_type=given.content_type,
            headers=dict(given.headers),
            message_id=given.message_id,
            execution_id=given.execution_id,
            attempt=max(1, given.attempt),
            wants_reply=given.wants_reply,
            timeout_ms=round(self._limit_s * 1000),
            traceparent="",
            passthrough=given.passthrough,
            snapshot=snapshot,
        )

    # What is told beside it

    def _keep_line(self, raw: bytes) -> None:
        if len(self._result.lines) >= MAX_LINES:
            self._result.lines_dropped += 1
            return
        line = flow_pb2.LogLine.FromString(raw)
        kept = self._result.lines.add(level=line.level, message=line.message, fields_json=line.fields_json)
        kept.time.CopyFrom(line.time)

    def _lap(self, stage: str) -> None:
        now = time.monotonic()
        self._result.stage_ms[stage], self._lap_at = round((now - self._lap_at) * 1000, 1), now
