"""`headrace trace`: one execution as a waterfall, or the newest ones; `headrace flow trace`: which ones are traced."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.flow_command import FlowArgument
from headrace.cli.invocation import AddressOption, DataOption, JsonOption, hint, print_json, run_with_client
from headrace.cli.tables import table
from headrace.cli.terminal import show_text

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.api.trace.v1 import trace_pb2
    from headrace.client import AsyncClient

WhereOption = Annotated[
    str, typer.Option("--where", help="Only executions with a hop like this: 'step=price AND duration>50ms'.")
]
POLL_S = 0.3


def trace(
    execution: Annotated[str, typer.Argument(help="Id of the execution; without one: list the newest.")] = "",
    flow: Annotated[str, typer.Option(help="Only of this flow.")] = "",
    where: WhereOption = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 20,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show one execution of the last minutes hop by hop, from the mesh itself; or list the newest ones."""
    if execution:
        _show(execution, flow or "-", as_json, address, data)
        return

    async def work(client: AsyncClient) -> trace_pb2.ListExecutionsResponse:
        return await client.list_executions(flow or "-", where=where, limit=limit)

    found = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        print_json(plain(found))
        return
    show_text(executions_text(found))
    if found.executions:
        hint(f"headrace trace {found.executions[0].name.rpartition('/')[2]}")


def _show(execution: str, flow: str, as_json: bool, address: str | None, data: Path | None) -> None:
    async def work(client: AsyncClient) -> trace_pb2.Execution:
        return await client.get_trace(execution, flow=flow)

    found = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        print_json(plain(found))
        return
    from headrace.cli.waterfall import execution_text

    show_text(execution_text(found))


def executions_text(found: trace_pb2.ListExecutionsResponse) -> str:
    """One line per execution, newest first."""
    rows = []
    for execution in found.executions:
        _, flow, _, identity = execution.name.split("/")
        begin = execution.begin_time.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
        took = f"{execution.duration.ToNanoseconds() / 1e6:.2f}"
        wrong = f"{execution.code_step}: {execution.code}" if execution.code else "-"
        outcome = execution.outcome.replace("_", "-")
        rows.append((begin, flow, identity, took, execution.attempt_count, outcome, wrong))
    text = table(("TIME (UTC)", "FLOW", "EXECUTION", "MS", "ATTEMPTS", "OUTCOME", "WHAT WENT WRONG"), rows)
    if not rows:
        text = "no execution of the last minutes fits"
    if found.memory.one_in > 1:
        text += f"\nunder this load one execution in {found.memory.one_in} is remembered for minutes, and what failed"
    return text


def flow_trace(
    flow: FlowArgument,
    ratio: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of executions whose trace is sampled, from now on.")
    ] = None,
    following: Annotated[
        int, typer.Option("--next", min=0, max=100, metavar="N", help="Catch the next N executions, at any ratio.")
    ] = 0,
    where: WhereOption = "",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="Wait so long for the next ones.")
    ] = 600.0,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show or change which executions of a flow are traced, while it runs. What fails, is tried again or is the slowest
    of its step and minute is kept at any ratio."""

    async def work(client: AsyncClient) -> trace_pb2.Sampling:
        if ratio is not None:
            await client.set_sampling(flow, ratio)
        if not following:
            return await client.get_sampling(flow)
        sampling = await client.capture_executions(flow, following, where=where, within_s=timeout)
        return await _caught(client, flow, sampling, timeout, quiet=as_json)

    if where and not following:
        raise typer.BadParameter("--where goes with --next; to list what was: headrace trace --where ...")
    sampling = run_with_client(work, address=address, data=data, as_json=as_json, if_interrupted="It goes on catching")
    if as_json:
        from headrace.cli.plain import plain

        print_json(plain(sampling))
        return
    if not following:
        show_text(sampling_text(sampling))
    missed = following - len(sampling.capture.executions)
    if following and missed:
        print(f"{missed} more did not come within {timeout:g} s")
        raise typer.Exit(1)


async def _caught(
    client: AsyncClient, flow: str, sampling: trace_pb2.Sampling, timeout_s: float, *, quiet: bool
) -> trace_pb2.Sampling:
    """Waits for them, and prints each."""
    began, deadline = sampling.capture.begin_time.ToNanoseconds(), time.monotonic() + timeout_s
    printed = 0
    while True:
        executions = sampling.capture.executions
        for name in () if quiet else executions[printed:]:
            print(name.rpartition("/")[2], flush=True)
        printed = len(executions)
        if printed >= sampling.capture.count or time.monotonic() > deadline:
            return sampling
        await asyncio.sleep(POLL_S)
        newer = await client.get_sampling(flow)
        if newer.capture.begin_time.ToNanoseconds() != began:
            return sampling  # somebody asked for others
        sampling = newer


def sampling_text(sampling: trace_pb2.Sampling) -> str:
    """The ratio, and what the newest capture has caught."""
    percent = f"{sampling.ratio * 100:.6f}".rstrip("0").rstrip(".")
    text = f"{percent} % of executions are traced; errors, retries, dead letters and the slowest always are"
    if sampling.HasField("capture"):
        capture = sampling.capture
        condition = f" with {capture.where}" if capture.where else ""
        text += f"\ncaught {len(capture.executions)} of the next {capture.count}{condition}"
        text += "".join(f"\n  {name.rpartition('/')[2]}" for name in capture.executions)
    return text
