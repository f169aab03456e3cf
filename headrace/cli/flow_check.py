"""`headrace flow validate` and `headrace schema`: what is wrong with a file before anything is done with it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.cli.invocation import (
    FAILED,
    AddressOption,
    DataOption,
    JsonOption,
    find_address,
    hint,
    print_error,
    print_json,
)
from headrace.model.errors import HeadraceError, Unavailable

Looked = tuple[str, int, list[str]]


def validate(
    file: Annotated[Path, typer.Argument(help="Flow file (YAML), or a folder with flow.yaml.")],
    local: Annotated[bool, typer.Option("--local", help="Do not ask a mesh about pushed components.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Say what is wrong with a flow file, with line and column; nothing is pushed or changed."""
    try:
        name, steps, unknown = asyncio.run(_look(file, local, address, data))
    except HeadraceError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(FAILED) from None
    if as_json:
        print_json({"flow": name, "steps": steps, "valid": True, "not_looked_up": unknown})
        return
    print(f"{name}: {steps} {'step' if steps == 1 else 'steps'}, valid")
    if unknown:
        why = "by choice" if local else "no mesh answers"
        print(f"  not looked up ({why}): {', '.join(unknown)}")
    hint(f"headrace flow apply {file}")


async def _look(path: Path, local: bool, address: str | None, data: Path | None) -> Looked:
    from headrace.client.flow_check import check_flow_file
    from headrace.wire.flow_file import load_flow_file

    file = load_flow_file(path)
    pushed = sorted({step.component for step in file.spec.steps if step.has_process and step.name not in file.folders})
    if pushed and not local:
        from headrace.client import AsyncClient

        try:
            async with AsyncClient(find_address(address, data)) as client:
                await check_flow_file(file, client.resolve_reference)
            return file.name, len(file.spec.steps), []
        except Unavailable:
            if address:
                raise
    await check_flow_file(file, None)
    return file.name, len(file.spec.steps), pushed


def schema(
    kind: Annotated[Literal["flow", "component"], typer.Argument(help="Which file: flow.yaml or component.yaml.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
) -> None:
    """Print the JSON Schema of flow files or of component.yaml, for editors."""
    from headrace.wire.file_schemas import file_schema

    text = json.dumps(file_schema(kind), indent=2)
    if output is None:
        print(text)
        return
    try:
        output.write_text(text + "\n")
    except OSError as error:
        raise HeadraceError(
            f"{output}: {error.strerror or error}", reason="CANNOT_WRITE", next_step="Name another file"
        ) from error
    print(f"{output}: written")
    hint(f"put into your {kind}.yaml:  # yaml-language-server: $schema={output}")
