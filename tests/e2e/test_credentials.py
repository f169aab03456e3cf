"""Credentials on a running mesh: a component gets its value, keeps it, gets another one; nobody else ever sees one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import InvalidInput, NotFound, WrongState
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import run_flow

CODE = """
import hashlib
from headrace.sdk import Component, ComponentError, Context

component = Component()
begun = {}

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
  in: {{component: webhook, to: [login]}}
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
        await client.push_component(ROOT / "components" / "webhook")
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
