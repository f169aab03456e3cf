"""`headrace inject FLOW BODY`: one message to a flow's trigger, or with `--lines` many."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.attachment_files import readable, upload_all
from headrace.cli.flow_command import FlowArgument
from headrace.cli.inject_lines import inject_lines, opened, print_lines_told
from headrace.cli.invocation import (
    AddressOption,
    DataOption,
    JsonOption,
    header_pair,
    print_json,
    print_usage,
    run_with_client,
)

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient


def inject(
    flow: FlowArgument,
    body: Annotated[str | None, typer.Argument(help="The message; `-` reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Read the message from a file instead.")] = None,
    lines: Annotated[
        Path | None, typer.Option("--lines", metavar="FILE", help="Many messages, one per line; `-`: standard input.")
    ] = None,
    content_type: Annotated[str, typer.Option(help="Media type of the message.")] = "application/json",
    header: Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="May repeat.")] = None,
    attach: Annotated[
        list[Path] | None, typer.Option("--attach", metavar="FILE", help="A file to send along. May repeat.")
    ] = None,
    request_id: Annotated[
        str, typer.Option(help="Stimulus id; the same one is accepted once. With --lines: `ID:1`, `ID:2`, ...")
    ] = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Publish one message to a flow's trigger, or one per line. A message above 512 KiB goes by reference."""
    if lines is not None:
        if body is not None or file is not None or attach:
            print_usage("--lines takes neither a message nor --file nor --attach")
        source, pairs = opened(lines), dict(header_pair(text) for text in header or [])
        told = run_with_client(
            lambda client: inject_lines(client, flow, source, content_type, pairs, request_id),
            address=address,
            data=data,
            as_json=as_json,
            if_interrupted="What was sent is in the flow" + ("" if request_id else "; name a --request-id next time"),
        )
        raise typer.Exit(print_lines_told(told, as_json=as_json))
    message = _message(body, file)
    files = list(attach or [])
    readable(files)
    headers = dict(header_pair(text) for text in header or [])

    async def work(client: AsyncClient) -> flow_pb2.InjectMessageResponse:
        small, found = await upload_all(client, flow, message, content_type, files)
        return await client.inject(
            flow, small, content_type=content_type, headers=headers, request_id=request_id, attachments=found
        )

    answer = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        print_json({"execution_id": answer.execution_id, "duplicate": answer.duplicate})
    else:
        print(f"execution {answer.execution_id}{' (had it already)' if answer.duplicate else ''}")


def run_now(
    flow: FlowArgument, as_json: JsonOption = False, address: AddressOption = None, data: DataOption = None
) -> None:
    """Send a flow that is started by a timer one tick now, beside those that are due."""
    answer = run_with_client(lambda client: client.run_now(flow), address=address, data=data, as_json=as_json)
    if as_json:
        print_json({"execution_id": answer.execution_id, "duplicate": answer.duplicate})
    else:
        print(f"execution {answer.execution_id}")


def _message(body: str | None, file: Path | None) -> bytes:
    if (body is None) == (file is None):
        print_usage("give the message, --file FILE or --lines FILE")
    if file is not None:
        try:
            return file.read_bytes()
        except OSError as error:
            print_usage(f"{file}: {error.strerror}")
    if body == "-":
        return sys.stdin.buffer.read()
    return (body or "").encode()
