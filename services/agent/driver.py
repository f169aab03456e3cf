"""What the agent needs from a way to run instances: processes now, containers later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.agent.domain.instances import InstanceSpec, InstanceView


class RunningInstance(Protocol):
    """An instance that its driver keeps running until it is stopped."""

    def view(self, generation: int) -> InstanceView:
        """What is known of it now."""

    async def stop(self, grace_s: float) -> None:
        """Ends it; returns when nothing of it is left, TimeoutError when something cannot be ended."""


class InstanceDriver(Protocol):
    """One way to run instances on this machine."""

    async def prepare(self) -> None:
        """Ends and removes what an earlier agent may have left over; called once, before any start."""

    def start(self, spec: InstanceSpec, on_change: Callable[[], None]) -> RunningInstance:
        """Begins at once; `on_change` is called in the loop whenever the view differs."""

    def trial_process(self, workspace: str, name: str) -> AbstractAsyncContextManager[str]:
        """The address of a process that serves one trial; at the exit it is gone, with all that it started."""

    async def close(self) -> None:
        """Called once, after every instance was stopped."""
