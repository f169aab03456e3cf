"""A flow of two steps, webhook → act, whose second component is a folder of its own with code that a test gives."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from headrace.api.flow.v1 import flow_pb2
from headrace.client import Client
from tests.support.commands import ROOT, Done, headrace
from tests.support.http_connection import HttpAnswer, fetch
from tests.support.mesh import RunningMesh

HEAD = """
import asyncio
import os
import time
from pathlib import Path

from headrace.sdk import Component, ComponentError, Context

component = Component()
"""
REPLIES = "@component.action\nasync def act(order: dict, ctx: Context) -> None:\n    await ctx.reply({'said': %r})\n"


def replying(word: str) -> str:
    """Code of a component that answers `{"said": word}`."""
    return HEAD + REPLIES % word


@dataclass(frozen=True)
class SmallFlow:
    """Made by `write`; flow and component have the same name, which no other test uses."""

    name: str
    folder: Path
    mesh: RunningMesh

    @classmethod
    def write(
        cls, mesh: RunningMesh, folder: Path, code: str, *, head: str = "reply_timeout: 10s", act: str = ""
    ) -> SmallFlow:
        """`head` are further lines of the flow file, `act` further settings of the second step."""
        name = f"small-{secrets.token_hex(4)}"
        component = folder / "act"
        component.mkdir(parents=True)
        (component / "component.yaml").write_text(f"name: {name}\nfunctions: {{act: {{kind: action}}}}\n")
        (component / "component.py").write_text(code)
        webhook = ROOT / "components" / "webhook"
        (folder / "flow.yaml").write_text(
            f"name: {name}\ntype: realtime\n{head}\nsteps:\n"
            f"  receive: {{component: {webhook}, function: receive, to: [act]}}\n"
            f"  act: {{component: ./act{act and ', ' + act}}}\n"
        )
        return cls(name, folder, mesh)

    def flow(self, verb: str, *options: str) -> Done:
        """`headrace flow VERB` of this flow."""
        subject = self.folder if verb == "apply" else self.name
        return headrace("flow", verb, subject, *options, data=self.mesh.data)

    def publish(self) -> None:
        """Applied and published."""
        with Client(self.mesh.api) as client:
            client.apply(self.folder / "flow.yaml")
            client.publish(self.name)

    def start(self) -> None:
        with Client(self.mesh.api) as client:
            client.start(self.name)

    def run(self) -> None:
        """Applied, published and started."""
        self.publish()
        self.start()

    def status(self) -> flow_pb2.FlowStatus:
        with Client(self.mesh.api) as client:
            return client.get_status(self.name)

    def push(self, code: str) -> None:
        """A newer revision of the component."""
        (self.folder / "act" / "component.py").write_text(code)
        with Client(self.mesh.api) as client:
            assert client.push_component(self.folder / "act").created

    async def post(self, body: bytes = b"{}", *, gateway: int = 0, **headers: str) -> HttpAnswer:
        """One request through the gateway of that number; `idempotency_key=...` becomes a header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await fetch(self.mesh.endpoints.gateways[gateway], "POST", f"/hook/{self.name}", body, named)

    def remove(self) -> None:
        """Stopped, whatever waits, its dead letters discarded, and deleted."""
        with Client(self.mesh.api) as client:
            if client.get_status(self.name).state != flow_pb2.FLOW_STATE_STOPPED:
                client.stop(self.name, drop=True)
            client.discard_dead_letters(self.name, all_letters=True)
            client.delete_flow(self.name)
