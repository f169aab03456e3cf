"""`credential verify`: the components that use a credential are asked whether it is good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from headrace.api.component.v1 import component_pb2
from headrace.model.credential import CredentialRef
from headrace.model.errors import HeadraceError, WrongState
from headrace.model.names import parse_step
from services.orchestrator.credential_store import CredentialStore
from services.orchestrator.trials import Subject, Trials, with_credential

MOST_STEPS = 50
AT_ONCE = 2
WHY_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Verification:
    """What one component says. `asked` False: it could not be asked."""

    subject: Subject
    version: int
    verified: bool
    problem: str = ""
    kind: str = ""
    where: str = ""
    asked: bool = True


@dataclass(frozen=True, slots=True)
class CredentialSaid:
    """What a component's own check says of the credential that a step uses, for `why`."""

    evidence: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


NOTHING_ASKED = CredentialSaid()
AskCredential = Callable[[str, str], Awaitable[CredentialSaid]]


class CredentialCheck:
    """Of one workspace."""

    def __init__(self, credentials: CredentialStore, trials: Trials) -> None:
        self._credentials = credentials
        self._trials = trials

    async def verify(
        self, name: str, step: str, component: str, *, used_version: bool, limit_s: float
    ) -> list[Verification]:
        """Steps that use it in deployments at work, or the one step or component that is named."""
        head = await self._credentials.existing(name)
        newest = CredentialRef(name, head.version)
        subjects: Sequence[Subject]
        if component:
            subjects = [await self._trials.of_component(component, "", {})]
        elif step:
            subjects = [await self._trials.of_step(*parse_step("step", step))]
        else:
            subjects = await self._users(name)
        room = asyncio.Semaphore(AT_ONCE)

        async def ask(subject: Subject) -> Verification:
            used = subject.step.credential
            own = used_version and used is not None and used.name == name
            async with room:
                return await self._ask(subject if own else with_credential(subject, newest), limit_s)

        return list(await asyncio.gather(*(ask(subject) for subject in subjects)))

    async def of_step(self, flow: str, step: str) -> CredentialSaid:
        """Asks the step's component about the version that it uses, a few seconds at most; nothing where it has no
        credential, or cannot tell."""
        try:
            async with asyncio.timeout(WHY_LIMIT_S):
                subject = await self._trials.of_step(flow, step)
                if subject.step.credential is None:
                    return NOTHING_ASKED
                said = await self._ask(subject, WHY_LIMIT_S)
        except (HeadraceError, TimeoutError):
            return NOTHING_ASKED
        name = subject.step.credential.name
        commands = (f"headrace credential verify {name} --used",)
        whose = f"of credential {name!r} version {said.version}"
        if not said.asked:
            return NOTHING_ASKED
        if said.verified:
            return CredentialSaid((f"its component's own check {whose}: good",), commands)
        where = f" ({said.kind}, {said.where})" if said.where else ""
        told = f"its component's own check {whose}: {said.problem}{where}"
        renew = (f"headrace credential update {name} --from FILE", f"headrace flow refresh-credentials {flow}")
        return CredentialSaid((told,), (*commands, *renew))

    async def _users(self, name: str) -> list[Subject]:
        flows = sorted({use.flow for use in await self._credentials.uses(name)})
        found = []
        for flow in flows:
            document, _ = await self._trials.reader.stores.existing_flow(flow)
            plan = await self._trials.reader.plan(flow, document.active) if document.active else None
            for step in plan.steps if plan is not None else ():
                if step.credential is not None and step.credential.name == name:
                    found.append(await self._trials.of_step(flow, step.name))
        if not found:
            raise WrongState(
                f"no flow that runs uses credential {name!r}",
                reason="CREDENTIAL_NOT_USED",
                next_step=f"Say whom to ask: headrace credential verify {name} --component PRICE, or --step FLOW/STEP",
            )
        return found[:MOST_STEPS]

    async def _ask(self, subject: Subject, limit_s: float) -> Verification:
        assert subject.step.credential is not None
        version = subject.step.credential.version
        try:
            answer = (await self._trials.run(subject, limit_s, verify=component_pb2.VerifyRequest())).verify
        except HeadraceError as error:
            return Verification(subject, version, False, error.message, error.reason, asked=False)
        problem = answer.problem
        return Verification(subject, version, answer.verified, problem.message, problem.kind, problem.where)
