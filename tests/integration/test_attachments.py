"""Large bodies and attachments on a real mesh: from a webhook through every process to components, by reference."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.object_bucket import ObjectBucket
from headrace.model import subjects
from headrace.model.errors import NotFound
from services.orchestrator.attachment_sweeper import AttachmentSweeper
from tests.support.commands import ROOT, headrace
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer, fetch
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import letters, run_flow

PORTER = ROOT / "tests" / "support" / "components" / "porter"
WEBHOOK = ROOT / "components" / "webhook"
pytestmark = pytest.mark.timeout(90)
MEBIBYTE = 1024 * 1024


def some_bytes(size: int, seed: int = 0) -> bytes:
    block = hashlib.shake_256(str(seed).encode()).digest(65_521)
    return (block * (size // len(block) + 1))[:size]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def noted(file: Path, step: str, count: int = 1) -> list[dict[str, Any]]:
    """What a step noted, once it has so often."""

    def lines() -> list[dict[str, Any]]:
        found = [line for line in read_lines(file) if line["step"] == step]
        return found if len(found) >= count else []

    return await eventually(lines, within_s=20)


async def test_a_large_body_reaches_functions_as_a_stream(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    body = some_bytes(5 * MEBIBYTE + 3)
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: large
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [stream, thread, value]}}
  stream: {{component: {PORTER}, function: weigh, config: {{path: {out}}}}}
  thread: {{component: {PORTER}, function: plain, config: {{path: {out}}}, to: [after]}}
  value: {{component: {PORTER}, function: loaded, config: {{path: {out}}}, to: [after]}}
  after: {{component: {PORTER}, function: weigh, config: {{path: {out}}}}}
""",
        )
        answer = await send(module_mesh, flow, body, "application/x-tape")
        assert answer.status == 202, answer.body
        for step in ("stream", "thread", "value"):
            (line,) = await noted(out, step)
            assert (line["size"], line["digest"], line["type"]) == (len(body), digest(body), "application/x-tape")
        after = await noted(out, "after", 2)
        assert {line["digest"] for line in after if line["size"] == len(body)} == {digest(body)}
        (made,) = [line["files"][0] for line in after if line["files"]]
        assert (made["name"], made["type"], made["size"]) == ("plain.bin", "text/x-made", 100_019)


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """A form's body and content type; a part is its headers after `form-data; `, and its bytes."""
    raw = b"".join(
        b"--cut\r\ncontent-disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return raw + b"--cut--\r\n", "multipart/form-data; boundary=cut"


async def objects(mesh: RunningMesh) -> set[str]:
    """Names of all live objects."""
    connection = await connect_nats(mesh.endpoints.nats, "test")
    try:
        bucket = await ObjectBucket.open(connection, subjects.attachment_store("default"))
        return {stored.info.name for stored in await bucket.list_objects()}
    finally:
        await close_nats(connection)


async def swept(mesh: RunningMesh) -> set[str]:
    """What is left once sweepers have looked for an hour: which flows keep objects."""
    connection = await connect_nats(mesh.endpoints.nats, "test")
    try:
        bucket = await ObjectBucket.open(connection, subjects.attachment_store("default"))
        now = time.time() + 3_600
        sweeper = AttachmentSweeper(bucket, JetStreamAssets(connection), "default", lambda: now)
        await sweeper.sweep()
        now += 60
        await sweeper.sweep()
        return {stored.info.name.partition("/")[0] for stored in await bucket.list_all()}
    finally:
        await close_nats(connection)


async def test_files_of_a_form_go_through_every_step(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """Names are made safe, types and bytes are theirs; a retried attempt changes nothing and stores nothing twice; what
    steps before have emitted goes by reference where it is too large."""
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: carried
passthrough: true
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [make]}}
  make:
    component: {PORTER}
    function: make
    config: {{size: 1500000, body: 400000, fail: 1}}
    retry: {{attempts: 3, backoff: 10ms}}
    to: [weigh]
  weigh: {{component: {PORTER}, function: weigh, config: {{path: {out}}}}}
