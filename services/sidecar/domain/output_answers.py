"""What the broker can answer to an output, and what follows: the table the outbox goes by, and docs/outcomes.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

EDGE_FULL = 10077
MESSAGE_TOO_LARGE = 10054


class OutputAnswer(StrEnum):
    """What became of one publish of an output."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    EDGE_FULL = "edge_full"
    UNANSWERED = "unanswered"
    TOO_LARGE = "too_large"
    RETIRED = "retired"


class Fate(Enum):
    """What the sidecar does with the output; the text is what docs/outcomes.md says."""

    SETTLED = "it counts as sent"
    WAIT = "it waits in the sidecar and holds its input, so that the step pulls less: the pressure goes upstream"
    REPEAT = "it is published again under the same id, after 50 ms, doubling to 2 s, until there is an answer"
    DEAD_LETTER = "it is dead-lettered under its receiver's name, and counts as settled for its input"


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """`counter`: what the instance counts it under; `code`: of the dead letter."""

    meaning: str
    fate: Fate
    counter: str = ""
    code: str = ""


ANSWERS: Mapping[OutputAnswer, AnswerRule] = {
    OutputAnswer.STORED: AnswerRule("the broker has it", Fate.SETTLED),
    OutputAnswer.DUPLICATE: AnswerRule("the broker had it before (a repetition)", Fate.SETTLED, "duplicates"),
    OutputAnswer.EDGE_FULL: AnswerRule(
        "as many messages wait for the receiver as may (`max_waiting`)", Fate.WAIT, "refused_full"
    ),
    OutputAnswer.UNANSWERED: AnswerRule(
        "no answer in time, no stream, or a refusal that passes (the broker restarts, a leader is elected)",
        Fate.REPEAT,
        "republished",
    ),
    OutputAnswer.TOO_LARGE: AnswerRule(
        "larger than the broker takes", Fate.DEAD_LETTER, "dead_lettered", "OUTPUT_REFUSED"
    ),
    OutputAnswer.RETIRED: AnswerRule(
        "the deployment is over: its edges take no more (a late emit)",
        Fate.DEAD_LETTER,
        "dead_lettered",
        "DEPLOYMENT_RETIRED",
    ),
}


def refusal(code: int) -> OutputAnswer:
    """What a refusal with that JetStream error code means for an output."""
    if code == EDGE_FULL:
        return OutputAnswer.EDGE_FULL
    return OutputAnswer.TOO_LARGE if code == MESSAGE_TOO_LARGE else OutputAnswer.UNANSWERED
