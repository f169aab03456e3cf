"""A component stream with fault points before and after inputs go and ends come; made only where faults are on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from headrace.edge.fault_points import FaultPlan, installed_faults
from headrace.ports import ComponentInput, EndedLot


class FaultyComponentStream:
    """Has every method of the stream inside."""

    def __init__(self, inside: Any, faults: FaultPlan) -> None:
        self._inside = inside
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def send(self, inputs: Sequence[ComponentInput]) -> None:
        """See the port."""
        self._faults.reach("before-deliver")
        self._inside.send(inputs)
        self._faults.reach("after-deliver")

    def take_lots(self, on_ended: Callable[[EndedLot], None]) -> None:
        """See the port."""

        def take(lot: EndedLot) -> None:
            self._faults.reach("before-return")
            on_ended(lot)
            self._faults.reach("after-return")

        self._inside.take_lots(take)


def stream_with_faults(stream: Any) -> Any:
    """The stream itself, unless this process has fault points on."""
    faults = installed_faults()
    return stream if faults is None else FaultyComponentStream(stream, faults)


def events_with_faults(on_events: Callable[[Sequence[Any]], None]) -> Callable[[Sequence[Any]], None]:
    """`on_events` itself, unless faults are on: then with a point before and after frames in which a call ends."""
    faults = installed_faults()
    if faults is None:
        return on_events

    def take(events: Sequence[Any]) -> None:
        ends = any(event.HasField("end") for event in events)
        if ends:
            faults.reach("before-return")
        on_events(events)
        if ends:
            faults.reach("after-return")

    return take
