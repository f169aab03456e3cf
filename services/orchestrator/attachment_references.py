"""References that a person gives, made complete before a message with them is published."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.edge.attachment_store import AttachmentAccess, gone
from headrace.model.attachments import clean_name, clean_type, is_attachment_id


async def kept_for_message(access: AttachmentAccess, flow: str, given: Sequence[Attachment]) -> list[Attachment]:
    """What a message that is about to be published names, complete, and kept until it is. NotFound ATTACHMENT_GONE."""
    if not given:
        return []
    store = await access.store()
    found: list[Attachment] = []
    for number, item in enumerate(given):
        if not is_attachment_id(item.id):
            raise gone(flow, item.id[:64])
        await store.keep(flow, item.id)
        attachment = await store.describe(flow, item.id)
        attachment.is_body = item.is_body
        attachment.content_type = clean_type(item.content_type)
        if not item.is_body:
            attachment.name = clean_name(item.name, {other.name for other in found}, number + 1)
        found.append(attachment)
    return found
