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
from headrace.model.flow_spec import SUSPEND_FLOW
from headrace.ports import ComponentStream
from headrace.wire.envelope import MalformedMessage
from services.sidecar.call_dispatch import STUCK_CALLS, CallDispatch
from services.sidecar.dead_letters import failed_attempt
from services.sidecar.domain.delivery import DONE, Ending, Outcome, Problem, decide
from services.sidecar.domain.snapshot_problems import CONFLICT
from services.sidecar.event_reader import EventReader
from services.sidecar.held_input import SUSPECT_CRASHES, HeldInput, Phase
from services.sidecar.input_path import InputPath
from services.sidecar.late_emits import LateEmits
from services.sidecar.liveness import ANSWER_LIMIT_S, Liveness
from services.sidecar.outputs import LateContext
from services.sidecar.passthrough import passthrough_problem
from services.sidecar.plain_rows import row_context
from services.sidecar.stuck_inputs import StuckInputs
from services.sidecar.timers import Timers

TIMEOUT = "TIMEOUT"
FLOOD = "was ended: it sent events without end that belong to no call or exceed one"

if TYPE_CHECKING:
    from headrace.model.deployment import StepPlan
    from services.sidecar.attached_outputs import AttachedOutputs
    from services.sidecar.careful_start import CarefulStart
    from services.sidecar.edge_rules import EdgeRules
    from services.sidecar.hop_phases import HopPhases
    from services.sidecar.pace import Pace

log = get_logger(__name__)


