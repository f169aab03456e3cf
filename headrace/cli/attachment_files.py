"""Attachments between files of this machine and the mesh."""

from __future__ import annotations

import mimetypes
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.invocation import print_usage
from headrace.model.attachments import clean_name
from headrace.model.limits import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.api.attachment.v1.attachment_pb2 import Attachment
    from headrace.client import AsyncClient


def readable(files: Sequence[Path]) -> None:
    """Wrong usage where one is not a file."""
    for file in files:
        if not file.is_file():
            print_usage(f"{file}: is not a file")


async def upload_all(
    client: AsyncClient, flow: str, body: bytes, content_type: str, files: Sequence[Path]
) -> tuple[bytes, list[Attachment]]:
    """Uploads files, and a body that is too large for a message; answers the body that is left, and what goes along."""
    found = []
    if len(body) > MAX_BODY_BYTES:
        uploaded = await client.upload_attachment(flow, body, content_type=content_type)
        uploaded.is_body, body = True, b""
        found.append(uploaded)
    for file in files:
        kind = mimetypes.guess_type(file.name)[0] or ""
        found.append(await client.upload_attachment(flow, file, content_type=kind))
    return body, found


async def save_all(client: AsyncClient, flow: str, attachments: Sequence[Attachment], folder: Path) -> list[Path]:
    """Downloads into the folder, under cleaned names: nothing is written outside of it, nothing that is there is
    replaced, and a file has its name only once it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = set(os.listdir(folder))
    saved = []
    for number, attachment in enumerate(attachments, 1):
        name = clean_name(attachment.name or "body", taken, number)
        taken.add(name)
        descriptor, partial = tempfile.mkstemp(prefix=".headrace-", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in client.download_attachment(flow, attachment.id):
                    file.write(chunk)
            os.link(partial, folder / name)  # fails where somebody made it meanwhile
        finally:
            os.unlink(partial)
        saved.append(folder / name)
    return saved
