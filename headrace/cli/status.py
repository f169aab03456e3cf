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
    hint,
    print_error,
    print_json,
    run_with_client,
)
from headrace.cli.status_text import as_text
from headrace.cli.terminal import show_text
from headrace.model.errors import HeadraceError, NotFound

if TYPE_CHECKING:
    from headrace.client import AsyncClient
    from headrace.edge.data_directory import Endpoints

ANSWER_LIMIT_S = 3.0


def status(data: DataOption = None, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Show the mesh in one screen: processes, leader, broker, flows with what waits and fails, and what is wrong."""
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
        elif facts.get("flows") and not facts.get("alarms"):
            hint("headrace top")
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
        "metrics": endpoints.metrics,
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
    """What the API says: version, leader, broker, flows, alarms. While nobody leads, what every orchestrator knows.
    Unavailable when none answers."""
    from headrace.cli.plain import plain

    try:
        status = await client.mesh_status()
    except HeadraceError:
        info, flows = await client.server_info(), await client.list_flows()
        return _server_facts(client, info) | {"flows": [_stored_facts(flow) for flow in flows]}
    return _server_facts(client, status.server) | {
        "broker": plain(status.broker),
        "flows": [_flow_facts(flow) for flow in status.flows],
        "alarms": [
            {"flow": alarm.flow.removeprefix("flows/"), "message": alarm.message, "next_step": alarm.next_step}
            for alarm in status.alarms
        ],
    }


def _server_facts(client: AsyncClient, info: Any) -> dict[str, Any]:
    return {
        "version": info.version,
        "code": info.code,
        "api": client.address,
        "profile": info.profile,
        "broker_version": info.broker_version,
        "leader": info.leader,
        "leader_address": info.leader_address,
        "epoch": info.epoch,
        "ingress_repairs": info.ingress_repairs,
        "strays_moved": info.strays_moved,
    }


def _flow_facts(flow: Any) -> dict[str, Any]:
    from headrace.api.flow.v1 import flow_pb2

    return {
        "flow": flow.flow.removeprefix("flows/"),
        "state": flow_pb2.FlowState.Name(flow.state).removeprefix("FLOW_STATE_"),
        "health": flow.health,
        "version": flow.version,
        "deployment": flow.deployment,
        "draft": flow.draft,
        "waiting": flow.waiting,
        "in_flight": flow.in_flight,
        "oldest_age_s": flow.oldest_age.ToMilliseconds() / 1000,
        "processed": flow.processed,
        "failed_attempts": flow.failed_attempts,
        "dead_letters": flow.dead_letters,
    }


def _stored_facts(flow: Any) -> dict[str, Any]:
    """Of a flow as it is stored: who leads knows more, and nobody does."""
    from headrace.cli.plain import plain

    facts = plain(flow)
    return {
        "flow": str(facts.get("name", "")).removeprefix("flows/"),
        "state": facts.get("state", ""),
        "version": facts.get("running_version", 0) or facts.get("latest_version", 0),
        "deployment": facts.get("active_deployment", 0),
        "draft": "draft" in facts,
    }
