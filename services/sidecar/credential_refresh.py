"""Another version of the step's credential, handed to the component that runs.

Somebody who refreshes tries it on every instance first, then writes it into the deployment's state. What the state says
is what counts: a version that was tried and never got there is taken back, one that was missed is made up for.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.credential import CredentialRef
from headrace.model.errors import HeadraceError, WrongState

if TYPE_CHECKING:
    from services.sidecar.component_process import ComponentProcess
    from services.sidecar.credentials import StepCredentials
    from services.sidecar.plan_source import PlanSource

log = get_logger(__name__)

# How long a version that was tried may stay without being written down.
TRIAL_S = 60.0
AGAIN_S = 30.0


class CredentialRefresh:
    """`component_ready` and `component_lost` say which process serves; `close` ends what is under way."""

    def __init__(self, credentials: StepCredentials, plans: PlanSource) -> None:
        self._credentials = credentials
        self._plans = plans
        self._process: ComponentProcess | None = None
        self._changing = asyncio.Lock()
        self._trial_until = 0.0
        self._wanted = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Nothing is changed any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await end_tasks([self._task])

    def component_ready(self, process: ComponentProcess) -> None:
        """A process serves; it may have begun with a version that is not the present one any more."""
        self._process = process
        if self._credentials.planned is not None and process.credentials_version != self._credentials.present.version:
            self._converge()

    def component_lost(self) -> None:
        """No process serves; the next one gets the present version when it starts."""
        self._process = None

    async def try_version(self, version: int) -> bool:
        """Hands it to the component; False where none runs just now: the next one gets it. The component's refusal, and
        what stands in the way of opening the value, are raised, and change nothing."""
        planned = self._credentials.planned
        if planned is None:
            raise WrongState("the step names no credential, or was not prepared yet", reason="NO_CREDENTIAL")
        self._trial_until = asyncio.get_running_loop().time() + TRIAL_S
        self._look_later(TRIAL_S + 1)
        return await self._change(CredentialRef(planned.name, version))

    def follow(self, version: int) -> None:
        """What the deployment's state says; 0: the plan's."""
        planned = self._credentials.planned
        if planned is None or not self._credentials.present.version:
            return
        self._wanted = version or planned.version
        if self._wanted == self._credentials.present.version:
            self._trial_until = 0.0
        elif asyncio.get_running_loop().time() >= self._trial_until:
            self._converge()

    def _converge(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._make_up(), name="credential")

    async def _make_up(self) -> None:
        planned = self._credentials.planned
        assert planned is not None
        wanted = self._wanted or self._credentials.present.version
        try:
            await self._change(CredentialRef(planned.name, wanted))
            log.info("credential renewed", credential=planned.name, version=wanted)
        except HeadraceError as error:
            log.warning("the credential cannot be renewed", error=str(error), version=wanted)
            self._look_later(AGAIN_S)

    async def _change(self, wanted: CredentialRef) -> bool:
        async with self._changing:
            credentials, process = self._credentials, self._process
            same = wanted.version == credentials.present.version
            fresh = credentials.present if same else await credentials.fetch(wanted)
            if process is not None and process.credentials_version != fresh.version:
                await process.update_credentials(fresh)
            credentials.present = fresh
            return process is not None

    def _look_later(self, delay_s: float) -> None:
        """The state is read once more then, so that nothing stays as it was tried."""
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(RuntimeError):
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._plans.ask_again)
