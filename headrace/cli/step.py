"""`headrace step`: one step, asked or run on one input, away from the flow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.flow_command import FlowArgument
from headrace.cli.invocation import (
    FAILED,
    AddressOption,
    DataOption,
    JsonOption,
    header_pair,
    print_json,
    print_usage,
    printed_as_json,
    run_with_client,
)
from headrace.cli.tables import table
from headrace.model.errors import InvalidInput

if TYPE_CHECKING:
    from headrace.api.step.v1 import step_pb2
    from headrace.client import AsyncClient

app = typer.Typer(
    no_args_is_help=True,
    help="Ask a step's component, or run it on one input, away from the flow: nothing is stored, sent on or saved.",
)
StepArgument = Annotated[str, typer.Argument(help="Name of the step.")]
DraftOption = Annotated[bool, typer.Option("--draft", help="The step of the draft, instead of the one that runs.")]
CredentialOption = Annotated[
    str, typer.Option("--credential", metavar="NAME", help="Try this credential in place of the step's own.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Try this configuration (JSON) in place of the step's.")
]
SHOWN_BODY = 2_000


@app.command()
def run(
    flow: FlowArgument,
    step: Annotated[str, typer.Argument(help="Name of the step; with --dead-letter its own.")] = "",
    source: Annotated[
        str, typer.Option("--input", metavar="FILE", help="The input's body; `-` reads standard input.")
    ] = "",
    body: Annotated[str, typer.Option("--body", metavar="TEXT", help="The input's body, as typed.")] = "",
    dead_letter: Annotated[
        int, typer.Option("--dead-letter", metavar="N", help="Take the input from this dead letter.", min=0)
    ] = 0,
    draft: DraftOption = False,
    header: Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="May repeat.")] = None,
    content_type: Annotated[str, typer.Option(help="Media type of the input.")] = "application/json",
    snapshot: Annotated[
        str, typer.Option("--snapshot", metavar="JSON", help="What the step keeps, in place of what it does.")
    ] = "",
    config: ConfigOption = None,
    credential: CredentialOption = "",
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Else the step's own.")] = 0.0,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Run a step on one input as a dry run, and print what it emits, replies, saves and logs."""
    if sum(map(bool, (source, body, dead_letter))) != 1:
        print_usage("give one of --input FILE, --body TEXT and --dead-letter N")
    if not step and not dead_letter:
        print_usage("name the step")
    headers = dict(header_pair(text) for text in header or [])

    async def work(client: AsyncClient) -> step_pb2.RunStepResponse:
        return await client.run_step(
            flow,
            step,
            _read(source) if source else body.encode(),
            content_type=content_type,
            headers=headers,
            dead_letter=dead_letter,
            draft=draft,
            config=_config(config),
            credential=credential,
            snapshot_json=snapshot,
            timeout_s=timeout_s,
        )

    answer = run_with_client(work, address=address, data=data, as_json=as_json, doing=f"running {step or 'the step'}")
    failed = any(event.WhichOneof("kind") == "error" for event in answer.events)
    if as_json:
        print_json(_facts(answer))
    else:
        _print_run(answer)
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def metadata(
    flow: FlowArgument,
    step: StepArgument,
    draft: DraftOption = False,
    config: ConfigOption = None,
    credential: CredentialOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show what a step takes and emits, as its component finds out: JSON Schemas."""

    async def work(client: AsyncClient) -> None:
        found = await client.step_metadata(flow, step, draft=draft, config=_config(config), credential=credential)
        if printed_as_json(found, as_json):
            return
        from google.protobuf import json_format

        print(_what(found.step))
        for name, schema in (("takes", found.in_schema), ("emits", found.out_schema)):
            text = json.dumps(json_format.MessageToDict(schema), indent=2, ensure_ascii=False)
            print(f"{name}: {text if schema.fields else 'it does not say'}")

    run_with_client(work, address=address, data=data, as_json=as_json, doing=f"asking {step}")


@app.command("select-model")
def select_model(
    flow: FlowArgument,
    step: StepArgument,
    model: Annotated[str, typer.Argument(help="Name of the model; without it, which there are.")] = "",
    draft: DraftOption = False,
    config: ConfigOption = None,
    credential: CredentialOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """List what can be chosen for a field of a step's configuration: tables, mailboxes, projects."""

    async def work(client: AsyncClient) -> None:
        found = await client.select_model(flow, step, model, draft=draft, config=_config(config), credential=credential)
        if printed_as_json(found, as_json):
            return
        from google.protobuf import json_format

        if not model:
            print("models: " + (", ".join(found.models) or "none"))
            return
        rows = [(json_format.MessageToJson(choice.value, indent=None), choice.label) for choice in found.choices]
        print(table(("VALUE", "LABEL"), rows))

    run_with_client(work, address=address, data=data, as_json=as_json, doing=f"asking {step}")


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        print_usage(f"--input {source}: {error.strerror}")


def _config(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput.at("--config", str(file), f"cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput.at("--config", str(file), "is not a JSON object")
    return config


def _what(step: step_pb2.TriedStep) -> str:
    where = f"pinned by {step.deployment}" if step.deployment else "of the draft" if step.name else "as named"
    with_ = f", {step.credential} version {step.credential_version}" if step.credential else ""
    return f"{step.name.rpartition('/')[2] or step.component}: {step.component}@{step.revision} {where}{with_}"


def _facts(answer: step_pb2.RunStepResponse) -> Any:
    from headrace.cli.plain import plain

    facts = plain(answer)
    facts["events"] = [_event_facts(event) for event in answer.events]
    return facts


def _event_facts(event: Any) -> dict[str, Any]:
    from headrace.cli.plain import plain

    kind = event.WhichOneof("kind") or ""
    return {"kind": kind, **plain(getattr(event, kind))} if kind else {}


def _print_run(answer: step_pb2.RunStepResponse) -> None:
    print(_what(answer.step))
    for event in answer.events:
        kind = event.WhichOneof("kind")
        if kind == "data":
            key = f" (key {event.data.key})" if event.data.key else ""
            _print_body(f"data{key}", event.data)
        elif kind == "reply":
            _print_body(f"reply {event.reply.status or 200}", event.reply)
        elif kind == "error":
            retry = "retryable" if event.error.retryable else "final"
            print(f"error: {event.error.code} ({retry}): {event.error.message}")
        elif kind == "rebound":
            print(f"rebound in {event.rebound.delay_ms or '?'} ms: {event.rebound.reason}")
        elif kind == "snapshot":
            print(f"snapshot {'merge' if event.snapshot.merge else 'replace'}: {_short(event.snapshot.json)}")
    if answer.truncated:
        print("… there was more than 8 MiB")
    for line in answer.lines:
        print(f"log {line.level}: {line.message}{' ' + line.fields_json if line.fields_json else ''}")
    took_ms = (answer.duration.seconds * 1e9 + answer.duration.nanos) / 1e6
    start_ms = sum(took for stage, took in answer.stage_ms.items() if stage != "call")
    print(f"took {took_ms:.1f} ms, and {start_ms:.0f} ms to start; nothing was stored or sent on")


def _print_body(what: str, emit: Any) -> None:
    headers = "".join(f"  {name}: {value}" for name, value in sorted(emit.headers.items()))
    print(f"{what}: {_short(emit.body.decode(errors='replace'))}{headers}")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_BODY else f"{text[:SHOWN_BODY]}… ({len(text)} characters)"
