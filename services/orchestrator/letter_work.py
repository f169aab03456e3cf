"""Replays and discards dead letters, in batches that survive a kill at any point (see `domain/letter_ledger`).

A batch is claimed in the flow's document, done, noted with its counts, then deleted. What a killed orchestrator had
claimed is done again by the next one under the same ids, which the broker refuses while it remembers them; past
that time nobody knows, and the letters stay, marked as in doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import Conflict
from services.orchestrator.caller import current_caller
from services.orchestrator.domain import letter_ledger as ledgers
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.domain.letter_ledger import FROM_THE_STEP, LetterLedger, ReplayWay
from services.orchestrator.letter_edits import LetterEdits
from services.orchestrator.letter_replay import LetterRefused, Replayed
from services.orchestrator.letter_sender import LetterSender, StepFull
from services.orchestrator.letter_store import EVERY_LETTER, Letter, LetterFilter, LetterStore
from services.orchestrator.stores import Stores
from services.orchestrator.wall_clock import WallClock

log = get_logger(__name__)

MOST_LETTERS = 1000
CALL_LIMIT_S = 10.0
TURN_LIMIT_S = 8.0


@dataclass(frozen=True, slots=True)
class Selection:
    """Letters by number, or (with none) all that fit the filter, with after < number <= through."""

    numbers: tuple[int, ...] = ()
    wanted: LetterFilter = EVERY_LETTER
    after: int = 0
    through: int = 0
    way: ReplayWay = FROM_THE_STEP

    def words(self) -> str:
        """For the history."""
        if self.numbers:
            shown = ", ".join(str(number) for number in self.numbers[:10])
            which = shown + (f" and {len(self.numbers) - 10} more" if len(self.numbers) > 10 else "")
        else:
            which = self.wanted.words()
        return which + self.way.words()


@dataclass(slots=True)
class WorkReport:
    """What one call did. `refused`: number, reason, message of letters that stay (or are not there). While
    `remaining` is not 0, the next call goes on after `after`."""

    done: int = 0
    replays: list[Replayed] = field(default_factory=list)
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    remaining: int = 0
    after: int = 0


@dataclass
class LetterWorker:
    """One at a time per flow."""

    stores: Stores
    assets: JetStreamAssets
    letters: LetterStore
    edits: LetterEdits
    sender: LetterSender
    clock: WallClock
    _turns: dict[str, asyncio.Lock] = field(default_factory=dict)
    # Replays of the batch in hand that the broker confirmed: flow to (incarnation, numbers). An answer of the
    # broker outlives its own restart here.
    _confirmed: dict[str, tuple[int, set[int]]] = field(default_factory=dict)

    async def run(self, flow: str, action: str, selection: Selection) -> WorkReport:
        """One call's worth: at most 1000 letters and 10 s. WrongState where a flow that does not run should replay."""
        async with self._turn(flow):
            await self._finish(flow)
            if action == ledgers.REPLAY:
                await self.sender.check(flow, selection.way)
            way = await self.sender.prepared(flow, selection.way)
            selection = dataclasses.replace(selection, way=way)
            begun = self.clock.now()
            who, words = current_caller(), selection.words()
            await self._change(flow, lambda ledger: ledgers.begun(ledger, action, who, words, begun, way))
            report = WorkReport()
            await self._batches(flow, action, selection, report)
            await self._change(flow, ledgers.ended)
        return report

    async def preview(self, flow: str, action: str, selection: Selection) -> WorkReport:
        """What `run` would do, of the same letters at a time; nothing is changed."""
        if action == ledgers.REPLAY:
            await self.sender.check(flow, selection.way)
        report = WorkReport()
        await self._batches(flow, action, selection, report, dry=True)
        return report

    async def finish(self, flow: str) -> None:
        """Ends what an orchestrator began and did not live to end."""
        async with self._turn(flow):
            await self._finish(flow)

    @contextlib.asynccontextmanager
    async def _turn(self, flow: str) -> AsyncIterator[None]:
        lock = self._turns.setdefault(flow, asyncio.Lock())
        try:
            async with asyncio.timeout(TURN_LIMIT_S):
                await lock.acquire()
        except TimeoutError as error:
            raise Conflict(
                f"dead letters of flow {flow!r} are being replayed or discarded", reason="BUSY", next_step="Try again"
            ) from error
        try:
            yield
        finally:
            lock.release()

    async def _batches(
        self, flow: str, action: str, selection: Selection, report: WorkReport, *, dry: bool = False
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CALL_LIMIT_S
        number, named, seen = selection.after, list(selection.numbers), 0
        while True:
            if selection.numbers:
                batch, named = await self._named(flow, named, report), named[ledgers.BATCH :]
                remaining = len(named)
            else:
                found, last, pending = await self.letters.after(flow, selection.wanted, number, ledgers.BATCH)
                batch = [letter for letter in found if letter.number <= selection.through]
                remaining = pending if last < selection.through else 0
            seen += max(1, len(batch))
            batch = await self._accepted(flow, action, batch, report, named=bool(selection.numbers))
            if dry:
                await self._preview(flow, action, batch, report, selection.way)
                number = number if selection.numbers else last
            elif batch and not await self._do(flow, action, batch, report, deadline, selection.way):
                remaining = max(1, remaining)  # the step that was full is tried again from here
            elif not selection.numbers:
                number = last
            report.remaining, report.after = remaining, number
            if not remaining or seen >= MOST_LETTERS or loop.time() >= deadline:
                return

    async def _preview(self, flow: str, action: str, batch: list[Letter], report: WorkReport, way: ReplayWay) -> None:
        for letter in batch:
            if action == ledgers.REPLAY:
                try:
                    report.replays.append(await self.sender.preview(flow, letter, way))
                except LetterRefused as error:
                    report.refused.append((letter.number, error.reason, str(error)))
                    continue
            report.done += 1

    async def _named(self, flow: str, numbers: Sequence[int], report: WorkReport) -> list[Letter]:
        found = []
        for number in numbers[: ledgers.BATCH]:
            letter = await self.letters.letter(flow, number)
            if letter is not None:
                found.append(letter)
            else:
                report.refused.append((number, "NOT_FOUND", "it was replayed, discarded or pushed out, or never was"))
        return found

    async def _accepted(
        self, flow: str, action: str, batch: list[Letter], report: WorkReport, *, named: bool
    ) -> list[Letter]:
        """Without those that cannot be replayed."""
        if action != ledgers.REPLAY:
            return batch
        doubtful = set((await self.stores.existing_flow(flow))[0].letters.in_doubt)
        accepted = []
        for letter in batch:
            if letter.content.unreadable:
                report.refused.append((letter.number, "UNREADABLE", "it is no envelope; it can only be discarded"))
            elif letter.number in doubtful and not named:
                text = "its replay may have been stored before; name it to replay it all the same"
                report.refused.append((letter.number, "REPLAY_IN_DOUBT", text))
            else:
                accepted.append(letter)
        return accepted

    async def _do(
        self, flow: str, action: str, batch: list[Letter], report: WorkReport, deadline: float, way: ReplayWay
    ) -> bool:
        """Claims, does, notes and deletes a batch; False when a step took no more until the deadline."""
        incarnation = secrets.randbelow(2**32 - 1) + 1
        numbers = [letter.number for letter in batch]
        now = self.clock.now()
        await self._change(flow, lambda ledger: ledgers.claimed(ledger, numbers, incarnation, now))
        done, full = numbers, False
        if action == ledgers.REPLAY:
            done, full = await self._replay(flow, batch, incarnation, report, deadline, way)
        await self._note(flow, done)
        report.done += len(done)
        return not full

    async def _note(self, flow: str, done: list[int]) -> None:
        await self._change(flow, lambda ledger: ledgers.noted(ledger, done))
        await self._delete(flow, done)
        self._confirmed.pop(flow, None)

    async def _replay(
        self, flow: str, batch: list[Letter], incarnation: int, report: WorkReport, deadline: float, way: ReplayWay
    ) -> tuple[list[int], bool]:
        """Sends the letters in order; answers which the broker has, and whether a step was full."""
        kept = self._confirmed.get(flow)
        confirmed = kept[1] if kept is not None and kept[0] == incarnation else set()
        self._confirmed[flow] = (incarnation, confirmed)
        full: set[str] = set()
        for letter in batch:
            step = letter.content.step
            if letter.number in confirmed:
                continue
            if step in full:
                report.refused.append((letter.number, "STEP_FULL", f"step {step!r} takes no more at present"))
                continue
            try:
                report.replays.append(await self.sender.send(flow, letter, incarnation, deadline, way))
                confirmed.add(letter.number)
            except LetterRefused as error:
                report.refused.append((letter.number, error.reason, str(error)))
            except StepFull:
                full.add(step)
                report.refused.append((letter.number, "STEP_FULL", f"step {step!r} takes no more at present"))
        return sorted(confirmed), bool(full)

    async def _finish(self, flow: str) -> None:
        document, _ = await self.stores.existing_flow(flow)
        work = document.letters.work
        if work is None:
            return
        log.warning("work on dead letters is finished", flow=flow, action=work.action, batch=len(work.batch))
        if ledgers.is_doubtful(work, self.clock.now()):
            await self._change(flow, ledgers.doubted)
        elif work.batch and not work.noted:
            found = [await self.letters.letter(flow, number) for number in work.batch]
            batch = [letter for letter in found if letter is not None]
            done = [letter.number for letter in batch]
            if work.action == ledgers.REPLAY:
                done, _ = await self._replay(flow, batch, work.incarnation, WorkReport(), 0.0, work.way)
            await self._note(flow, done)
        else:
            await self._delete(flow, list(work.batch))
        await self._change(flow, ledgers.ended)

    async def _delete(self, flow: str, numbers: list[int]) -> None:
        stream = subjects.dead_letter_stream(self.stores.workspace, flow)
        await asyncio.gather(*(self.assets.delete_message(stream, number) for number in numbers))
        await self.edits.forget(flow, numbers)

    async def _change(self, flow: str, edit: Callable[[LetterLedger], LetterLedger]) -> None:
        async def changed(document: FlowDocument) -> FlowDocument:
            changed = msgspec.structs.replace(document, letters=edit(document.letters))
            # With the work ends what keeps the deployment that was made for it.
            return changed if changed.letters.work is not None else msgspec.structs.replace(changed, replaying=())

        await self.stores.change_flow(flow, changed)
