"""Writes the gateway's answers as ASGI messages."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from headrace.wire.envelope import Reply
from services.gateway.domain.refusals import RawHeaders, Refusal
from services.gateway.domain.reply_headers import NO_BODY, check_status, reply_headers
from services.gateway.request_body import BodyReader
from services.gateway.whole_answers import answer_at_once


async def send_reply(
    send: Send,
    reply: Reply,
    context: RawHeaders,
    *,
    cycle: RequestResponseCycle | None = None,
    replayed: bool = False,
    large: AsyncIterator[bytes] | None = None,
) -> None:
    """A component's reply; Refusal 502 if HTTP cannot carry it (nothing is sent then). `large` has the body of one that
    went by reference. `cycle`: uvicorn's side of the request, where it is at hand."""
    execution = reply.execution_id
    status = check_status(reply.status, reply.step, execution)
    headers = reply_headers(reply.headers, reply.content_type, step=reply.step, execution=execution)
    headers.append((b"headrace-execution", execution.encode()))
    headers.append((b"headrace-version", b"%d" % reply.version))
    headers.append((b"headrace-deployment", b"%d" % reply.deployment))
    headers += context
    if replayed:
        headers.append((b"headrace-replayed", b"true"))
    if large is not None and status not in NO_BODY:
        await _send_large(send, status, headers, reply.large_body.size, large)
        return
    await _send(send, status, headers, b"" if status in NO_BODY else reply.body, cycle)


async def send_accepted(
    send: Send,
    execution: str,
    context: RawHeaders,
    *,
    cycle: RequestResponseCycle | None = None,
    replayed: bool = False,
) -> None:
    """202 of a flow that does not reply."""
    headers: RawHeaders = [
        (b"content-type", b"application/json"),
        (b"headrace-execution", execution.encode()),
        *context,
    ]
    if replayed:
        headers.append((b"headrace-replayed", b"true"))
    await _send(send, 202, headers, b'{"execution":"%b"}' % execution.encode(), cycle)


async def send_refusal(send: Send, refusal: Refusal, reader: BodyReader | None = None) -> None:
    """The refusal; where the body was not read to its end the connection is closed, after the caller has had
    a moment to read the answer."""
    unread = reader is not None and not await reader.finish_if_there(refusal.close)
    if unread:
        refusal.close = True
    body = refusal.body()
    headers = refusal.headers()
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    if reader is not None and unread:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await reader.discard_rest()
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _send_large(send: Send, status: int, headers: RawHeaders, size: int, chunks: AsyncIterator[bytes]) -> None:
    first = await anext(chunks, b"")
    headers.append((b"content-length", b"%d" % size))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _send(send: Send, status: int, headers: RawHeaders, body: bytes, cycle: RequestResponseCycle | None) -> None:
    if status not in NO_BODY:
        headers.append((b"content-length", b"%d" % len(body)))
        if cycle is not None and answer_at_once(cycle, status, headers, body):
            return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
