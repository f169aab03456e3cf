"""Which held inputs go to the component, and when: at once, unless one of them may be what kills it.

An input that was running at two crashes in a row is a suspect: suspects run one at a time with nothing beside
them, so that the one that kills the component is known and no other pays for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.model.step_snapshot import StepSnapshot
from headrace.ports import ComponentInput, ComponentStream, StreamClosed, StreamFull
from services.sidecar.held_input import HeldInput, Phase

if TYPE_CHECKING:
    from headrace.model.deployment import StepPlan
    from services.sidecar.pace import Pace

INPUTS_A_SEND = 64
# A component ends a call itself at its limit, which stops the work. One that does not (plain code that blocks)
# has this much longer until the call is given up: else two attempts of one message would run side by side.
END_GRACE_S = 0.1
# Calls that were given up and have not ended hold on to the component's threads. So many, and it gets no more calls
# until it is a new process.
STUCK_CALLS = 8
_NO_HEADERS: Mapping[str, str] = {}


class CallDispatch:
    """Bounded by the credit of the consumption: it holds what the loop holds. `runs_alone` gets the id of a suspect
    just before it is sent, `on_begin` each input whose next attempt begins."""

    def __init__(
        self,
        step: StepPlan,
        clock: Callable[[], float],
        pace: Pace | None = None,
        runs_alone: Callable[[str], None] | None = None,
        *,
        on_begin: Callable[[HeldInput], None] = lambda held: None,
        snapshot_of: Callable[[HeldInput], StepSnapshot | None] = lambda held: None,
    ) -> None:
        self._on_begin, self._snapshot_of = on_begin, snapshot_of
        self._runs_alone = runs_alone
        self._timeout_ms = int(step.timeout_s * 1000)
        self._limit_s = step.timeout_s + END_GRACE_S if step.timeout_s > 0 else math.inf
        self._clock = clock
        self._pace = pace
        self._stream: ComponentStream | None = None
        self._waiting: deque[HeldInput] = deque()
        self._suspects: deque[HeldInput] = deque()
        self._last_call = 0
        # Ordered by the start of the call, and, as all have the same time limit, by deadline.
        self.running: dict[int, HeldInput] = {}
        # Given up and not ended yet.
        self._given_up: set[int] = set()

    @property
    def component_is_up(self) -> bool:
        return self._stream is not None

    def component_ready(self, stream: ComponentStream) -> None:
        self._stream = stream
        self._given_up.clear()
        self.send_what_may_go()

    @property
    def clogged(self) -> bool:
        """So many calls were given up and never ended that the component must be started anew."""
        return len(self._given_up) >= STUCK_CALLS

    @property
    def given_up(self) -> int:
        """Calls that were given up and have not ended."""
        return len(self._given_up)

    @property
    def paced(self) -> int:
        """Inputs that wait for the step's rate limit; 0 where it has none, or has some left."""
        return len(self._waiting) if self._pace is not None and self._pace.slows else 0

    def ended_late(self, call: int) -> None:
        """The end of a call that was given up."""
        self._given_up.discard(call)

    def component_lost(self) -> list[HeldInput]:
        """Takes back every running call; `alone` says of each whether it was the only one."""
        self._stream = None
        lost = list(self.running.values())
        self.running.clear()
        for held in lost:
            held.alone = len(lost) == 1
        return lost

    def submit(self, inputs: Sequence[HeldInput]) -> None:
        """Takes inputs for a new attempt and sends what may go."""
        for held in inputs:
            held.phase = Phase.WAITING
            (self._suspects if (held.crashes or held.watched) and held.is_suspect else self._waiting).append(held)
        self.send_what_may_go()

    def finished(self, call: int) -> HeldInput | None:
        """Takes a call out; follow with `send_what_may_go` once a batch of events is handled."""
        return self.running.pop(call, None)

    def expired(self, now: float) -> list[HeldInput]:
        """Takes out the calls that ran over their limit."""
        late: list[HeldInput] = []
        for held in self.running.values():
            if held.began_at + self._limit_s > now:
                break
            late.append(held)
        for held in late:
            del self.running[held.call]
            self._given_up.add(held.call)
        return late

    def overdue(self, now: float) -> bool:
        """Whether a call has run over its limit."""
        return bool(self.running) and next(iter(self.running.values())).began_at + self._limit_s <= now

    def send_what_may_go(self) -> None:
        stream = self._stream
        if stream is None or self.clogged:
            return
        if self._suspects:
            if not self.running and self._may_begin(1):
                suspect = self._suspects.popleft()
                if self._runs_alone is not None:
                    self._runs_alone(suspect.message_id)
                self._send(stream, [suspect])
            return
        if not self._waiting or (len(self.running) == 1 and self._a_suspect_runs()):
            return
        count = self._may_begin(len(self._waiting))
        if not count:
            return
        if count == len(self._waiting):
            batch = list(self._waiting)
            self._waiting.clear()
        else:
            batch = [self._waiting.popleft() for _ in range(count)]
        self._send(stream, batch)

    def _may_begin(self, most: int) -> int:
        return most if self._pace is None else self._pace.take(most, self.send_what_may_go)

    def _send(self, stream: ComponentStream, batch: list[HeldInput]) -> None:
        # While the component does not keep up, what does not fit waits here for the next finished call.
        for first in range(0, len(batch), INPUTS_A_SEND):
            part = batch[first : first + INPUTS_A_SEND]
            now = self._clock()
            inputs = self._start_all(part, now)
            try:
                stream.send(inputs)
            except StreamFull:
                for held in reversed(part):
                    del self.running[held.call]
                rest = batch[first:]
                if self._pace is not None:
                    self._pace.give_back(len(rest))
                for held in rest:
                    held.phase = Phase.WAITING
                suspects = [held for held in rest if held.is_suspect]
                self._suspects.extendleft(reversed(suspects))
                self._waiting.extendleft(held for held in reversed(rest) if not held.is_suspect)
                return
            except StreamClosed:
                # Its owner is told by the stream and takes the running calls back.
                self._waiting.extendleft(reversed(batch[first + INPUTS_A_SEND :]))
                return

    def _a_suspect_runs(self) -> bool:
        return next(iter(self.running.values())).is_suspect

    def _start_all(self, part: list[HeldInput], now: float) -> list[ComponentInput]:
        """As `_start` each; most are new and have nothing uncommon."""
        on_begin, running, timeout_ms, phase = self._on_begin, self.running, self._timeout_ms, Phase.RUNNING
        common = next((held for held in part if held.common), None)
        # What the step keeps is the same for all: a step that keeps something by key has none of these.
        snapshot = self._snapshot_of(common) if common is not None else None
        started: list[ComponentInput] = []
        for held in part:
            if not held.common or held.calls or snapshot is not None:
                started.append(self._start(held, now))
                continue
            number = self._last_call = self._last_call + 1
            held.calls = held.number = 1
            held.first_try = True
            on_begin(held)
            held.call, held.phase, held.began_at = number, phase, now
            running[number] = held
            envelope = held.envelope
            made = ComponentInput(
                number,
                envelope.body,
                envelope.content_type,
                _NO_HEADERS,
                held.message_id,
                held.execution_id,
                1,
                False,
                timeout_ms,
                held.traceparent,
                bare=True,
            )
            started.append(made)
        return started

    def _start(self, held: HeldInput, now: float) -> ComponentInput:
        self._last_call += 1
        held.start_attempt()
        self._on_begin(held)
        held.call = self._last_call
        held.phase = Phase.RUNNING
        held.began_at = now
        self.running[held.call] = held
        envelope = held.envelope
        return ComponentInput(
            call=held.call,
            body=envelope.body,
            content_type=envelope.content_type,
            headers=envelope.headers,
            message_id=held.message_id,
            execution_id=envelope.execution_id,
            attempt=held.number,
            wants_reply=held.wants_reply,
            timeout_ms=self._timeout_ms,
            traceparent=held.traceparent,
            passthrough=envelope.passthrough,
            baggage=envelope.baggage,
            snapshot=self._snapshot_of(held),
            attachments=envelope.attachments,
        )
