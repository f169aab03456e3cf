"""Owners of slots: even, and with as few moves as can be, whatever was before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.deployment import SlotOwner
from headrace.model.slots import MAX_SLOTS
from services.orchestrator.domain.slot_owners import balanced, leases_of

replica_sets = st.sets(st.integers(0, 9), min_size=1, max_size=10)
present = st.lists(st.builds(SlotOwner, st.integers(0, 9), st.integers(1, 5)), max_size=MAX_SLOTS).map(tuple)


@given(present, st.integers(1, MAX_SLOTS), replica_sets)
def test_every_slot_has_one_owner_and_nobody_more_than_his_share(
    owners: tuple[SlotOwner, ...], slots: int, replicas: set[int]
) -> None:
    after = balanced(owners, slots, replicas, 9)
    assert len(after) == slots
    counts = [sum(owner.replica == replica for owner in after) for replica in replicas]
    assert sum(counts) == slots
    assert max(counts) - min(counts) <= 1


@given(present, st.integers(1, MAX_SLOTS), replica_sets)
def test_as_few_slots_move_as_can_be(owners: tuple[SlotOwner, ...], slots: int, replicas: set[int]) -> None:
    after = balanced(owners, slots, replicas, 9)
    kept = [slot for slot, owner in enumerate(after) if slot < len(owners) and owners[slot].replica == owner.replica]
    share, odd = divmod(slots, len(replicas))
    # Nobody can keep more than share + 1, and no more than `odd` of them that one.
    held = sorted((sum(o.replica == r for o in owners[:slots]) for r in replicas), reverse=True)
    most = sum(min(count, share + (index < odd)) for index, count in enumerate(held))
    assert len(kept) == most


@given(present, st.integers(1, MAX_SLOTS), replica_sets)
def test_who_keeps_a_slot_keeps_its_generation_and_who_gets_one_gets_the_new(
    owners: tuple[SlotOwner, ...], slots: int, replicas: set[int]
) -> None:
    for slot, owner in enumerate(balanced(owners, slots, replicas, 9)):
        if slot < len(owners) and owners[slot].replica == owner.replica:
            assert owner == owners[slot]
        else:
            assert owner.generation == 9


@given(present, st.integers(1, MAX_SLOTS), replica_sets)
def test_nothing_moves_twice(owners: tuple[SlotOwner, ...], slots: int, replicas: set[int]) -> None:
    after = balanced(owners, slots, replicas, 9)
    assert balanced(after, slots, replicas, 10) == after


def test_one_to_four_to_two() -> None:
    one = balanced((), 8, {0}, 1)
    assert leases_of(one, 0) == tuple((slot, 1) for slot in range(8))
    four = balanced(one, 8, range(4), 2)
    assert [leases_of(four, replica) for replica in range(4)] == [
        ((0, 1), (1, 1)),
        ((2, 2), (3, 2)),
        ((4, 2), (5, 2)),
        ((6, 2), (7, 2)),
    ]
    two = balanced(four, 8, range(2), 3)
    assert leases_of(two, 1) == ((2, 2), (3, 2), (6, 3), (7, 3))


def test_somebody_has_to_own_them() -> None:
    with pytest.raises(ValueError, match="no replica"):
        balanced((), 8, set(), 1)
