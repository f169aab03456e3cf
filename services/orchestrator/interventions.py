"""What a person does to a flow that runs or drains: suspend, resume, scale, and the choice of a drain too long."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from headrace.model.errors import InvalidInput, NotFound
from services.orchestrator.domain import drain_choice, parked_choice, scaling, suspension
from services.orchestrator.domain.documents import FlowDocument, OperationDocument, OperationIntent
from services.orchestrator.domain.flow_states import SUSPENDED_STATES
from services.orchestrator.domain.flow_verbs import check_free
from services.orchestrator.domain.snapshot import DeploymentView
from services.orchestrator.flow_service import START_LIMIT_S, STOP_LIMIT_S, FlowService, limit_of
from services.orchestrator.verb_call import PLAIN_CALL, VerbCall


@dataclass
class Interventions:
    """Each is one compare-and-set of the flow document; the flow's loop does the rest."""

    flows: FlowService

    async def suspend(
        self, name: str, timeout_s: float, max_time_s: float, max_messages: int, call: VerbCall = PLAIN_CALL
    ) -> OperationDocument:
        if max_time_s and not 0 < max_time_s <= suspension.LONGEST_TIME_S:
            raise InvalidInput.at("max_time", max_time_s, f"is not between 0 and {suspension.LONGEST_TIME_S:g} s")
        if max_messages > suspension.MOST_MESSAGES:
            raise InvalidInput.at("max_messages", max_messages, f"is more than {suspension.MOST_MESSAGES}")

        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            if document.state not in SUSPENDED_STATES:
                check_free(document, "suspend")
            now = self.flows.clock.now()
            return suspension.begin_suspend(
                document, intent, now, max_time_s or suspension.DEFAULT_TIME_S, max_messages
            )

        limit = limit_of("timeout", timeout_s, STOP_LIMIT_S)
        return await self.flows.begin(name, "suspend", limit, edit, call)

    async def resume(self, name: str, timeout_s: float, call: VerbCall = PLAIN_CALL) -> OperationDocument:
        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            check_free(document, "resume")
            return suspension.begin_resume(document, intent)

        limit = limit_of("timeout", timeout_s, STOP_LIMIT_S)
        return await self.flows.begin(name, "resume", limit, edit, call)

    async def scale(
        self, name: str, step: str, replicas: int, timeout_s: float, call: VerbCall = PLAIN_CALL
    ) -> OperationDocument:
        scaling.check_replicas(replicas)

        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            check_free(document, "scale")
            plan = await self.flows.reader.plan(name, document.active) if document.active else None
            intent = msgspec.structs.replace(intent, step=step, replicas=replicas)
            return scaling.begin_scale(document, plan, intent)

        limit = limit_of("timeout", timeout_s, START_LIMIT_S)
        return await self.flows.begin(name, "scale", limit, edit, call)

    async def resolve_drain(
        self, name: str, number: int, choice: str, timeout_s: float, call: VerbCall = PLAIN_CALL
    ) -> OperationDocument:
        incarnation = secrets.randbelow(2**32 - 1) + 1

        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            check_free_for_choice(document)
            found = await self.flows.stores.state(name, number)
            if found is None:
                raise NotFound(
                    f"flow {name!r} has no deployment {number}", next_step=f"See headrace flow status {name}"
                )
            view = DeploymentView(number, await self.flows.reader.plan(name, number), *found)
            intent = msgspec.structs.replace(intent, choice=choice, incarnation=incarnation)
            return parked_choice.begin_choice(document, view, intent)

        limit = limit_of("timeout", timeout_s, STOP_LIMIT_S)
        return await self.flows.begin(name, drain_choice.VERB, limit, edit, call)


def check_free_for_choice(document: FlowDocument) -> None:
    """A target that waits for the drain (RESTART) does not stand in the choice's way, an operation does."""
    if document.operation is not None:
        check_free(document, drain_choice.VERB)
