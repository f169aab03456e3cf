"""A flow from the text of its file on a mesh that runs: started, sent to, looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace.client import AsyncClient
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh


async def run_flow(client: AsyncClient, file: Path, text: str) -> str:
    """Applied, published and started; answers its name."""
    file.write_text(text)
    applied = await client.apply(file)
    name = applied.flow.name.removeprefix("flows/")
    await client.publish(name)
    await client.start(name)
    return name


async def post(mesh: RunningMesh, flow: str, body: Any) -> None:
    """One request with this JSON body, which is taken."""
    answer = await fetch(
        mesh.gateway, "POST", f"/hook/{flow}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    assert answer.status == 202, answer.body


async def letters(client: AsyncClient, flow: str, count: int) -> list[Any]:
    """The flow's dead letters, whole, once there are so many; until then none."""
    found = await client.list_dead_letters(flow)
    if len(found.dead_letters) < count:
        return []
    return [await client.get_dead_letter(flow, int(item.name.rpartition("/")[2])) for item in found.dead_letters]
