"""StepService: a step asked, or run on one input, in a process of its own. Conversion; the work is in `trials`."""

from __future__ import annotations

import json
import uuid
from typing import Any

from google.protobuf import json_format, struct_pb2

from headrace.api.component.v1 import component_pb2
from headrace.api.sidecar.v1 import trial_pb2
from headrace.api.step.v1 import step_pb2, step_pb2_grpc
from headrace.edge.grpc_server import GrpcServer
from headrace.model.errors import InvalidInput, WrongState
from headrace.model.json_values import check_json_body
from headrace.model.limits import MAX_BODY_BYTES
from headrace.model.names import parse_resource, parse_step
from headrace.model.step_snapshot import MAX_SNAPSHOT_BYTES
from headrace.wire.flow import seconds_from_duration, struct_to_dict
from services.orchestrator.letter_edits import LetterEdits
from services.orchestrator.letter_store import Letter, LetterStore
from services.orchestrator.letter_work import LetterWorker
from services.orchestrator.trials import DEFAULT_LIMIT_S, Subject, Trials, with_config, with_credential

SERVICE_NAME = "headrace.api.step.v1.StepService"


def add_steps(server: GrpcServer, trials: Trials, letters: LetterWorker) -> None:
    """Serves them."""
    rpc = StepRpc(trials, letters.letters, letters.edits)
    server.add(step_pb2_grpc.add_StepServiceServicer_to_server, rpc, SERVICE_NAME)


