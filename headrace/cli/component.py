"""`headrace component`: new, push, list, show, upgrade, delete, gc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.completion import complete_components
from headrace.cli.flow_command import FlowArgument
from headrace.cli.invocation import (
    AddressOption,
    DataOption,
    JsonOption,
    hint,
    print_json,
    print_usage,
    require_yes,
    run_with_client,
)
from headrace.cli.tables import byte_size, short_digest, table
from headrace.cli.terminal import show_text

if TYPE_CHECKING:
    from headrace.api.registry.v1 import registry_pb2
    from headrace.client import AsyncClient

app = typer.Typer(no_args_is_help=True, help="Components and their immutable revisions.")


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="Folder to make; its last part is the name.")],
    as_json: JsonOption = False,
) -> None:
    """Make a component to begin with: manifest, typed functions, a flow that uses them, a test that passes."""
    from headrace.cli.skeleton import write_component

    files = write_component(folder)
    if as_json:
        print_json({"component": folder.name, "folder": str(folder), "files": [str(file) for file in files]})
        return
    for file in files:
        print(f"  {file}")
    print(f"{folder.name}: made. Run it, and every save of it: headrace dev {folder}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder with component.yaml.")],
    tag: Annotated[str, typer.Option(help="Also point this tag at the revision.")] = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Push a folder; equal content gives the revision that is there already. Flows that run keep what they have."""
    from headrace.cli.pushed import Keeper, find_keepers

    async def work(client: AsyncClient) -> tuple[registry_pb2.PushRevisionResponse, list[Keeper]]:
        answer = await client.push_component(folder)
        revision = answer.revision
        if tag:
            await client.tag_revision(revision.manifest.component, revision.number, tag)
        return answer, await find_keepers(client, revision.manifest.component, revision)

    answer, keepers = run_with_client(work, address=address, data=data, as_json=as_json, doing=f"pushing {folder}")
    revision = answer.revision
    if as_json:
        from headrace.cli.plain import plain

        kept = [{"flow": item.flow, "revision": item.revision, "takes": item.takes} for item in keepers]
        print_json(plain(answer) | {"kept": kept})
        return
    print(f"{revision.manifest.component}: {pushed_words(revision.number, answer.created)}", end="")
    print(f", tagged {tag}" if tag else "", f" ({short_digest(revision.digest)})", sep="")
    for keeper in keepers:
        print(f"  {keeper.words(revision.number)}")


