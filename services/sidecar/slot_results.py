"""What the inputs of a slot became, until the broker has it: outputs by input, in stream order, and late emits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.model.limits import MAX_BATCH_OUTPUTS
from services.sidecar.domain.commit_size import MAX_BYTES, CommitSize
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.slot_order import SlotOrder
from services.sidecar.held_input import HeldInput
from services.sidecar.slot_commit import Chunk

if TYPE_CHECKING:
    from services.sidecar.outbox import Outgoing


@dataclass(slots=True)
class Result:
    """What an input became: messages to store, and how it is closed once they are."""

    held: HeldInput
    messages: list[Outgoing]
    close: Callable[[], None]
    effects: bool = False


class ResultHost(Protocol):
    """Who measures and dead-letters outputs."""

    def stored_output(self, held: HeldInput, outgoing: Outgoing) -> None:
        """The broker has an output."""

    def dead_letter_output(self, outgoing: Outgoing, problem: Problem, after: Callable[[], None]) -> None:
        """The broker will never take it."""


class SlotResults:
    """Implements `CommitSource`. `on_stored` is called when something was, `on_lost` (cause) when the slot is another
    owner's."""

    def __init__(self, host: ResultHost, *, on_stored: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        self.order = SlotOrder()
        self._host = host
        self._on_stored = on_stored
        self.lost = on_lost
        self._results: dict[int, Result] = {}
        self._late: list[Outgoing] = []

    @property
    def late_emits(self) -> int:
        """Not stored yet."""
        return len(self._late)

    def add(self, sequence: int, result: Result) -> None:
        """What an input became, for good."""
        result.effects = bool(result.messages or result.held.snapshots)
        self._results[sequence] = result

    def add_late(self, outgoing: Outgoing) -> None:
        """An emit that came after its call's end."""
        self._late.append(outgoing)

    def clear(self) -> None:
        """Nothing of it counts any more."""
        self._results.clear()
        self._late.clear()

    def next_chunk(self, size: CommitSize) -> Chunk | None:
        """See CommitSource."""
        chunk = Chunk(messages=self._late[: size.messages])
        size_bytes = 0
        for sequence in self.order.committable()[: size.inputs]:
            messages = self._results[sequence].messages
            snapshots = self._results[sequence].held.snapshots
            room = size.messages - len(chunk.messages)
            if (
                chunk.inputs
                and len(chunk.messages) + len(messages) + len(chunk.snapshots) + len(snapshots) > MAX_BATCH_OUTPUTS
            ):
                break
            size_bytes += sum(len(outgoing.payload) for outgoing in messages)
            size_bytes += sum(len(payload) for _, payload in snapshots)
            if len(messages) > room or (chunk.messages and size_bytes > MAX_BYTES):
                if not chunk.messages:
                    chunk.messages += messages[:room]  # one by one: one of them is refused
                break
            chunk.messages += messages
            chunk.snapshots.update(snapshots)  # of one key the newest
            chunk.effects = chunk.effects or self._results[sequence].effects
            chunk.inputs.append(sequence)
            chunk.through = sequence
        chunk.effects = chunk.effects or bool(chunk.messages)
        return chunk if chunk.messages or chunk.inputs else None

    def stored(self, chunk: Chunk) -> None:
        """See CommitSource."""
        stored = 0
        for sequence in chunk.inputs:
            result = self._results[sequence]
            for outgoing in result.messages:
                self._host.stored_output(result.held, outgoing)
                stored += 1
        if stored != len(chunk.messages):
            self._forget(chunk.messages)  # late emits, or a part of an input's outputs
        if chunk.inputs:
            self.order.committed(chunk.inputs)
        for sequence in chunk.inputs:
            result = self._results.pop(sequence)
            if result.held.snapshots:
                result.held.slot.snapshots.stored(result.held)
            result.close()
        self._on_stored()

    def known(self, chunk: Chunk) -> None:
        """See CommitSource."""
        self._forget(chunk.messages)

    def refused(self, chunk: Chunk, problem: Problem, after: Callable[[], None]) -> None:
        """See CommitSource."""
        open_letters = len(chunk.messages)

        def settled() -> None:
            nonlocal open_letters
            open_letters -= 1
            if open_letters <= 0:
                self._forget(chunk.messages)
                after()

        if not chunk.messages:
            after()
        for outgoing in chunk.messages:
            self._host.dead_letter_output(outgoing, problem, settled)

    def _forget(self, messages: list[Outgoing]) -> None:
        gone = {id(outgoing) for outgoing in messages}
        self._late = [outgoing for outgoing in self._late if id(outgoing) not in gone]
        for result in self._results.values():
            if any(id(outgoing) in gone for outgoing in result.messages):
                result.messages = [outgoing for outgoing in result.messages if id(outgoing) not in gone]
