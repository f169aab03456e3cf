"""`headrace credential`: what components log in with elsewhere. Values are read from files or standard input only."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.flow_command import FlowArgument
from headrace.cli.invocation import (
    FAILED,
    AddressOption,
    DataOption,
    JsonOption,
    hint,
    print_json,
    print_usage,
    printed_as_json,
    require_yes,
    run_with_client,
)
from headrace.cli.tables import table
from headrace.model.credential import MAX_VALUE_BYTES

if TYPE_CHECKING:
    from headrace.api.credential.v1 import credential_pb2
    from headrace.client import AsyncClient

app = typer.Typer(
    no_args_is_help=True,
    help="What components log in with elsewhere. Values are kept encrypted and never shown; a flow that runs keeps the "
    "value it has.",
)
NameArgument = Annotated[str, typer.Argument(help="Name of the credential.")]
FromOption = Annotated[
    str, typer.Option("--from", metavar="FILE", help="JSON object of the secret fields; `-` reads standard input.")
]
DescriptionOption = Annotated[str, typer.Option(help="For people; not secret.")]
ExpiresOption = Annotated[
    str, typer.Option(metavar="TIME", help="When it stops to be good: 2027-01-31 or 2027-01-31T12:00:00Z.")
]


@app.command()
def create(
    name: NameArgument,
    source: FromOption,
    description: DescriptionOption = "",
    expires: ExpiresOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Store a new credential. Steps name it: `credential: NAME`."""
    expires_at = _moment(expires)

    async def work(client: AsyncClient) -> None:
        value = read_value(source)
        made = await client.create_credential(name, value, description=description, expires_at=expires_at)
        if not printed_as_json(made, as_json):
            print(f"credential {name}: {', '.join(made.fields)} (version {made.version})")
            hint(f"credential: {name}    in a step of a flow file")

    run_with_client(work, address=address, data=data, as_json=as_json)


@app.command("list")
def list_(as_json: JsonOption = False, address: AddressOption = None, data: DataOption = None) -> None:
    """List the credentials, with the names of their fields."""

    async def work(client: AsyncClient) -> None:
        from headrace.cli.plain import plain

        found = await client.list_credentials()
        if as_json:
            print_json({"credentials": [plain(item) for item in found]})
        elif not found:
            print("There is no credential. Create one: headrace credential create NAME --from FILE")
        else:
            print(table(("NAME", "VERSION", "FIELDS", "UPDATED", "EXPIRES", "DESCRIPTION"), [_row(i) for i in found]))

    run_with_client(work, address=address, data=data, as_json=as_json)


@app.command()
def show(
    name: NameArgument, as_json: JsonOption = False, address: AddressOption = None, data: DataOption = None
) -> None:
    """Show a credential: names of its fields, and who uses which version; never the value."""

    async def work(client: AsyncClient) -> None:
        found = await client.get_credential(name)
        if printed_as_json(found, as_json):
            return
        print(table(("NAME", "VERSION", "FIELDS", "UPDATED", "EXPIRES", "DESCRIPTION"), [_row(found)]))
        for use in found.uses:
            old = f", not the newest: headrace flow refresh-credentials {use.deployment.split('/')[1]}"
            print(f"  version {use.version}: {use.deployment}{old if use.version < found.version else ''}")

    run_with_client(work, address=address, data=data, as_json=as_json)


