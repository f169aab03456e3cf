"""Credentials on a running mesh: a component gets its value, keeps it, gets another one; nobody else ever sees one."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import InvalidInput, NotFound, Unavailable, WrongState
from tests.support.commands import headrace
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import run_flow

CODE = """
import hashlib
from headrace.sdk import Component, ComponentError, Context

component = Component()
begun = {}

@component.credentials_changed
async def again(fresh: dict, ctx: Context) -> None:
    if fresh["password"].startswith("bad"):
        raise PermissionError("the shop does not take " + fresh["password"])
    begun["with"] = fresh["password"]

@component.init
async def connect(ctx: Context) -> None:
    begun["with"] = ctx.credentials.get("password", "")
    ctx.log.info("connected", password=begun["with"], note="with " + begun["with"])

@component.action
async def login(order: dict, ctx: Context) -> None:
    secret = ctx.credentials["password"]
    if order.get("fail"):
        raise ComponentError("REFUSED", f"the shop does not take {secret}", retryable=False)
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
    await ctx.reply({"call": digest(secret), "init": digest(begun["with"])})
"""
FLOW = """
name: {name}
reply_timeout: 10s
steps:
  in: {{to: [login]}}
  login: {{component: ./login, credential: {credential}}}
"""


def write_component(folder: Path, code: str = CODE, name: str = "login") -> None:
    """A component beside the flow file."""
    (folder / "login").mkdir(parents=True, exist_ok=True)
    (folder / "login" / "component.yaml").write_text(f"name: {name}\nfunctions:\n  login: {{kind: action}}\n")
    (folder / "login" / "component.py").write_text(code)


def digest(text: str) -> str:
    """What the component answers instead of its secret."""
    return hashlib.sha256(text.encode()).hexdigest()


async def ask(mesh: RunningMesh, flow: str, body: Any = None) -> Any:
    """The component's answer."""
    answer = await fetch(
        mesh.gateway, "POST", f"/hook/{flow}", json.dumps(body or {}).encode(), {"content-type": "application/json"}
    )
    return json.loads(answer.body)


@pytest.mark.timeout(120)
async def test_a_step_gets_its_credential_and_keeps_it(module_mesh: RunningMesh, tmp_path: Path) -> None:
    write_component(tmp_path)
    async with AsyncClient(module_mesh.api) as client:
        text = FLOW.format(name="frozen", credential="shop")
        with pytest.raises(InvalidInput, match="'shop' is not a credential"):
            await run_flow(client, tmp_path / "flow.yaml", text)
        made = await client.create_credential("shop", {"user": "u", "password": "first-secret"})
        assert (list(made.fields), made.version) == (["password", "user"], 1)
        assert "first-secret" not in str(made)
        await run_flow(client, tmp_path / "flow.yaml", text)
        assert await ask(module_mesh, "frozen") == {"call": digest("first-secret"), "init": digest("first-secret")}

        changed = await client.update_credential("shop", {"user": "u", "password": "second-secret"})
        assert [(use.deployment, use.version) for use in changed.uses] == [("flows/frozen/deployments/1", 1)]
        for role in ("component", "sidecar"):
            before = module_mesh.kill(role, "frozen", "login")
            await eventually(lambda b=before: b not in module_mesh.pids_of("component", "frozen", "login"))
            assert (await ask(module_mesh, "frozen"))["init"] == digest("first-secret")
        with pytest.raises(WrongState, match="flows/frozen/deployments/1"):
            await client.delete_credential("shop")
        await client.restart("frozen")
        assert (await ask(module_mesh, "frozen"))["call"] == digest("second-secret")
        await client.stop("frozen")
        await client.delete_credential("shop")
        with pytest.raises(NotFound):
            await client.get_credential("shop")


async def runs_with(mesh: RunningMesh, flow: str, secret: str) -> None:
    """Every answer comes from a component that has this value, in its calls and by its hooks."""
    await eventually(lambda: _has(mesh, flow, secret), within_s=20)


