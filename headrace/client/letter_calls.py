"""Dead letters: `DeadLetterService`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Any

from headrace.api.deadletter.v1 import dead_letter_pb2, dead_letter_pb2_grpc
from headrace.client.session import Session, resource, timestamp_of

# One call works on many letters: more than the 10 s that the mesh gives itself.
WORK_TIMEOUT_S = 30.0
NAMES_AT_ONCE = 100
MAX_PAGE = 500


class LetterCalls(Session):
    """A letter is named by its number within its flow."""

    async def list_dead_letters(
        self,
        flow: str,
        *,
        step: str = "",
        reason: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        text: str = "",
        limit: int = 50,
        page_token: str = "",
    ) -> dead_letter_pb2.ListDeadLettersResponse:
        """The newest `limit` letters that fit, newest first, without bodies; `next_page_token` where there are more."""
        stub, answer = self._letters(), dead_letter_pb2.ListDeadLettersResponse(next_page_token=page_token)
        while len(answer.dead_letters) < limit:
            request = dead_letter_pb2.ListDeadLettersRequest(
                parent=resource("flows", flow),
                **_filter(step, reason, since, until, text),
                page_size=min(MAX_PAGE, limit - len(answer.dead_letters)),
                page_token=answer.next_page_token,
            )
            page = await self._call(stub.ListDeadLetters, request)
            answer.dead_letters.extend(page.dead_letters)
            answer.next_page_token = page.next_page_token
            answer.counts.CopyFrom(page.counts)
            if not page.next_page_token:
                break
        return answer

    async def get_dead_letter(self, flow: str, number: int, *, max_body_bytes: int = 0) -> dead_letter_pb2.DeadLetter:
        """One letter with its headers, attempts, pin set, and up to `max_body_bytes` (0: 64 KiB) of its body."""
        request = dead_letter_pb2.GetDeadLetterRequest(name=_name(flow, number), max_body_bytes=max_body_bytes)
        return await self._call(self._letters().GetDeadLetter, request)

    async def edit_dead_letter(
        self,
        flow: str,
        number: int,
        *,
        body: bytes | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        revert: bool = False,
        etag: str = "",
        validate_only: bool = False,
    ) -> dead_letter_pb2.DeadLetter:
        """Changes what a replay of one letter sends (an empty header is taken away), or with `revert` forgets that. The
        original stays. With an `etag` only if nobody edited it since."""
        request = dead_letter_pb2.EditDeadLetterRequest(
            name=_name(flow, number),
            body=body,
            content_type=content_type,
            headers=headers,
            revert=revert,
            etag=etag,
            validate_only=validate_only,
        )
        return await self._call(self._letters().EditDeadLetter, request)

    async def replay_dead_letters(
        self,
        flow: str,
        numbers: Sequence[int] = (),
        *,
        all_letters: bool = False,
        step: str = "",
        reason: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        text: str = "",
        validate_only: bool = False,
        from_start: bool = False,
        revision: str = "",
    ) -> dead_letter_pb2.ReplayDeadLettersResponse:
        """Sends letters again to the step that failed them: those numbered, or with `all_letters` every one that fits
        the filter and was there when this began. The answer names each, and those that stay with the reason. With
        `from_start` their whole executions run again (flows with `history`); with `revision` (number, version, tag or
        digest) they go through exactly this one of their step's component; with `validate_only` nothing is sent."""
        result = dead_letter_pb2.ReplayDeadLettersResponse()
        method, kind = self._letters().ReplayDeadLetters, dead_letter_pb2.ReplayDeadLettersRequest
        wanted = {**_filter(step, reason, since, until, text), "validate_only": validate_only}
        wanted |= {"from_start": from_start, "revision": revision}
        async for answer in self._work(method, kind, flow, numbers, all_letters, wanted):
            result.replayed += answer.replayed
            result.replays.extend(answer.replays)
            result.refusals.extend(answer.refusals)
            result.remaining, result.through, result.after = answer.remaining, answer.through, answer.after
        return result

    async def discard_dead_letters(
        self,
        flow: str,
        numbers: Sequence[int] = (),
        *,
        all_letters: bool = False,
        step: str = "",
        reason: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        text: str = "",
        validate_only: bool = False,
    ) -> dead_letter_pb2.DiscardDeadLettersResponse:
        """Deletes letters for good: those numbered, or with `all_letters` every one that fits the filter. With
        `validate_only` nothing is deleted."""
        result = dead_letter_pb2.DiscardDeadLettersResponse()
        method, kind = self._letters().DiscardDeadLetters, dead_letter_pb2.DiscardDeadLettersRequest
        wanted = {**_filter(step, reason, since, until, text), "validate_only": validate_only}
        async for answer in self._work(method, kind, flow, numbers, all_letters, wanted):
            result.discarded += answer.discarded
            result.refusals.extend(answer.refusals)
            result.remaining, result.through, result.after = answer.remaining, answer.through, answer.after
        return result

    async def list_in_doubt(
        self, flow: str, *, limit: int = 50, page_token: str = ""
    ) -> dead_letter_pb2.ListInDoubtResponse:
        """The newest `limit` (at most 500) messages whose outputs may be there twice, newest first."""
        request = dead_letter_pb2.ListInDoubtRequest(
            parent=resource("flows", flow), page_size=limit, page_token=page_token
        )
        return await self._call(self._letters().ListInDoubt, request)

    async def watch_dead_letters(
        self, flow: str, *, step: str = "", reason: str = "", after: int | None = None
    ) -> AsyncGenerator[dead_letter_pb2.WatchDeadLettersResponse, None]:
        """New letters as they come (or all after a number), and the counts when they change."""
        request = dead_letter_pb2.WatchDeadLettersRequest(
            parent=resource("flows", flow), step=step, reason=reason, after=after
        )
        async for message in self._stream(self._letters().WatchDeadLetters, request):
            yield message

    async def _work(
        self, method: Any, kind: Any, flow: str, numbers: Sequence[int], all_letters: bool, wanted: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Calls until nothing remains, or a call did nothing: the step that gets them is full for long."""
        names, parent = [_name(flow, number) for number in numbers], resource("flows", flow)
        if not all_letters:
            for begin in range(0, max(1, len(names)), NAMES_AT_ONCE):
                request = kind(parent=parent, names=names[begin : begin + NAMES_AT_ONCE], **wanted)
                yield await self._call(method, request, timeout_s=WORK_TIMEOUT_S)
            return
        request = kind(parent=parent, names=names, all=True, **wanted)
        while True:
            request.request_id = ""  # each is a request of its own
            answer = await self._call(method, request, timeout_s=WORK_TIMEOUT_S)
            yield answer
            done = getattr(answer, "replayed", 0) or getattr(answer, "discarded", 0)
            if not answer.remaining or (answer.after == request.after and not done):
                return
            request.after, request.through = answer.after, answer.through

    def _letters(self) -> Any:
        return dead_letter_pb2_grpc.DeadLetterServiceStub(self.channel)


def _filter(step: str, reason: str, since: datetime | None, until: datetime | None, text: str) -> dict[str, Any]:
    """The fields that lists and work on letters share."""
    return {"step": step, "reason": reason, "since": timestamp_of(since), "until": timestamp_of(until), "text": text}


def _name(flow: str, number: int) -> str:
    return f"{resource('flows', flow)}/deadLetters/{number}"
