"""Large bodies and attachments on a real mesh: from a webhook through every process to components, by reference."""

from __future__ import annotations

import asyncio
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
from headrace.model import bucket_names
from headrace.model.errors import NotFound
from services.orchestrator.attachment_sweeper import AttachmentSweeper
from tests.support.commands import ROOT, headrace
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer, HttpConnection, fetch, serves
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
        bucket = await ObjectBucket.open(connection, bucket_names.attachment_store("default"))
        return {stored.info.name for stored in await bucket.list_objects()}
    finally:
        await close_nats(connection)


async def swept(mesh: RunningMesh) -> set[str]:
    """What is left once sweepers have looked for an hour: which flows keep objects."""
    connection = await connect_nats(mesh.endpoints.nats, "test")
    try:
        bucket = await ObjectBucket.open(connection, bucket_names.attachment_store("default"))
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


async def test_whoever_dies_in_the_middle_nothing_is_half_there(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """The caller, the gateway (its chunks are collected), a step while it reads: all of it comes to it once more."""
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: cut
steps:
  receive: {{to: [weigh]}}
  weigh: {{component: {PORTER}, function: weigh, config: {{path: {out}}}}}
""",
        )
        begun = await begin_upload(module_mesh, "cut", 50 * MEBIBYTE, 3 * MEBIBYTE)
        await eventually(lambda: _unfinished(module_mesh, 1))
        begun.abort()
        await eventually(lambda: _unfinished(module_mesh, 0))
        begun = await begin_upload(module_mesh, "cut", 50 * MEBIBYTE, 3 * MEBIBYTE)
        await eventually(lambda: _unfinished(module_mesh, 1))
        module_mesh.kill("gateway")
        assert await collected(module_mesh) == 1
        assert await _unfinished(module_mesh, 0)
        begun.abort()
        assert read_lines(out) == []

        body = some_bytes(20 * MEBIBYTE)
        await eventually(lambda: serves(module_mesh.gateway))
        assert (await send(module_mesh, "cut", body, "application/x-tape")).status == 202
        module_mesh.kill("component", "cut", "weigh")
        await eventually(lambda: module_mesh.pids_of("sidecar", "cut", "weigh"))
        module_mesh.kill("sidecar", "cut", "weigh")
        lines = await noted(out, "weigh")
        assert {(line["size"], line["digest"]) for line in lines} == {(len(body), digest(body))}
        assert len({line["id"] for line in lines}) == 1


async def test_several_uploads_at_once_take_no_more_memory(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: wide
steps:
  receive: {{to: [weigh]}}
  weigh: {{component: {PORTER}, function: weigh, config: {{path: {out}}}}}
""",
        )
        assert (await send(module_mesh, "wide", some_bytes(MEBIBYTE), "application/x-tape")).status == 202
        await noted(out, "weigh")
        pids = [module_mesh.pid_of("gateway"), *module_mesh.pids_of("sidecar", "wide", "weigh")]
        pids += module_mesh.pids_of("component", "wide", "weigh")
        before = [pss_of(pid) for pid in pids]
        peaks = list(before)

        def look() -> bool:
            peaks[:] = [max(peak, pss_of(pid)) for peak, pid in zip(peaks, pids, strict=True)]
            return len(read_lines(out)) == 4

        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(upload(module_mesh, "wide", 40 * MEBIBYTE))
            await eventually(look, within_s=40, every_s=0.05)
        assert max(peak - was for peak, was in zip(peaks, before, strict=True)) < 24, (before, peaks)


async def upload(mesh: RunningMesh, flow: str, size: int) -> None:
    connection = await begin_upload(mesh, flow, size, size)
    assert (await connection.answer(40)).status == 202
    await connection.close()


async def begin_upload(mesh: RunningMesh, flow: str, declared: int, sent: int) -> HttpConnection:
    """A request whose body has so many bytes, of which so many are sent."""
    connection = await HttpConnection.open(mesh.gateway)
    connection.write(f"POST /hook/{flow} HTTP/1.1\r\nhost: test\r\ncontent-length: {declared}\r\n\r\n".encode())
    for _ in range(sent // MEBIBYTE):
        connection.write(bytes(MEBIBYTE))
        await connection.drain()
    return connection


async def collected(mesh: RunningMesh) -> int:
    """Removes uploads that came to nothing, and says how many there were."""
    connection = await connect_nats(mesh.endpoints.nats, "test")
    try:
        bucket = await ObjectBucket.open(connection, bucket_names.attachment_store("default"))
        return await bucket.drop_chunks_without_object(-60.0)
    finally:
        await close_nats(connection)


async def _unfinished(mesh: RunningMesh, count: int) -> bool:
    """Whether so many uploads have chunks in the store and are no objects (yet)."""
    connection = await connect_nats(mesh.endpoints.nats, "test")
    try:
        bucket = await ObjectBucket.open(connection, bucket_names.attachment_store("default"))
        prefix = f"$O.{bucket.name}.C."
        info = await JetStreamAssets(connection).stream_info(bucket.stream, prefix + ">")
        begun = set((info or {})["state"].get("subjects", {}))
        return len(begun - {prefix + stored.info.nuid for stored in await bucket.list_objects()}) == count
    finally:
        await close_nats(connection)


def pss_of(pid: int) -> float:
    """MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


async def test_a_reply_of_any_size_comes_back(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """Also to a repeat with the same Idempotency-Key."""
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
        bucket = await ObjectBucket.open(connection, bucket_names.attachment_store("default"))
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
