"""`headrace dead-letters edit`: changes what a replay of a letter sends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from headrace.cli.flow_command import FlowArgument, flow_id
from headrace.cli.invocation import (
    AddressOption,
    DataOption,
    JsonOption,
    header_pair,
    print_usage,
    printed_as_json,
    run_with_client,
)
from headrace.model.json_pointer import set_at

if TYPE_CHECKING:
    from headrace.api.deadletter.v1 import dead_letter_pb2
    from headrace.client import AsyncClient

WHOLE_BODY = 512 * 1024


def edit(
    flow: FlowArgument,
    number: Annotated[int, typer.Argument(help="Number of the letter, as listed.", min=1)],
    body: Annotated[str | None, typer.Option(metavar="FILE", help="The new body; `-` reads standard input.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="POINTER=JSON", help="Change one place of a JSON body: /total=17; may repeat."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set a header; empty takes it away. May repeat.")
    ] = None,
    content_type: Annotated[str | None, typer.Option(help="New media type of the body.")] = None,
    revert: Annotated[bool, typer.Option("--revert", help="Forget the edit: the original is sent again.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Change what a replay of one letter sends; the original is kept beside it. Without options your $EDITOR opens."""
    if body is not None and change:
        print_usage("give --body or --set, not both")
    given = _read(body)
    places = [_place(text) for text in change or ()]
    headers = dict(header_pair(text) for text in header or ())
    by_hand = not (given is not None or places or headers or content_type is not None or revert)
    if by_hand and not sys.stdin.isatty():
        print_usage("say what changes: --body FILE, --set POINTER=JSON, --header NAME=VALUE, or --revert")

    async def work(client: AsyncClient) -> dead_letter_pb2.DeadLetter | None:
        new, etag = given, ""
        if places or by_hand:
            letter = await client.get_dead_letter(flow, number, max_body_bytes=WHOLE_BODY)
            etag, now = letter.etag, letter.edit.body if letter.HasField("edit") else letter.body
            new = _with_places(now, places) if places else _in_editor(now)
            if new is None:
                return None
        return await client.edit_dead_letter(
            flow, number, body=new, content_type=content_type, headers=headers, revert=revert, etag=etag
        )

    answer = run_with_client(work, address=address, data=data, as_json=as_json)
    if answer is None:
        print("nothing was changed")
    elif not printed_as_json(answer, as_json):
        print(f"{flow_id(flow)} {number}: {'edited' if answer.HasField('edit') else 'the original again'}")
        print(f"look: headrace dead-letters show {flow_id(flow)} {number}")
        print(f"send it: headrace dead-letters replay {flow_id(flow)} {number}")


def _read(body: str | None) -> bytes | None:
    if body is None:
        return None
    if body == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(body).read_bytes()
    except OSError as error:
        print_usage(f"{body}: {error.strerror}")


def _place(text: str) -> tuple[str, Any]:
    pointer, equals, value = text.partition("=")
    if not equals:
        print_usage(f"--set {text}: write POINTER=JSON, for example /customer=17")
    try:
        return pointer, json.loads(value)
    except ValueError:
        print_usage(f"--set {text}: {value} is not JSON; a text needs quotes: '{pointer}=\"{value}\"'")


def _with_places(body: bytes, places: list[tuple[str, Any]]) -> bytes:
    try:
        document = json.loads(body)
    except ValueError:
        print_usage("the body is not JSON: give the whole of it with --body FILE")
    for pointer, value in places:
        document = set_at(document, pointer, value)
    return json.dumps(document, ensure_ascii=False).encode()


def _in_editor(body: bytes) -> bytes | None:
    """None where the editor was left without saving, or nothing was changed."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        print_usage("the body is not text: give the whole of it with --body FILE")
    try:
        shown = json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    except ValueError:
        shown = text
    edited = click.edit(shown, extension=".json" if shown != text else ".txt")
    return None if edited is None or edited == shown else edited.encode()
