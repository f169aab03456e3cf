"""`headrace flow`: apply, start, stop, status, list, show, delete; what decides about code is in `rollout`,
what is done to a flow at work in `intervention`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import flow_views, history, intervention, rollout
from headrace.cli import trace as tracing
from headrace.cli.component import pushed_words
from headrace.cli.credentials import refresh_credentials
from headrace.cli.flow_check import validate
from headrace.cli.flow_command import GOES_ON, FlowArgument, LimitOption, flow_id, progress_lines
from headrace.cli.inject import run_now
from headrace.cli.intervention import waiting_words
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
from headrace.cli.terminal import show_text

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient
    from headrace.client.apply import AppliedComponent, AppliedFlow
    from headrace.client.run import RanFlow

app = typer.Typer(no_args_is_help=True, help="Flows: draft, version, deployment.")


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="Flow file (YAML), or a folder with flow.yaml.")],
    run: Annotated[
        bool,
        typer.Option("--run", help="Then publish it and let it run: start a stopped flow, switch a running one."),
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Push the file's own components and make the file the flow's draft; with --run also let it run."""

    def tell(component: AppliedComponent) -> None:
        if not as_json:
            print(f"{component.component}: {pushed_words(component.revision, component.created)}", flush=True)

    doing = f"applying {file}"
    if run:
        ran = run_with_client(
            lambda client: client.run(file, pushed=tell, progress=progress_lines(as_json)),
            address=address,
            data=data,
            as_json=as_json,
            if_interrupted=GOES_ON,
            doing=doing,
        )
        _print_applied(ran.applied, as_json, ran)
    else:
        applied = run_with_client(
            lambda client: client.apply(file, pushed=tell), address=address, data=data, as_json=as_json, doing=doing
        )
        _print_applied(applied, as_json)


def _print_applied(applied: AppliedFlow, as_json: bool, ran: RanFlow | None = None) -> None:
    name = flow_id(applied.flow.name)
    if as_json:
        from headrace.cli.plain import plain

        components = [
            {"component": item.component, "revision": item.revision, "digest": item.digest, "created": item.created}
            for item in applied.components
        ]
        facts = {"flow": plain(applied.flow), "change": applied.change, "components": components}
        print_json(facts | ({"action": ran.action, "status": plain(ran.status)} if ran else {}))
        return
    what = {"created": "created, draft is ready", "updated": "draft updated", "unchanged": "unchanged"}
    print(f"{name}: {what[applied.change]}")
    if ran is not None:
        print(f"{name}: {ran_words(ran)}")
        if ran.status.webhook_url:
            print(f"  webhook {ran.status.webhook_url}")
        hint(f"headrace flow status {name}")
    elif applied.flow.HasField("draft"):
        hint(f"headrace flow publish {name}")
    elif not applied.flow.active_deployment:
        hint(f"headrace flow start {name}")


def ran_words(ran: RanFlow) -> str:
    """`RUNNING, version 2, deployment 3`, and whether that is new."""
    from headrace.cli.flow_tables import active_deployment, state_word

    active = active_deployment(ran.status)
    words = [state_word(ran.status)]
    if active is not None:
        words += [f"version {active.version}", f"deployment {active.number}"]
    return ", ".join(words) + (" (as before)" if ran.action == "unchanged" else "")


app.command()(validate)
app.command()(rollout.publish)


