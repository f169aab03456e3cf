"""Open-loop traffic: requests leave at their times, whatever the answers do, on raw keep-alive connections.

Each request carries an id of its own in its body; what its caller learnt is kept as an Attempt. Nothing is sent
twice: a request whose connection died is UNKNOWN. With `repeat_s`, callers behave as careful ones do: the id is
the Idempotency-Key too, and what was not answered is repeated through the next gateway.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import secrets
import time
from collections.abc import Sequence
from types import TracebackType

from tests.robustness.ledger import Attempt, Outcome, Touch, touches
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer, HttpConnection

JSON_HEADERS = {"content-type": "application/json"}
# After it was sent: the mesh does not say whether it happened.
UNKNOWN_STATUSES = frozenset({502, 503, 504})
MAX_WAITING = 2_000
REPEAT_AFTER_S = 0.5


class Traffic:
    """`async with Traffic([address], "/hook/orders", rate=200) as traffic: ...; await traffic.finish()`.

    `rate` is requests a second. Latencies count from the moment a request was due. At most `MAX_WAITING`
    requests are under way; one that finds no room counts as FAILED (never sent). Ids are `<run>-<number>`;
    `sent` is the number of the newest. `repeat_s` is how long a caller repeats; 0: never.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        path: str,
        *,
        rate: float,
        answer_limit_s: float = 30.0,
        repeat_s: float = 0.0,
    ) -> None:
        self._addresses = addresses
        self._path = path
        self._rate = rate
        self._answer_limit_s = answer_limit_s
        self._repeat_s = repeat_s
        self.repeats = 0
        self._idle: list[tuple[str, HttpConnection]] = []
        self._stopping = asyncio.Event()
        self._done = asyncio.Event()
        self._under_way = 0
        self.run = secrets.token_hex(3)
        self.sent = 0
        self.attempts: list[Attempt] = []

    async def __aenter__(self) -> Traffic:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._generator = self._group.create_task(self._generate())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            for _, connection in self._idle:
                await connection.close()

    async def finish(self) -> list[Attempt]:
        """Sends no more and waits for the answers that are due; answers all attempts."""
        self._stopping.set()
        async with asyncio.timeout(self._repeat_s + self._answer_limit_s + 10.0):
            await self._generator
            if self._under_way:
                await self._done.wait()
        return self.attempts

    @property
    def under_way(self) -> int:
        return self._under_way

    def counted(self, outcome: Outcome) -> int:
        return sum(attempt.outcome is outcome for attempt in self.attempts)

    def answers_by(self, deployment: int, *, after: int = -1) -> int:
        """How many of the newest answers a deployment gave to requests that were sent after that number."""
        newest = [attempt for attempt in self.attempts[-500:] if attempt.deployment == deployment]
        return sum(number_of(attempt.id) > after for attempt in newest)

    async def _generate(self) -> None:
        began = time.monotonic()
        for number in itertools.count():
            due = began + number / self._rate
            delay = due - time.monotonic()
            if delay > 0:
                try:
                    async with asyncio.timeout(delay):
                        await self._stopping.wait()
                except TimeoutError:
                    pass
            if self._stopping.is_set():
                return
            id = f"{self.run}-{number}"
            self.sent = number
            if self._under_way >= MAX_WAITING:
                self.attempts.append(Attempt(id, Outcome.FAILED, detail="no room"))
                continue
            self._under_way += 1
            self._group.create_task(self._request(id, number, due))

    async def _request(self, id: str, number: int, due: float) -> None:
        try:
            attempt = await self._attempt(id, self._address(number), due)
            while attempt.outcome is not Outcome.OK and time.monotonic() < due + self._repeat_s:
                await asyncio.sleep(REPEAT_AFTER_S)  # tidy: pace
                number += 1
                self.repeats += 1
                attempt = await self._attempt(id, self._address(number), due)
            self.attempts.append(attempt)
        finally:
            self._under_way -= 1
            if not self._under_way and self._stopping.is_set():
                self._done.set()

    def _address(self, number: int) -> str:
        return self._addresses[number % len(self._addresses)]

    async def _attempt(self, id: str, address: str, due: float) -> Attempt:
        connection: HttpConnection | None = None
        try:
            connection = await self._connection(address)
            body = json.dumps({"id": id}).encode()
            headers = {**JSON_HEADERS, "idempotency-key": id} if self._repeat_s else JSON_HEADERS
            sent_at = time.monotonic()
            answer = await connection.request("POST", self._path, body, headers, limit_s=self._answer_limit_s)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            outcome = Outcome.UNKNOWN if connection is not None and connection.sent else Outcome.FAILED
            if connection is not None:
                connection.abort()
            return Attempt(id, outcome, latency_s=time.monotonic() - due, detail=repr(error))
        answered_at = time.monotonic()
        if answer.headers.get("connection") == "close":
            await connection.close()
        else:
            self._idle.append((address, connection))
        attempt = judge(id, answer, answered_at - due)
        return dataclasses.replace(attempt, sent_at=sent_at, answered_at=answered_at)

    async def _connection(self, address: str) -> HttpConnection:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index][0] == address:
                connection = self._idle.pop(index)[1]
                if not connection.is_closed:
                    return connection
                connection.abort()
        return await HttpConnection.open(address)


async def answers_by(traffic: Traffic, deployment: int, *, after: int = -1, within_s: float = 30.0) -> None:
    """Waits for ten answers of a deployment to requests that were sent after that number."""
    await eventually(lambda: traffic.answers_by(deployment, after=after) >= 10, within_s=within_s)


def number_of(id: str) -> int:
    """The number in `<run>-<number>`."""
    return int(id.rpartition("-")[2])


def judge(id: str, answer: HttpAnswer, latency_s: float = 0.0) -> Attempt:
    """What an answer tells the caller: 2xx must be this id's own answer (or an acceptance)."""
    status = answer.status
    if status in UNKNOWN_STATUSES:
        return Attempt(id, Outcome.UNKNOWN, status, "", latency_s, answer.body[:200].decode("utf-8", "replace"))
    if not 200 <= status < 300:
        return Attempt(id, Outcome.FAILED, status, "", latency_s, answer.body[:200].decode("utf-8", "replace"))
    wrong = ""
    if status != 202:
        try:
            answered = answer.json().get("id")
            wrong = "" if answered == id else f"answered for {answered!r}"
        except (ValueError, AttributeError):
            wrong = f"not an answer: {answer.body[:80]!r}"
    if not answer.headers.get("headrace-execution"):
        wrong = wrong or "no execution id"
    version, deployment = (int(answer.headers.get(f"headrace-{name}", "0")) for name in ("version", "deployment"))
    return Attempt(id, Outcome.OK, status, wrong, latency_s, "", version, deployment, _touched(answer))


def _touched(answer: HttpAnswer) -> tuple[Touch, ...]:
    """What an answer's body says of the steps that the request went through; () where it says nothing."""
    try:
        return touches(answer.json().get("touched"))
    except (ValueError, AttributeError):
        return ()
