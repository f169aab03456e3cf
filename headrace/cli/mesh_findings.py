"""What the command line can find out by itself when no orchestrator answers: processes and the broker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.model.causes import CAUSES, Cause
from headrace.model.errors import HeadraceError, NotFound

if TYPE_CHECKING:
    from headrace.edge.data_directory import Endpoints

BROKER_LIMIT_S = 2.0


async def local_findings(error: HeadraceError, address: str | None, data: Path | None) -> list[dict[str, Any]]:
    """Findings in the words of the API, most fundamental first. `error` is why no orchestrator was asked."""
    from headrace.edge.data_directory import read_endpoints
    from headrace.edge.process_table import is_running

    if address:
        return [_finding(Cause.ORCHESTRATOR_UNREACHABLE, f"nobody answers at {address}", [error.message])]
    try:
        endpoints = read_endpoints(data)
    except NotFound as missing:
        return [_finding(Cause.MESH_NOT_RUNNING, missing.message, [error.message])]
    if not is_running(endpoints.pid):
        told = f"its supervisor, process {endpoints.pid}, is gone"
        return [_finding(Cause.MESH_NOT_RUNNING, f"no mesh runs on {endpoints.data}", [told])]
    found = await _broker(endpoints)
    asked = [error.message, *_processes(endpoints)]
    found.append(_finding(Cause.ORCHESTRATOR_UNREACHABLE, "no orchestrator answers; steps that run go on", asked))
    return found


async def _broker(endpoints: Endpoints) -> list[dict[str, Any]]:
    from headrace.edge.broker_greeting import check_broker
    from headrace.model.broker_url import without_password

    try:
        await check_broker(endpoints.nats, timeout_s=BROKER_LIMIT_S)
    except HeadraceError as error:
        refuses = error.reason == "BROKER_CREDENTIALS"
        cause = Cause.BROKER_REFUSES if refuses else Cause.BROKER_UNREACHABLE
        what = "does not take the mesh's credentials" if refuses else "does not answer"
        return [_finding(cause, f"the broker at {without_password(endpoints.nats)} {what}", [error.message])]
    return []


def _processes(endpoints: Endpoints) -> list[str]:
    """What the system says of the mesh's own processes."""
    from headrace.edge.process_table import state_of

    words = {"T": "stopped (SIGSTOP)", "t": "stopped by a debugger", "D": "waits for a disk", "Z": "gone", "": "gone"}
    return [
        f"{role} (process {pid}) is {words[state]}"
        for role, pid in endpoints.processes.items()
        if (state := state_of(pid) if pid else "") in words
    ]


def _finding(cause: Cause, summary: str, evidence: list[str]) -> dict[str, Any]:
    commands = [command for command in CAUSES[cause].commands if "{" not in command]
    return {
        "cause": str(cause),
        "severity": "STALLED",
        "summary": summary,
        "evidence": list(dict.fromkeys(evidence)),
        "commands": commands,
    }