""",
        )
    picture = some_bytes(2 * MEBIBYTE + 1)
    body, content_type = form(
        ('name="title"', "grün".encode()),
        ('name="tag"', b"a"),
        ('name="tag"', b"b"),
        ('name="size"\r\ncontent-type: application/json', b'{"w": 3}'),
        ('name="picture"; filename="../../etc/x.png"\r\ncontent-type: image/png', picture),
        ('name="more"; filename="x.png"\r\ncontent-type: no type', b"second"),
        ('name="more"; filename="C:\\dos\\third.txt"', b""),
        ('name="none"; filename=""', b""),
    )
    answer = await send(module_mesh, "carried", body, content_type)
    assert answer.status == 202, answer.body
    (line,) = await noted(out, "weigh")
    assert (line["size"], line["digest"]) == (400_000, digest(b"x" * 400_000))
    assert [(item["name"], item["type"], item["size"]) for item in line["files"]] == [
        ("x.png", "image/png", len(picture)),
        ("x-2.png", "application/octet-stream", 6),
        ("third.txt", "application/octet-stream", 0),
        ("made.bin", "application/x-made", 1_500_000),
    ]
    assert line["files"][0]["digest"] == f"sha256:{digest(picture)}"
    fields = {
        "title": "grün",
        "tag": ["a", "b"],
        "size": {"w": 3},
        "picture": "x.png",
        "more": ["x-2.png", "third.txt"],
    }
    assert json.loads(line["first"]) == fields
    assert line["earlier"] == {"receive": len(line["first"].encode()), "make": 400_000}
    assert len([name for name in await objects(module_mesh) if name.startswith("carried/")]) == 5


async def test_what_no_message_names_is_collected(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """A letter keeps what it names, also for its replay; once the last message is gone, all of it goes. What is gone
    all the same is told at once."""
    out, works = tmp_path / "out.jsonl", tmp_path / "works"
    scan = some_bytes(MEBIBYTE, 7)
    (tmp_path / "scan.pdf").write_bytes(scan)
    async with AsyncClient(module_mesh.api) as client:
        await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: failing
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [make]}}
  make: {{component: {PORTER}, function: make, config: {{until: {works}}}, retry: {{attempts: 1}}, to: [last]}}
  last: {{component: {PORTER}, function: weigh, config: {{path: {out}}}}}
""",
        )
        uploaded = await client.upload_attachment("failing", tmp_path / "scan.pdf", content_type="application/pdf")
        large = await client.upload_attachment("failing", b'"' + b"l" * 600_000 + b'"')
        large.is_body = True
        await client.inject("failing", b"", attachments=[large, uploaded])
        (letter,) = await eventually(lambda: letters(client, "failing", 1))
        assert [(item.name, item.size) for item in letter.attachments] == [("scan.pdf", MEBIBYTE), ("", 600_002)]
        await eventually(lambda: _is_swept(module_mesh, {"failing"}), within_s=20)

        saved = tmp_path / "saved"
        shown = headrace("dead-letters", "show", "failing", "1", "--save", saved, data=module_mesh.data).ok()
        assert "scan.pdf" in shown
        assert ((saved / "scan.pdf").read_bytes(), (saved / "body").stat().st_size) == (scan, 600_002)

        works.touch()
        replayed = await client.replay_dead_letters("failing", [1])
        assert (replayed.replayed, list(replayed.refusals)) == (1, [])
        (line,) = await noted(out, "last")
        assert [item["name"] for item in line["files"]] == ["scan.pdf"]
        await eventually(lambda: _is_swept(module_mesh, set()), within_s=20)

        lost = await client.upload_attachment("failing", b"short")
        works.unlink()
        await client.inject("failing", b"{}", attachments=[lost])
        await eventually(lambda: letters(client, "failing", 1))
        await remove(module_mesh, f"failing/{lost.id}")
        with pytest.raises(NotFound, match=lost.id):
            await client.inject("failing", b"{}", attachments=[lost])
        refused = await client.replay_dead_letters("failing", [2])
        assert [(item.reason, refused.replayed) for item in refused.refusals] == [("ATTACHMENT_GONE", 0)]


async def test_a_step_that_meets_a_missing_file_gives_its_message_up(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """At once, with a reason of its own; and a reply of any size comes back."""
    async with AsyncClient(module_mesh.api) as client:
        await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: answering
reply_timeout: 20s
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [answer]}}
  answer: {{component: {PORTER}, function: answer}}
""",
        )
        body = some_bytes(3 * MEBIBYTE)
        for key in ({}, {"idempotency-key": "one"}, {"idempotency-key": "one"}):
            answer = await send(module_mesh, "answering", body, "application/x-tape", key)
            assert (answer.status, answer.headers["content-type"]) == (200, "application/x-tape")
            assert digest(answer.body) == digest(body)


async def remove(mesh: RunningMesh, name: str) -> None:
    """An object is lost all the same."""
    connection = await connect_nats(mesh.endpoints.nats, "test")
    try:
        bucket = await ObjectBucket.open(connection, subjects.attachment_store("default"))
        stored = await bucket.find(name)
        assert stored is not None
        await bucket.delete(stored)
    finally:
        await close_nats(connection)


async def _is_swept(mesh: RunningMesh, flows: set[str]) -> bool:
    return await swept(mesh) == flows


async def send(
    mesh: RunningMesh, flow: str, body: bytes, content_type: str, headers: dict[str, str] | None = None
) -> HttpAnswer:
    return await fetch(mesh.gateway, "POST", f"/hook/{flow}", body, {"content-type": content_type, **(headers or {})})
