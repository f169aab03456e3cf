"""No credential in anything that a mesh writes, sends, shows or keeps, whatever its component does with it; and what
happens where the key is lost or the credential changes during a switch."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.edge.data_directory import locate
from headrace.model.errors import HeadraceError, WrongState
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.otlp_collector import Collector, otlp_collector
from tests.support.small_mesh_flow import letters, run_flow

MARK = 'MARK"er-7f3a\\9c Ü+/=x'
OTHER = "OTHERMARKER-41c7e2"
# What is in every form that a text or a log may give to one of them; and base64, alone or behind `user:`.
FORMS = (
    b"er-7f3a",
    b"OTHERMARKER-41c7e2",
    *(b64encode(before + MARK.encode()).rstrip(b"=")[8:-2] for before in (b"", b"user:", b"u")),
)
CODE = """
import base64, logging, sys
from urllib.parse import quote
from opentelemetry import trace
from headrace.sdk import Component, ComponentError, Context, Rebound

component = Component()
waited = set()

@component.init
async def begin(ctx: Context) -> None:
    secret = ctx.credentials["nested"]["password"]
    print("init with", secret)
    if ctx.config.get("break"):
        raise RuntimeError(f"cannot log in with {secret!r}")

@component.verify
async def check(ctx: Context) -> None:
    raise PermissionError("refused: " + ctx.credentials["nested"]["password"])

@component.action
async def leak(order: dict, ctx: Context) -> None:
    secret = ctx.credentials["nested"]["password"]
    basic = base64.b64encode(b"user:" + secret.encode()).decode()
    ctx.log.warning("secret is " + secret, field=secret, deep={"a": [secret]}, basic=basic, url=quote(secret, safe=""))
    logging.getLogger("library").error("library says %s", secret)
    print(repr(secret), file=sys.stderr)
    with trace.get_tracer("own").start_as_current_span("login " + secret) as span:
        span.set_attribute("password", secret)
        span.add_event("with " + secret)
        span.set_status(trace.StatusCode.ERROR, secret)
    if order["how"] == "crash":
        raise ValueError(f"unexpected {secret}")
    if order["how"] == "rebound" and ctx.message.id not in waited:
        waited.add(ctx.message.id)
        raise Rebound("not with " + secret, delay_s=0.05)
    raise ComponentError("REFUSED", f"401 unauthorized with {secret} and {basic}", retryable=False)
"""
FLOW = """
name: {name}
reply_timeout: 10s
steps:
  in: {{to: [leak]}}
  leak: {{component: ./leak, credential: {credential}, retry: {{attempts: 2, backoff: 10ms}}, config: {{{config}}}}}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningMesh, Collector]]:
    """A mesh whose traces and logs are exported, and what came of them."""
    with ExitStack() as stack:
        collector = stack.enter_context(otlp_collector())
        folder = tmp_path_factory.mktemp("secrecy")
        mesh = stack.enter_context(start_mesh(folder, "fast", "--otlp", collector.url, ack_wait_s=3.0))
        yield mesh, collector


def write_leak(folder: Path) -> None:
    (folder / "leak").mkdir()
    (folder / "leak" / "component.yaml").write_text("name: leak\nfunctions:\n  leak: {kind: action}\n")
    (folder / "leak" / "component.py").write_text(CODE)


async def post(mesh: RunningMesh, flow: str, how: str) -> bytes:
    """The answer, its headers included."""
    body, headers = json.dumps({"how": how}).encode(), {"content-type": "application/json"}
    answer = await fetch(mesh.gateway, "POST", f"/hook/{flow}", body, headers)
    return repr(answer).encode() + answer.body


def kept_files(mesh: RunningMesh) -> list[Path]:
    """All that the mesh has written: broker's store, logs, caches, sockets' directory; but the keys themselves."""
    data = locate(mesh.data)
    files = [file for folder in (data.path, data.run) for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if file != data.credential_keys]


def command_lines(mesh: RunningMesh) -> bytes:
    found = b""
    for pid in [mesh.process.pid, *mesh.processes()]:
        for name in ("cmdline", "environ"):
            try:
                found += Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
    return found


async def everything_told(client: AsyncClient, flow: str) -> list[Any]:
    """Every answer of the API that could have to do with it."""
    found: list[Any] = [await client.get_credential("marked"), await client.list_credentials()]
    found += [await client.get_status(flow), await client.get_flow(flow), await client.list_history(flow)]
    found += [line async for line in client.tail_logs(flow, lines=500)]
    found += await letters(client, flow, 1)
    found += [await client.explain(flow), await client.list_executions(flow)]
    found += [await client.get_trace(item.name.rpartition("/")[2], flow=flow) for item in found[-1].executions]
    found += await client.verify_credential("marked")
    found.append(await client.run_step(flow, "leak", b'{"how": "crash"}'))
    found.append(await client.mesh_status())
    return found


def leaks(raw: bytes) -> list[bytes]:
    return [form for form in FORMS if form in raw]


