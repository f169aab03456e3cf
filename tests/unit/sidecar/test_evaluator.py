"""The process that evaluates expressions, from the sidecar's side: order, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

from services.sidecar.evaluator import Evaluator
from tests.support.eventually import eventually


async def test_jobs_are_answered_in_order_whatever_becomes_of_the_process() -> None:
    answers: list[tuple[int, str, Any]] = []

    def ask(evaluator: Evaluator, number: int, body: bytes) -> None:
        message = (body, "application/json", {}, {"id": "m", "execution": "x", "sender": "s"}, None)
        evaluator.evaluate(message, len(body), lambda error, bodies: answers.append((number, error, bodies)))

    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            evaluator = Evaluator([("write", "", "{'n': body}")], tasks)
            for number in range(200):
                ask(evaluator, number, str(number).encode())
            await eventually(lambda: len(answers) > 20)
            os.kill(evaluator.pid, signal.SIGKILL)
            await eventually(lambda: len(answers) == 200, within_s=20)
            evaluator.close()
    assert answers == [(n, "", [b'{"n":%d}' % n]) for n in range(200)]
