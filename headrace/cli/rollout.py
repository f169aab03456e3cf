"""`headrace flow publish`, `restart`, `rollback`, `draft`, `delete-version`: which code runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.flow_command import FlowArgument, LimitOption, flow_id, hint, printed_as_json, progress_lines
from headrace.cli.invocation import (
    AddressOption,
    DataOption,
    JsonOption,
    QueueOption,
    print_json,
    require_yes,
    run_with_client,
)

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient


class StrategyName(StrEnum):
    """As typed after --strategy."""

    WARM_SWITCH = "warm-switch"
    RESTART = "restart"


StrategyOption = Annotated[
    StrategyName,
    typer.Option(
        "--strategy",
        help="warm-switch: warm the new deployment, then switch. "
        "restart: park new messages, drain the old one, then start the new one.",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict-order", help="The new trigger waits until the old deployment has drained.")
]
VersionArgument = Annotated[int, typer.Argument(help="Number of the version.", min=1)]


def publish(
    flow: FlowArgument,
    strategy: StrategyOption = StrategyName.WARM_SWITCH,
    strict_order: StrictOption = False,
    timeout_s: LimitOption = 120.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Make the draft the next version; where the flow runs, the version is deployed."""

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        return await client.publish(
            flow,
            strategy=strategy.name,
            strict_order=strict_order,
            timeout_s=timeout_s,
            progress=progress_lines(as_json),
        )

    result = _rolled_out(work, as_json, address, data, queue)
    if result is None:
        return
    name = flow_id(result.flow or flow)
    if not result.deployment:
        print(f"{name}: published version {result.version}")
        hint(f"headrace flow start {name}")
        return
    _print_result(f"{name}: published version {result.version}, deployment {result.deployment} runs it", result)
    hint(f"headrace flow status {name}")


def restart(
    flow: FlowArgument,
    strategy: StrategyOption = StrategyName.WARM_SWITCH,
    strict_order: StrictOption = False,
    timeout_s: LimitOption = 120.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Deploy the running version anew, with the revisions that its references mean now."""

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        return await client.restart(
            flow,
            strategy=strategy.name,
            strict_order=strict_order,
            timeout_s=timeout_s,
            progress=progress_lines(as_json),
        )

    result = _rolled_out(work, as_json, address, data, queue)
    if result is None:
        return
    name = flow_id(result.flow or flow)
    _print_result(f"{name}: restarted, deployment {result.deployment} runs version {result.version}", result)
    hint(f"headrace flow rollback {name} {result.version}")


def rollback(
    flow: FlowArgument,
    version: VersionArgument,
    strategy: StrategyOption = StrategyName.WARM_SWITCH,
    strict_order: StrictOption = False,
    timeout_s: LimitOption = 120.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Deploy a version with the revisions it last ran with; the version that runs: with those before."""

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        return await client.rollback(
            flow,
            version,
            strategy=strategy.name,
            strict_order=strict_order,
            timeout_s=timeout_s,
            progress=progress_lines(as_json),
        )

    result = _rolled_out(work, as_json, address, data, queue)
    if result is None:
        return
    name = flow_id(result.flow or flow)
    _print_result(f"{name}: rolled back, deployment {result.deployment} runs version {result.version}", result)
    hint(f"headrace flow status {name}")


def draft(
    flow: FlowArgument,
    from_version: Annotated[int, typer.Option("--from", metavar="VERSION", help="This version.", min=1)],
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Make a version the draft again."""
    found = run_with_client(
        lambda client: client.draft_from(flow, from_version), address=address, data=data, as_json=as_json
    )
    if not printed_as_json(found, as_json):
        print(f"{flow_id(found.name)}: version {from_version} is the draft")
        hint(f"headrace flow publish {flow_id(found.name)}")


def delete_version(
    flow: FlowArgument,
    version: VersionArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Delete a version that is not in use; its revisions are no longer kept for a rollback."""
    require_yes(yes, f"Delete version {version} of {flow}?")
    run_with_client(lambda client: client.delete_version(flow, version), address=address, data=data, as_json=as_json)
    if as_json:
        print_json({"deleted": f"{flow_id(flow)} version {version}"})
    else:
        print(f"{flow_id(flow)}: version {version} deleted")


def _rolled_out(
    work: Callable[[AsyncClient], Awaitable[flow_pb2.FlowOperationResult]],
    as_json: bool,
    address: str | None,
    data: Path | None,
    queue: bool,
) -> flow_pb2.FlowOperationResult | None:
    """The result, None where it was printed as JSON. An interrupt ends the waiting only, and says so."""
    result = run_with_client(
        work,
        address=address,
        data=data,
        as_json=as_json,
        if_interrupted="What was begun goes on in the mesh",
        queue=queue,
    )
    return None if printed_as_json(result, as_json) else result


def _print_result(head: str, result: flow_pb2.FlowOperationResult) -> None:
    print(head)
    if result.HasField("difference"):
        from headrace.cli.flow_tables import difference_lines

        for line in difference_lines(result.difference):
            print(f"  {line}")
