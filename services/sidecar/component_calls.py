"""Calls of the component contract that end with the process, too, and how it is told that one failed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from headrace.edge.child_process import ChildProcess, describe_exit
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import HeadraceError
from services.sidecar.log_capture import LogCapture


class ComponentFailed(HeadraceError):
    """The component cannot serve; `reason` says where it failed."""

    code = "FAILED_PRECONDITION"
    default_reason = "COMPONENT_FAILED"


class ComponentCalls:
    """Of one process; what it logged last is a part of how a failure is told."""

    def __init__(self, child: ChildProcess, logs: LogCapture) -> None:
        self._child = child
        self._logs = logs

    async def call(self, what: str, method: Any, request: Any, limit_s: float, *, connecting: bool = False) -> Any:
        """A unary call that also ends when the process does; `connecting`: a connection that takes its time is
        waited for, up to the limit."""
        import grpc

        async def answer() -> Any:
            return await method(request, timeout=limit_s, wait_for_ready=connecting)

        call = asyncio.ensure_future(answer())
        death = asyncio.ensure_future(self._child.wait())
        try:
            await asyncio.wait({call, death}, return_when=asyncio.FIRST_COMPLETED, timeout=limit_s + 1)
            if not call.done():
                # The answer and the exit may arrive in either order.
                await asyncio.wait({call}, timeout=0.1)
            if not call.done():
                raise self.failed(f"COMPONENT_EXITED_IN_{what}", f"the component {self.ending} in {what.lower()}")
            return await call
        except grpc.aio.AioRpcError as error:
            await self.let_it_exit()
            if self._child.exit_status is not None:
                raise self.failed(
                    f"COMPONENT_EXITED_IN_{what}", f"the component {self.ending} in {what.lower()}"
                ) from error
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self.failed(f"{what}_TIMEOUT", f"{what.lower()} took longer than {limit_s:g} s") from error
            raise self.failed(
                f"{what}_FAILED", f"{what.lower()} failed: {error.details() or error.code().name}"
            ) from error
        finally:
            await end_tasks([call, death])

    async def let_it_exit(self) -> None:
        """A broken pipe is seen a moment before the exit that broke it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._child.wait()
        self._logs.end()

    @property
    def ending(self) -> str:
        """The end of the process, as a phrase."""
        status = self._child.exit_status
        return "hangs" if status is None else f"ended ({describe_exit(status)})"

    def failed(self, reason: str, message: str, next_step: str = "") -> ComponentFailed:
        """With the last line of its log, and no secret."""
        last = next((line.strip() for line in reversed(self._logs.last_lines)), "")
        if last and last not in message and reason != "UNKNOWN_FUNCTION":
            message += f": {last}"
        return ComponentFailed(
            self._logs.mask.known(message)[:2000], reason=reason, next_step=next_step or "See the component's log"
        )