@app.command()
def update(
    name: NameArgument,
    source: Annotated[str, typer.Option("--from", metavar="FILE", help="The new fields; without: they stay.")] = "",
    description: DescriptionOption = "",
    expires: ExpiresOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Give a credential a new value. Flows that run keep theirs until `headrace flow refresh-credentials`."""
    if not (source or description or expires):
        print_usage("give --from FILE, --description or --expires")
    expires_at = _moment(expires)

    async def work(client: AsyncClient) -> None:
        value = read_value(source) if source else None
        made = await client.update_credential(name, value, description=description, expires_at=expires_at)
        if printed_as_json(made, as_json):
            return
        print(f"credential {name}: {', '.join(made.fields)} (version {made.version})")
        for use in made.uses:
            if use.version < made.version:
                flow = use.deployment.split("/")[1]
                print(f"  {use.deployment} keeps version {use.version}: headrace flow refresh-credentials {flow}")

    run_with_client(work, address=address, data=data, as_json=as_json)


@app.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Delete a credential; refused while a deployment uses it."""
    require_yes(yes, f"Delete credential {name}?")
    run_with_client(lambda client: client.delete_credential(name), address=address, data=data, as_json=as_json)
    if as_json:
        print_json({"deleted": name})
    else:
        print(f"credential {name} deleted")


@app.command()
def verify(
    name: NameArgument,
    step: Annotated[
        str, typer.Option("--step", metavar="FLOW/STEP", help="Ask this step, also one that does not use it yet.")
    ] = "",
    component: Annotated[
        str, typer.Option("--component", metavar="REFERENCE", help="Ask this component: shop, shop@3.")
    ] = "",
    used: Annotated[bool, typer.Option("--used", help="The version that each step uses now; else the newest.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Ask the components that use a credential whether it is good. Exit status 1 where one says no, or cannot tell."""

    async def work(client: AsyncClient) -> list[credential_pb2.Verification]:
        return await client.verify_credential(name, step=step, component=component, used_version=used)

    found = run_with_client(work, address=address, data=data, as_json=as_json, doing=f"verifying {name}")
    if as_json:
        from headrace.cli.plain import plain

        print_json({"verifications": [plain(item) for item in found]})
    for item in () if as_json else found:
        flow_step = item.step.removeprefix("flows/").replace("/steps/", "/")
        who = f"{flow_step + ', ' if flow_step else ''}{item.component}@{item.revision}"
        about = ", ".join(part for part in (item.kind, item.where) if part)
        said = "good" if item.verified else f"{'not good' if item.asked else 'not asked'}: {item.problem} ({about})"
        print(f"{name} version {item.version}, {who}: {said}")
    if not all(item.verified for item in found):
        raise typer.Exit(FAILED)


@app.command("new-key")
def new_key_(as_json: JsonOption = False) -> None:
    """Print a fresh line for a key file. As the first line it seals; older lines still open what they sealed."""
    from headrace.edge.key_ring import new_key

    key = new_key()
    if as_json:
        print_json({"key": key})
    else:
        print(key)


@app.command()
def reseal(as_json: JsonOption = False, address: AddressOption = None, data: DataOption = None) -> None:
    """Encrypt all values anew with the first key of the key file, so that older keys can be taken out of it."""

    async def work(client: AsyncClient) -> None:
        done = await client.reseal_credentials()
        if not printed_as_json(done, as_json):
            print(f"{done.resealed} of {done.values} values sealed anew with key {done.key_id}")

    run_with_client(work, address=address, data=data, as_json=as_json)


def refresh_credentials(
    flow: FlowArgument,
    step: Annotated[
        str, typer.Option(metavar="STEP", help="Only this step; default: all that have a credential.")
    ] = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Give the newest credentials to a flow that runs, without a restart. If a component refuses, nothing changes."""

    async def work(client: AsyncClient) -> None:
        from headrace.cli.plain import plain

        steps = await client.refresh_credentials(flow, step)
        if as_json:
            print_json({"steps": [plain(item) for item in steps]})
        elif not steps:
            print(f"{flow}: has the newest credentials already")
        for item in () if as_json else steps:
            name, number = item.credential.removeprefix("credentials/"), item.deployment.rpartition("/")[2]
            print(f"{item.step} (d{number}): {name} version {item.version_before} -> {item.version}")

    run_with_client(work, address=address, data=data, as_json=as_json, doing=f"refreshing credentials of {flow}")


def read_value(source: str) -> dict[str, Any]:
    """The object in a file, or in standard input; wrong usage, which shows none of it, where there is none."""
    what = "standard input" if source == "-" else source
    try:
        if source == "-":
            raw = sys.stdin.buffer.read(8 * MAX_VALUE_BYTES)
        else:
            with Path(source).open("rb") as opened:
                raw = opened.read(8 * MAX_VALUE_BYTES)
    except OSError as error:
        print_usage(f"--from {source}: {error.strerror}")
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        print_usage(f"{what}: is not JSON (line {error.lineno}, column {error.colno})")
    except (ValueError, RecursionError):
        print_usage(f"{what}: is not JSON")
    if not isinstance(value, dict):
        print_usage(f'{what}: is not a JSON object such as {{"user": "…", "password": "…"}}')
    return value


def _moment(text: str) -> float:
    if not text:
        return 0.0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        print_usage(f"--expires {text}: write 2027-01-31 or 2027-01-31T12:00:00Z")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _row(item: credential_pb2.Credential) -> tuple[object, ...]:
    expires = f"{item.expire_time.ToDatetime():%Y-%m-%d %H:%MZ}" if item.HasField("expire_time") else "-"
    updated = f"{item.update_time.ToDatetime():%Y-%m-%d %H:%MZ}"
    return (
        item.name.removeprefix("credentials/"),
        item.version,
        ", ".join(item.fields),
        updated,
        "expired" if item.expired else expires,
        item.description or "-",
    )