class DeliveryLoop:
    """Takes its inputs from `path` and gives them back to it once their call is over. `on_finished` is called when
    the component finished a call, `end_component` (reason, cause) when only a new process helps, `on_stuck` when an
    input failed for good and waits (`on_error: suspend-flow`), or is tried again."""

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
        end_component: Callable[[str, str], None] = lambda reason, cause: None,
        on_stuck: Callable[[], None] = lambda: None,
        pace: Pace | None = None,
        answer_limit_s: float = ANSWER_LIMIT_S,
        careful: CarefulStart | None = None,
        rules: EdgeRules | None = None,
        attached: AttachedOutputs | None = None,
        passthrough: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._careful = careful
        self._rules, self._attached = rules, attached
        self._passes = passthrough
        self._step = step
        self._path = path
        path.submit = self.submit
        path.conflict = self._conflict
        self._timers = timers
        self._counters = counters
        self._hops = hops
        self._end_component = end_component
        self._liveness = Liveness(clock, answer_limit_s=answer_limit_s, on_alive=self._expire, on_silent=self._expire)
        self.stuck = StuckInputs(on_stuck)
        self._clock = clock
        runs_alone = careful.runs_alone if careful is not None else None
        self._dispatch = CallDispatch(step, clock, pace, runs_alone, on_begin=hops.began, snapshot_of=path.snapshot_of)
        late = LateEmits(step.name, path, counters, clock, rules=rules, passthrough=passthrough)
        self._late_calls = late.calls
        self._reader = EventReader(
            self._dispatch,
            late,
            self._liveness,
            counters,
            clock,
            self,
            # Else something stands between the end of a plain input's call and its outputs.
            in_rows=rules is None and not passthrough,
            on_finished=on_finished,
            on_flood=partial(end_component, "FLOOD", FLOOD),
        )
        self.on_events, self.on_ended = self._reader.on_events, self._reader.on_ended
        self._closed = False
        self.last_error: tuple[Problem, int] | None = None
        """The newest failed attempt, and when that was, Unix nanoseconds."""
        self._extend_every_s = ack_wait_s / 3
        limits = [self._extend_every_s / 2, 1.0] + ([step.timeout_s / 10] if step.timeout_s > 0 else [])
        self._sweep_every_s = max(0.01, min(limits))
        self._sweeping = False

    @property
    def calls_run(self) -> bool:
        return bool(self._dispatch.running)

    @property
    def paced(self) -> int:
        """Calls that wait for the rate limit."""
        return self._dispatch.paced

    @property
    def given_up(self) -> int:
        """Calls that were given up and never ended."""
        return self._dispatch.given_up

    @property
    def component_problem(self) -> str:
        """Why the component does not answer; empty while it does."""
        return self._liveness.problem

    def close(self) -> None:
        """From here on what is held is left to be delivered again."""
        self._closed = True

    def submit(self, inputs: list[HeldInput]) -> None:
        """Takes inputs that may be called now."""
        self._arm_sweep()
        if self._careful is not None and self._careful.careful:
            inputs = [held for held in inputs if self._is_innocent(held, self._careful)]
        self._dispatch.submit(inputs)

    def _is_innocent(self, held: HeldInput, careful: CarefulStart) -> bool:
        """After deaths of the whole sidecar: what was delivered before runs alone, and the guilty not again."""
        if held.delivery.attempt <= 1:
            return True
        held.watched = True
        problem = careful.guilt(held.message_id)
        if problem is None:
            return True
        self.ended(held, Outcome(Ending.FAILED, problem))
        return False

    # Component

    def component_ready(self, stream: ComponentStream) -> None:
        """The (re)started component takes calls from now on."""
        self._liveness.component_ready(stream)
        self._reader.component_ready()
        stream.take_lots(self.on_ended)
        self._dispatch.component_ready(stream)

    def component_lost(self, cause: str) -> bool:
        """The component is gone: its calls become new attempts once it is back. Nothing is lost. True when one of
        them is to blame: a suspect that ran alone."""
        self._liveness.component_lost()
        if self._closed:
            return False  # ended on purpose: what is left is delivered again, to whoever is next
        self._late_calls.clear()
        blamed = False
        for held in self._dispatch.component_lost():
            blamed = held.alone and held.crashes >= SUSPECT_CRASHES
            self._counters["crashed_calls"] += 1
            problem = Problem("COMPONENT_DIED", f"the component {cause} while it worked on this message", 502)
            self.ended(held, Outcome(Ending.COMPONENT_DIED, problem, alone=held.alone))
        return blamed

    # Decisions carried out

    def ended(self, held: HeldInput, outcome: Outcome) -> None:
        """See CallEnds."""
        if self._careful is not None:
            self._careful.ended(held.message_id)
        if outcome is DONE:
            # What `decide` says of it, whatever went before.
            self._done(held)
            return
        decision = decide(outcome, held.trail(), self._step.retry, random.random())  # noqa: S311
        if decision.deliver:
            self._done(held)
            return
        problem = decision.error or outcome.problem
        if problem is not None:
            held.attempts.append(failed_attempt(held.attempt, problem))
            self.last_error = (problem, time.time_ns())
            self._counters["timeouts"] += problem.code == TIMEOUT
            # What the caller did wrong, and what was asked for again, is no error of the step's.
            self._counters["failed"] += not decision.rejected and not decision.counts_as_rebound
        held.failures += decision.counts_as_failure
        held.rebounds += decision.counts_as_rebound
        held.crashes += decision.counts_as_crash
        if decision.retry_after_s is not None:
            rebound = decision.counts_as_rebound
            self._hops.failed(held, problem, retry_after_s=decision.retry_after_s, rebound=rebound)
            self._retry(held, decision.retry_after_s, rebound=decision.counts_as_rebound)
            return
        assert decision.error is not None
        self._counters["rejected"] += decision.rejected
        self._give_up(held, decision.error, dead_letter=decision.dead_letter)

    def _done(self, held: HeldInput) -> None:
        if self._step.receivers:
            held.context = self._path.late_context(held)
            self._late_calls.add(held.call, held.context, self._liveness.heard_at)
        if held.attached and self._attached is not None:
            held.phase = Phase.STORING
            self._attached.settle(held, partial(self._stored, held))
        elif self._rules is None and not self._passes:
            self._deliver(held)
        else:
            self._route(held)

    def ended_plainly(self, rows: list[HeldInput]) -> None:
        """As `ended` with DONE, of each; see CallEnds."""
        if self._careful is not None and not self._careful.forgotten:
            for held in rows:
                self._careful.ended(held.message_id)
        if self._step.receivers:
            contexts: dict[int, LateContext] = {}
            for held in rows:
                held.context = contexts[held.call] = row_context(held)
            self._late_calls.add_all(contexts, self._liveness.heard_at)
        for held in self._path.deliver_rows(rows):
            self._publish_outputs(held)

    def _stored(self, held: HeldInput, outcome: Outcome | None) -> None:
        """What its outputs name is in the object store, or the call ends otherwise."""
        if self._closed:
            return
        if outcome is not None:
            self._undone(held, outcome)
        else:
            self._route(held)

    def running(self, call: int) -> HeldInput | None:
        """The input of a call that runs, or whose outputs are not settled yet."""
        held = self._dispatch.running.get(call)
        if held is None:
            held = next((item for item in self._path.inputs() if item.call == call), None)
        return held

    def _route(self, held: HeldInput) -> None:
        """Delivers it, after the expressions of the edges where there are any."""
        if self._passes and self._step.receivers:
            problem = passthrough_problem(held.envelope.passthrough, self._step.name, held.outputs)
            if problem is not None:
                if self._attached is None or held.passed_by_reference:
                    self._undone(held, Outcome(Ending.OUTPUT_REFUSED, problem))
                    return
                held.phase, held.passed_by_reference = Phase.STORING, True
                self._attached.pass_by_reference(held, partial(self._stored, held))
                return
        if self._rules is None or not held.outputs:
            self._deliver(held)
            return
        held.phase = Phase.ROUTING
        done = partial(self._routed, held)
        self._rules.route(held.outputs, held.message_id, held.envelope.execution_id, held.envelope.passthrough, done)

    def _routed(self, held: HeldInput, outputs: Sequence[Any], problem: Problem | None) -> None:
        if self._closed:
            return
        if problem is not None:
            self._undone(held, Outcome(Ending.EXPRESSION_FAILED, problem))
            return
        # An output keeps its index, from which its id is made, whether or not those before it go anywhere.
        held.outputs = list(outputs) if any(emit.bodies for emit in outputs) else []
        self._deliver(held)

    def _conflict(self, held: HeldInput, problem: Problem) -> None:
        """Another replica saved first."""
        self._undone(held, Outcome(Ending.FAILED, problem, retryable=problem.code == CONFLICT))

    def _undone(self, held: HeldInput, outcome: Outcome) -> None:
        """A call that ended well fails all the same: what it did cannot go on."""
        self._late_calls.forget(held.call)
        self.ended(held, outcome)

    def _deliver(self, held: HeldInput) -> None:
        problem = self._path.save(held) if held.saves else None
        if problem is not None:
            self._undone(held, Outcome(Ending.FAILED, problem, retryable=problem.code == CONFLICT))
            return
        self._publish_outputs(held)

    def _publish_outputs(self, held: HeldInput) -> None:
        try:
            self._path.deliver(held)
        except MalformedMessage as error:
            # What is under way already is settled by itself; the input must not be held for ever.
            problem = Problem("OUTPUT_REFUSED", error.message)
            held.attempts.append(failed_attempt(held.attempt, problem))
            self._counters["failed"] += 1
            self._give_up(held, problem, dead_letter=True)

    def _give_up(self, held: HeldInput, problem: Problem, *, dead_letter: bool) -> None:
        held.problem = problem
        if dead_letter and self._step.on_error == SUSPEND_FLOW:
            self._hops.failed(held, problem)
            self.stuck.put(held, problem)
            return
        self._path.give_up(held, problem, dead_letter=dead_letter)

    def resume(self, resumed: int) -> None:
        """The flow was resumed so often: what is stuck is tried again."""
        again = self.stuck.take_for(resumed)
        if again:
            self.submit(again)

    def _retry(self, held: HeldInput, delay_s: float, *, rebound: bool) -> None:
        self._counters["rebounds" if rebound else "retried"] += 1
        if delay_s <= 0:
            self._dispatch.submit([held])
            return
        held.phase = Phase.RETRYING
        held.due_at = self._clock() + delay_s
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
        self._expire()
        if self._dispatch.running:
            self._liveness.look()
        self._path.extend(now, self._extend_every_s)
        self._dispatch.send_what_may_go()
        self._arm_sweep()

    def _expire(self) -> None:
        """Gives up the calls over their limit, if the component has been heard since. If it has not, it is asked;
        and ended when it does not answer, since the others that wait behind a blocked loop are not to blame."""
        limit = f"{self._step.timeout_s:g} s"
        for held in self._dispatch.expired(min(self._clock(), self._liveness.heard_at)):
            problem = Problem(TIMEOUT, f"step {self._step.name} took longer than {limit}", 504)
            self.ended(held, Outcome(Ending.TIMED_OUT, problem))
        if self._dispatch.overdue(self._clock()):
            if self._liveness.silent:
                cause = f"was ended: a call took longer than {limit} and its event loop was blocked"
                self._end_component("NOT_RESPONDING", cause)
            else:
                self._liveness.ask()
        elif self._dispatch.clogged and not self._dispatch.running:
            cause = f"was ended: {STUCK_CALLS} calls took longer than {limit} and never ended"
            self._end_component("CALLS_STUCK", cause)