async def _has(mesh: RunningMesh, flow: str, secret: str) -> bool:
    return await ask(mesh, flow) == {"call": digest(secret), "init": digest(secret)}


@pytest.mark.timeout(120)
async def test_a_new_value_reaches_what_runs_only_by_a_refresh(module_mesh: RunningMesh, tmp_path: Path) -> None:
    write_component(tmp_path)
    async with AsyncClient(module_mesh.api) as client:
        await client.create_credential("turning", {"password": "turn-one-secret"})
        await run_flow(client, tmp_path / "flow.yaml", FLOW.format(name="turning", credential="turning"))
        component = module_mesh.pid_of("component", "turning", "login")
        assert await client.refresh_credentials("turning") == []

        await client.update_credential("turning", {"password": "turn-two-secret"})
        (step,) = await client.refresh_credentials("turning", "login")
        assert (step.version_before, step.version, step.instances) == (1, 2, 1)
        await runs_with(module_mesh, "turning", "turn-two-secret")
        assert module_mesh.pid_of("component", "turning", "login") == component

        await client.update_credential("turning", {"password": "bad-three-secret"})
        with pytest.raises(
            WrongState, match=r"keeps version 2.*the shop does not take \*\*\*.*component.py:11"
        ) as refused:
            await client.refresh_credentials("turning")
        assert refused.value.reason == "CREDENTIAL_REFUSED"
        await runs_with(module_mesh, "turning", "turn-two-secret")
        for role in ("component", "sidecar"):  # what was accepted counts, whoever starts anew
            module_mesh.kill(role, "turning", "login")
            await runs_with(module_mesh, "turning", "turn-two-secret")
        await client.scale("turning", "login", 2)
        for _ in range(10):
            assert (await ask(module_mesh, "turning"))["init"] == digest("turn-two-secret")

        await client.update_credential("turning", {"password": "turn-four-secret"})
        module_mesh.kill("orchestrator")
        (step,) = await eventually(lambda: _refreshed(client, "turning"), within_s=20)
        assert (step.version_before, step.version, step.instances) == (2, 4, 2)
        await runs_with(module_mesh, "turning", "turn-four-secret")
        told = [
            "login (d1): turning version 2 -> 4",
            "refused: step 'login' (d1) keeps version 2 of credential 'turning', version 3 was not accepted: the shop "
            "does not take *** (PermissionError, component.py:11)",
            "login (d1): turning version 1 -> 2",
        ]
        await eventually(lambda: _refreshes(client, told), within_s=20)
        await client.stop("turning")


async def _refreshed(client: AsyncClient, flow: str) -> list[Any]:
    """What was refreshed, once there is somebody to do it."""
    try:
        return list(await client.refresh_credentials(flow))
    except Unavailable:
        return []


async def _refreshes(client: AsyncClient, told: list[str]) -> bool:
    history, _ = await client.list_history("turning")
    assert [entry.detail for entry in history if entry.what == "refresh-credentials"] == told
    return True


ASKED = """
import os, threading
from pathlib import Path
from headrace.sdk import Choice, Component, ComponentError, Context, Metadata

component = Component()

@component.verify
def check(shop: dict, ctx: Context) -> None:
    if shop["password"] == "hang":
        threading.Event().wait(60)
    if shop["password"] == "die":
        os._exit(7)
    if shop["password"] != "right-secret":
        raise PermissionError(f"the shop does not take {shop['password']}")

@component.metadata
async def schemas(ctx: Context) -> Metadata:
    return Metadata(input={"type": "object", "title": ctx.config["table"]}, output=list[int])

@component.select_model
async def tables(ctx: Context) -> dict:
    if ctx.credentials["password"] != "right-secret":
        raise PermissionError("wrong")
    return {"t1": "Orders", "t2": "Customers"}

@component.action
async def login(order: dict, ctx: Context) -> None:
    ctx.log.info("asked", table=ctx.config["table"], password=ctx.credentials["password"])
    if order.get("fail"):
        raise ComponentError("REFUSED", "no " + ctx.credentials["password"], retryable=False)
    if not ctx.dry_run:
        Path(order["file"]).write_text("real")
    await ctx.emit({"n": order["n"] + 1}, headers={"shop": "east"}, key="k")
    await ctx.snapshot.merge({"last": order["n"]})
    await ctx.reply({"dry": ctx.dry_run, "kept": ctx.snapshot.value}, status=201)
"""