class StepRpc(step_pb2_grpc.StepServiceServicer):
    """The servicer."""

    def __init__(self, trials: Trials, letters: LetterStore, edits: LetterEdits) -> None:
        self._trials = trials
        self._letters = letters
        self._edits = edits

    async def RunStep(self, request: step_pb2.RunStepRequest, context: Any) -> step_pb2.RunStepResponse:
        letter = await self._letter(request.dead_letter) if request.dead_letter else None
        subject = await self._subject(request.target, letter)
        if subject.step.kind == "listener":
            raise WrongState(
                f"step {subject.step.name!r} is a listener: it is called with no input",
                reason="IS_LISTENER",
                next_step="Run the step that receives from it",
            )
        given = await self._input(request, subject, letter)
        limit_s = seconds_from_duration(request.timeout) or min(subject.step.timeout_s, 600.0)
        result = await self._trials.run(subject, limit_s, input=given)
        return step_pb2.RunStepResponse(
            step=tried(subject),
            events=result.call.events,
            duration=result.call.duration,
            truncated=result.call.truncated,
            lines=[_line(line) for line in result.lines],
            stage_ms=result.stage_ms,
        )

    async def GetStepMetadata(self, request: step_pb2.GetStepMetadataRequest, context: Any) -> step_pb2.StepMetadata:
        subject = await self._subject(request.target)
        limit_s = seconds_from_duration(request.timeout) or DEFAULT_LIMIT_S
        found = (await self._trials.run(subject, limit_s, metadata=component_pb2.GetMetadataRequest())).metadata
        _check(found, subject, "its metadata")
        answer = step_pb2.StepMetadata(step=tried(subject))
        if found.in_schema_json:
            answer.in_schema.update(json.loads(found.in_schema_json))
        if found.out_schema_json:
            answer.out_schema.update(json.loads(found.out_schema_json))
        return answer

    async def SelectModel(self, request: step_pb2.SelectModelRequest, context: Any) -> step_pb2.SelectModelResponse:
        subject = await self._subject(request.target)
        limit_s = seconds_from_duration(request.timeout) or DEFAULT_LIMIT_S
        question = component_pb2.SelectModelRequest(model=request.model)
        found = (await self._trials.run(subject, limit_s, model=question)).model
        _check(found, subject, f"model {request.model!r}")
        answer = step_pb2.SelectModelResponse(step=tried(subject), models=found.models)
        for choice in found.choices:
            value = json_format.Parse(choice.value_json, struct_pb2.Value())
            answer.choices.add(value=value, label=choice.label)
        return answer

    # What is meant

    async def _subject(self, target: step_pb2.StepTarget, letter: Letter | None = None) -> Subject:
        name = target.name or (f"flows/{letter.content.flow}/steps/{letter.content.step}" if letter else "")
        if bool(name) == bool(target.component):
            raise InvalidInput.at("target", name, "names not one of a step and a component", next_step="Name one")
        if target.component:
            config = struct_to_dict(target.config)
            subject = await self._trials.of_component(target.component, target.function, config)
        else:
            flow, step = parse_step("target.name", name)
            of = self._trials.of_draft if target.draft else self._trials.of_step
            subject = await of(flow, step)
            if target.HasField("config"):
                subject = with_config(subject, struct_to_dict(target.config))
        if target.credential:
            (credential,) = parse_resource("target.credential", target.credential, "credentials")
            subject = with_credential(subject, await self._trials.newest(credential, "target.credential"))
        return subject

    async def _letter(self, name: str) -> Letter:
        flow, number = parse_resource("dead_letter", name, "flows", "deadLetters")
        await self._trials.reader.stores.existing_flow(flow)
        letter = await self._letters.letter(flow, int(number))
        if letter is None:
            raise InvalidInput.at(
                "dead_letter", name, "is not kept (any more)", reason="DEAD_LETTER_NOT_FOUND",
                next_step=f"List them: headrace dead-letters list {flow}",
            )  # fmt: skip
        if letter.content.unreadable:
            raise InvalidInput.at("dead_letter", name, "is no envelope: nothing can run it", reason="UNREADABLE")
        return letter

    async def _input(
        self, request: step_pb2.RunStepRequest, subject: Subject, letter: Letter | None
    ) -> component_pb2.Input:
        """As the step would get it; with ids of its own, so that nothing outside takes it for the message's repeat."""
        given = component_pb2.Input(
            body=request.body,
            content_type=request.content_type or "application/json",
            headers={name.lower(): value for name, value in request.headers.items()},
            message_id=f"dry-{uuid.uuid4().hex}",
            execution_id=f"dry-{uuid.uuid4().hex}",
            attempt=1,
            wants_reply=True,
        )
        if letter is not None:
            original = letter.content.original
            edit, _ = await self._edits.of(letter.content.flow, letter)
            if edit is None and any(item.is_body for item in original.attachments):
                raise InvalidInput.at(
                    "dead_letter",
                    request.dead_letter,
                    "has a body that is stored apart, too large for a trial",
                    reason="BODY_TOO_LARGE",
                    next_step="Replay it instead, or run the step on a smaller input",
                )
            source = edit if edit is not None else original
            given.body, given.content_type = source.body, source.content_type
            given.headers.update(source.headers)
            for item in original.passthrough:
                earlier = given.passthrough.add(step=item.step, body=item.body, content_type=item.content_type)
                earlier.headers.update(item.headers)
        if len(given.body) > MAX_BODY_BYTES:
            raise InvalidInput.at("body", f"{len(given.body)} bytes", f"is more than {MAX_BODY_BYTES} bytes")
        if letter is None:
            check_json_body("body", given.content_type, given.body)
        if request.snapshot_json:
            if len(request.snapshot_json.encode()) > MAX_SNAPSHOT_BYTES:
                raise InvalidInput.at("snapshot_json", "...", f"is more than {MAX_SNAPSHOT_BYTES} bytes")
            check_json_body("snapshot_json", "application/json", request.snapshot_json.encode())
            given.snapshot.json, given.snapshot.revision = request.snapshot_json, 1
        elif subject.flow and not subject.step.keyed:
            kept = await self._trials.kept(subject.flow, subject.step.name)
            if kept is not None:
                given.snapshot.json, given.snapshot.revision = bytes(kept.value).decode(), kept.revision
        return given


def tried(subject: Subject) -> step_pb2.TriedStep:
    """What a trial was of, as people see it."""
    plan, step = subject.plan, subject.step
    message = step_pb2.TriedStep(
        name=subject.name,
        deployment=f"flows/{plan.flow}/deployments/{plan.deployment}" if plan.deployment else "",
        component=step.pin.component,
        revision=step.pin.revision_number,
        digest=step.pin.digest,
    )
    if step.credential is not None:
        message.credential = f"credentials/{step.credential.name}"
        message.credential_version = step.credential.version
    return message


def _check(answer: Any, subject: Subject, what: str) -> None:
    """WrongState in the component's own words, with the place in its code."""
    if answer.HasField("problem"):
        problem = answer.problem
        raise WrongState(
            f"component {subject.step.pin.component!r} cannot tell {what}: {problem.message}"
            + (f" ({problem.kind}, {problem.where})" if problem.where else f" ({problem.kind})"),
            reason="COMPONENT_REFUSED",
            metadata={"kind": problem.kind, "where": problem.where},
        )


def _line(line: trial_pb2.TrialLine) -> step_pb2.StepLine:
    told = step_pb2.StepLine(level=line.level, message=line.message, fields_json=line.fields_json)
    told.time.CopyFrom(line.time)
    return told
