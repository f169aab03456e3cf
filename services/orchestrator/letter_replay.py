"""The message that a dead letter becomes when it is sent again: same execution, an id and incarnation of its own."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan, StepPlan
from headrace.model.message_ids import replayed_message_id
from services.orchestrator.domain.dead_letters import ReplayTarget
from services.orchestrator.domain.letter_edit import LetterEdit
from services.orchestrator.letter_store import Letter
from services.orchestrator.sent_again import sent_again, slot_at


class LetterRefused(Exception):
    """The letter stays; `reason` in UPPER_CASE."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Replayed:
    """What is told about one replay."""

    number: int
    step: str
    deployment: int
    version: int
    revision: str
    same_revision: bool
    message_id: str
    execution_id: str
    edited: bool


@dataclass(frozen=True, slots=True)
class ReplayMessage:
    """Ready to be published."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    told: Replayed


def letter_name(flow: str, number: int) -> str:
    return f"flows/{flow}/deadLetters/{number}"


def replay_envelope(
    workspace: str, target: ReplayTarget, letter: Letter, incarnation: int, now: float, edit: LetterEdit | None
) -> ReplayMessage:
    """LetterRefused where the target has no such step. Nobody waits for a reply any more. An edit takes the place of
    the original's body and headers, and so may move it to another slot."""
    content, plan = letter.content, target.plan
    step = _step(plan, content.step)
    own_id = replayed_message_id(content.original.id, step.name, incarnation)
    envelope = sent_again(content.original, own_id, incarnation, int(now * 1e9))
    envelope.ClearField("reply_to")
    if edit is not None:
        envelope.body, envelope.content_type = edit.body, edit.content_type
        envelope.headers.clear()
        envelope.headers.update(edit.headers)
    envelope.replayed.dead_letter = letter_name(content.flow, letter.number)
    envelope.replayed.id = content.original.id
    envelope.replayed.at_unix_ns = int(now * 1e9)
    slot = slot_at(envelope, step.key, step.slots)
    subject = subjects.data_subject(workspace, plan.flow, subjects.deployment_owner(plan.deployment), step.name, slot)
    headers = {"Nats-Msg-Id": envelope.id}
    if content.traceparent:
        headers["traceparent"] = content.traceparent
    told = Replayed(
        letter.number,
        step.name,
        plan.deployment,
        plan.version,
        step.pin.digest,
        step.pin.digest == content.revision,
        envelope.id,
        envelope.execution_id,
        edit is not None,
    )
    return ReplayMessage(subject, envelope.SerializeToString(), headers, told)


def _step(plan: DeploymentPlan, name: str) -> StepPlan:
    try:
        return plan.step(name)
    except KeyError:
        raise LetterRefused(
            "NO_SUCH_STEP",
            f"deployment {plan.deployment} (version {plan.version}) has no step {name!r}; publish a version that has "
            "it, or discard the letter",
        ) from None