@app.command()
def start(
    flow: FlowArgument,
    version: Annotated[int, typer.Option(help="Version to run; the newest if not given.", min=0)] = 0,
    timeout_s: LimitOption = 120.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Start the flow: pin its components' revisions, warm every step, open the ingress."""
    began = time.monotonic()

    async def work(client: AsyncClient) -> tuple[flow_pb2.FlowOperationResult, flow_pb2.FlowStatus]:
        result = await client.start(flow, version=version, timeout_s=timeout_s, progress=progress_lines(as_json))
        return result, await client.get_status(flow)

    result, status = run_with_client(work, address=address, data=data, as_json=as_json, queue=queue)
    if printed_as_json(result, as_json):
        return
    name, took_s = flow_id(result.flow or flow), time.monotonic() - began
    print(f"{name}: RUNNING, version {result.version}, deployment {result.deployment} ({took_s:.2f} s)")
    if status.webhook_url:
        print(f"  webhook {status.webhook_url}")
    hint(f"headrace flow status {name}")


app.command()(rollout.restart)
app.command()(rollout.rollback)


@app.command()
def stop(
    flow: FlowArgument,
    drop: Annotated[bool, typer.Option("--drop", help="Throw waiting messages away.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before --drop.")] = False,
    timeout_s: LimitOption = 60.0,
    queue: QueueOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Stop the flow: finish what waits (default), or throw it away with --drop."""
    if drop:
        require_yes(yes, f"Throw away {waiting_words(flow, address, data)} in {flow}?")

    async def work(client: AsyncClient) -> flow_pb2.FlowOperationResult:
        return await client.stop(flow, drop=drop, timeout_s=timeout_s, progress=progress_lines(as_json))

    result = run_with_client(work, address=address, data=data, as_json=as_json, queue=queue)
    if printed_as_json(result, as_json):
        return
    dropped = f", {result.dropped} messages dropped" if drop else ", nothing waits"
    print(f"{flow_id(result.flow or flow)}: STOPPED{dropped}")


app.command()(intervention.suspend)
app.command()(intervention.resume)
app.command()(intervention.scale)
app.command()(intervention.cancel)
app.command("drain-choice")(intervention.drain_choice)
app.command()(history.history)
app.command("run-now")(run_now)
app.command("refresh-credentials")(refresh_credentials)
app.command("trace")(tracing.flow_trace)


@app.command()
def status(
    flow: FlowArgument,
    policy: Annotated[
        bool,
        typer.Option("--policy", help="Also each step's limits and retries, defaults filled in."),
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show state, steps, pinned revisions, instances, and what waits."""
    found = run_with_client(lambda client: client.get_status(flow), address=address, data=data, as_json=as_json)
    if not printed_as_json(found, as_json):
        from headrace.cli.flow_tables import status_text

        show_text(status_text(found))
        if policy:
            from headrace.cli.policy_table import policy_text

            print(f"\n{policy_text(found)}")


@app.command("list")
def list_flows(as_json: JsonOption = False, address: AddressOption = None, data: DataOption = None) -> None:
    """List all flows."""
    flows = run_with_client(lambda client: client.list_flows(), address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        print_json({"flows": [plain(flow) for flow in flows]})
    elif not flows:
        print("no flows; bring one with: headrace flow apply FILE")
    else:
        from headrace.cli.flow_tables import flows_text

        show_text(flows_text(flows))


@app.command()
def show(
    flow: FlowArgument,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show a flow's draft or newest version, its versions and deployments."""

    async def work(
        client: AsyncClient,
    ) -> tuple[flow_pb2.Flow, list[flow_pb2.Version], list[flow_pb2.Deployment]]:
        return await client.get_flow(flow), await client.list_versions(flow), await client.list_deployments(flow)

    found, versions, deployments = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        facts = {"versions": [plain(item) for item in versions], "deployments": [plain(item) for item in deployments]}
        print_json({"flow": plain(found), **facts})
    else:
        from headrace.cli.flow_tables import flow_text

        show_text(flow_text(found, versions, deployments))


app.command()(flow_views.graph)
app.command()(flow_views.diff)
app.command()(flow_views.versions)
app.command()(rollout.draft)
app.command("set-type")(rollout.set_type)


@app.command()
def delete(
    flow: FlowArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Delete a stopped flow with its versions."""
    require_yes(yes, f"Delete the flow {flow} with all its versions?")
    run_with_client(lambda client: client.delete_flow(flow), address=address, data=data, as_json=as_json)
    if as_json:
        print_json({"deleted": flow_id(flow)})
    else:
        print(f"{flow_id(flow)}: deleted")


app.command("delete-version")(rollout.delete_version)
