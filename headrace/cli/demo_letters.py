"""The demo's third act: an order that cannot be priced is not lost: it is found, corrected and sent again."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.api.deadletter.v1 import dead_letter_pb2
from headrace.cli.demo_example import Example
from headrace.client import AsyncClient
from headrace.model.errors import DeadlineExceeded
from headrace.model.json_pointer import set_at

QUANTITY = "/lines/0/quantity"
WRONG = "three"
ORDER = "O-CORRECTED"
LIMIT_S = 20.0
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class LettersResult:
    """`effects` is how often the corrected order was noted; `total_cents` what with, beside what it should be."""

    reason: str
    error: str
    left: int
    effects: int
    total_cents: int
    expected_cents: int

    @property
    def ok(self) -> bool:
        return self.effects == 1 and self.total_cents == self.expected_cents and self.left == 0


def has_third_act(example: Example) -> bool:
    """Whether the example has an order with a quantity that can be spoilt, and an effect that says its total."""
    return _chosen(example) is not None


def _chosen(example: Example) -> tuple[dict[str, Any], int] | None:
    """The body of an order, and the total that is expected of it."""
    for request, expected in zip(example.requests, example.expected, strict=True):
        if expected.status != 200 or len(expected.effects) != 1 or request.group or expected.repeats:
            continue
        body, total = json.loads(request.body), expected.effects[0].get("total_cents")
        if isinstance(body, dict) and isinstance(total, int) and body.get("lines") and "order_id" in body:
            return body, total
    return None


class LettersAct:
    """`await LettersAct(...).run()`; `say` gets a line for each thing done."""

    def __init__(self, client: AsyncClient, example: Example, say: Callable[[str], None]) -> None:
        self._client, self._example, self._say = client, example, say

    async def run(self) -> LettersResult:
        """HeadraceError where the mesh refuses what the act asks for, or does not get there in 20 s."""
        chosen = _chosen(self._example)
        assert chosen is not None
        order, expected_cents = chosen
        right = order["lines"][0]["quantity"]
        spoilt = set_at({**copy.deepcopy(order), "order_id": ORDER}, QUANTITY, WRONG)
        flow = self._example.flow
        await self._client.inject(flow, json.dumps(spoilt).encode())
        letter = await self._letter(flow)
        number = int(letter.name.rpartition("/")[2])
        self._say(
            f"an order of {WRONG!r} was given up by {letter.step}: {letter.reason}: {letter.error.splitlines()[0]}"
        )
        whole = await self._client.get_dead_letter(flow, number)
        corrected = json.dumps(set_at(json.loads(whole.body), QUANTITY, right)).encode()
        await self._client.edit_dead_letter(flow, number, body=corrected, etag=whole.etag)
        self._say(f"edited: headrace dead-letters edit {flow} {number} --set {QUANTITY}={right}")
        replay = (await self._client.replay_dead_letters(flow, [number])).replays[0]
        self._say(f"sent again: headrace dead-letters replay {flow} {number}, to deployment {replay.deployment}")
        effects = await self._effects()
        left = (await self._client.list_dead_letters(flow)).counts.waiting
        total = int(effects[0].get("total_cents", 0))
        result = LettersResult(letter.reason, letter.error, left, len(effects), total, expected_cents)
        told = "as it should be" if result.ok else f"NOT {expected_cents} once"
        self._say(f"the corrected order was noted {len(effects)} time, {total} cents: {told}")
        return result

    async def _letter(self, flow: str) -> dead_letter_pb2.DeadLetter:
        deadline = time.monotonic() + LIMIT_S
        while True:
            found = await self._client.list_dead_letters(flow, text=ORDER)
            if found.dead_letters:
                return found.dead_letters[0]
            await _look_again(deadline, "the spoilt order is not among the dead letters")

    async def _effects(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + LIMIT_S
        while True:
            found = [effect for effect in self._example.read_effects() if effect.get("order_id") == ORDER]
            if found:
                return found
            await _look_again(deadline, "the corrected order was not noted")


async def _look_again(deadline: float, problem: str) -> None:
    if time.monotonic() > deadline:
        raise DeadlineExceeded(f"{problem} after {LIMIT_S:g} s", next_step="See the flow: headrace flow status")
    await asyncio.sleep(LOOK_S)


def letters_json(result: LettersResult | None) -> dict[str, Any] | None:
    """For the demo's one JSON object."""
    if result is None:
        return None
    return {
        "ok": result.ok,
        "reason": result.reason,
        "effects": result.effects,
        "total_cents": result.total_cents,
        "expected_cents": result.expected_cents,
        "left": result.left,
    }
