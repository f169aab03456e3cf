"""DeadLetterService: conversion between messages and the letters' stream and work."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from headrace.api.deadletter.v1 import dead_letter_pb2, dead_letter_pb2_grpc
from headrace.edge.request_book import RequestBook, Ticket
from headrace.model.errors import InvalidInput, NotFound
from headrace.model.names import parse_resource
from services.orchestrator.asked_messages import asked_span
from services.orchestrator.caller import current_caller
from services.orchestrator.domain.letter_ledger import DISCARD, REPLAY, LetterLedger, ReplayWay
from services.orchestrator.doubt_records import DoubtRecords
from services.orchestrator.letter_edits import NO_EDIT, edited, edited_meanwhile
from services.orchestrator.letter_messages import (
    DEFAULT_BODY,
    MAX_BODY,
    counts_message,
    letter_message,
    replay_message,
    whole_letter,
)
from services.orchestrator.letter_replay import letter_name
from services.orchestrator.letter_store import EVERY_LETTER, READ_AT_ONCE, Letter, LetterFilter, LetterStore
from services.orchestrator.letter_work import MOST_LETTERS, LetterWorker, Selection, WorkReport
from services.orchestrator.rpc_rollouts import flow_of
from services.orchestrator.snapshot_reader import SnapshotReader

WATCH_LOOK_S = 0.3
WATCH_EVERY_S = 5.0


class DeadLetterRpc(dead_letter_pb2_grpc.DeadLetterServiceServicer):  # type: ignore[misc]
    def __init__(
        self,
        letters: LetterStore,
        worker: LetterWorker,
        doubts: DoubtRecords,
        reader: SnapshotReader,
        requests: RequestBook,
        stopping: asyncio.Event,
    ) -> None:
        self._requests = requests
        self._doubts = doubts
        self._letters = letters
        self._worker = worker
        self._reader = reader
        self._stopping = stopping

    async def ListDeadLetters(  # type: ignore[override]
        self, request: dead_letter_pb2.ListDeadLettersRequest, context: Any
    ) -> dead_letter_pb2.ListDeadLettersResponse:
        flow = flow_of(request.parent, "parent")
        counts, ledger = await self._counts(flow)
        wanted = _filter(request)
        found, token = await self._letters.page(flow, wanted, request.page_size, request.page_token)
        return dead_letter_pb2.ListDeadLettersResponse(
            dead_letters=[letter_message(letter, ledger) for letter in found], next_page_token=token, counts=counts
        )

    async def GetDeadLetter(  # type: ignore[override]
        self, request: dead_letter_pb2.GetDeadLetterRequest, context: Any
    ) -> dead_letter_pb2.DeadLetter:
        if request.max_body_bytes > MAX_BODY:
            raise InvalidInput.at("max_body_bytes", request.max_body_bytes, f"is more than {MAX_BODY}")
        flow, letter, ledger = await self._existing(request.name)
        edit, etag = await self._worker.edits.of(flow, letter)
        return whole_letter(letter, ledger, request.max_body_bytes or DEFAULT_BODY, edit, etag)

    async def EditDeadLetter(  # type: ignore[override]
        self, request: dead_letter_pb2.EditDeadLetterRequest, context: Any
    ) -> dead_letter_pb2.DeadLetter:
        flow, letter, ledger = await self._existing(request.name)
        if letter.content.unreadable:
            raise InvalidInput.at(
                "name",
                request.name,
                "is no envelope: it cannot be sent again, so there is nothing to edit",
                next_step=f"Discard it: headrace dead-letters discard {flow} {letter.number}",
                reason="UNREADABLE",
            )
        before, etag = await self._worker.edits.of(flow, letter)
        edit = edited(request, letter, before, current_caller(), self._worker.clock.now())
        if request.etag not in ("", etag):
            raise edited_meanwhile(flow, letter.number)
        if not request.validate_only:
            if edit is None:
                await self._worker.edits.revert(flow, letter.number, request.etag)
                etag = NO_EDIT
            else:
                etag = await self._worker.edits.write(flow, letter.number, edit, request.etag)
        return whole_letter(letter, ledger, DEFAULT_BODY, edit, etag)

    async def _existing(self, name: str) -> tuple[str, Letter, LetterLedger]:
        flow, number = parse_resource("name", name, "flows", "deadLetters")
        document, _ = await self._reader.stores.existing_flow(flow)
        letter = await self._letters.letter(flow, int(number))
        if letter is None:
            raise NotFound(
                f"flow {flow!r} keeps no dead letter {number}: it was replayed, discarded or pushed out, or never was",
                reason="DEAD_LETTER_NOT_FOUND",
                next_step=f"List them: headrace dead-letters list {flow}; see also: headrace history {flow}",
            )
        return flow, letter, document.letters

    async def ReplayDeadLetters(  # type: ignore[override]
        self, request: dead_letter_pb2.ReplayDeadLettersRequest, context: Any
    ) -> dead_letter_pb2.ReplayDeadLettersResponse:
        async def replay(ticket: Ticket) -> dead_letter_pb2.ReplayDeadLettersResponse:
            flow, selection = await self._selection(request, ticket)
            selection = dataclasses.replace(selection, way=await self._way(flow, request, selection))
            report = await self._work(flow, REPLAY, selection, request.validate_only)
            return dead_letter_pb2.ReplayDeadLettersResponse(
                replayed=report.done,
                replays=[replay_message(flow, told) for told in report.replays],
                refusals=_refusals(flow, report),
                remaining=report.remaining,
                through=selection.through,
                after=report.after,
            )

        kind = dead_letter_pb2.ReplayDeadLettersResponse
        return await self._requests.once("DeadLetterService/ReplayDeadLetters", request, kind, replay)

    async def DiscardDeadLetters(  # type: ignore[override]
        self, request: dead_letter_pb2.DiscardDeadLettersRequest, context: Any
    ) -> dead_letter_pb2.DiscardDeadLettersResponse:
        async def discard(ticket: Ticket) -> dead_letter_pb2.DiscardDeadLettersResponse:
            flow, selection = await self._selection(request, ticket)
            report = await self._work(flow, DISCARD, selection, request.validate_only)
            return dead_letter_pb2.DiscardDeadLettersResponse(
                discarded=report.done,
                refusals=_refusals(flow, report),
                remaining=report.remaining,
                through=selection.through,
                after=report.after,
            )

        kind = dead_letter_pb2.DiscardDeadLettersResponse
        return await self._requests.once("DeadLetterService/DiscardDeadLetters", request, kind, discard)

    async def _work(self, flow: str, action: str, selection: Selection, dry: bool) -> WorkReport:
        work = self._worker.preview if dry else self._worker.run
        return await work(flow, action, selection)

    async def ListInDoubt(  # type: ignore[override]
        self, request: dead_letter_pb2.ListInDoubtRequest, context: Any
    ) -> dead_letter_pb2.ListInDoubtResponse:
        flow = flow_of(request.parent, "parent")
        await self._reader.stores.existing_flow(flow)
        found, token, total = await self._doubts.page(flow, request.page_size, request.page_token)
        return dead_letter_pb2.ListInDoubtResponse(messages=found, next_page_token=token, total=total)

    async def WatchDeadLetters(  # type: ignore[override]
        self, request: dead_letter_pb2.WatchDeadLettersRequest, context: Any
    ) -> AsyncIterator[dead_letter_pb2.WatchDeadLettersResponse]:
        flow = flow_of(request.parent, "parent")
        wanted = LetterFilter(request.step, request.reason)
        counts, ledger = await self._counts(flow)
        after = request.after if request.HasField("after") else (await self._letters.bounds(flow))[1]
        loop = asyncio.get_running_loop()
        sent_at, sent = -WATCH_EVERY_S, None
        while not self._stopping.is_set():
            found, after, pending = await self._letters.after(flow, wanted, after, READ_AT_ONCE)
            if found or counts != sent or loop.time() - sent_at >= WATCH_EVERY_S:
                letters = [letter_message(letter, ledger) for letter in found]
                yield dead_letter_pb2.WatchDeadLettersResponse(dead_letters=letters, counts=counts)
                sent_at, sent = loop.time(), counts
            if not pending:
                await asyncio.sleep(WATCH_LOOK_S)
                counts, ledger = await self._counts(flow)

    async def _counts(self, flow: str) -> tuple[dead_letter_pb2.DeadLetterCounts, LetterLedger]:
        document, _ = await self._reader.stores.existing_flow(flow)
        view = await self._reader.letters(document)
        return counts_message(view, document.letters, self._reader.letter_limits), document.letters

    async def _way(
        self, flow: str, request: dead_letter_pb2.ReplayDeadLettersRequest, selection: Selection
    ) -> ReplayWay:
        if not request.revision:
            return ReplayWay(request.from_start)
        if request.from_start:
            text = "cannot go with from_start: what runs from the start meets the deployment that runs"
            raise InvalidInput.at("revision", request.revision, text, next_step="Leave one of them out")
        step = request.step
        if selection.numbers:
            found = [await self._letters.letter(flow, number) for number in selection.numbers]
            step = next((letter.content.step for letter in found if letter is not None), step)
        if not step:
            next_step = "Name the step, or letters that are kept"
            raise InvalidInput.at(
                "step", step, "is needed with revision: a component is one step's", next_step=next_step
            )
        return ReplayWay(step=step, revision=request.revision)

    async def _selection(
        self,
        request: dead_letter_pb2.ReplayDeadLettersRequest | dead_letter_pb2.DiscardDeadLettersRequest,
        ticket: Ticket,
    ) -> tuple[str, Selection]:
        flow = flow_of(request.parent, "parent")
        await self._reader.stores.existing_flow(flow)
        if bool(request.names) == request.all:
            raise InvalidInput.at(
                "names" if request.names else "all",
                request.all,
                "does not say which letters",
                next_step="Give names, or all with a filter (step, reason, since, until, text), but not both",
            )
        wanted = _filter(request)
        if request.names and wanted != EVERY_LETTER:
            raise InvalidInput.at("names", len(request.names), f"cannot go with a filter ({wanted.words()})")
        if len(request.names) > MOST_LETTERS:
            raise InvalidInput.at("names", len(request.names), f"is more than {MOST_LETTERS}")
        if not request.all:
            return flow, Selection(tuple(sorted({_number(flow, name) for name in request.names})))
        newest = (await self._letters.bounds(flow))[1]
        # A repeat works on the letters of the first call, and not on those that failed since.
        through = int(ticket.note or min(request.through or newest, newest))
        await ticket.write(str(through))
        return flow, Selection((), wanted, request.after, through)


_Filtered = (
    dead_letter_pb2.ListDeadLettersRequest
    | dead_letter_pb2.ReplayDeadLettersRequest
    | dead_letter_pb2.DiscardDeadLettersRequest
)


def _filter(request: _Filtered) -> LetterFilter:
    return LetterFilter(request.step, request.reason, *asked_span(request))


def _number(flow: str, name: str) -> int:
    of, number = parse_resource("names", name, "flows", "deadLetters")
    if of != flow:
        raise InvalidInput.at("names", name, f"is not a letter of flows/{flow}")
    return int(number)


def _refusals(flow: str, report: WorkReport) -> list[dead_letter_pb2.Refusal]:
    return [
        dead_letter_pb2.Refusal(dead_letter=letter_name(flow, number), reason=reason, message=message)
        for number, reason, message in report.refused
    ]