@app.command("list")
def list_components(as_json: JsonOption = False, address: AddressOption = None, data: DataOption = None) -> None:
    """List all components."""
    components = run_with_client(lambda client: client.list_components(), address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        print_json({"components": [plain(component) for component in components]})
        return
    rows = [
        (_component_id(component.name), component.latest_revision, _tags(component.tags), component.title)
        for component in components
        if component.latest_revision  # else all its revisions were deleted
    ]
    if not rows:
        print("no components; push one with: headrace component push FOLDER")
    else:
        show_text(table(("COMPONENT", "LATEST", "TAGS", "TITLE"), rows))


@app.command()
def show(
    component: Annotated[str, typer.Argument(help="Name of the component.", autocompletion=complete_components)],
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show a component's functions, revisions, and who pins them."""

    async def work(client: AsyncClient) -> tuple[registry_pb2.Component, list[registry_pb2.Revision]]:
        return await client.get_component(component), await client.list_revisions(component)

    found, revisions = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        print_json({"component": plain(found), "revisions": [plain(revision) for revision in revisions]})
        return
    print(_component_id(found.name), found.title, sep="  ")
    if revisions:
        print(_functions(revisions[0]), end="\n\n")
    rows = [
        (
            revision.number,
            short_digest(revision.digest),
            revision.version or "-",
            byte_size(revision.bundle_bytes),
            revision.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ"),
            ", ".join(revision.pinned_by) or "-",
        )
        for revision in revisions
    ]
    show_text(table(("REVISION", "DIGEST", "VERSION", "SIZE", "PUSHED", "PINNED BY"), rows))


@app.command()
def upgrade(
    flow: FlowArgument,
    component: Annotated[
        list[str] | None, typer.Option("--component", metavar="NAME", help="Only this component; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Write the newest revisions into a flow's draft, as exact pins; publish makes them run."""
    answer = run_with_client(
        lambda client: client.upgrade_draft(flow, components=component or ()),
        address=address,
        data=data,
        as_json=as_json,
    )
    if as_json:
        from headrace.cli.plain import plain

        print_json(plain(answer))
        return
    name = answer.flow.name.removeprefix("flows/")
    if not answer.changes:
        print(f"{name}: every step has the newest revision already, the draft is as it was")
        return
    print(f"{name}: draft updated")
    for step, change in sorted(answer.changes.items()):
        print(f"  {step}: {change}")
    hint(f"headrace flow publish {name}")


@app.command()
def delete(
    component: Annotated[
        str, typer.Argument(metavar="NAME[@REVISION]", help="Component, or one revision of it: price@3.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Delete a revision, or all of a component; refused where a flow pins one, and then nothing is deleted."""
    name, at, number = component.removeprefix("components/").partition("@")
    if at and not number.isdigit():
        print_usage(f"{component!r} is not NAME or NAME@REVISION, for example price@3")

    async def look(client: AsyncClient) -> list[registry_pb2.Revision]:
        if number:
            return [await client.get_revision(name, int(number))]
        return await client.list_revisions(name)

    revisions = run_with_client(look, address=address, data=data, as_json=as_json)
    pinned = next((revision for revision in revisions if revision.pinned_by), None)
    if pinned is None:
        what = f"revision {number}" if number else f"all {len(revisions)} revisions"
        require_yes(yes, f"Delete {what} of {name}?")
    else:
        revisions = [pinned]  # its refusal says who pins it

    async def work(client: AsyncClient) -> None:
        for revision in sorted(revisions, key=lambda item: item.number):  # the newest, which is `latest`, at last
            await client.delete_revision(name, revision.number)

    run_with_client(work, address=address, data=data, as_json=as_json)
    numbers = sorted(revision.number for revision in revisions)
    if as_json:
        print_json({"deleted": [f"components/{name}/revisions/{item}" for item in numbers]})
    else:
        print(f"{name}: deleted revision {', '.join(map(str, numbers))}" if numbers else f"{name}: has no revision")


@app.command()
def gc(
    component: Annotated[str, typer.Argument(help="Name of the component; all if not given.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Delete revisions that nobody pins and no tag names (never the newest), listing them first."""
    from headrace.cli.plain import plain

    unused = run_with_client(
        lambda client: client.purge_revisions(component), address=address, data=data, as_json=as_json
    )
    if not unused:
        print_json({"deleted": []}) if as_json else print("nothing to delete: every revision is pinned, tagged or new")
        return
    if not as_json:
        rows = [
            (
                revision.name.removeprefix("components/").replace("/revisions/", "@"),
                short_digest(revision.digest),
                byte_size(revision.bundle_bytes),
                revision.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ"),
            )
            for revision in unused
        ]
        show_text(table(("REVISION", "DIGEST", "SIZE", "PUSHED"), rows))
    require_yes(yes, f"Delete these {len(unused)} revisions?")
    names = [revision.name for revision in unused]
    deleted = run_with_client(
        lambda client: client.purge_revisions(component, force=True, names=names),
        address=address,
        data=data,
        as_json=as_json,
    )
    if as_json:
        print_json({"deleted": [plain(revision) for revision in deleted]})
    else:
        print(f"deleted {len(deleted)} revisions, {byte_size(sum(item.bundle_bytes for item in deleted))}")


def pushed_words(number: int, created: bool) -> str:
    """`pushed revision 2` or `unchanged, revision 1`."""
    return f"pushed revision {number}" if created else f"unchanged, revision {number}"


def _component_id(name: str) -> str:
    return name.removeprefix("components/")


def _tags(tags: object) -> str:
    return ", ".join(f"{tag}={number}" for tag, number in sorted(dict(tags).items())) or "-"  # type: ignore[call-overload]


def _functions(revision: registry_pb2.Revision) -> str:
    from headrace.cli.plain import enum_word

    rows = [
        (function.name, enum_word(function.DESCRIPTOR.fields_by_name["kind"].enum_type, function.kind), function.title)
        for function in revision.manifest.functions
    ]
    return table(("FUNCTION", "KIND", "TITLE"), rows)
