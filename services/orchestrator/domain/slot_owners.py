"""Which replica owns which slot of a keyed step: evenly, with as few moves as can be. Numbers in, owners out."""

from __future__ import annotations

from collections.abc import Collection

from headrace.model.deployment import SlotOwner


def balanced(
    owners: tuple[SlotOwner, ...], slots: int, replicas: Collection[int], generation: int
) -> tuple[SlotOwner, ...]:
    """Owners of so many slots among these replicas; a slot that gets another owner gets the generation.

    Each replica has `slots // n` of them, or one more. A slot moves only where its owner is none of the replicas,
    or has more than its share; who has most keeps the odd one. The same owners come back where nothing has to move.
    """
    if not replicas:
        raise ValueError("no replica to own a slot")
    held: dict[int, list[int]] = {replica: [] for replica in sorted(replicas)}
    homeless: list[int] = []
    for slot in range(slots):
        owner = owners[slot].replica if slot < len(owners) else None
        held.get(owner, homeless).append(slot) if owner is not None else homeless.append(slot)
    share, odd = divmod(slots, len(held))
    # Replicas that hold most may keep one more than the share; ties go to the lower number.
    order = sorted(held, key=lambda replica: (-len(held[replica]), replica))
    quota = {replica: share + (index < odd) for index, replica in enumerate(order)}
    for replica in order:
        homeless += held[replica][quota[replica] :]
        del held[replica][quota[replica] :]
    homeless.sort()
    for replica in sorted(held):
        missing = quota[replica] - len(held[replica])
        held[replica] += homeless[:missing]
        del homeless[:missing]
    owner_of = {slot: replica for replica, mine in held.items() for slot in mine}
    return tuple(
        owners[slot]
        if slot < len(owners) and owners[slot].replica == owner_of[slot]
        else SlotOwner(owner_of[slot], generation)
        for slot in range(slots)
    )


def leases_of(owners: tuple[SlotOwner, ...], replica: int) -> tuple[tuple[int, int], ...]:
    """(slot, generation) of everything that a replica owns."""
    return tuple((slot, owner.generation) for slot, owner in enumerate(owners) if owner.replica == replica)
