"""Delays between attempts, rebounds and restarts: all double from a first value up to a cap. Seconds."""

from __future__ import annotations

from headrace.model.flow_spec import RetryPolicy

REBOUND_FIRST_S = 15.0
REBOUND_MAX_S = 600.0
REBOUND_LIMIT = 10

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 10.0

REPUBLISH_FIRST_S = 0.05
REPUBLISH_MAX_S = 2.0

PROBE_S = 0.005


def doubled(first_s: float, times: int, cap_s: float) -> float:
    """`first_s` doubled `times` times, at most `cap_s`; safe for any count."""
    return min(cap_s, first_s * 2.0 ** min(max(times, 0), 60))


def retry_delay_s(policy: RetryPolicy, failed_attempts: int, chance: float = 0.0) -> float:
    """Delay before the next attempt after that many failed ones (1 or more), less the jitter's part of it."""
    return doubled(policy.backoff_s, failed_attempts - 1, policy.max_delay_s) * (1.0 - policy.jitter * chance)


def rebound_delay_s(rebounds: int, asked_ms: int) -> float:
    """Delay of the rebound with that number (1 or more); what the component asked for wins, within the cap."""
    if asked_ms > 0:
        return min(asked_ms / 1000.0, REBOUND_MAX_S)
    return doubled(REBOUND_FIRST_S, rebounds - 1, REBOUND_MAX_S)


def restart_delay_s(crashes_in_a_row: int) -> float:
    """Delay before the component is started again after that many crashes in a row (1 or more)."""
    return doubled(RESTART_FIRST_S, crashes_in_a_row - 1, RESTART_MAX_S)


def republish_delay_s(tries: int) -> float:
    """Delay before the same message is published again after that many unanswered tries (1 or more)."""
    return doubled(REPUBLISH_FIRST_S, tries - 1, REPUBLISH_MAX_S)


def jittered(delay_s: float, random_0_to_1: float) -> float:
    """Between 75 and 125 % of the delay."""
    return delay_s * (0.75 + 0.5 * random_0_to_1)
