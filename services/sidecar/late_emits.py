"""What a component emits after its function returned: still published, as far as its call is remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from services.sidecar.call_events import other_bytes
from services.sidecar.domain.delivery import check_output
from services.sidecar.domain.ended_calls import EndedCalls
from services.sidecar.outputs import LateContext
from services.sidecar.passthrough import passthrough_problem

if TYPE_CHECKING:
    from services.sidecar.edge_rules import EdgeRules
    from services.sidecar.input_path import InputPath

log = get_logger(__name__)


class LateEmits:
    """`calls` are those that have ended, and what their late emits need. Bounded by `EndedCalls` and by the path."""

    def __init__(
        self,
        step: str,
        path: InputPath,
        counters: dict[str, int],
        clock: Callable[[], float],
        *,
        rules: EdgeRules | None,
        passthrough: bool,
    ) -> None:
        self._step, self._path, self._counters, self._clock = step, path, counters, clock
        self._rules, self._passes = rules, passthrough
        self.calls: EndedCalls[LateContext] = EndedCalls()

    def take(self, call: int, emit: Any) -> bool:
        """An output of a call that is over; False if nothing comes of it."""
        context = self.calls.find(call, self._clock())
        if context is None:
            return False
        # What a late emit names may be collected before it is stored: no input keeps it.
        if emit.attachments:
            self._counters["late_refused"] += 1
            log.error("a late emit with attachments is dropped", execution=context.execution_id)
            return True
        if check_output(context.next_index, len(emit.body), other_bytes(emit)) is not None:
            return False
        if self._passes and passthrough_problem(context.passed, self._step, [emit]) is not None:
            self._counters["late_refused"] += 1
        elif self._rules is not None:
            self._rules.route_late(context, emit, self._path.publish_late)
        else:
            self._path.publish_late(context, emit)
        return True
