"""Progress of an operation on standard error, from the moment it has taken half a second."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2

QUIET_S = 0.5


class ProgressLines:
    """Give it to a client's `progress`: one line per step and change, nothing for a short operation."""

    def __init__(self, *, quiet_s: float = QUIET_S) -> None:
        self._began = time.monotonic()
        self._quiet_s = quiet_s
        self._told: dict[str, str] = {}

    def __call__(self, now: flow_pb2.FlowOperationMetadata) -> None:
        elapsed_s = time.monotonic() - self._began
        if elapsed_s < self._quiet_s:
            return
        for step, state in sorted(now.steps.items()):
            if self._told.get(step) != state:
                self._told[step] = state
                self._tell(elapsed_s, f"{step}: {state}")
        for line in now.draining:
            owner, _, rest = line.partition(":")
            if self._told.get(owner) != rest:
                self._told[owner] = rest
                self._tell(elapsed_s, f"draining {line}")

    @staticmethod
    def _tell(elapsed_s: float, text: str) -> None:
        print(f"  {elapsed_s:5.1f} s  {text}", file=sys.stderr, flush=True)
