"""Reads a `multipart/form-data` body as it comes: files go to uploads, fields become a JSON object.

The grammar is the `multipart` library's (its push parser does no IO and holds no part in memory); names and bounds are
ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from headrace.edge.attachment_store import AttachmentUpload
from headrace.model.attachments import MAX_ATTACHMENTS, clean_name, clean_type
from headrace.model.errors import Exhausted
from headrace.model.limits import MAX_BODY_BYTES
from services.gateway.domain import refusals
from services.gateway.upload_slots import NewUpload

MAX_FIELDS = 1_000
MAX_PART_HEADER_BYTES = 8 * 1024
JSON = "application/json"


@dataclass(slots=True)
class FormFile:
    """A file part: `upload` has its bytes."""

    name: str
    content_type: str
    upload: AttachmentUpload


@dataclass(slots=True)
class Form:
    """What was read. Whoever reads it discards the uploads of a form that is refused."""

    files: list[FormFile] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        """The fields as JSON; a file's field has the name of its attachment. Of a repeated field a list."""
        return msgspec.json.encode(self.fields)


async def read_form(content_type: str, chunks: AsyncIterator[bytes], form: Form, new_upload: NewUpload) -> None:
    """Fills `form`. Refusal 400 or 413."""
    _, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    reading = _FormReading(form, new_upload)
    try:
        parser = PushMultipartParser(
            boundary,
            max_header_size=MAX_PART_HEADER_BYTES,
            max_segment_count=MAX_FIELDS + MAX_ATTACHMENTS,
            # Strict, it refuses a form whose last line's end comes in a piece of its own.
            strict=False,
        )
        async for chunk in chunks:
            for event in parser.parse(chunk):
                await reading.take(event)
        parser.close()
    except ParserLimitReached as error:
        raise refusals.too_many_parts("parts, or a part more headers", MAX_FIELDS + MAX_ATTACHMENTS) from error
    except MultipartError as error:
        raise refusals.malformed_form(str(error)) from error


class _FormReading:
    """Takes the parser's events: a segment, its bytes, None at its end."""

    def __init__(self, form: Form, new_upload: NewUpload) -> None:
        self._form = form
        self._new_upload = new_upload
        self._segment: MultipartSegment | None = None
        self._file: FormFile | None = None
        self._value = bytearray()
        self._fields = 0
        self._repeated: set[str] = set()
        self._field_bytes = 0

    async def take(self, event: Any) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is None:
            await self._end()
        elif self._file is not None:
            try:
                await self._file.upload.write(event)
            except Exhausted as error:
                raise refusals.file_too_large(self._file.name, int(error.metadata["limit"])) from error
        else:
            self._count(len(event))
            self._value += event

    def _begin(self, segment: MultipartSegment) -> None:
        if not segment.name:
            raise refusals.malformed_form("a part has no name")
        self._segment, self._file = segment, None
        self._count(len(segment.name))
        # A browser sends an empty part without a name for a file that nobody chose.
        if not segment.filename:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise refusals.too_many_parts("fields", MAX_FIELDS)
            return
        files = self._form.files
        if len(files) >= MAX_ATTACHMENTS:
            raise refusals.too_many_parts("files", MAX_ATTACHMENTS)
        if "\0" in segment.filename:
            raise refusals.malformed_form("a file name holds NUL")
        name = clean_name(segment.filename, {file.name for file in files}, len(files) + 1)
        self._file = FormFile(name, clean_type(segment.header("Content-Type", "")), self._new_upload())
        files.append(self._file)

    async def _end(self) -> None:
        assert self._segment is not None
        if self._file is not None:
            await self._file.upload.end()
            self._add(self._segment.name or "", self._file.name)
        elif self._segment.filename is None:
            self._add(self._segment.name or "", self._field_value(self._segment))
        self._segment, self._file = None, None
        self._value.clear()

    def _field_value(self, segment: MultipartSegment) -> Any:
        name = (segment.name or "")[:80]
        try:
            if segment.content_type == JSON:
                return msgspec.json.decode(self._value)
            return self._value.decode()
        except (msgspec.DecodeError, RecursionError) as error:
            raise refusals.malformed_form(f"field {name!r} says JSON and is not: {error}") from error
        except UnicodeDecodeError as error:
            raise refusals.malformed_form(f"field {name!r} is not UTF-8 (byte {error.start})") from error

    def _add(self, name: str, value: Any) -> None:
        fields = self._form.fields
        if name in self._repeated:
            fields[name].append(value)
        elif name in fields:
            self._repeated.add(name)
            fields[name] = [fields[name], value]
        else:
            fields[name] = value

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > MAX_BODY_BYTES // 2:
            raise refusals.fields_too_large(MAX_BODY_BYTES // 2)
