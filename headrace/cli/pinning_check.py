"""What the demo's second act proves: which code answered which order, against what was pinned. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headrace.cli.steady_orders import OrderCall


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that was done while orders flowed; perf_counter nanoseconds."""

    what: str
    began_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class PinningResult:
    """`ok` is the promise: nothing lost, nothing doubled, nothing on code that was not pinned."""

    orders: int
    publishes: int
    answered_by_revision: dict[str, int]
    unanswered: int
    lost: int
    """Orders without their effect."""
    duplicated: int
    unpinned: int
    """Answered, or noted, by code that the deployment which had the order does not pin."""
    gaps_ms: dict[str, float]
    """Longest pause between two answers, by what was done meanwhile."""
    steady_gap_ms: float
    max_gap_ms: float
    """The longest one during a switch."""

    @property
    def ok(self) -> bool:
        return self.orders > 0 and not (self.unanswered or self.lost or self.duplicated or self.unpinned)


def judge_pinning(
    calls: Sequence[OrderCall],
    effects: Sequence[Mapping[str, Any]],
    pinned: Mapping[int, str],
    *,
    switches: Sequence[Moment],
    others: Sequence[Moment] = (),
) -> PinningResult:
    """`pinned`: deployment number to the REVISION of the price step's code; `others`: kills."""
    ids = {call.order_id for call in calls}
    noted: dict[str, list[str]] = {}
    for effect in effects:
        if (order_id := str(effect.get("order_id"))) in ids:
            noted.setdefault(order_id, []).append(str(effect.get("revisions", {}).get("price")))
    answered = Counter[str]()
    unpinned = unanswered = 0
    for call in calls:
        if call.answer.status != 200:
            unanswered += 1
            continue
        revision = _price_revision(call)
        answered[revision] += 1
        wanted = pinned.get(int(call.answer.headers.get("headrace-deployment", "0")), "")
        unpinned += revision != wanted or any(other != wanted for other in noted.get(call.order_id, ()))
    gaps = {moment.what: _longest_gap_ms(calls, moment) for moment in (*switches, *others)}
    return PinningResult(
        orders=len(ids),
        publishes=len(switches),
        answered_by_revision=dict(sorted(answered.items())),
        unanswered=unanswered,
        lost=len(ids - noted.keys()),
        duplicated=sum(len(revisions) > 1 for revisions in noted.values()),
        unpinned=unpinned,
        gaps_ms=gaps,
        steady_gap_ms=_steady_gap_ms(calls, (*switches, *others)),
        max_gap_ms=max((gaps[moment.what] for moment in switches), default=0.0),
    )


def _price_revision(call: OrderCall) -> str:
    try:
        return str(json.loads(call.answer.body)["revisions"]["price"])
    except (ValueError, KeyError, TypeError):
        return ""


def _answer_times(calls: Sequence[OrderCall]) -> list[int]:
    return sorted(call.answer.received_ns for call in calls if call.answer.status == 200)


def _longest_gap_ms(calls: Sequence[OrderCall], moment: Moment) -> float:
    """Between two answers of which neither came before the moment began, nor both after it ended."""
    gaps = [
        later - max(earlier, moment.began_ns)
        for earlier, later in pairwise(_answer_times(calls))
        if later > moment.began_ns and earlier < moment.ended_ns
    ]
    return round(max(gaps, default=0) / 1e6, 1)


def _steady_gap_ms(calls: Sequence[OrderCall], moments: Sequence[Moment]) -> float:
    """The longest pause while nothing was done."""
    gaps = [
        later - earlier
        for earlier, later in pairwise(_answer_times(calls))
        if not any(later > moment.began_ns and earlier < moment.ended_ns for moment in moments)
    ]
    return round(max(gaps, default=0) / 1e6, 1)
