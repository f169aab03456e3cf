"""What a request brought: a small body as it is, a large one and a form's files as attachments in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.edge.attachment_store import Filing
from headrace.model import message_ids
from headrace.model.errors import Exhausted, HeadraceError
from headrace.model.limits import MAX_BODY_BYTES
from headrace.model.route import Route
from services.gateway.domain import refusals
from services.gateway.domain.request_headers import RequestHeaders
from services.gateway.form_parts import Form, read_form
from services.gateway.request_body import BodyReader, check_json
from services.gateway.upload_slots import UPLOAD_BYTES, NewUpload, UploadSlots

Receive = Callable[[BodyReader, RequestHeaders, Route, Filing, NewUpload], Awaitable["ReceivedBody"]]

FORM_LIMITS = 10
"""A form may have so many times the bytes of one attachment."""


@dataclass(frozen=True, slots=True)
class ReceivedBody:
    """Body, its media type, and what is in the store. Nothing is published before all of it is stored."""

    body: bytes
    content_type: str
    attachments: tuple[Attachment, ...] = ()

    @property
    def digest(self) -> str:
        """Tells whether a repeated Idempotency-Key came with the same."""
        if not self.attachments:
            return message_ids.body_digest(self.body)
        hashed = blake2b(self.body, digest_size=16, person=b"hr-body")
        for attachment in self.attachments:
            hashed.update(attachment.SerializeToString(deterministic=True))
        return hashed.hexdigest()


class BodyReceiver:
    """Reads bodies of requests. `execution` is what an attachment is filed under."""

    def __init__(self, uploads: UploadSlots) -> None:
        self.uploads = uploads

    async def receive(
        self, reader: BodyReader, headers: RequestHeaders, route: Route, execution: str, *, arrived: bool
    ) -> ReceivedBody:
        """Refusal 400, 408, 413, 429 or 503; CallerGone."""
        if headers.says_form:
            return await self._stored(self._form, reader, headers, route, execution)
        body = await reader.read(headers.content_length, arrived=arrived)
        if body is None:
            return await self._stored(self._large, reader, headers, route, execution)
        check_json(headers, body)
        return ReceivedBody(body, headers.content_type)

    async def _stored(
        self, receive: Receive, reader: BodyReader, headers: RequestHeaders, route: Route, execution: str
    ) -> ReceivedBody:
        reader.take(UPLOAD_BYTES)
        filing = Filing(execution)
        try:
            async with self.uploads.slot(route.flow) as new_upload:
                return await receive(reader, headers, route, filing, new_upload)
        except Exhausted as error:
            raise refusals.body_too_large(int(error.metadata["limit"])) from error
        except HeadraceError as error:
            raise refusals.broker_unavailable() from error

    async def _large(
        self, reader: BodyReader, headers: RequestHeaders, route: Route, filing: Filing, new_upload: NewUpload
    ) -> ReceivedBody:
        limit = self.uploads.limit
        if route.key.startswith("body:"):
            raise refusals.body_too_large(MAX_BODY_BYTES, ", the most where a flow takes its key from the body")
        if headers.content_length > limit:
            raise refusals.body_too_large(limit)
        upload = new_upload()
        async for chunk in reader.chunks(limit):
            await upload.write(chunk)
        attachment = await upload.finish(route.flow, filing, content_type=headers.content_type, is_body=True)
        return ReceivedBody(b"", headers.content_type, (attachment,))

    async def _form(
        self, reader: BodyReader, headers: RequestHeaders, route: Route, filing: Filing, new_upload: NewUpload
    ) -> ReceivedBody:
        most = FORM_LIMITS * self.uploads.limit
        if headers.content_length > most:
            raise refusals.body_too_large(most)
        form = Form()
        await read_form(headers.content_type, reader.chunks(most), form, new_upload)
        attachments = [
            await file.upload.finish(route.flow, filing, name=file.name, content_type=file.content_type)
            for file in form.files
        ]
        return ReceivedBody(form.body(), "application/json", tuple(attachments))
