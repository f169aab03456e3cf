"""Outputs and replies that name attachments: what a component says of them becomes full references, or a problem."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.edge.attachment_store import named_by
from headrace.model.answer import ANSWER_TTL_S
from headrace.model.attachments import MAX_ATTACHMENTS
from headrace.model.errors import HeadraceError, Unavailable
from services.sidecar.domain.delivery import Ending, Outcome, Problem
from services.sidecar.passthrough import PassedByReference
from services.sidecar.transfers import TransferFailed, Transfers

if TYPE_CHECKING:
    from headrace.api.attachment.v1.attachment_pb2 import Attachment
    from services.sidecar.held_input import HeldInput

REFUSED = "OUTPUT_REFUSED"
REPLY_KEEP_S = 900.0
EMIT_KEEP_S = 3_600.0
STORE_LIMIT_S = 600.0
"""How long uploads of a call that has ended may go on."""


class AttachedOutputs:
    """Of one step. `tasks` owns the waiting."""

    def __init__(self, transfers: Transfers, tasks: asyncio.TaskGroup) -> None:
        self._transfers = transfers
        self._tasks = tasks

    def settle(self, held: HeldInput, done: Callable[[Outcome | None], None]) -> None:
        """Completes what the call's outputs and reply name, in place, once all of it is stored; then calls `done`, with
        how the call ends instead where something is not to be had."""
        self._tasks.create_task(self._settle(held, done), name="attached outputs")

    def pass_by_reference(self, held: HeldInput, done: Callable[[Outcome | None], None]) -> None:
        """Stores the bodies of the call's outputs, so that what is passed through names them; then calls `done`."""
        self._tasks.create_task(self._pass_by_reference(held, done), name="passed by reference")

    async def _pass_by_reference(self, held: HeldInput, done: Callable[[Outcome | None], None]) -> None:
        outcome: Outcome | None = None
        outputs: list[Any] = []
        try:
            async with asyncio.timeout(STORE_LIMIT_S):
                for emit in held.outputs:
                    if not emit.body:
                        outputs.append(emit)
                        continue
                    outputs.append(PassedByReference(emit, await self._transfers.put(held.call, emit.body)))
            held.outputs = outputs
        except (HeadraceError, TransferFailed, TimeoutError) as error:
            code = getattr(error, "reason", getattr(error, "code", "UPLOAD_TOO_SLOW"))
            outcome = Outcome(Ending.FAILED, Problem(code, str(error)), retryable=True)
        asyncio.get_running_loop().call_soon(done, outcome)

    def settle_emit(self, emit: Any, done: Callable[[Problem | None], None]) -> None:
        """As `settle`, of a listener's emit: what it names is kept while it waits for its edge, an hour at most."""
        self._tasks.create_task(self._settle_emit(emit, done), name="attached emit")

    async def _settle_emit(self, emit: Any, done: Callable[[Problem | None], None]) -> None:
        problem: Problem | None = None
        try:
            async with asyncio.timeout(STORE_LIMIT_S):
                await self.complete(0, emit.attachments, {})
                for reference in emit.attachments:
                    await self._transfers.keep(reference.id, EMIT_KEEP_S)
        except (HeadraceError, TransferFailed, TimeoutError) as error:
            code = getattr(error, "reason", getattr(error, "code", "UPLOAD_TOO_SLOW"))
            problem = Problem(code, str(error) or "its uploads took too long")
        asyncio.get_running_loop().call_soon(done, problem)

    async def _settle(self, held: HeldInput, done: Callable[[Outcome | None], None]) -> None:
        given = {item.id: item for item in named_by(held.envelope)}
        named = [emit.attachments for emit in held.outputs if emit.attachments]
        reply = held.reply if held.reply is not None and held.reply.HasField("large_body") else None
        if reply is not None:
            named.append([reply.large_body])
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(STORE_LIMIT_S):
                for references in named:
                    await self.complete(held.call, references, given)
                if reply is not None and held.wants_reply:
                    # No message names it: its caller reads it at once, a repeat with an Idempotency-Key later.
                    keyed = bool(held.envelope.reply_to.answer_key)
                    await self._transfers.keep(reply.large_body.id, ANSWER_TTL_S if keyed else REPLY_KEEP_S)
        except TransferFailed as error:
            problem = Problem(error.code, error.message)
            outcome = Outcome(Ending.FAILED, problem, retryable=error.retryable)
        except HeadraceError as error:
            problem = Problem(error.reason, str(error))
            outcome = Outcome(Ending.FAILED, problem, retryable=isinstance(error, Unavailable))
        except TimeoutError:
            problem = Problem("UPLOAD_TOO_SLOW", f"its uploads took longer than {STORE_LIMIT_S:g} s", 504)
            outcome = Outcome(Ending.FAILED, problem, retryable=True)
        self._transfers.forget(held.call)
        asyncio.get_running_loop().call_soon(done, outcome)

    async def complete(self, call: int, references: Sequence[Any], given: dict[str, Attachment]) -> None:
        """Completes references in place: uploads of the call, or what came with its input. TransferFailed."""
        if len(references) > MAX_ATTACHMENTS + 1 or sum(item.is_body for item in references) > 1:
            raise TransferFailed(REFUSED, f"an output names {len(references)} attachments, at most {MAX_ATTACHMENTS}")
        for reference in references:
            is_body = reference.is_body
            if reference.upload:
                upload = self._transfers.upload(call, reference.upload)
                if upload is None:
                    raise TransferFailed(REFUSED, f"upload {reference.upload} is none of this call's")
                found = await asyncio.shield(upload.stored)
            else:
                known = given.get(reference.id)
                if known is None:
                    text = f"attachment {reference.id[:64]!r} did not come with the input, nor was it made by the call"
                    raise TransferFailed(REFUSED, text)
                found = known
            name = "" if is_body else (found.name or reference.name or "attachment")
            reference.CopyFrom(found)
            reference.is_body, reference.name = is_body, name
