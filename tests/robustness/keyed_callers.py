"""Callers who send numbers in order, one key each, and what an effects file says of their order."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.robustness.ledger import read_effects
from tests.support.http_connection import HttpConnection

PACE_S = 0.06
REPEAT_S = 0.2
ANSWER_LIMIT_S = 15.0
GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class OrderVerdict:
    """Messages of all keys: `doubled` effects of one number, `inversions` of numbers of one key."""

    sent: int
    effected: int
    lost: int
    doubled: int
    inversions: int
    unexpected: int

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.inversions or self.unexpected)

    def line(self) -> str:
        return (
            f"ledger {'ok' if self.ok else 'BROKEN'}: sent {self.sent}, effected {self.effected}; lost {self.lost}, "
            f"doubled {self.doubled}, out of order {self.inversions}, unexpected {self.unexpected}"
        )


@dataclass
class KeyedCallers:
    """`async with KeyedCallers(gateways, path, keys=12) as callers: ...; await callers.finish()`.

    Each key has a caller who sends its next number when the one before is accepted, and repeats what was not
    answered under the same Idempotency-Key, so that the order in which its messages are stored is known.
    """

    addresses: Sequence[str]
    path: str
    keys: int = 12
    # Numbers accepted so far, by key.
    accepted: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    longest_s: float = 0.0
    _stopping: bool = False

    async def __aenter__(self) -> KeyedCallers:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._callers = [self._group.create_task(self._call(f"k{key}")) for key in range(self.keys)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        await self._group.__aexit__(kind, error, trace)

    async def finish(self) -> None:
        """Every caller gets the answer that it waits for, then sends no more."""
        self._stopping = True
        async with asyncio.timeout(GIVE_UP_S + ANSWER_LIMIT_S):
            await asyncio.gather(*self._callers)

    @property
    def sent(self) -> int:
        return sum(self.accepted.values())

    async def _call(self, key: str) -> None:
        connection: HttpConnection | None = None
        for number in itertools.count():
            began = time.monotonic()
            body = json.dumps({"id": f"{key}-{number}", "key": key}).encode()
            headers = {"content-type": "application/json", "idempotency-key": f"{key}-{number}"}
            for attempt in itertools.count():
                try:
                    if connection is None:
                        connection = await HttpConnection.open(self.addresses[attempt % len(self.addresses)])
                    answer = await connection.request("POST", self.path, body, headers, limit_s=ANSWER_LIMIT_S)
                    if 200 <= answer.status < 300:
                        break
                except (OSError, asyncio.IncompleteReadError, TimeoutError):
                    if connection is not None:
                        connection.abort()
                    connection = None
                if time.monotonic() - began > GIVE_UP_S:
                    raise AssertionError(f"{key}-{number} was not accepted within {GIVE_UP_S:g} s")
                await asyncio.sleep(REPEAT_S)  # tidy: pace
            self.accepted[key] = number + 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if self._stopping:
                break
            await asyncio.sleep(PACE_S)  # tidy: pace
        if connection is not None:
            await connection.close()

    def verdict(self, effects_file: Path) -> OrderVerdict:
        """One effect for each number that was accepted, in the order of each key."""
        seen: dict[str, list[int]] = defaultdict(list)
        for effect in read_effects(effects_file):
            key, _, number = effect.id.partition("-")
            seen[key].append(int(number))
        expected = {(key, number) for key, count in self.accepted.items() for number in range(count)}
        found = [(key, number) for key, numbers in seen.items() for number in numbers]
        return OrderVerdict(
            sent=self.sent,
            effected=len(set(found)),
            lost=len(expected - set(found)),
            doubled=len(found) - len(set(found)),
            inversions=sum(a > b for numbers in seen.values() for a, b in itertools.pairwise(numbers)),
            unexpected=len(set(found) - expected),
        )
