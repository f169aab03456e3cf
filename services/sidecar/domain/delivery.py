"""What to do with an input once its call is over, however it ended: the one home of that decision.

The delivery loop reports an `Outcome` and carries out the `Decision`: publish outputs, reply, try again
after a delay, dead-letter, acknowledge. A failed attempt leaves nothing behind: what it emitted is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

import msgspec

from headrace.model.flow_spec import RetryPolicy
from headrace.model.limits import MAX_BODY_BYTES, MAX_HEADERS_BYTES, MAX_OUTPUT_BYTES, MAX_OUTPUTS
from services.sidecar.domain.retry_delay import (
    REBOUND_FIRST_S,
    REBOUND_LIMIT,
    REBOUND_MAX_S,
    rebound_delay_s,
    retry_delay_s,
)

LAST_CRASH = 3
"""A message that was running at so many crashes, at the last one alone, is given up. Not the retry policy's
number: a crash may be anybody's fault, an operator's kill included."""


class Ending(StrEnum):
    """How a call ended."""

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REBOUND = "rebound"
    COMPONENT_DIED = "component_died"
    OUTPUT_REFUSED = "output_refused"
    EXPRESSION_FAILED = "expression_failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an attempt failed: upper-case code, text, HTTP status for a waiting caller."""

    code: str
    message: str
    status: int = 500


class Again(Enum):
    """Whether and when another attempt is made; the text is what docs/outcomes.md says."""

    NEVER = "never"
    BY_POLICY = (
        "by the step's `retry`: `attempts` in all, after `backoff`, doubling up to `max_delay`, up to `jitter` of it "
        "left out by chance; only codes named in `on`, or without `on` retryable errors and TIMEOUT"
    )
    LATER = (
        f"after the delay the component asks for, else {REBOUND_FIRST_S:g} s, doubling, at most {REBOUND_MAX_S:g} s; "
        f"{REBOUND_LIMIT} times"
    )
    AT_ONCE = (
        f"as soon as the component runs again; alone after {LAST_CRASH - 1} crashes, and given up if it was alone at "
        f"its crash {LAST_CRASH}"
    )


class Counts(Enum):
    """What an attempt that ended so is counted as for the limits of the message."""

    NOTHING = "nothing"
    FAILURE = "a failed attempt"
    REBOUND = "a rebound"
    CRASH = "a crash, not an attempt"


@dataclass(frozen=True, slots=True)
class Rule:
    """What an ending leads to. `problem` is what the message is given up with, where the component says nothing
    else; without one the call is delivered."""

    meaning: str
    again: Again
    counts: Counts
    problem: Problem | None = None


OUTCOMES: Mapping[Ending, Rule] = {
    Ending.DONE: Rule(
        "the function returned; it emitted any number of outputs (also none), and may have replied",
        Again.NEVER,
        Counts.NOTHING,
    ),
    Ending.FAILED: Rule(
        "the function raised: a `ComponentError` with its own code, or anything else (COMPONENT_ERROR, retryable)",
        Again.BY_POLICY,
        Counts.FAILURE,
        Problem("COMPONENT_ERROR", "the component failed"),
    ),
    Ending.TIMED_OUT: Rule(
        "the call took longer than the step's `timeout`",
        Again.BY_POLICY,
        Counts.FAILURE,
        Problem("TIMEOUT", "the call took longer than its limit", 504),
    ),
    Ending.REBOUND: Rule(
        "the component asked for this message again later",
        Again.LATER,
        Counts.REBOUND,
        Problem("REBOUND_LIMIT", f"the component asked to try again later {REBOUND_LIMIT + 1} times"),
    ),
    Ending.COMPONENT_DIED: Rule(
        "the component's process ended during the call, its stream broke, or the sidecar ended it (it did not answer, "
        "or sent events without end)",
        Again.AT_ONCE,
        Counts.CRASH,
        Problem("COMPONENT_DIED", "the component process died", 502),
    ),
    Ending.OUTPUT_REFUSED: Rule(
        f"an output or the reply cannot be sent: it has no JSON, more than {MAX_BODY_BYTES} bytes, too many headers or "
        f"ones that are not text; or its input has over {MAX_OUTPUTS} outputs, or {MAX_OUTPUT_BYTES} bytes of them",
        Again.NEVER,
        Counts.FAILURE,
        Problem("OUTPUT_REFUSED", "an output was refused"),
    ),
    Ending.EXPRESSION_FAILED: Rule(
        "a condition or mapping of an edge failed on an output, took too much time or memory, or gave a body that is "
        "too large or none at all; nothing of the call is stored",
        Again.NEVER,
        Counts.FAILURE,
        Problem("EXPRESSION_FAILED", "an expression of an edge failed"),
    ),
}
"""Every way a call can end, and what follows. `decide` goes by it, and docs/outcomes.md is made from it."""


class Outcome(msgspec.Struct, frozen=True):
    """One attempt's end. `retryable` and `problem` count for FAILED, `asked_delay_ms` for REBOUND.

    `alone` says, for COMPONENT_DIED, that no other call was running, so that this input did it.
    """

    ending: Ending
    problem: Problem | None = None
    retryable: bool = False
    asked_delay_ms: int = 0
    alone: bool = False