@pytest.mark.timeout(150)
async def test_steps_are_asked_and_run_away_from_the_flow(module_mesh: RunningMesh, tmp_path: Path) -> None:
    write_component(tmp_path, ASKED, "asked")
    data, file = module_mesh.data, tmp_path / "effect"
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"n": 1, "file": str(file)}))
    async with AsyncClient(module_mesh.api) as client:
        await client.create_credential("asked", {"password": "right-secret"})
        text = FLOW.format(name="asked", credential="asked").replace("./login,", "./login, config: {table: t1},")
        await run_flow(client, tmp_path / "flow.yaml", text)
        processes = set(module_mesh.processes())

        (good,) = await client.verify_credential("asked")
        assert (good.verified, good.step) == (True, "flows/asked/steps/login")
        ran = headrace("step", "run", "asked", "login", "--input", str(order), data=data).ok()
        for part in (
            'data (key k): {"n":2}  shop: east',
            'reply 201: {"dry":true,"kept":{"last":1}}',
            "snapshot merge",
            'log info: asked {"table": "t1", "password": "***"}',
            "pinned by flows/asked/deployments/1, credentials/asked version 1",
        ):
            assert part in ran
        assert not file.exists()
        assert (await client.list_snapshots("asked")).snapshots == []
        await client.draft_from("asked", 1)
        failed = await client.run_step("asked", "login", b'{"fail": true}', draft=True)
        assert (failed.events[0].error.message, failed.step.deployment) == ("no ***", "")
        metadata = await client.step_metadata("asked", "login", config={"table": "t2"})
        assert (metadata.in_schema["title"], metadata.out_schema["items"]["type"]) == ("t2", "integer")
        assert [item.label for item in (await client.select_model("asked", "login", "tables")).choices] == [
            "Orders",
            "Customers",
        ]

        await client.update_credential("asked", {"password": "wrong-secret"})
        (newest,), (used,) = [await client.verify_credential("asked", used_version=used) for used in (False, True)]
        assert (newest.version, newest.verified, newest.problem) == (2, False, "the shop does not take ***")
        assert (newest.kind, newest.where) == ("PermissionError", "component.py:15")
        assert (used.version, used.verified) == (1, True)
        with pytest.raises(WrongState, match=r"wrong \(PermissionError, component.py:24\)"):
            await client.select_model("asked", "login", "tables", credential="asked")
        with pytest.raises(WrongState, match="has no model 'nothing'; it has tables"):
            await client.select_model("asked", "login", "nothing")
        await client.update_credential("asked", {"password": "die"})
        (died,) = await client.verify_credential("asked", component="asked@1")
        assert (died.asked, died.kind) == (False, "COMPONENT_EXITED_IN_VERIFY")

        await client.update_credential("asked", {"password": "hang"})
        hanging = asyncio.create_task(client.verify_credential("asked", step="asked/login"))
        await eventually(lambda: len(module_mesh.processes()) >= len(processes) + 2, within_s=20)
        hanging.cancel()  # whoever asked goes away: the process goes, too
        await eventually(lambda: set(module_mesh.processes()) == processes, within_s=20)

        (letter,) = await eventually(lambda: _refused(module_mesh, client), within_s=20)
        again = await client.run_step("asked", dead_letter=int(letter))
        assert again.events[0].error.code == "REFUSED"
        assert set(module_mesh.processes()) == processes
        await client.stop("asked")


async def _refused(mesh: RunningMesh, client: AsyncClient) -> list[str]:
    found = await client.list_dead_letters("asked")
    if not found.dead_letters:
        await ask(mesh, "asked", {"fail": True})
    return [item.name.rpartition("/")[2] for item in found.dead_letters][:1]
