"""Looks a flow file over before anything is done with it: its graph, and what its steps ask of their components.

A folder's component is known by its manifest, others by the registry, where one answers. The same rules decide as at
a publish (`headrace.wire.step_checks`), so what passes here fails there only if the mesh has changed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.api.registry.v1 import registry_pb2
from headrace.model.bundle_rules import MANIFEST_FILE, MAX_MANIFEST_BYTES
from headrace.model.errors import HeadraceError, InvalidInput, NotFound, WrongState

if TYPE_CHECKING:
    from headrace.wire.flow_file import FlowFile

Resolve = Callable[[str], Awaitable[registry_pb2.Revision]]


async def check_flow_file(file: FlowFile, resolve: Resolve | None) -> None:
    """InvalidInput with a violation for each problem, at its place in the file. Without `resolve`, components that are
    no folders are not looked at."""
    from headrace.wire.step_checks import (
        choose_function,
        flow_problems,
        merged,
        problems_of,
    )  # only here: slow to import

    graph = file.check()
    components = list(dict.fromkeys(step.component for step in file.spec.steps if step.has_process))
    answers = await asyncio.gather(*(_manifest(file, component, resolve) for component in components))
    manifests = dict(zip(components, answers, strict=True))
    problems: list[InvalidInput] = []
    functions = []
    for index, step in enumerate(file.spec.steps):
        if not step.has_process:
            continue
        try:
            manifest = manifests[step.component]
            if isinstance(manifest, HeadraceError):
                raise _at_step(index, step.component, manifest)
            if manifest is not None:
                function = choose_function(index, step, manifest)
                functions.append(function)
                problems += problems_of(index, step, function, step.name == graph.trigger)
        except InvalidInput as error:
            problems.append(error)
    problems += flow_problems(file.spec, functions)
    if problems:
        raise file.located(merged(problems))


async def _manifest(
    file: FlowFile, component: str, resolve: Resolve | None
) -> registry_pb2.Manifest | HeadraceError | None:
    """What the component of some steps has; a refusal as a value; None where nobody can be asked."""
    folder = (
        next((file.folders[step.name] for step in file.spec.steps if step.component == component), None)
        if (component.startswith((".", "/")))
        else None
    )
    try:
        if folder is not None:
            return await asyncio.to_thread(_read_manifest, folder)
        return (await resolve(component)).manifest if resolve is not None else None
    except (InvalidInput, NotFound, WrongState) as error:
        return error


def _read_manifest(folder: Path) -> registry_pb2.Manifest:
    from headrace.model.manifest import read_manifest
    from headrace.wire.manifest import manifest_to_proto

    file = folder / MANIFEST_FILE
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror or error}", reason="NO_MANIFEST") from error
    return manifest_to_proto(read_manifest(raw, str(file)))


def _at_step(index: int, component: str, error: HeadraceError) -> HeadraceError:
    """A manifest's own error has its place already; what the registry said is about the step's reference."""
    if component.startswith((".", "/")) and isinstance(error, InvalidInput):
        return error
    from headrace.wire.step_checks import unresolved

    return unresolved(f"steps[{index}].component", component, str(error))
