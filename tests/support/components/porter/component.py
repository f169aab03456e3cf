"""Carries bytes: `weigh`, `plain` and `loaded` note what came with a message, `make` sends more along, `answer` replies
with the body. Notes go to the file in its config."""

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from headrace.sdk import Attachment, Component, ComponentError, Context

component = Component()


def note(ctx: Context, **values: Any) -> None:
    message = ctx.message
    line = {"step": ctx.step.step, "id": message.id, "attempt": message.attempt, "type": message.content_type, **values}
    with open(ctx.config["path"], "ab", buffering=0) as file:
        os.write(file.fileno(), msgspec.json.encode(line) + b"\n")


def described(attachment: Attachment, digest: str, chunks: int) -> dict[str, Any]:
    assert digest == attachment.digest
    return {
        "name": attachment.name, "type": attachment.content_type, "size": attachment.size, "digest": digest,
        "chunks": chunks,
    }  # fmt: skip


async def weighed(attachment: Attachment) -> dict[str, Any]:
    hashed, chunks = sha256(), 0
    async for chunk in attachment.stream():
        hashed.update(chunk)
        chunks += 1
    return described(attachment, f"sha256:{hashed.hexdigest()}", chunks)


@component.action
async def weigh(ctx: Context) -> None:
    hashed = sha256()
    async for chunk in ctx.message.stream():
        hashed.update(chunk)
    files = [await weighed(item) for item in ctx.message.attachments]
    earlier = {name: await output.read() for name, output in ctx.steps.items()}
    sizes = {name: len(body) for name, body in earlier.items()}
    first = earlier.get("receive", b"")[:1000].decode(errors="replace")
    note(ctx, size=ctx.message.size, digest=hashed.hexdigest(), files=files, earlier=sizes, first=first)


@component.action
def plain(ctx: Context) -> None:
    hashed = sha256()
    for chunk in ctx.message.stream():
        hashed.update(chunk)
    files = []
    for item in ctx.message.attachments:
        found = sha256()
        for chunk in item.stream():
            found.update(chunk)
        files.append(described(item, f"sha256:{found.hexdigest()}", 0))
    note(ctx, size=ctx.message.size, digest=hashed.hexdigest(), files=files)
    made = ctx.attach("plain.bin", [b"made " * 20_000, b"by a plain function"], content_type="text/x-made")
    ctx.emit({"made": made.name}, attachments=[made])


@component.action
async def loaded(body: bytes, ctx: Context) -> bytes:
    note(ctx, size=len(body), digest=sha256(body).hexdigest())
    return body


@component.action
async def make(ctx: Context) -> None:
    """Passes on what came, makes a file of `size` bytes, and a body of `body` bytes; fails where its config says so."""
    size, body = ctx.config.get("size", 0), ctx.config.get("body", 0)
    files = list(ctx.message.attachments)
    if size:
        files.append(await ctx.attach("../made.bin", parts(size), content_type="application/x-made"))
    if ctx.message.attempt <= ctx.config.get("fail", 0) or not Path(ctx.config.get("until", "/")).exists():
        raise ComponentError("NOT_YET", "it fails at first", retryable=True)
    await ctx.emit(b"x" * body if body else {"files": [item.name for item in files]}, attachments=files)


async def parts(size: int) -> Any:
    while size:
        part = min(size, 100_000)
        yield b"m" * part
        size -= part


@component.action
async def answer(ctx: Context) -> None:
    await ctx.reply(ctx.message.as_attachment() or ctx.message.body, content_type=ctx.message.content_type)
