"""`headrace flow graph`, `diff`, `versions`: a flow's graph, what differs, what was published."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.completion import complete_flows
from headrace.cli.flow_command import FlowArgument, flow_id
from headrace.cli.invocation import (
    FAILED,
    AddressOption,
    DataOption,
    JsonOption,
    print_json,
    run_with_client,
)
from headrace.cli.terminal import show_text
from headrace.model.errors import NotFound

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient
    from headrace.model.deployment_difference import FieldDifference
    from headrace.model.flow_spec import FlowSpec

SubjectArgument = Annotated[
    str,
    typer.Argument(
        metavar="FLOW|FILE", help="A flow, or a flow file (with a . or / in it).", autocompletion=complete_flows
    ),
]
VersionOption = Annotated[int, typer.Option("--version", metavar="N", min=0, help="This version of the flow.")]


class GraphFormat(StrEnum):
    text = "text"
    dot = "dot"
    mermaid = "mermaid"


def graph(
    subject: SubjectArgument,
    form: Annotated[GraphFormat, typer.Option("--format", help="text, dot (Graphviz) or mermaid.")] = GraphFormat.text,
    version: VersionOption = 0,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Draw a flow: its draft, else what runs, else its newest version; or a file, which needs no mesh."""
    if is_file(subject):
        from headrace.wire.flow_file import load_flow_file

        loaded = load_flow_file(subject)
        name, spec = loaded.name, loaded.spec
    else:
        name, spec = run_with_client(
            lambda client: _read_spec(client, subject, version), address=address, data=data, as_json=as_json
        )
    if as_json:
        from headrace.cli.spec_difference import as_written

        print_json({"flow": name, **as_written(spec)})
        return
    from headrace.cli import graph_drawing

    drawings = {"text": graph_drawing.draw_text, "dot": graph_drawing.draw_dot, "mermaid": graph_drawing.draw_mermaid}
    print(drawings[form.value](name, spec))


