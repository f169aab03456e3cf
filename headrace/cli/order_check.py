"""Compares the answers and effects of orders with what is expected of them. Pure.

Expected lines are those of `expected.jsonl` (see make_expected.py beside it): status, answer and effects of each
order; an error answer is compared by what the expectation names of it, everything else whole, to the cent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# What an effect says besides what is expected of it: it differs from run to run.
_OWN_FIELDS = ("execution_id", "message_id", "attempt")
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Expected:
    """What one order must be answered, and what it must leave behind."""

    order: str
    status: int
    answer: Any
    effects: tuple[Mapping[str, Any], ...] = ()
    repeats: str = ""
    """The order whose answer and execution this one gets again."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as expected; `order` is empty for an effect of no known order."""

    order: str
    what: str
    expected: str
    got: str


class Answer(Protocol):
    """An answer as a caller sees it. Status 0: none came, `problem` says why."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...
    @property
    def problem(self) -> str: ...


@dataclass(slots=True)
class _Comparison:
    differences: list[Difference] = field(default_factory=list)

    def note(self, order: str, what: str, expected: object, got: object) -> None:
        self.differences.append(Difference(order, what, _shown(expected), _shown(got)))


def check_orders(
    expected: Sequence[Expected], answers: Sequence[Answer], effects: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    """Everything that differs; `answers` stand in the order of `expected`, `effects` in any."""
    comparison = _Comparison()
    executions = {
        item.order: answer.headers.get("headrace-execution", "") for item, answer in zip(expected, answers, strict=True)
    }
    for item, answer in zip(expected, answers, strict=True):
        _check_answer(comparison, item, answer, executions)
    _check_effects(comparison, expected, effects, executions)
    return comparison.differences


def _check_answer(comparison: _Comparison, expected: Expected, answer: Answer, executions: Mapping[str, str]) -> None:
    if answer.status == 0:
        comparison.note(expected.order, "no answer", expected.status, answer.problem)
        return
    if answer.status != expected.status:
        comparison.note(expected.order, "status", expected.status, f"{answer.status} {_text(answer.body)}")
        return
    try:
        got = json.loads(answer.body)
    except ValueError:
        comparison.note(expected.order, "answer is not JSON", expected.answer, _text(answer.body))
        return
    whole = not (isinstance(expected.answer, dict) and "error" in expected.answer)
    for path, wanted, found in _differing("", expected.answer, got, whole=whole):
        comparison.note(expected.order, path or "answer", wanted, found)
    if not executions[expected.order]:
        comparison.note(expected.order, "header Headrace-Execution", "an execution id", "")
    elif expected.repeats and executions[expected.order] != executions.get(expected.repeats):
        first = executions.get(expected.repeats, "")
        comparison.note(expected.order, f"execution of {expected.repeats}", first, executions[expected.order])


def _differing(path: str, wanted: Any, found: Any, *, whole: bool) -> list[tuple[str, Any, Any]]:
    """Paths at which two JSON values differ; without `whole`, what only `found` has is left out."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = [*wanted, *(key for key in found if whole and key not in wanted)]
        return [
            difference
            for key in keys
            for difference in _differing(f"{path}.{key}" if path else key, wanted.get(key), found.get(key), whole=whole)
        ]
    same = wanted == found and isinstance(wanted, bool) == isinstance(found, bool)
    return [] if same else [(path, wanted, found)]


def _check_effects(
    comparison: _Comparison,
    expected: Sequence[Expected],
    effects: Sequence[Mapping[str, Any]],
    executions: Mapping[str, str],
) -> None:
    wanted = Counter({(item.order, _canonical(effect)): 1 for item in expected for effect in item.effects})
    owner = {order_id: item.order for item in expected for order_id in _order_ids(item)}
    found: Counter[tuple[str, str]] = Counter()
    for effect in effects:
        order = owner.get(str(effect.get("order_id")), "")
        found[order, _canonical({key: effect[key] for key in effect if key not in _OWN_FIELDS})] += 1
        if order and effect.get("execution_id") != executions[order]:
            comparison.note(order, "execution of the effect", executions[order], effect.get("execution_id"))
    for (order, effect_text), count in sorted((wanted - found).items()):
        comparison.note(order, "effect missing", effect_text, _others(found, order) or f"nothing ({count} missing)")
    for (order, effect_text), count in sorted((found - wanted).items()):
        what = "effect too often" if (order, effect_text) in wanted else "effect nobody expected"
        comparison.note(order, what, wanted[order, effect_text], f"{count} more: {effect_text}")


def _order_ids(expected: Expected) -> list[str]:
    return [str(effect["order_id"]) for effect in expected.effects]


def _others(found: Counter[tuple[str, str]], order: str) -> str:
    return "; ".join(text for (owner, text) in found if owner == order)


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _text(body: bytes) -> str:
    return body[:_SHOWN_CHARACTERS].decode(errors="replace")


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
