"""Every bad input of the table (tests/bad_inputs), through its real door: code, reason, field, words and next step as
the table says; nothing half-made stays, and no stack trace is in any answer or log."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.edge.data_directory import locate, lock_holder
from headrace.model.errors import HeadraceError, NotFound
from headrace.wire.flow_file import FlowFile, parse_flow_file
from tests.bad_inputs import components, credentials, flows, http, mesh, state
from tests.bad_inputs.row import Row
from tests.bad_inputs.table import rows_of
from tests.support.commands import ROOT
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh, up_command

RECEIVE = "name: {}\nsteps:\n  receive: {{component: {}, function: receive}}\n"
OTHERS = {
    "no-trigger": "functions: {only: {kind: action}}",
    "configured": "functions: {only: {kind: action, config: {properties: {path: {type: string}}}}}",
}
ONLY = """\
from headrace.sdk import Component

component = Component()


@component.action
def only(body: bytes) -> None: ...
"""
KEPT = {"running", "resting", "drafted"}
PUSHED = {"webhook", *OTHERS}


def all_rows(module: Any) -> Any:
    return pytest.mark.parametrize("row", rows_of(module.SECTION), ids=lambda row: row.id)


@pytest.fixture(scope="module")
def stocked(module_mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """Three flows (running, resting with a version, drafted) and three components."""
    folder = tmp_path_factory.mktemp("stock")
    asyncio.run(_stock(module_mesh, folder))
    return module_mesh


async def _stock(mesh: RunningMesh, folder: Path) -> None:
    async with AsyncClient(mesh.api) as client:
        for name, functions in OTHERS.items():
            (folder / name).mkdir()
            (folder / name / "component.yaml").write_text(f"name: {name}\n{functions}\n")
            (folder / name / "component.py").write_text(ONLY)
            await client.push_component(folder / name)
        for flow in sorted(KEPT):
            await client.apply(flow_file(RECEIVE.format(flow, ROOT / "components" / "webhook"), folder))
        for flow in ("running", "resting"):
            await client.publish(flow)
        await client.start("running")


@pytest.fixture
async def client(stocked: RunningMesh) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stocked.api) as opened:
        yield opened


def flow_file(text: str | bytes, folder: Path) -> FlowFile:
    return parse_flow_file(text, source="flow.yaml", folder=folder)


def given(row: Row) -> Any:
    return row.give() if callable(row.give) else row.give


async def expect(row: Row, work: Callable[[], Awaitable[object]]) -> HeadraceError:
    with pytest.raises(HeadraceError) as refused:
        await work()
    error = refused.value
    facts = (error.code, error.reason, [item.field for item in error.violations])
    assert facts[:2] == (row.code, row.reason), error
    assert not row.field or row.field in facts[2], facts
    assert [words for words in row.says if words not in error.message] == [], error.message
    assert error.next_step, error
    assert row.next_step in error.next_step, error.next_step
    assert "Traceback" not in error.message
    return error


async def nothing_new(client: AsyncClient) -> None:
    assert {flow.name.removeprefix("flows/") for flow in await client.list_flows()} == KEPT
    assert {item.name.removeprefix("components/") for item in await client.list_components()} == PUSHED


@all_rows(flows)
async def test_a_bad_flow_is_refused_and_nothing_is_made(client: AsyncClient, row: Row, tmp_path: Path) -> None:
    if row.door == flows.CREATE:
        spec = json_format.ParseDict(given(row), flow_pb2.FlowSpec())
        await expect(row, lambda: client.create_flow("wrong", spec))
    else:
        file = tmp_path / "flow.yaml"
        if row.give is not None:
            text = given(row)
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        error = await expect(row, lambda: client.apply(file))
        assert error.message.startswith(str(file))
    await nothing_new(client)


@all_rows(components)
async def test_a_bad_component_is_refused_and_nothing_is_made(client: AsyncClient, row: Row, tmp_path: Path) -> None:
    if row.door == components.PUSH:
        row.give(tmp_path)
        await expect(row, lambda: client.push_component(tmp_path))
    else:
        raw = given(row)
        (tmp_path / "bundle").write_bytes(raw)
        try:
            digest = "sha256:" + sha256(gzip.decompress(raw)).hexdigest()
        except (OSError, EOFError):
            digest = "sha256:" + "0" * 64
        await expect(row, lambda: client.push_bundle(tmp_path / "bundle", component="wrong", digest=digest))
        with pytest.raises(NotFound):
            await client.get_component("wrong")
    await nothing_new(client)


@all_rows(state)
async def test_a_verb_that_does_not_fit_changes_nothing(client: AsyncClient, row: Row) -> None:
    before = await client.list_flows()
    await expect(row, lambda: row.give(client))
    assert await client.list_flows() == before


@all_rows(credentials)
async def test_a_credential_that_cannot_be_so_changes_nothing(client: AsyncClient, row: Row) -> None:
    before = await client.list_flows()
    await expect(row, lambda: row.give(client))
    assert (await client.list_flows(), await client.list_credentials()) == (before, [])


@all_rows(http)
async def test_a_bad_request_is_answered(stocked: RunningMesh, row: Row) -> None:
    answer = await fetch(stocked.gateway, row.give["method"], row.give["path"], row.give["body"], row.give["headers"])
    error = answer.json()["error"]
    assert (str(answer.status), error["code"]) == (row.code, row.reason)
    assert [words for words in row.says if words not in error["message"]] == [], error["message"]


@all_rows(mesh)
def test_a_mesh_that_cannot_be_is_refused(row: Row, tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = row.give(data)
    done = subprocess.run(up_command(data, *options), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"headrace: {row.field}")
    assert [words for words in row.says if words not in first] == [], first
    assert row.next_step in second
    assert lock_holder(locate(data)) == 0


def test_no_stack_trace_is_in_any_log(stocked: RunningMesh) -> None:
    """The last one: what was refused above is no incident."""
    for file in stocked.data.rglob("*.log"):
        text = file.read_text(errors="replace")
        assert "Traceback" not in text, file
        assert "incident" not in text, file
