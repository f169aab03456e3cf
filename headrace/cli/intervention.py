"""`headrace flow suspend`, `resume`, `scale`, `cancel`, `drain-choice`: what is done to a flow at work."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.flow_command import GOES_ON, FlowArgument, LimitOption, flow_id, progress_lines
from headrace.cli.invocation import (
    AddressOption,
    DataOption,
    JsonOption,
    QueueOption,
    hint,
    print_json,
    print_usage,
    printed_as_json,
    require_yes,
    run_with_client,
)
from headrace.model.durations import parse_duration
from headrace.model.errors import Cancelled, HeadraceError, InvalidInput, WrongState
from headrace.model.names import is_number

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient

CANCEL_WAIT_S = 30.0
LOOK_LIMIT_S = 5.0


class ChoiceName(StrEnum):
    """As typed."""

    WAIT = "wait"
    DEAD_LETTER = "dead-letter"
    MOVE = "move"


def suspend(
    flow: FlowArgument,
    max_time: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Messages are accepted so long meanwhile, e.g. 90s, 2h; then refused."),
    ] = "24h",
    max_messages: Annotated[
        int,
        typer.Option(metavar="N", help="Messages are accepted until so many wait; 0: the flow's max_waiting.", min=0),
    ] = 0,
    timeout_s: LimitOption = 60.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Pause every step: what is in work is finished, the rest is kept, up to limits, until resume."""
    max_time_s = _duration("--max-time", max_time)

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        if not as_json:
            most = f"{max_messages} wait" if max_messages else "as many wait as the flow allows (max_waiting)"
            print(f"{flow_id(flow)}: messages will be accepted for {max_time} and until {most}; then they are refused")
        return await client.suspend(
            flow,
            max_time_s=max_time_s,
            max_messages=max_messages,
            timeout_s=timeout_s,
            progress=progress_lines(as_json),
        )

    result = run_with_client(work, address=address, data=data, as_json=as_json, if_interrupted=GOES_ON, queue=queue)
    _print(flow, result, as_json)
    if not as_json:
        hint(f"headrace flow resume {flow_id(flow)}")


def resume(
    flow: FlowArgument,
    timeout_s: LimitOption = 60.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Go on after a suspend, with the same deployment and the same pinned revisions."""

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        return await client.resume(flow, timeout_s=timeout_s, progress=progress_lines(as_json))

    result = run_with_client(work, address=address, data=data, as_json=as_json, if_interrupted=GOES_ON, queue=queue)
    _print(flow, result, as_json)


def scale(
    flow: FlowArgument,
    scaled: Annotated[str, typer.Argument(metavar="STEP=N", help="Step and its number of instances, 1 to 64.")],
    timeout_s: LimitOption = 120.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Change how many instances of a step the running deployment has; the pinned revision stays."""
    step, equals, number = scaled.partition("=")
    if not equals or not is_number(number) or not step:
        print_usage(f"{scaled!r} is not STEP=N, for example price=4")

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        return await client.scale(flow, step, int(number), timeout_s=timeout_s, progress=progress_lines(as_json))

    result = run_with_client(work, address=address, data=data, as_json=as_json, if_interrupted=GOES_ON, queue=queue)
    _print(flow, result, as_json)


def cancel(
    flow: FlowArgument,
    operation: Annotated[
        str, typer.Option(metavar="OPERATION", help="operations/ID; the one at work if not given.")
    ] = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Give up the operation at work on a flow and undo it: a start, publish, restart or rollback that prepares."""

    async def work(client: AsyncClient) -> tuple[str, str]:
        name = operation or (await client.get_flow(flow)).running_operation
        if not name:
            raise WrongState(
                f"nothing is at work on flow {flow!r}", reason="NOTHING_AT_WORK", next_step="See headrace flow status"
            )
        await client.cancel_operation(name)
        try:
            result = await client.wait_operation(await client.get_operation(name), timeout_s=CANCEL_WAIT_S)
        except Cancelled as error:
            return name, error.message
        raise WrongState(f"{name} was over before it could be cancelled: {result.message}", reason="NOT_CANCELLABLE")

    name, undone = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        print_json({"operation": name, "message": undone})
    else:
        print(f"{flow_id(flow)}: {undone}")


def drain_choice(
    flow: FlowArgument,
    choice: Annotated[ChoiceName, typer.Argument(help="wait on, dead-letter the rest, or move it to what runs now.")],
    deployment: Annotated[int, typer.Option("--deployment", metavar="N", help="The deployment that drains.", min=1)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before dead-letter or move.")] = False,
    timeout_s: LimitOption = 60.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Say what becomes of messages that wait for a deployment which has been draining for too long."""
    if choice is not ChoiceName.WAIT:
        words = waiting_words(flow, address, data, deployment)
        does = "Move" if choice is ChoiceName.MOVE else "Dead-letter"
        require_yes(yes, f"{does} {words} for deployment {deployment} of {flow}, and stop its instances?")

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        return await client.resolve_drain(
            flow, deployment, choice.name, timeout_s=timeout_s, progress=progress_lines(as_json)
        )

    result = run_with_client(work, address=address, data=data, as_json=as_json, if_interrupted=GOES_ON, queue=queue)
    _print(flow, result, as_json)


def waiting_words(flow: str, address: str | None, data: Path | None, deployment: int = 0) -> str:
    """`12 messages that wait`, where the mesh says how many; for a question to a person."""

    async def work(client: AsyncClient) -> int:
        async with asyncio.timeout(LOOK_LIMIT_S):
            status = await client.get_status(flow)
        return sum(
            item.waiting + item.in_flight for item in status.deployments if deployment in (0, item.deployment.number)
        )

    async def look() -> int | None:
        from headrace.cli.invocation import find_address
        from headrace.client import AsyncClient

        try:
            async with AsyncClient(find_address(address, data)) as client:
                return await work(client)
        except (HeadraceError, TimeoutError):
            return None

    count = asyncio.run(look())
    return "every message that waits" if count is None else f"{count} messages that wait (or are in work)"


def _print(flow: str, result: flow_pb2.FlowOperationResult, as_json: bool) -> None:
    if not printed_as_json(result, as_json):
        print(f"{flow_id(result.flow or flow)}: {result.message}")


def _duration(option: str, text: str) -> float:
    try:
        return parse_duration(option, text)
    except InvalidInput as error:
        print_usage(error.message)
        raise
