"""DiagnosisService: facts are gathered, findings follow from them, and are put into messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from headrace.api.diagnosis.v1 import diagnosis_pb2, diagnosis_pb2_grpc
from headrace.model.causes import Cause
from headrace.model.errors import NotFound
from headrace.model.names import check_name, parse_resource
from services.orchestrator.credential_check import NOTHING_ASKED, AskCredential, CredentialSaid
from services.orchestrator.domain.diagnosis import explain, is_healthy
from services.orchestrator.domain.facts import Facts, StepFacts
from services.orchestrator.domain.finding import Finding
from services.orchestrator.fact_finder import FactFinder

SERVICE_NAME = "headrace.api.diagnosis.v1.DiagnosisService"
MOST_ASKED = 2


class DiagnosisRpc(diagnosis_pb2_grpc.DiagnosisServiceServicer):
    def __init__(self, finder: FactFinder) -> None:
        self._finder = finder
        self.ask_credential: AskCredential = _nothing_asked
        """Asked where a step's credential seems to be refused."""

    async def ExplainFlow(  # type: ignore[override]
        self, request: diagnosis_pb2.ExplainFlowRequest, context: Any
    ) -> diagnosis_pb2.ExplainFlowResponse:
        (flow,) = parse_resource("name", request.name, "flows")
        if request.step:
            check_name("step", request.step)
        facts = await self._finder.gather(flow)
        if request.step and facts.steps and request.step not in {step.name for step in facts.steps}:
            raise NotFound(
                f"flow {flow!r} has no step {request.step!r}; it has {', '.join(step.name for step in facts.steps)}",
                reason="STEP_NOT_FOUND",
                next_step=f"See headrace flow status {flow}",
            )
        findings = explain(facts, request.step)
        asked = await self._asked(flow, findings)
        answer = diagnosis_pb2.ExplainFlowResponse(
            flow=f"flows/{flow}",
            step=request.step,
            healthy=is_healthy(findings),
            findings=[_finding(flow, item, asked.get(item.step, NOTHING_ASKED)) for item in findings],
            steps=[_figures(facts, step) for step in facts.steps],
            answered_by=facts.mesh.answered_by,
        )
        if facts.mesh.broker_ms is not None:
            answer.broker_ms = facts.mesh.broker_ms
        answer.time.FromNanoseconds(time.time_ns())
        return answer

    async def _asked(self, flow: str, findings: Sequence[Finding]) -> dict[str, CredentialSaid]:
        """By step: what its component's own check says of a credential that seems to be refused."""
        steps = sorted({item.step for item in findings if item.cause is Cause.WRONG_CREDENTIALS and item.step})
        answers = await asyncio.gather(*(self.ask_credential(flow, step) for step in steps[:MOST_ASKED]))
        return dict(zip(steps, answers, strict=False))


async def _nothing_asked(flow: str, step: str) -> CredentialSaid:
    del flow, step
    return NOTHING_ASKED


def _finding(flow: str, finding: Finding, asked: CredentialSaid) -> diagnosis_pb2.Finding:
    if finding.cause is not Cause.WRONG_CREDENTIALS:
        asked = NOTHING_ASKED
    return diagnosis_pb2.Finding(
        cause=str(finding.cause),
        severity=diagnosis_pb2.Severity.Value(f"SEVERITY_{finding.severity.name}"),
        step=finding.step,
        instance=finding.instance,
        deployment=finding.deployment,
        summary=finding.summary,
        evidence=[*asked.evidence, *finding.evidence],
        commands=[*asked.commands, *finding.commands(flow)],
        affects=finding.affects,
    )


def _figures(facts: Facts, step: StepFacts) -> diagnosis_pb2.StepFigures:
    message = diagnosis_pb2.StepFigures(
        step=step.name,
        waiting=step.waiting,
        in_flight=step.in_flight,
        per_second=round(sum(item.done for item in step.instances) / max(facts.looked_s, 0.001), 1),
        replicas=len(step.instances),
        answering=sum(item.answers for item in step.instances),
    )
    if step.oldest_s is not None:
        message.oldest.FromNanoseconds(int(step.oldest_s * 1e9))
    since = [item.since_input_s for item in step.instances if item.since_input_s is not None]
    if since:
        message.since_input.FromNanoseconds(int(min(since) * 1e9))
    return message
