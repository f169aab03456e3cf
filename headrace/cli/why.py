"""`headrace why FLOW[/STEP]`: what holds a flow up, how that is known, and what to type next."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.completion import complete_flows
from headrace.cli.invocation import (
    FAILED,
    UNREACHABLE,
    AddressOption,
    DataOption,
    JsonOption,
    print_error,
    print_json,
)
from headrace.cli.terminal import show_text, waiting
from headrace.model.errors import HeadraceError, Unavailable

if TYPE_CHECKING:
    from headrace.api.diagnosis.v1 import diagnosis_pb2

# Something stalls or slows the flow.
TROUBLE = 4
ANSWER_LIMIT_S = 8.0
_WORDS = {"STALLED": "stalled", "SLOW": "slow, or loses something", "NOTICE": "worth knowing"}


def why(
    flow: Annotated[
        str, typer.Argument(metavar="FLOW[/STEP]", help="Flow, or one step of it.", autocompletion=complete_flows)
    ],
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Say why a flow stands still or is slow: causes with evidence, most likely first, and what to type next.

    Exit status: 0 nothing stalls or slows it; 4 something does; 3 no orchestrator answers (what is known without one
    is said); 1 there is no such flow or step.
    """
    name, _, step = flow.removeprefix("flows/").partition("/")
    try:
        with waiting("looking twice" if not as_json else ""):
            facts, status = asyncio.run(_facts(name, step, address, data))
    except HeadraceError as error:
        print_error(error, as_json=as_json)
        absent = isinstance(error, Unavailable) or error.reason == "MESH_NOT_RUNNING"
        raise typer.Exit(UNREACHABLE if absent else FAILED) from None
    if as_json:
        print_json(facts)
    else:
        show_text(as_text(facts))
    raise typer.Exit(status)


async def _facts(flow: str, step: str, address: str | None, data: Path | None) -> tuple[dict[str, Any], int]:
    from headrace.cli.invocation import find_address
    from headrace.cli.mesh_findings import local_findings
    from headrace.client import AsyncClient

    found = find_address(address, data)
    try:
        async with AsyncClient(found, timeout_s=ANSWER_LIMIT_S) as client:
            answer = await client.explain(flow, step=step)
    except HeadraceError as error:
        if not isinstance(error, Unavailable) and error.reason != "DEADLINE_EXCEEDED":
            raise
        findings = await local_findings(error, address, data)
        return {"flow": f"flows/{flow}", "step": step, "healthy": False, "findings": findings}, UNREACHABLE
    return answer_facts(answer), 0 if answer.healthy else TROUBLE


def answer_facts(answer: diagnosis_pb2.ExplainFlowResponse) -> dict[str, Any]:
    """An answer as plain data."""
    from headrace.cli.plain import plain

    facts: dict[str, Any] = plain(answer)
    return facts | {"healthy": answer.healthy, "findings": facts.get("findings", [])}


def as_text(facts: dict[str, Any]) -> str:
    """One paragraph for each finding, numbered."""
    about = str(facts["flow"]).removeprefix("flows/") + (f"/{facts['step']}" if facts.get("step") else "")
    findings = facts["findings"]
    verdict = "nothing is wrong" if facts["healthy"] else _WORDS.get(findings[0]["severity"], "in trouble")
    parts = [f"{about}: {verdict}"]
    parts += [_paragraph(number, item) for number, item in enumerate(findings, 1)]
    return "\n\n".join(parts)


def _paragraph(number: int, finding: dict[str, Any]) -> str:
    where = f", {finding['instance']}" if finding.get("instance") else ""
    lines = [f"{number}. {finding['cause']}{where}: {finding['summary']}"]
    lines += [f"   - {text}" for text in finding.get("evidence", [])]
    if finding.get("affects"):
        lines.append(f"   holds up: {', '.join(finding['affects'])}")
    lines += [f"   type: {command}" for command in finding.get("commands", [])]
    return "\n".join(lines)