class Trail(msgspec.Struct, frozen=True):
    """What happened to the input before, in this sidecar: this attempt's own end is not counted yet."""

    failures: int = 0
    rebounds: int = 0
    crashes: int = 0
    caller_waits: bool = False


class Decision(msgspec.Struct, frozen=True):
    """Exactly one of: deliver (publish outputs, send the reply), retry_after_s, or give up.

    Giving up sends `error` to a waiting caller, and dead-letters the input unless it was `rejected`: then
    the caller's answer is all there is to it. Deliver and give up end with the input's acknowledgement.
    """

    deliver: bool = False
    retry_after_s: float | None = None
    error: Problem | None = None
    dead_letter: bool = False
    rejected: bool = False
    counts_as_failure: bool = False
    counts_as_rebound: bool = False
    counts_as_crash: bool = False


DONE = Outcome(Ending.DONE)
_DELIVER = Decision(deliver=True)


def decide(outcome: Outcome, trail: Trail, policy: RetryPolicy, chance: float = 0.0) -> Decision:
    """The decision for an attempt that ended. `chance` (0 to 1, drawn by the caller) is for the delay's jitter."""
    rule = OUTCOMES[outcome.ending]
    if rule.problem is None:
        return _DELIVER
    # A rebound's own reason says why it came again, not why it is given up.
    problem = rule.problem if rule.again is Again.LATER else outcome.problem or rule.problem
    delay_s = _delay_s(rule, problem, outcome, trail, policy, chance)
    if delay_s is None:
        return _give_up(problem, trail)
    return Decision(
        retry_after_s=delay_s,
        counts_as_failure=rule.counts is Counts.FAILURE,
        counts_as_rebound=rule.counts is Counts.REBOUND,
        counts_as_crash=rule.counts is Counts.CRASH,
    )


def _delay_s(
    rule: Rule, problem: Problem, outcome: Outcome, trail: Trail, policy: RetryPolicy, chance: float
) -> float | None:
    """Seconds until the next attempt; None when there is none."""
    match rule.again:
        case Again.BY_POLICY:
            failures = trail.failures + 1
            listed = problem.code in policy.on
            may = listed if policy.on else outcome.ending is Ending.TIMED_OUT or outcome.retryable
            return retry_delay_s(policy, failures, chance) if may and failures < policy.attempts else None
        case Again.LATER:
            rebounds = trail.rebounds + 1
            return rebound_delay_s(rebounds, outcome.asked_delay_ms) if rebounds <= REBOUND_LIMIT else None
        case Again.AT_ONCE:
            # Whose fault it was is known only when nothing else was running.
            return None if outcome.alone and trail.crashes + 1 >= LAST_CRASH else 0.0
        case Again.NEVER:
            return None


def _give_up(problem: Problem, trail: Trail) -> Decision:
    rejected = trail.caller_waits and 400 <= problem.status <= 499
    return Decision(error=problem, dead_letter=not rejected, rejected=rejected, counts_as_failure=True)


def check_output(index: int, body_bytes: int, headers_bytes: int = 0, before_bytes: int = 0) -> Problem | None:
    """Why an output may not be sent, or None. `index` counts from 0 within its input, `before_bytes` what its
    input has emitted so far; `headers_bytes` are headers, content type and key."""
    if index >= MAX_OUTPUTS:
        return Problem(
            "OUTPUT_REFUSED", f"more than {MAX_OUTPUTS} outputs for one input; split the work over several messages"
        )
    if body_bytes > MAX_BODY_BYTES:
        return Problem(
            "OUTPUT_REFUSED",
            f"output {index} has {body_bytes} bytes, more than {MAX_BODY_BYTES}; send a smaller body or a reference",
        )
    if headers_bytes > MAX_HEADERS_BYTES:
        return Problem(
            "OUTPUT_REFUSED",
            f"output {index} has {headers_bytes} bytes of headers, content type and key, more than {MAX_HEADERS_BYTES}",
        )
    if before_bytes + body_bytes + headers_bytes > MAX_OUTPUT_BYTES:
        return Problem(
            "OUTPUT_REFUSED",
            f"the outputs of one input have more than {MAX_OUTPUT_BYTES} bytes; split the work over several messages",
        )
    return None


def check_reply(body_bytes: int, status: int, headers_bytes: int = 0) -> Problem | None:
    """Why a reply may not be sent, or None."""
    if body_bytes > MAX_BODY_BYTES:
        return Problem("OUTPUT_REFUSED", f"the reply has {body_bytes} bytes, more than {MAX_BODY_BYTES}")
    if headers_bytes > MAX_HEADERS_BYTES:
        return Problem("OUTPUT_REFUSED", f"the reply has {headers_bytes} bytes of headers, over {MAX_HEADERS_BYTES}")
    if status != 0 and not 200 <= status <= 599:
        return Problem("OUTPUT_REFUSED", f"the reply's status {status} is not an HTTP status from 200 to 599")
    return None


def error_status(status: int) -> int:
    """HTTP status a caller gets for a component's failure; 500 unless the component chose 400 to 599."""
    return status if 400 <= status <= 599 else 500
