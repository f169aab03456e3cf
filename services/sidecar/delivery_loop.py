"""From an input that may be called to what becomes of it: calls, events, retries, time limits of one instance.

Everything here runs in callbacks of the loop: inputs (from an `InputPath`) and events come as lists, are handled
at once, and what has to be written leaves in the same turn. Nothing waits for anything else, so there is no task
per message. Bounded by the path: it holds what the path holds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.ports import ComponentStream
from headrace.wire.envelope import MalformedMessage
from services.sidecar.call_dispatch import CallDispatch
from services.sidecar.dead_letters import failed_attempt
from services.sidecar.domain.delivery import (
    Ending,
    Outcome,
    Problem,
    check_output,
    check_reply,
    decide,
    error_status,
)
from services.sidecar.domain.ended_calls import EndedCalls
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.input_path import InputPath
from services.sidecar.outputs import LateContext
from services.sidecar.timers import Timers

TIMEOUT = "TIMEOUT"

if TYPE_CHECKING:
    from headrace.model.deployment import StepPlan
    from services.sidecar.hop_phases import HopPhases

log = get_logger(__name__)


class DeliveryLoop:
    """Takes its inputs from `path` and gives them back to it once their call is over. `on_finished` is called when
    the component finished a call."""

    def __init__(
        self,
        step: StepPlan,
        path: InputPath,
        hops: HopPhases,
        timers: Timers,
        counters: dict[str, int],
        *,
        ack_wait_s: float,
        on_finished: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step = step
        self._path = path
        path.submit = self.submit
        self._timers = timers
        self._counters = counters
        self._hops = hops
        self._on_finished = on_finished
        self._clock = clock
        self._dispatch = CallDispatch(step, clock)
        self._ended: EndedCalls[LateContext] = EndedCalls()
        self._closed = False
        self._extend_every_s = ack_wait_s / 3
        limits = [self._extend_every_s / 2, 1.0] + ([step.timeout_s / 10] if step.timeout_s > 0 else [])
        self._sweep_every_s = max(0.01, min(limits))
        self._sweeping = False

    def close(self) -> None:
        """From here on what is held is left to be delivered again."""
        self._closed = True

    def submit(self, inputs: list[HeldInput]) -> None:
        """Takes inputs that may be called now."""
        self._arm_sweep()
        self._dispatch.submit(inputs)

    # Component

    def component_ready(self, stream: ComponentStream) -> None:
        """The (re)started component takes calls from now on."""
        self._dispatch.component_ready(stream)

    def component_lost(self, cause: str) -> None:
        """The component is gone: its calls become new attempts once it is back. Nothing is lost."""
        if self._closed:
            return  # ended on purpose: what is left is delivered again, to whoever is next
        self._ended.clear()
        for held in self._dispatch.component_lost():
            self._counters["crashed_calls"] += 1
            problem = Problem("COMPONENT_DIED", f"the component {cause} while it worked on this message", 502)
            self._end(held, Outcome(Ending.COMPONENT_DIED, problem, alone=held.alone))

    def on_events(self, events: Sequence[Any]) -> None:
        """Events of the Process stream, in order."""
        running = self._dispatch.running
        ended = False
        for event in events:
            held = running.get(event.call)
            kind = event.WhichOneof("kind")
            if held is None:
                self._late(event, kind)
            elif kind == "data":
                self._collect(held, event.data)
            elif kind == "end":
                self._dispatch.finished(event.call)
                held.entered_at_mono_ns = event.end.started_at_mono_ns
                held.left_at_mono_ns = event.end.ended_at_mono_ns
                self._end(held, self._outcome(held))
                self._on_finished()
                ended = True
            elif kind == "reply":
                problem = check_reply(len(event.reply.body), event.reply.status)
                held.refused = held.refused or problem
                held.reply = held.reply or event.reply
            elif kind == "error":
                held.failure = event.error
            elif kind == "rebound":
                held.rebound = event.rebound
            elif kind == "snapshot":
                self._counters["snapshots"] += 1
        if ended:
            self._dispatch.send_what_may_go()

    def _collect(self, held: HeldInput, emit: Any) -> None:
        if held.refused is None:
            held.refused = check_output(len(held.outputs), len(emit.body))
        if held.refused is None:
            held.outputs.append(emit)

    def _late(self, event: Any, kind: str | None) -> None:
        context = self._ended.find(event.call, self._clock())
        if context is None or kind != "data" or check_output(context.next_index, len(event.data.body)) is not None:
            self._counters["late_ignored"] += 1
            return
        self._path.publish_late(context, event.data)

    @staticmethod
    def _outcome(held: HeldInput) -> Outcome:
        if held.failure is not None:
            failure = held.failure
            problem = Problem(
                failure.code or "COMPONENT_ERROR",
                failure.message or "the component failed",
                error_status(failure.status),
            )
            refused = problem.code == "OUTPUT_REFUSED"  # by the SDK, which knows what could not be encoded
            return Outcome(Ending.OUTPUT_REFUSED if refused else Ending.FAILED, problem, retryable=failure.retryable)
        if held.rebound is not None:
            return Outcome(Ending.REBOUND, asked_delay_ms=held.rebound.delay_ms)
        if held.refused is not None:
            return Outcome(Ending.OUTPUT_REFUSED, held.refused)
        return Outcome(Ending.DONE)

    # Decisions carried out

    def _end(self, held: HeldInput, outcome: Outcome) -> None:
        decision = decide(outcome, held.trail(), self._step.retry, random.random())  # noqa: S311
        if decision.deliver:
            self._hops.called(held)
            if self._step.receivers:
                self._ended.add(held.call, self._path.late_context(held), self._clock())
            self._deliver(held)
            return
        problem = decision.error or outcome.problem
        if problem is not None:
            held.attempts.append(failed_attempt(held.attempt, problem))
            self._counters["timeouts"] += problem.code == TIMEOUT
        held.failures += decision.counts_as_failure
        held.rebounds += decision.counts_as_rebound
        held.crashes += decision.counts_as_crash
        if decision.retry_after_s is not None:
            self._retry(held, decision.retry_after_s, rebound=decision.counts_as_rebound)
            return
        assert decision.error is not None
        self._counters["rejected"] += decision.rejected
        self._hops.called(held)
        self._path.give_up(held, decision.error, dead_letter=decision.dead_letter)

    def _deliver(self, held: HeldInput) -> None:
        try:
            self._path.deliver(held)
        except MalformedMessage as error:
            # What is under way already is settled by itself; the input must not be held for ever.
            problem = Problem("OUTPUT_REFUSED", error.message)
            held.attempts.append(failed_attempt(held.attempt, problem))
            self._path.give_up(held, problem, dead_letter=True)

    def _retry(self, held: HeldInput, delay_s: float, *, rebound: bool) -> None:
        self._counters["rebounds" if rebound else "retried"] += 1
        if delay_s <= 0:
            self._dispatch.submit([held])
            return
        held.phase = Phase.RETRYING
        self._timers.later(delay_s, partial(self._dispatch.submit, [held]))

    # Time limits

    def _arm_sweep(self) -> None:
        if not self._sweeping and self._path.held:
            self._sweeping = True
            self._timers.later(self._sweep_every_s, self._sweep)

    def _sweep(self) -> None:
        """Extends what is held for long, abandons calls over their limit. Runs only while something is held."""
        self._sweeping = False
        now = self._clock()
        for held in self._dispatch.expired(now):
            limit = f"{self._step.timeout_s:g} s"
            problem = Problem(TIMEOUT, f"step {self._step.name} took longer than {limit}", 504)
            self._end(held, Outcome(Ending.TIMED_OUT, problem))
        self._path.extend(now, self._extend_every_s)
        self._dispatch.send_what_may_go()
        self._arm_sweep()
