"""What to do with an input once its call is over, however it ended: the one home of that decision.

The delivery loop reports an `Outcome` and carries out the `Decision`: publish outputs, reply, try again
after a delay, dead-letter, acknowledge. A failed attempt leaves nothing behind: what it emitted is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headrace.model.flow_spec import RetryPolicy
from headrace.model.limits import MAX_BODY_BYTES, MAX_OUTPUTS
from services.sidecar.domain.retry_delay import REBOUND_LIMIT, rebound_delay_s, retry_delay_s

LAST_CRASH = 3
"""A message that was running at so many crashes, at the last one alone, is given up. Not the retry policy's
number: a crash may be anybody's fault, an operator's kill included."""


class Ending(StrEnum):
    """How a call ended."""

    DONE = "done"
    FAILED = "failed"
    REBOUND = "rebound"
    TIMED_OUT = "timed_out"
    COMPONENT_DIED = "component_died"
    OUTPUT_REFUSED = "output_refused"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an attempt failed: upper-case code, text, HTTP status for a waiting caller."""

    code: str
    message: str
    status: int = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt's end. `retryable` and `problem` count for FAILED, `asked_delay_ms` for REBOUND.

    `alone` says, for COMPONENT_DIED, that no other call was running, so that this input did it.
    """

    ending: Ending
    problem: Problem | None = None
    retryable: bool = False
    asked_delay_ms: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Trail:
    """What happened to the input before, in this sidecar: this attempt's own end is not counted yet."""

    failures: int = 0
    rebounds: int = 0
    crashes: int = 0
    caller_waits: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
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


def decide(outcome: Outcome, trail: Trail, policy: RetryPolicy, chance: float = 0.0) -> Decision:
    """The decision for an attempt that ended. `chance` (0 to 1, drawn by the caller) is for the delay's jitter."""
    match outcome.ending:
        case Ending.DONE:
            return Decision(deliver=True)
        case Ending.REBOUND:
            rebounds = trail.rebounds + 1
            if rebounds <= REBOUND_LIMIT:
                delay_s = rebound_delay_s(rebounds, outcome.asked_delay_ms)
                return Decision(retry_after_s=delay_s, counts_as_rebound=True)
            return _give_up(Problem("REBOUND_LIMIT", f"the component asked to try again later {rebounds} times"), trail)
        case Ending.COMPONENT_DIED:
            crashes = trail.crashes + 1
            if not outcome.alone or crashes < LAST_CRASH:
                # Whose fault it was is known only when nothing else was running.
                return Decision(retry_after_s=0.0, counts_as_crash=True)
            return _give_up(outcome.problem or Problem("COMPONENT_DIED", "the component process died", 502), trail)
        case Ending.OUTPUT_REFUSED:
            return _give_up(outcome.problem or Problem("OUTPUT_REFUSED", "an output was refused"), trail)
        case Ending.TIMED_OUT | Ending.FAILED:
            problem = outcome.problem or Problem("COMPONENT_ERROR", "the component failed")
            failures = trail.failures + 1
            if failures < policy.attempts and _may_retry(outcome, problem, policy):
                return Decision(retry_after_s=retry_delay_s(policy, failures, chance), counts_as_failure=True)
            return _give_up(problem, trail)


def _may_retry(outcome: Outcome, problem: Problem, policy: RetryPolicy) -> bool:
    if policy.on:
        return problem.code in policy.on
    return outcome.ending is Ending.TIMED_OUT or outcome.retryable


def _give_up(problem: Problem, trail: Trail) -> Decision:
    rejected = trail.caller_waits and 400 <= problem.status <= 499
    return Decision(error=problem, dead_letter=not rejected, rejected=rejected, counts_as_failure=True)


def check_output(index: int, body_bytes: int) -> Problem | None:
    """Why an output may not be sent, or None. `index` counts from 0 within its input."""
    if index >= MAX_OUTPUTS:
        return Problem(
            "OUTPUT_REFUSED", f"more than {MAX_OUTPUTS} outputs for one input; split the work over several messages"
        )
    if body_bytes > MAX_BODY_BYTES:
        return Problem(
            "OUTPUT_REFUSED",
            f"output {index} has {body_bytes} bytes, more than {MAX_BODY_BYTES}; send a smaller body or a reference",
        )
    return None


def check_reply(body_bytes: int, status: int) -> Problem | None:
    """Why a reply may not be sent, or None."""
    if body_bytes > MAX_BODY_BYTES:
        return Problem("OUTPUT_REFUSED", f"the reply has {body_bytes} bytes, more than {MAX_BODY_BYTES}")
    if status != 0 and not 200 <= status <= 599:
        return Problem("OUTPUT_REFUSED", f"the reply's status {status} is not an HTTP status from 200 to 599")
    return None


def error_status(status: int) -> int:
    """HTTP status a caller gets for a component's failure; 500 unless the component chose 400 to 599."""
    return status if 400 <= status <= 599 else 500
