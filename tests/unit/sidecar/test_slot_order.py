"""The order of one slot against a small model: a list of messages, each waiting, called, ended or committed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.sidecar.domain.commit_size import MAX_INPUTS, CommitSize
from services.sidecar.domain.slot_order import REMEMBERED, Arrival, SlotOrder


class OneSlot(RuleBasedStateMachine):
    """Stores messages with gaps in their sequences (other subjects), delivers, ends and commits them at random."""

    def __init__(self) -> None:
        super().__init__()
        self.order = SlotOrder()
        self.stored: list[tuple[int, str]] = []
        self.state: dict[int, str] = {}
        self.next_sequence = 1
        self.delivered = 0
        self.number = 0

    @rule(key=st.sampled_from("abc"), skipped=st.integers(0, 3))
    def store(self, key: str, skipped: int) -> None:
        self.next_sequence += 1 + skipped
        self.stored.append((self.next_sequence, key))

    @precondition(lambda self: self.delivered < len(self.stored))
    @rule()
    def deliver(self) -> None:
        sequence, key = self.stored[self.delivered]
        self.delivered += 1
        self.number += 1
        before = [s for s, k in self.stored[: self.delivered - 1] if k == key and self._open(s)]
        arrival = self.order.arrive(sequence, self.number, key)
        if sequence in self.state:
            assert arrival is (Arrival.COVERED if self.state[sequence] == "committed" else Arrival.KNOWN)
        else:
            assert arrival is (Arrival.WAIT if before else Arrival.CALL)
            self.state[sequence] = "waiting" if before else "called"

    @precondition(lambda self: self.delivered + 1 < len(self.stored))
    @rule()
    def one_goes_elsewhere(self) -> None:
        """Its number is missing: the next delivery is a gap, and changes nothing; then the consumer begins anew."""
        sequence, key = self.stored[self.delivered + 1]
        held = len(self.order)
        assert self.order.arrive(sequence, self.number + 2, key) is Arrival.GAP
        assert len(self.order) == held
        self.order.restart()
        self.number = 0
        # What is acknowledged is not in the stream any more; the rest comes again from its first.
        self.delivered = next((i for i, (s, _) in enumerate(self.stored) if self.state.get(s) != "committed"), 0)

    @rule(chosen=st.integers(0, 1_000))
    def end(self, chosen: int) -> None:
        called = [sequence for sequence, state in self.state.items() if state == "called"]
        if not called:
            return
        sequence = called[chosen % len(called)]
        key = dict(self.stored)[sequence]
        self.state[sequence] = "ended"
        following = self.order.ended(sequence)
        waiting = [s for s, k in self.stored if k == key and self.state.get(s) == "waiting"]
        assert following == (waiting[0] if waiting else None)
        if following is not None:
            self.state[following] = "called"
        assert self.order.ended(sequence) is None, "a second end says nothing"

    @rule(most=st.integers(1, 5))
    def commit(self, most: int) -> None:
        expected = []
        for sequence, _ in self.stored:
            if self.state.get(sequence) == "committed":
                continue
            if self.state.get(sequence) != "ended":
                break
            expected.append(sequence)
        found = self.order.committable()
        assert found == expected
        if found[:most]:
            self.order.committed(found[:most])
            self.state.update(dict.fromkeys(found[:most], "committed"))

    @invariant()
    def nothing_is_committed_before_what_came_before(self) -> None:
        states = [self.state.get(sequence) == "committed" for sequence, _ in self.stored]
        assert states == sorted(states, reverse=True)
        assert len(self.order) == sum(self._open(s) or self.state.get(s) == "ended" for s, _ in self.stored)

    @invariant()
    def one_of_a_key_is_called(self) -> None:
        keys = [key for sequence, key in self.stored if self.state.get(sequence) == "called"]
        assert len(keys) == len(set(keys))

    def _open(self, sequence: int) -> bool:
        return self.state.get(sequence) in ("waiting", "called")


TestOneSlot = OneSlot.TestCase


def test_what_the_cursor_covers_is_only_acknowledged() -> None:
    order = SlotOrder(covered=10)
    assert order.arrive(7, 1, "a") is Arrival.COVERED
    assert order.arrive(10, 2, "a") is Arrival.COVERED
    assert order.arrive(11, 3, "a") is Arrival.CALL
    assert order.arrive(13, 4, "a") is Arrival.WAIT


def end(order: SlotOrder, *sequences: int) -> None:
    for sequence in sequences:
        order.ended(sequence)


def test_what_was_passed_over_is_taken_in_at_its_place_and_not_lost() -> None:
    order = SlotOrder(covered=10)
    assert order.arrive(13, 1, "a") is Arrival.CALL
    assert order.arrive(12, 2, "b") is Arrival.CALL, "before what is not committed yet"
    end(order, 13)
    assert order.committable() == []
    end(order, 12)
    assert order.committable() == [12, 13]
    assert order.arrive(14, 3, "a") is Arrival.CALL
    end(order, 14)
    order.committed([12, 13, 14])
    assert order.arrive(11, 4, "a") is Arrival.CALL, "behind the cursor: late is better than never"
    assert order.arrive(13, 5, "a") is Arrival.COVERED
    assert order.arrive(10, 6, "a") is Arrival.COVERED, "of the owner before"
    end(order, 11)
    order.committed(order.committable())
    assert (order.covered, order.holes, len(order)) == (14, 2, 0)
    assert order.arrive(11, 7, "a") is Arrival.COVERED


def test_a_commit_under_way_does_not_speak_for_what_came_meanwhile() -> None:
    order = SlotOrder()
    assert order.arrive(5, 1, "a") is Arrival.CALL
    end(order, 5)
    chunk = order.committable()
    assert order.arrive(3, 2, "a") is Arrival.CALL
    order.committed(chunk)
    end(order, 3)
    assert order.committable() == [3]


def test_what_is_remembered_is_bounded() -> None:
    order = SlotOrder()
    for number in range(1, 2 * REMEMBERED + 1):
        order.arrive(number, number, "a")
        order.ended(number)
        order.committed([number])
    assert order.is_covered(1), "forgotten: an old one counts as done"
    assert order.is_covered(2 * REMEMBERED)
    assert not order.is_covered(2 * REMEMBERED + 1)
    assert len(order._known) == len(order._committed) == REMEMBERED


@given(st.lists(st.sampled_from(["stored", "full", "at fault"]), max_size=60))
def test_the_size_of_batches_stays_in_bounds_and_finds_one_message(answers: list[str]) -> None:
    size = CommitSize()
    for answer in answers:
        if answer == "stored":
            size.stored()
        elif answer == "full":
            size.full(size.inputs)
        else:
            inputs, messages = min(size.inputs, 8), min(size.messages, 5)
            for _ in range(3):
                if not size.shrink(inputs, messages):
                    break
                inputs, messages = min(size.inputs, inputs), min(size.messages, messages)
            assert (inputs, messages) == (1, 1)
        assert 1 <= size.inputs <= MAX_INPUTS
