"""`headrace flow publish`, `restart`, `rollback`, `draft`, `set-type`, `delete-version`: which code runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.flow_command import GOES_ON, FlowArgument, LimitOption, flow_id, progress_lines
from headrace.cli.invocation import (
    AddressOption,
    DataOption,
    JsonOption,
    QueueOption,
    hint,
    print_json,
    printed_as_json,
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
    how = _How(strategy, strict_order, timeout_s, queue, as_json, address, data)
    result = _roll_out(lambda client, options: client.publish(flow, **options), how)
    name = flow_id(result.flow or flow)
    if not result.deployment:
        _print_result(f"{name}: published version {result.version}", result, f"headrace flow start {name}", as_json)
        return
    words = f"{name}: published version {result.version}, deployment {result.deployment} runs it"
    _print_result(words, result, f"headrace flow status {name}", as_json)


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
    how = _How(strategy, strict_order, timeout_s, queue, as_json, address, data)
    result = _roll_out(lambda client, options: client.restart(flow, **options), how)
    name = flow_id(result.flow or flow)
    words = f"{name}: restarted, deployment {result.deployment} runs version {result.version}"
    _print_result(words, result, f"headrace flow rollback {name} {result.version}", as_json)


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
    how = _How(strategy, strict_order, timeout_s, queue, as_json, address, data)
    result = _roll_out(lambda client, options: client.rollback(flow, version, **options), how)
    name = flow_id(result.flow or flow)
    words = f"{name}: rolled back, deployment {result.deployment} runs version {result.version}"
    _print_result(words, result, f"headrace flow status {name}", as_json)


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


class TypeName(StrEnum):
    """As typed after the flow's name."""

    ORDINARY = "ordinary"
    REALTIME = "realtime"


def set_type(
    flow: FlowArgument,
    flow_type: Annotated[
        TypeName, typer.Argument(metavar="TYPE", help="ordinary: steps sleep when idle. realtime: they run on.")
    ],
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Make a stopped flow ordinary or realtime: a version that differs in nothing else."""
    found = run_with_client(
        lambda client: client.set_type(flow, flow_type.value), address=address, data=data, as_json=as_json
    )
    if printed_as_json(found, as_json):
        return
    name = flow_id(found.name or flow)
    version = f", version {found.latest_version}" if found.latest_version else ", not published yet"
    print(f"{name}: {flow_type.value}{version}")
    hint(f"headrace flow start {name}" if found.latest_version else f"headrace flow publish {name}")


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


@dataclass(frozen=True, slots=True)
class _How:
    """What a person typed after any of the three verbs."""

    strategy: StrategyName
    strict_order: bool
    timeout_s: float
    queue: bool
    as_json: bool
    address: str | None
    data: Path | None


def _roll_out(
    call: Callable[[AsyncClient, dict[str, Any]], Awaitable[flow_pb2.FlowOperationResult]], how: _How
) -> flow_pb2.FlowOperationResult:
    """Runs one of the verbs to its end. An interrupt ends the waiting only, and says so."""
    options = {
        "strategy": how.strategy.name,
        "strict_order": how.strict_order,
        "timeout_s": how.timeout_s,
        "progress": progress_lines(how.as_json),
    }
    return run_with_client(
        lambda client: call(client, options),
        address=how.address,
        data=how.data,
        as_json=how.as_json,
        if_interrupted=GOES_ON,
        queue=how.queue,
    )


def _print_result(words: str, result: flow_pb2.FlowOperationResult, next_command: str, as_json: bool) -> None:
    """One line, what differs from the deployment before, and what to type next; or JSON."""
    if printed_as_json(result, as_json):
        return
    print(words)
    if result.HasField("difference"):
        from headrace.cli.flow_tables import difference_lines

        for line in difference_lines(result.difference):
            print(f"  {line}")
    hint(next_command)
