"""Every command that the documents show is run, in order, in a folder of its own; all on one mesh."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import real_tools

from headrace.edge.broker_process import free_port
from tests.docs.markdown import RunCommand, steps_of
from tests.docs.walk import Walk
from tests.support.commands import headrace
from tests.support.mesh import RunningMesh

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(150)  # many commands, one after the other
WITH_GRPCURL = ("grpcurl.md",)
PLAIN = ("concepts.md", "flows.md", "http.md", "integration.md", "troubleshooting.md")


@pytest.fixture
def environment_of_a_clone(tmp_path: Path) -> dict[str, str]:
    """Of somebody who has just cloned and set up: nothing of ours is known."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}, "HOME": str(tmp_path)}


@pytest.fixture
def environment(module_mesh: RunningMesh, environment_of_a_clone: dict[str, str]) -> dict[str, str]:
    """Of a reader: `headrace` and the real tools on PATH, the mesh's data directory known."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if grpcurl := real_tools.locate("grpcurl"):
        places.append(str(Path(grpcurl).parent))
    return {**environment_of_a_clone, "PATH": ":".join(places), "HEADRACE_DATA": str(module_mesh.data)}


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


def walk(name: str, mesh: RunningMesh, folder: Path, environment: dict[str, str]) -> None:
    renamed = {"7400": port_of(mesh.api), "8080": port_of(mesh.gateway)}
    for shipped in ("components", "examples"):
        (folder / shipped).symlink_to(ROOT / shipped)
    Walk(ROOT / "docs" / name, folder, environment, renamed).go()


def test_readme(tmp_path: Path, environment_of_a_clone: dict[str, str]) -> None:
    """With a mesh of its own, which it starts and ends."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    port = str(free_port())
    try:
        Walk(ROOT / "README.md", tmp_path, environment_of_a_clone, {"8080": port}).go()
        assert not (tmp_path / ".headrace" / "endpoints.json").exists(), "it ends its mesh"
    finally:
        headrace("down", data=tmp_path / ".headrace")


@pytest.mark.parametrize("name", PLAIN)
def test_headrace_and_curl(name: str, module_mesh: RunningMesh, tmp_path: Path, environment: dict[str, str]) -> None:
    walk(name, module_mesh, tmp_path, environment)


@pytest.mark.needs("grpcurl")
@pytest.mark.parametrize("name", WITH_GRPCURL)
def test_grpcurl(name: str, module_mesh: RunningMesh, tmp_path: Path, environment: dict[str, str]) -> None:
    walk(name, module_mesh, tmp_path, environment)


def test_every_document_with_commands_is_run() -> None:
    """`dead-letters.md` only lists commands; test_docs_dead_letters.py holds them against the real ones. Of `client.md`
    test_client.py runs the code."""
    told = {
        path.name for path in (ROOT / "docs").glob("*.md") if any(isinstance(s, RunCommand) for s in steps_of(path))
    }
    assert told - {"dead-letters.md", "client.md"} == {*PLAIN, *WITH_GRPCURL}
