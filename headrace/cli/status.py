"""`headrace status`: what runs where, and in which state the flows are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headrace.cli.invocation import (
    UNREACHABLE,
    AddressOption,
    DataOption,
    JsonOption,
    error_facts,
    print_error,
    print_json,
    run_with_client,
)
from headrace.cli.tables import table
from headrace.cli.terminal import show_text
from headrace.model.errors import HeadraceError, NotFound

if TYPE_CHECKING:
    from headrace.client import AsyncClient
    from headrace.edge.data_directory import Endpoints

ANSWER_LIMIT_S = 3.0


def status(data: DataOption = None, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Show processes, addresses, durability profile and flows with their states."""
    if address:
        facts = run_with_client(read_mesh, address=address, data=data, as_json=as_json)
        problem = None
    else:
        facts, problem = _local_facts(data, as_json)
    if as_json:
        print_json(facts | ({"error": error_facts(problem)} if problem else {}))
    else:
        show_text(as_text(facts))
        if problem:
            print_error(problem)
    raise typer.Exit(UNREACHABLE if problem else 0)


def _local_facts(data: Path | None, as_json: bool) -> tuple[dict[str, Any], HeadraceError | None]:
    """The processes of this machine's mesh and what its API says; the problem when it does not answer."""
    from headrace.client import AsyncClient
    from headrace.edge.data_directory import read_endpoints

    try:
        endpoints = read_endpoints(data)
    except NotFound as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(UNREACHABLE) from None

    async def ask() -> dict[str, Any]:
        async with AsyncClient(endpoints.any_api, timeout_s=ANSWER_LIMIT_S) as client:
            return await read_mesh(client)

    facts = local_facts(endpoints)
    try:
        return facts | asyncio.run(ask()), None
    except HeadraceError as error:
        return facts, error


def local_facts(endpoints: Endpoints) -> dict[str, Any]:
    """What the data directory says."""
    from headrace.edge.process_table import is_running
    from headrace.model.broker_url import without_password

    addresses = {"orchestrator": endpoints.api, "registry": endpoints.registry, "agent": endpoints.agent}
    addresses["broker"] = without_password(endpoints.nats)
    orchestrators = [role for role in endpoints.processes if role.startswith("orchestrator")]
    addresses |= dict(zip(orchestrators, endpoints.apis, strict=False))
    roles = [role for role in endpoints.processes if role.startswith("gateway")]
    addresses |= dict(zip(roles, (f"http://{gateway}" for gateway in endpoints.gateways), strict=False))
    return {
        "data": endpoints.data,
        "pid": endpoints.pid,
        "profile": endpoints.profile,
        "otlp": endpoints.otlp,
        "processes": [
            {
                "role": role,
                "pid": pid,
                "state": "UP" if pid and is_running(pid) else "RESTARTING",
                "address": addresses.get(role, ""),
            }
            for role, pid in endpoints.processes.items()
        ],
    }


async def read_mesh(client: AsyncClient) -> dict[str, Any]:
    """What the API says: version, profile, flows. Unavailable when it does not answer."""
    info = await client.server_info()
    flows = await client.list_flows()
    return {
        "version": info.version,
        "api": client.address,
        "profile": info.profile,
        "leader": info.leader,
        "leader_address": info.leader_address,
        "epoch": info.epoch,
        "ingress_repairs": info.ingress_repairs,
        "strays_moved": info.strays_moved,
        "flows": [_flow_facts(flow) for flow in flows],
    }


def _flow_facts(flow: Any) -> dict[str, Any]:
    from headrace.cli.plain import plain

    facts = plain(flow)
    return {
        "flow": str(facts.get("name", "")).removeprefix("flows/"),
        "state": facts.get("state", ""),
        "version": facts.get("running_version", 0) or facts.get("latest_version", 0),
        "deployment": facts.get("active_deployment", 0),
        "draft": "draft" in facts,
    }


def as_text(facts: dict[str, Any]) -> str:
    """Two tables and what they are about."""
    head = [f"{name}: {facts[name]}" for name in ("data", "api", "profile", "version", "otlp") if facts.get(name)]
    if facts.get("epoch"):
        head.append(f"leader: {facts['leader'] or 'none'} at {facts['leader_address']} (epoch {facts['epoch']})")
    if facts.get("ingress_repairs") or facts.get("strays_moved"):
        repairs = f"{facts['ingress_repairs']} stale ingress switches, {facts['strays_moved']} stray messages"
        head.append(f"put right: {repairs}")
    parts = ["\n".join(head)]
    if "processes" in facts:
        rows = [(item["role"], item["state"], item["pid"] or "-", item["address"]) for item in facts["processes"]]
        parts.append(table(("PROCESS", "STATE", "PID", "ADDRESS"), rows))
    if facts.get("flows"):
        flows = [
            (item["flow"], item["state"], item["version"] or "-", item["deployment"] or "-", "yes" * item["draft"])
            for item in facts["flows"]
        ]
        parts.append(table(("FLOW", "STATE", "VERSION", "DEPLOYMENT", "DRAFT"), flows))
    elif "flows" in facts:
        parts.append("no flows; write one and type: headrace flow apply FLOW.yaml")
    return "\n\n".join(parts)