def diff(
    subject: SubjectArgument,
    old: Annotated[int, typer.Option("--from", metavar="N", min=0, help="Of a flow: this version.")] = 0,
    new: Annotated[int, typer.Option("--to", metavar="N", min=0, help="Of a flow: this version.")] = 0,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit status 1 where something differs.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show what differs. Of a file: what `apply` would change. Of a flow: its draft against the version that runs (or
    the newest), or --from one version --to another."""

    async def work(client: AsyncClient) -> tuple[str, list[FieldDifference], list[str]]:
        return await (_diff_file(client, subject) if is_file(subject) else _diff_versions(client, subject, old, new))

    about, differences, components = run_with_client(
        work, address=address, data=data, as_json=as_json, doing=f"comparing {subject}"
    )
    if as_json:
        fields = [{"field": item.field, "old": item.old_json, "new": item.new_json} for item in differences]
        print_json({"about": about, "differences": fields, "components": components})
    else:
        from headrace.cli.spec_difference import difference_text

        print(about)
        for line in [*components, *map(difference_text, differences)] or ["nothing differs"]:
            print(f"  {line}")
    if exit_code and (differences or components):
        raise typer.Exit(FAILED)


def versions(
    flow: FlowArgument, as_json: JsonOption = False, address: AddressOption = None, data: DataOption = None
) -> None:
    """List a flow's versions, and which deployments ran them."""

    async def work(client: AsyncClient) -> tuple[flow_pb2.Flow, list[flow_pb2.Version], list[flow_pb2.Deployment]]:
        return await client.get_flow(flow), await client.list_versions(flow), await client.list_deployments(flow)

    found, published, deployments = run_with_client(work, address=address, data=data, as_json=as_json)
    ran = {item.number: [one.number for one in deployments if one.version == item.number] for item in published}
    if as_json:
        from headrace.cli.plain import plain

        facts = [
            plain(item) | {"deployments": ran[item.number], "running": item.number == found.running_version}
            for item in published
        ]
        print_json({"flow": flow_id(found.name), "draft": found.HasField("draft"), "versions": facts})
        return
    if not published:
        print(f"{flow_id(found.name)}: no version yet; publish one with: headrace flow publish {flow_id(found.name)}")
        return
    from headrace.cli.tables import table

    rows = [
        (
            item.number,
            item.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ"),
            "RUNNING" if item.number == found.running_version else "-",
            ", ".join(map(str, sorted(ran[item.number]))) or "-",
            len(item.spec.steps),
        )
        for item in sorted(published, key=lambda item: -item.number)
    ]
    show_text(table(("VERSION", "PUBLISHED", "STATE", "DEPLOYMENTS", "STEPS"), rows))
    if found.HasField("draft"):
        print(f"and a draft: headrace flow diff {flow_id(found.name)}")


def is_file(subject: str) -> bool:
    """Names of flows have neither dots nor slashes."""
    return "." in subject or "/" in subject.removeprefix("flows/") or Path(subject).is_dir()


async def _read_spec(client: AsyncClient, flow: str, version: int) -> tuple[str, FlowSpec]:
    from headrace.wire.flow import flow_spec_from_proto

    found = await client.get_flow(flow)
    name = flow_id(found.name)
    if found.HasField("draft") and not version:
        return name, flow_spec_from_proto(found.draft)
    number = version or found.running_version or found.latest_version
    return name, flow_spec_from_proto((await client.get_version(flow, number)).spec)


async def _diff_versions(
    client: AsyncClient, flow: str, old: int, new: int
) -> tuple[str, list[FieldDifference], list[str]]:
    from headrace.cli.spec_difference import compare_specs
    from headrace.wire.flow import flow_spec_from_proto

    found = await client.get_flow(flow)
    name = flow_id(found.name)
    before = old or found.running_version or found.latest_version
    after = new or (0 if found.HasField("draft") else found.latest_version)
    if not before:
        raise NotFound(f"flow {name!r} has no version to compare with", next_step=f"headrace flow publish {name}")
    left = (await client.get_version(flow, before)).spec
    right = (await client.get_version(flow, after)).spec if after else found.draft
    words = f"version {after}" if after else "the draft"
    differences = compare_specs(flow_spec_from_proto(left), flow_spec_from_proto(right))
    return f"{name}: {words} against version {before}", differences, []


async def _diff_file(client: AsyncClient, file: str) -> tuple[str, list[FieldDifference], list[str]]:
    from headrace.cli.spec_difference import compare_specs
    from headrace.client.apply import with_references
    from headrace.wire.flow import flow_spec_from_proto
    from headrace.wire.flow_file import load_flow_file

    loaded = load_flow_file(file)
    loaded.check()
    names, components = await _compare_folders(client, list(dict.fromkeys(loaded.folders.values())))
    references = {step: f"{names[folder]}@latest" for step, folder in loaded.folders.items()}
    spec = with_references(loaded.spec, references)
    try:
        found = await client.get_flow(loaded.name)
    except NotFound:
        return f"{loaded.name}: is not in the mesh yet", [], [*components, f"+ flow {loaded.name}"]
    if found.HasField("draft"):
        against, present = "its draft", found.draft
    else:
        against = f"version {found.latest_version}"
        present = (await client.get_version(loaded.name, found.latest_version)).spec
    return f"{file} against {against}", compare_specs(flow_spec_from_proto(present), spec), components


async def _compare_folders(client: AsyncClient, folders: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """The component in each folder, and a line for each that a push would make a new revision of."""
    from headrace.client.packing import prepare_bundle

    names, lines = {}, []
    for folder in folders:
        with await asyncio.to_thread(prepare_bundle, folder) as packed:
            names[folder] = packed.component
            digest = packed.digest
        try:
            newest = await client.resolve_reference(packed.component)
        except NotFound:
            lines.append(f"+ component {packed.component}: is not in the mesh yet")
            continue
        if newest.digest != digest:
            lines.append(f"~ component {packed.component}: the folder differs from revision {newest.number}")
    return names, lines
