"""The sidecar's memory of what the broker has, against a plain model of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.sidecar.domain.ended_calls import EndedCalls
from services.sidecar.domain.sender_memory import SenderMemory

WINDOW_S = 10.0
INPUTS = [f"{number:032x}" for number in range(6)] + ["not hex"]
OUTPUTS = ["o1", "o2", "o3"]


class MemoryMachine(RuleBasedStateMachine):
    """Whatever happened within the window is known; what never happened is never known."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = SenderMemory(WINDOW_S)
        self.now = 100.0
        self.confirmed: dict[tuple[str, str], float] = {}
        self.finished: dict[str, float] = {}
        self.ever: set[tuple[str, str]] = set()
        self.ever_finished: set[str] = set()

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(input_id=st.sampled_from(INPUTS), output_id=st.sampled_from(OUTPUTS))
    def output_confirmed(self, input_id: str, output_id: str) -> None:
        if self.memory.is_finished(input_id, self.now):
            return
        self.memory.confirm(input_id, output_id, self.now)
        self.confirmed[input_id, output_id] = self.now
        self.ever.add((input_id, output_id))

    @rule(input_id=st.sampled_from(INPUTS))
    def input_finished(self, input_id: str) -> None:
        self.memory.finish(input_id, self.now)
        self.finished[input_id] = self.now
        self.ever_finished.add(input_id)
        for output in OUTPUTS:
            self.confirmed.pop((input_id, output), None)

    @invariant()
    def what_is_young_is_known(self) -> None:
        for (input_id, output_id), at in self.confirmed.items():
            if self.now - at < WINDOW_S:
                assert self.memory.is_confirmed(input_id, output_id)
        for input_id, at in self.finished.items():
            if self.now - at < WINDOW_S:
                assert self.memory.is_finished(input_id, self.now)
            if self.now - at > 2 * WINDOW_S:
                assert not self.memory.is_finished(input_id, self.now)

    @invariant()
    def nothing_is_made_up(self) -> None:
        for input_id in INPUTS:
            assert input_id in self.ever_finished or not self.memory.is_finished(input_id, self.now)
            for output_id in OUTPUTS:
                assert (input_id, output_id) in self.ever or not self.memory.is_confirmed(input_id, output_id)


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_it_is_bounded_and_the_newest_half_stays() -> None:
    memory = SenderMemory(WINDOW_S, max_finished=100, max_unfinished=10)
    for number in range(1_000):
        memory.finish(f"{number:032x}", 0.0)
        memory.confirm(f"{number + 5000:032x}", "o", 0.0)
        assert memory.size <= 110
    assert all(memory.is_finished(f"{number:032x}", 0.0) for number in range(950, 1_000))


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=100))
def test_ended_calls_are_bounded_in_time_and_number(steps: list[tuple[float, int]]) -> None:
    calls: EndedCalls[str] = EndedCalls(kept_s=10, kept_calls=20)
    now = 0.0
    ended: dict[int, float] = {}
    for seconds, call in steps:
        now += seconds
        if call in ended:
            continue
        calls.add(call, f"context {call}", now)
        ended[call] = now
        assert len(calls) <= 20
        assert calls.find(call, now) == f"context {call}"
        for other, at in ended.items():
            if now - at > 10:
                assert calls.find(other, now) is None