@pytest.mark.timeout(120)
async def test_no_secret_is_in_anything_that_a_mesh_tells_or_keeps(
    told: tuple[RunningMesh, Collector], tmp_path: Path
) -> None:
    mesh, collector = told
    write_leak(tmp_path)
    async with AsyncClient(mesh.api) as client:
        value = {"user": "u", "nested": {"password": MARK}}
        answers: list[Any] = [await client.create_credential("marked", value)]
        with pytest.raises(HeadraceError) as twice:
            await client.create_credential("marked", {**value, "x": OTHER})
        answers += [twice.value, await client.update_credential("marked", {"nested": {"password": OTHER}})]
        answers.append(await client.update_credential("marked", value))
        with pytest.raises(HeadraceError) as wrong:
            await client.create_credential("wrong", {"bad name " + MARK: MARK})
        answers.append(wrong.value)
        flow = await run_flow(client, tmp_path / "flow.yaml", FLOW.format(name="leaky", credential="marked", config=""))
        heard = [await post(mesh, flow, how) for how in ("error", "crash", "rebound")]
        await eventually(lambda: letters(client, flow, 3), within_s=20)
        text = FLOW.format(name="broken", credential="marked", config="break: true")
        with pytest.raises(HeadraceError, match=r"cannot log in with '\*\*\*'") as failed:
            await run_flow(client, tmp_path / "flow.yaml", text)
        answers += [failed.value, *await everything_told(client, flow)]
        shown = "\n".join([*map(str, answers), *map(repr, answers)]).encode() + b"".join(heard)
        await eventually(lambda: any("login ***" in span.name for span in collector.spans), within_s=20)
        await eventually(lambda: any("secret is ***" in record.body for record in collector.records), within_s=20)
        assert b"401 unauthorized with ***" in shown
        assert (
            b" version 3: refused: *** (PermissionError, component.py:" in shown
        )  # by `why`, which asks the component
        assert leaks(shown) == []
        assert leaks(repr([collector.spans, collector.records]).encode()) == []
        assert leaks(command_lines(mesh)) == []
        files = kept_files(mesh)
        assert [(file, found) for file in files if (found := leaks(file.read_bytes()))] == []
        assert any(b"401 unauthorized with ***" in file.read_bytes() for file in files)  # it was looked for well
        await client.stop(flow)


@pytest.mark.timeout(120)
async def test_a_lost_key_stops_nothing_that_runs_and_a_switch_takes_the_newest(
    told: tuple[RunningMesh, Collector], tmp_path: Path
) -> None:
    mesh, _ = told
    write_leak(tmp_path)
    keys = locate(mesh.data).credential_keys
    assert keys.stat().st_mode & 0o777 == 0o600
    async with AsyncClient(mesh.api) as client:
        await client.create_credential("locked", {"nested": {"password": MARK}})
        flow = await run_flow(
            client, tmp_path / "flow.yaml", FLOW.format(name="locked", credential="locked", config="")
        )
        lines = keys.read_text()
        keys.unlink()
        for call in (client.create_credential("other", {"a": "b"}), client.update_credential("locked", {"a": "b"})):
            with pytest.raises(WrongState, match=r"credentials.key cannot be read") as refused:
                await call
            assert refused.value.reason == "CREDENTIAL_KEY_MISSING"
        assert b"REFUSED" in await post(mesh, flow, "error")
        mesh.kill("component", flow, "leak")
        await eventually(lambda: _answers(mesh, flow), within_s=20)  # the value is in its sidecar's memory
        with pytest.raises(HeadraceError, match=r"credentials.key cannot be read"):
            await client.restart(flow, timeout_s=15)
        assert b"REFUSED" in await post(mesh, flow, "error")  # the old deployment goes on
        keys.touch(mode=0o644)
        keys.write_text(lines)
        with pytest.raises(WrongState, match=r"others may read it \(mode 0644\)"):
            await client.create_credential("other", {"a": "b"})
        keys.chmod(0o600)

        await client.update_credential("locked", {"nested": {"password": OTHER}})
        switch = await client.begin_restart(flow)
        await client.update_credential("locked", {"nested": {"password": MARK + "3"}})  # during the switch
        await client.wait_operation(switch, timeout_s=30)
        (use,) = (await eventually(lambda: _only_use(client), within_s=20)).uses
        assert use.version in (2, 3)
        refreshed = await client.refresh_credentials(flow)
        assert [(step.version_before, step.version) for step in refreshed] == ([(2, 3)] if use.version == 2 else [])

        keys.write_text(keys.read_text() + "\n")
        before = keys.read_text()
        fresh = "A" * 43 + "="
        keys.write_text(fresh + "\n" + before)  # rotated: a new first key
        done = await client.reseal_credentials()
        assert done.resealed == done.values > 0
        keys.write_text(fresh + "\n")  # the old one is gone
        mesh.kill("sidecar", flow, "leak")
        await eventually(lambda: _answers(mesh, flow), within_s=20)
        keys.write_text(before)  # the new one is lost
        with pytest.raises(WrongState, match=r"is sealed with key \w{8}, which is not in file") as lost:
            await client.reseal_credentials()
        assert lost.value.reason == "CREDENTIAL_KEY_MISSING"
        keys.write_text(fresh + "\n" + before)
        await client.stop(flow)


async def _answers(mesh: RunningMesh, flow: str) -> bool:
    return b"REFUSED" in await post(mesh, flow, "error")


async def _only_use(client: AsyncClient) -> Any:
    """The credential, once one deployment uses it."""
    found = await client.get_credential("locked")
    return found if len(found.uses) == 1 else None
