"""`headrace doctor`: whether a mesh can run here, and what to do where it cannot."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headrace.cli.invocation import FAILED, DataOption, JsonOption, print_json
from headrace.cli.terminal import show_text, waiting
from headrace.edge.data_directory import locate, lock_holder, read_endpoints
from headrace.model.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.cli.doctor_checks import Finding

ANSWER_LIMIT_S = 3.0


def doctor(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Look at Python, broker, data directory, disk, limits, ports, clock, leftovers; say what to do about each.

    Exit status 1 where something keeps a mesh from running; warnings do not count."""
    from headrace.cli.doctor_checks import ERROR, WARNING, all_checks

    directory = locate(data)
    with waiting("looking"):
        findings = [check() for check in all_checks(directory)]
        if lock_holder(directory):
            findings.append(_check_mesh(data))
    errors = [finding for finding in findings if finding.state == ERROR]
    warnings = [finding for finding in findings if finding.state == WARNING]
    if as_json:
        print_json({"ok": not errors, "findings": [asdict(finding) for finding in findings]})
    else:
        show_text("\n".join(_lines(findings)))
        print(f"{len(errors)} errors, {len(warnings)} warnings")
    if errors:
        raise typer.Exit(FAILED)


def _check_mesh(data: Path | None) -> Finding:
    from headrace.cli.doctor_checks import ERROR, OK, WARNING, Finding
    from headrace.client import AsyncClient
    from headrace.edge.process_table import is_running

    async def ask(address: str) -> str:
        async with AsyncClient(address, timeout_s=ANSWER_LIMIT_S) as client:
            info = await client.server_info()
            return f"{info.version} answers at {address}, led by {info.leader or 'nobody'}"

    try:
        ends = read_endpoints(data)
        found = asyncio.run(ask(ends.any_api))
    except HeadraceError as error:
        return Finding("mesh", ERROR, error.message, f"See its logs: {locate(data).logs}")
    away = [role for role, pid in ends.processes.items() if not pid or not is_running(pid)]
    if away:
        return Finding("mesh", WARNING, f"{found}; being restarted: {', '.join(away)}", f"See {locate(data).logs}")
    return Finding("mesh", OK, found)


def _lines(findings: list[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.check:<9} {finding.found}")
        if finding.next_step:
            lines.append(f"{'':<18} {finding.next_step}")
    return lines
