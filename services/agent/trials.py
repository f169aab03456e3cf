"""Trials on this machine: a process each, a few at once, ended with all that it started before the answer goes out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from headrace.api.sidecar.v1 import trial_pb2, trial_pb2_grpc
from headrace.client.errors import error_of_call
from headrace.edge.grpc_channel import open_channel
from headrace.edge.structured_log import get_logger
from headrace.model.errors import Exhausted, InvalidInput, Unavailable
from headrace.model.names import DEFAULT_WORKSPACE, check_name

log = get_logger(__name__)

AT_ONCE = 4
WAIT_S = 10.0
# Fetching, building an environment and starting come before the question's own limit.
START_LIMIT_S = 120.0
LONGEST_S = 600.0


class TrialHost(Protocol):
    """Who can start the process of a trial."""

    def trial_process(self, workspace: str, name: str) -> contextlib.AbstractAsyncContextManager[str]:
        """The address at which it serves; at the exit nothing of it is left."""


class Trials:
    """`close` ends those under way."""

    def __init__(self, host: TrialHost) -> None:
        self._host = host
        self._room = asyncio.Semaphore(AT_ONCE)
        self._running: set[asyncio.Task[trial_pb2.TrialResult]] = set()
        self._closing = False

    async def run(self, trial: trial_pb2.Trial, workspace: str) -> trial_pb2.TrialResult:
        """What came of it. Exhausted where there is no room; the errors of the component as the trial tells them."""
        workspace = check_name("workspace", workspace or DEFAULT_WORKSPACE)
        limit_s = trial.timeout.seconds + trial.timeout.nanos / 1e9
        if not 0 <= limit_s <= LONGEST_S:
            raise InvalidInput.at("trial.timeout", limit_s, f"is not from 0 to {LONGEST_S:g} s")
        async with self._place():
            if self._closing:
                raise Unavailable("the agent is stopping", reason="AGENT_STOPPING", next_step="Try again")
            task = asyncio.create_task(self._run(trial, workspace, START_LIMIT_S + limit_s), name="trial")
            self._running.add(task)
            try:
                return await task
            except asyncio.CancelledError:
                task.cancel()  # whoever asked is gone: the process goes, too
                await asyncio.wait([task])
                raise
            finally:
                self._running.discard(task)

    async def close(self) -> None:
        """Refuses new ones and ends those under way."""
        self._closing = True
        for task in list(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(list(self._running), timeout=2.0)

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._room.acquire()
        except TimeoutError as error:
            raise Exhausted(
                f"{AT_ONCE} trials run on this machine already", reason="TOO_MANY_TRIALS", next_step="Try again"
            ) from error
        try:
            yield
        finally:
            self._room.release()

    async def _run(self, trial: trial_pb2.Trial, workspace: str, limit_s: float) -> trial_pb2.TrialResult:
        name = f"{workspace}.trial.{secrets.token_hex(4)}"
        async with self._host.trial_process(workspace, name) as address:
            channel = open_channel(address)
            try:
                stub = trial_pb2_grpc.TrialServiceStub(channel)
                answer = await stub.RunTrial(trial_pb2.RunTrialRequest(trial=trial), timeout=limit_s)
                return answer.result
            except grpc.aio.AioRpcError as error:
                raise error_of_call(error, "the trial") from None
            finally:
                await channel.close()
