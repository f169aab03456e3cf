"""What a puller removes is done: a work queue, two who pull from it, and everything that goes wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.delivery_chain import DeliveryChain

SUBJECT = "d1.step"


class Queue:
    """A consumer as nats-server keeps it: numbers, what is open, what comes again, and its floor."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.lowest_new = 1
        self.number = 0
        self.open: dict[int, int] = {}
        self.again: list[int] = []
        self.tries: dict[int, int] = {}

    def deliver(self) -> tuple[int, int, int] | None:
        """Number, sequence, attempt."""
        while self.again and self.again[0] not in self.stored:
            self.again.pop(0)
        if self.again:
            sequence = self.again.pop(0)
        else:
            fresh = [sequence for sequence in self.stored if sequence >= self.lowest_new]
            if not fresh:
                return None
            sequence = fresh[0]
            self.lowest_new = sequence + 1
        self.number += 1
        self.tries[sequence] = self.tries.get(sequence, 0) + 1
        self.open.setdefault(sequence, self.number)
        return self.number, sequence, self.tries[sequence]

    def expire(self) -> None:
        self.again += [sequence for sequence in sorted(self.open) if sequence not in self.again]

    def reset(self) -> None:
        self.number, self.lowest_new = 0, 1
        self.open, self.again, self.tries = {}, [], {}

    def acknowledge(self, sequence: int) -> None:
        self.open.pop(sequence, None)
        if sequence in self.stored:
            self.stored.remove(sequence)

    def purge(self, through: int) -> list[int]:
        gone = [sequence for sequence in self.stored if sequence <= through]
        for sequence in gone:
            self.acknowledge(sequence)
        return gone

    @property
    def floor(self) -> tuple[int, int]:
        if not self.open:
            return self.number, self.lowest_new - 1
        return min(self.open.values()) - 1, min(self.open) - 1


KINDS = ["store"] * 4 + ["pull"] * 6 + ["finish"] * 6 + ["ack"] * 3 + ["remove"] * 4 + ["expire", "reset"]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["store"] * 4 + ["pull"] * 6 + ["finish"] * 6 + ["ack"] * 3 + ["remove"] * 4 + ["expire", "reset"]
        ),
        st.integers(0, 1),
        st.integers(0, 20),
    ),
    max_size=250,
)


@settings(max_examples=400, deadline=None)
@given(operations=OPERATIONS, alone=st.booleans())
def test_only_what_is_done_is_removed(operations: list[tuple[str, int, int]], alone: bool) -> None:
    queue = Queue()
    chains = [DeliveryChain(SUBJECT), DeliveryChain(SUBJECT)]
    held: list[list[tuple[int, int]]] = [[], []]
    finished: list[list[tuple[int, int]]] = [[], []]
    done: set[int] = set()
    last = 0
    for kind, other, chosen in operations:
        who = 0 if alone else other
        if kind == "store":
            queue.stored.append(last := last + 1)
        elif kind == "pull" and (delivery := queue.deliver()):
            number, sequence, attempt = delivery
            chains[who].delivered(number, sequence, attempt, SUBJECT)
            held[who].append((number, sequence))
        elif kind == "finish" and held[who]:
            number, sequence = held[who].pop(chosen % len(held[who]))
            finished[who].append((number, sequence))
            done.add(sequence)
            chains[who].done(number, sequence)
        elif kind == "ack" and finished[who]:
            number, sequence = finished[who].pop(chosen % len(finished[who]))
            queue.acknowledge(sequence)
            chains[who].confirmed(number, sequence)
        elif kind == "remove":
            through, count = chains[who].through(*queue.floor)
            assert count <= chains[who].ready
            gone = queue.purge(through)
            assert set(gone) <= done
            assert len(gone) <= count
        elif kind == "expire":
            queue.expire()
        elif kind == "reset" and not alone:
            queue.reset()


def test_what_one_puller_finishes_in_order_is_removed_in_one() -> None:
    queue, chain = Queue(), DeliveryChain(SUBJECT)
    queue.stored = list(range(1, 41))
    for _ in range(40):
        delivery = queue.deliver()
        assert delivery is not None
        chain.delivered(*delivery, SUBJECT)
    for number in range(1, 31):
        chain.done(number, number)
    assert chain.through(*queue.floor) == (30, 30)
    assert queue.purge(30) == list(range(1, 31))
    for number in range(1, 31):
        chain.confirmed(number, number)
    chain.done(31, 31)
    assert chain.through(*queue.floor) == (31, 1)


def test_what_was_parked_is_left_to_be_acknowledged_by_itself() -> None:
    chain = DeliveryChain(SUBJECT)
    chain.delivered(1, 5, 1, "p1.step")
    chain.delivered(2, 9, 1, SUBJECT)
    chain.done(2, 9)
    assert chain.through(0, 4) == (0, 0)
    chain.done(1, 5)
    assert chain.through(0, 4) == (9, 1)
