"""Large bodies and attachments on a real mesh: from a webhook through every process to components, by reference."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer, fetch
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import run_flow

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


async def send(
    mesh: RunningMesh, flow: str, body: bytes, content_type: str, headers: dict[str, str] | None = None
) -> HttpAnswer:
    return await fetch(mesh.gateway, "POST", f"/hook/{flow}", body, {"content-type": content_type, **(headers or {})})
