"""Which slots of a keyed step this instance works on: one `Slot` for each lease that it has.

A slot that is owned anew waits until the last lease of it here is let go; one that another has taken is not pulled
from again, whatever this instance is still told to own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import ValuesView

    from services.sidecar.slot import Slot, SlotLease

LOST_KEPT = 64


class LeasedSlots:
    """`on_occupancy` and `on_leases` as in SlotPath."""

    def __init__(
        self, make_slot: Callable[[SlotLease], Slot], *, on_occupancy: Callable[[], None], on_leases: Callable[[], None]
    ) -> None:
        self._make_slot = make_slot
        self._on_occupancy, self._on_leases = on_occupancy, on_leases
        self._slots: dict[SlotLease, Slot] = {}
        self._waiting: set[SlotLease] = set()
        """Wanted, while another lease of the same slot is not let go yet."""
        self._lost: dict[SlotLease, str] = {}
        self._pulling = self._stopped = False

    @property
    def slots(self) -> ValuesView[Slot]:
        """Pulled from, or something of them is still held."""
        return self._slots.values()

    @property
    def leases(self) -> list[SlotLease]:
        """Those of `slots`, in order."""
        return sorted((lease for lease in self._slots), key=lambda lease: (lease.slot, lease.generation))

    @property
    def problem(self) -> str:
        """Why nothing comes of one of them; empty while all is well."""
        lost = next(iter(self._lost.values()), "")
        return lost or next((slot.problem for slot in self._slots.values() if slot.problem), "")

    @property
    def lost_one(self) -> bool:
        """A slot that this instance is still told to own was taken by another."""
        return bool(self._lost)

    def own(self, leases: Iterable[SlotLease]) -> None:
        """These are all that this instance owns now; the others are finished and let go."""
        wanted = {lease for lease in leases if lease not in self._lost}
        self._lost = {lease: cause for lease, cause in self._lost.items() if lease in leases}
        for lease, slot in list(self._slots.items()):
            if lease not in wanted:
                slot.leave()
        self._waiting = {lease for lease in wanted if lease not in self._slots}
        self._take_waiting()
        self._on_leases()

    def start_pulling(self) -> None:
        if not self._pulling:
            self._pulling = True
            for slot in self._slots.values():
                slot.start()

    async def stop_pulling(self) -> None:
        """Pulls no more, now or later; what is held is finished."""
        self._stopped = True
        self._waiting.clear()
        leaving = [task for slot in list(self._slots.values()) if (task := slot.leave()) is not None]
        if leaving:
            await asyncio.wait(leaving)  # each is bounded by the lane

    def close(self) -> None:
        """Ends at once: what is held is delivered again."""
        self._stopped = True
        for slot in self._slots.values():
            slot.drop()

    def _take_waiting(self) -> None:
        if self._stopped:
            return
        busy = {lease.slot for lease in self._slots}
        for lease in sorted(self._waiting, key=lambda lease: lease.slot):
            if lease.slot not in busy:
                self._waiting.discard(lease)
                slot = self._slots[lease] = self._make_slot(lease)
                if self._pulling:
                    slot.start()

    def changed(self, slot: Slot) -> None:
        """It holds its first input, or none any more, or it is over."""
        if slot.over and self._slots.get(slot.lease) is slot:
            del self._slots[slot.lease]
            if slot.lost_because and len(self._lost) < LOST_KEPT:
                self._lost[slot.lease] = slot.problem
            self._take_waiting()
            self._on_leases()
        self._on_occupancy()
