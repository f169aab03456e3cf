"""What the edges of a step make of its outputs, where some have a condition or a mapping.

Steps whose edges have none have no `EdgeRules`: their outputs are not looked at and go as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.model.expressions import CODE
from headrace.model.limits import MAX_OUTPUT_BYTES
from services.sidecar.domain.delivery import Problem
from services.sidecar.evaluator import Evaluator

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.outputs import LateContext

log = get_logger(__name__)

JSON = "application/json"
MAX_LATE = 2_000
"""Late emits that wait for the evaluator."""


class RoutedEmit:
    """An emit, and what each of its receivers gets of it: `bodies` has those that get something, and True where that
    is the body as it was emitted."""

    __slots__ = ("attachments", "bodies", "body", "content_type", "headers", "key", "original")

    def __init__(self, emit: Any, bodies: dict[str, bool | bytes]) -> None:
        self.body, self.content_type = emit.body, emit.content_type
        self.headers, self.key = emit.headers, emit.key
        self.attachments = emit.attachments
        self.original = emit
        self.bodies = bodies

    def for_receiver(self, receiver: str) -> Any:
        """An emit with what this receiver gets; None for nothing."""
        body = self.bodies.get(receiver)
        if body is None or body is True:
            return self if body else None
        mapped = RoutedEmit(self.original, {})
        mapped.body, mapped.content_type = body, JSON
        if mapped.attachments:
            # The mapping's result takes the place of a body by reference, too.
            mapped.attachments = [item for item in mapped.attachments if not item.is_body]
        return mapped


def rules_of(
    plan: DeploymentPlan, step: StepPlan, counters: dict[str, int], tasks: asyncio.TaskGroup
) -> EdgeRules | None:
    """None for a step whose edges say nothing."""
    return EdgeRules(step, counters, tasks, passthrough=plan.passthrough) if step.edges else None


Routed = Callable[[Sequence[Any], Problem | None], None]
"""Gets the outputs as they go on, or why they do not."""


class EdgeRules:
    """Of one step; counts outputs that no edge took (`unrouted`)."""

    def __init__(
        self, step: StepPlan, counters: dict[str, int], tasks: asyncio.TaskGroup, *, passthrough: bool = False
    ) -> None:
        self._step = step.name
        self._passes = passthrough
        self._late = 0
        self._counters = counters
        self._ruled = [receiver for receiver in step.receivers if receiver in step.edges]
        self._plain = [receiver for receiver in step.receivers if receiver not in step.edges]
        edges = [(name, step.edges[name].condition, step.edges[name].mapping) for name in self._ruled]
        self.evaluator = Evaluator(edges, tasks)

    def close(self) -> None:
        """Nothing is called any more."""
        self.evaluator.close()

    def route(
        self, emits: Sequence[Any], message_id: str, execution_id: str, passed: Sequence[Any], done: Routed
    ) -> None:
        """The outputs of one input, and what that carried of earlier steps. `done` is called once, later; in the order
        of the calls."""
        large = next((item for emit in emits for item in emit.attachments if item.is_body), None)
        if large is not None and self._ruled:
            text = f"an output has a body of {large.size} bytes, by reference: no expression can read it"
            asyncio.get_running_loop().call_soon(done, [], Problem(CODE, f"step {self._step!r}: {text}"))
            return
        found: list[RoutedEmit] = []
        message = {"id": message_id, "execution": execution_id, "sender": self._step}
        seen = (
            None
            if not self._passes
            else [(item.step, item.body, item.content_type if item.body else "", dict(item.headers)) for item in passed]
        )
        size = sum(len(item.body) for item in passed)
        failed = False

        def one(emit: Any, error: str, bodies: list[Any] | None) -> None:
            nonlocal failed
            if failed:
                return
            if bodies is None:
                failed = True
                done([], Problem(CODE, f"step {self._step!r}: {error}"))
                return
            found.append(self._routed(emit, bodies))
            if len(found) == len(emits):
                self._all(found, done)

        for emit in emits:
            job = (emit.body, emit.content_type, dict(emit.headers), message, seen)
            self.evaluator.evaluate(job, len(emit.body) + size, partial(one, emit))

    def route_late(self, context: LateContext, emit: Any, publish: Callable[[LateContext, Any], None]) -> None:
        """An emit that came after its call's end: there is no call left to fail, so one whose expression fails, or
        that comes while too many wait, is dropped, counted (`late_refused`) and named in the log."""
        if self._late >= MAX_LATE:
            self._counters["late_refused"] += 1
            return
        self._late += 1

        def routed(emits: Sequence[Any], problem: Problem | None) -> None:
            self._late -= 1
            if problem is not None:
                self._counters["late_refused"] += 1
                log.error("a late emit is dropped", error=problem.message, execution=context.execution_id)
            for item in emits:
                publish(context, item)

        self.route([emit], context.message_id, context.execution_id, context.passed, routed)

    def _routed(self, emit: Any, bodies: list[Any]) -> RoutedEmit:
        taken = {name: body for name, body in zip(self._ruled, bodies, strict=True) if body is not None}
        taken.update(dict.fromkeys(self._plain, True))
        return RoutedEmit(emit, taken)

    def _all(self, found: list[RoutedEmit], done: Routed) -> None:
        size = sum(len(body) for emit in found for body in emit.bodies.values() if isinstance(body, bytes))
        if size > MAX_OUTPUT_BYTES:
            text = f"step {self._step!r}: mappings made {size} bytes for one message, more than {MAX_OUTPUT_BYTES}"
            done([], Problem(CODE, text))
            return
        self._counters["unrouted"] += sum(not emit.bodies for emit in found)
        done(found, None)
