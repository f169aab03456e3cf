"""How the broker is at this moment: a ping, a message stored, its clock. Each within a second, whatever it does."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import nats.errors
from nats.aio.client import Client

from headrace.edge.nats_echo import round_trip_ms
from headrace.model import subjects
from headrace.model.broker_url import without_password

LIMIT_S = 1.0
# Where the stored message goes: the bounded stream of logs, as a line of no flow.
PROBE_FLOW, PROBE_STEP = "_mesh", "_probe"

BREATH_S = (0.03, 0.1)


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """Milliseconds; None where there was no answer in time, with the problem in words."""

    ping_ms: float | None = None
    ping_problem: str = ""
    refuses: bool = False
    store_ms: float | None = None
    store_problem: str = ""
    clock_ahead_s: float = 0.0


async def check_broker_now(connection: Client, workspace: str) -> BrokerFacts:
    """Never raises."""
    if not connection.is_connected:
        refuses, problem = _why_down(connection)
        return BrokerFacts(ping_problem=problem, refuses=refuses)
    ping = await _ping(connection)
    if isinstance(ping, str):
        refuses, problem = (False, ping) if connection.is_connected else _why_down(connection)
        return BrokerFacts(ping_problem=f"a ping was not answered within {LIMIT_S:g} s: {problem}", refuses=refuses)
    # A broker that gets the processor now and then has it when it answers: what is asked in the same breath is quick.
    await asyncio.sleep(random.uniform(*BREATH_S))  # noqa: S311
    (store_ms, store_problem), ahead = await asyncio.gather(
        _store(connection, workspace), _clock(connection, workspace)
    )
    return BrokerFacts(ping_ms=ping, store_ms=store_ms, store_problem=store_problem, clock_ahead_s=ahead)


def best(looks: Sequence[BrokerFacts]) -> BrokerFacts:
    """Of several looks the one that speaks best of the broker: a busy machine makes single ones late."""
    return min(looks, key=lambda look: (bool(look.ping_problem), bool(look.store_problem), look.store_ms or 0.0))


def _why_down(connection: Client) -> tuple[bool, str]:
    error = connection.last_error
    text = without_password(str(error) or type(error).__name__) if error is not None else "not connected"
    return "authorization" in text.lower(), f"the connection is down: {text}"


async def _ping(connection: Client) -> float | str:
    try:
        return await round_trip_ms(connection, LIMIT_S)
    except TimeoutError:
        return "no answer"
    except nats.errors.Error as error:
        return without_password(str(error) or type(error).__name__)


async def _timed(work: object) -> float | str:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(LIMIT_S):
            await work  # type: ignore[misc]
    except TimeoutError:
        return "no answer"
    except Exception as error:
        return without_password(str(error) or type(error).__name__)
    return (time.perf_counter() - began) * 1000


async def _store(connection: Client, workspace: str) -> tuple[float | None, str]:
    subject = subjects.log_subject(workspace, PROBE_FLOW, PROBE_STEP)
    answers: list[bytes] = []

    async def store() -> None:
        answers.append((await connection.request(subject, b"", timeout=LIMIT_S)).data)

    took = await _timed(store())
    if isinstance(took, str):
        return None, f"a message to store was not acknowledged within {LIMIT_S:g} s: {took}"
    error = json.loads(answers[0]).get("error") if answers[0] else None
    if error:
        return None, f"the broker refused to store a message: {error.get('description')} ({error.get('err_code')})"
    return took, ""


async def _clock(connection: Client, workspace: str) -> float:
    """How far the broker's clock is ahead of ours, seconds; 0 where it did not say."""
    before = time.time()
    try:
        answer = await connection.request(f"$JS.API.STREAM.INFO.{subjects.log_stream(workspace)}", b"", timeout=LIMIT_S)
        said = json.loads(answer.data).get("ts", "")
        after = time.time()
        there = datetime.fromisoformat(said[:26].rstrip("Z") + "+00:00").timestamp()
    except Exception:
        return 0.0
    ahead = there - (before + after) / 2
    return ahead if abs(ahead) > after - before else 0.0
