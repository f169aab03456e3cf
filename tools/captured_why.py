"""Writes docs/why.md: what `headrace why` says of troubles that this script makes, on a mesh of its own.

python -m tools.captured_why
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headrace.edge.process_table import environment_value, processes_with

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "docs" / "why.md"
LIMIT_S = 60.0
HEAD = """# Why

<!-- Made by tools/captured_why.py, which makes the troubles and asks; do not edit by hand. -->

What `headrace why` said of a flow `shop` (webhook, `price`, `mail`; at most 20 messages wait for a step) in each of
these troubles. Times and ids are those of that run. All causes: [troubleshooting.md](troubleshooting.md).
"""
COMPONENT = """import asyncio, os, time

from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.action
async def price(order: dict, ctx: Context) -> dict:
    if order.get("loop"):
        time.sleep(order["loop"])
    if order.get("sku") == "X":
        raise ComponentError("CATALOGUE_AWAY", "no answer from the catalogue", retryable=True)
    return order


@component.action
async def mail(order: dict, ctx: Context) -> None:
    await asyncio.sleep(order.get("smtp", 0))
"""
FLOW = """name: shop
type: realtime
max_waiting: 20
steps:
  order: {{component: {webhook}, function: receive, to: [price]}}
  price: {{component: ./shop, function: price, to: [mail], prefetch: 4, retry: {{attempts: 3, backoff: 20s}}}}
  mail: {{component: ./shop, function: mail, prefetch: 2}}
"""


class Mesh:
    """A mesh in a folder, and commands that ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "HEADRACE_DATA": str(folder / "data")}

    def run(self, *words: str) -> str:
        command = [sys.executable, "-m", "headrace.cli.main", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        return done.stdout

    def why(self, words: str, cause: str) -> str:
        """The answer that names this cause first."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            said = self.run(*words.split())
            if f"\n1. {cause}" in said:
                return f"$ headrace {words}\n{said}"
            if time.monotonic() > deadline:
                sys.exit(f"captured_why: {cause} was not named:\n{said}")

    def pids(self, step: str, module: str) -> list[int]:
        """Processes of an instance of a step."""
        found = processes_with("HEADRACE_INSTANCE", f"default.shop.d1.{step}.0")
        return [pid for pid in found if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        mesh = Mesh(Path(name))
        (mesh.folder / "shop").mkdir()
        manifest = "name: shop\nfunctions:\n  price: {kind: action}\n  mail: {kind: action}\n"
        (mesh.folder / "shop" / "component.yaml").write_text(manifest)
        (mesh.folder / "shop" / "component.py").write_text(COMPONENT)
        (mesh.folder / "shop.yaml").write_text(FLOW.format(webhook=ROOT / "components" / "webhook"))
        mesh.run("up", "--detach", "--profile", "fast", "--api-port", "0", "--http-port", "0")
        try:
            mesh.run("flow", "apply", "shop.yaml", "--run")
            page = "\n".join([HEAD, *_captures(mesh)])
        finally:
            mesh.run("down")
    PLACE.write_text(re.sub(r"process \d+", "process 4711", re.sub(r"kill -(\w+) \d+", r"kill -\1 4711", page)))
    return 0


def _captures(mesh: Mesh) -> list[str]:
    found = [_section("Nothing is wrong", mesh.why("why shop", "NO_INPUT"))]
    for _ in range(40):
        mesh.run("inject", "shop", '{"smtp": 8}')
    said = mesh.why("why shop", "COMPONENT_BUSY")
    found.append(_section("The mail server is slow, and everything before it is full", said))
    mesh.run("flow", "restart", "shop")
    mesh.run("flow", "stop", "shop", "--drop", "--yes")
    found.append(_section("Somebody stopped it", mesh.why("why shop", "FLOW_STOPPED")))
    mesh.run("flow", "start", "shop")
    mesh.run("inject", "shop", '{"loop": 20}')
    said = mesh.why("why shop/price", "COMPONENT_BLOCKED")
    found.append(_section("Plain code blocks the event loop", said))
    mesh.run("flow", "stop", "shop", "--drop", "--yes")
    mesh.run("flow", "start", "shop")
    mesh.run("inject", "shop", '{"sku": "X"}')
    found.append(_section("A call failed and waits for its next attempt", mesh.why("why shop", "RETRY_DELAY")))
    orchestrators = [
        pid
        for pid in processes_with("HEADRACE_MESH", str(mesh.folder / "data"))
        if "services.orchestrator" in Path(f"/proc/{pid}/cmdline").read_text()
        and environment_value(pid, "HEADRACE_INSTANCE") is None
    ]
    for pid in orchestrators:
        os.kill(pid, signal.SIGSTOP)
    try:
        said = mesh.why("why shop", "ORCHESTRATOR_UNREACHABLE")
    finally:
        for pid in orchestrators:
            os.kill(pid, signal.SIGCONT)
    found.append(_section("The orchestrator does not answer", said))
    return found


def _section(heading: str, said: str) -> str:
    return f"## {heading}\n\n```text\n{said.rstrip()}\n```\n"


if __name__ == "__main__":
    sys.exit(main())
