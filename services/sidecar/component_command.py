"""Command line and environment of a component.

It gets only the environment it needs; configuration and secrets go through Init, never through the environment or
the command line.
"""

from __future__ import annotations

import os
from pathlib import Path

from headrace.edge.child_process import Command, OnOutput
from headrace.edge.parent_death import PARENT_PID_VARIABLE
from services.sidecar.settings import Settings

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY",
              "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "GRPC_EXPERIMENTS",
              "GRPC_VERBOSITY", "GRPC_ENABLE_FORK_SUPPORT", "HEADRACE_COMPONENT_LOOP", "HEADRACE_COMPILED",
              # By these the agent and `headrace up` find what an instance left behind.
              "HEADRACE_AGENT", "HEADRACE_MESH")  # fmt: skip


def component_command(
    settings: Settings, bundle: Path, python: Path, entrypoint: str, socket: Path, output: OnOutput
) -> Command:
    """Command line and environment of a component; -P keeps the bundle from shadowing the SDK's modules."""
    environment: dict[str, str | None] = {name: None for name in os.environ if name not in _PASSED_ON}
    environment[PARENT_PID_VARIABLE] = str(os.getpid())
    environment["HEADRACE_COMPONENT_SOCKET"] = str(socket)
    environment["HEADRACE_INSTANCE"] = settings.instance
    environment["PYTHONUNBUFFERED"] = "1"
    arguments = (str(python), "-P", "-m", "headrace.sdk.serve", "--bundle", str(bundle), "--entrypoint", entrypoint)
    return Command(arguments, environment, on_output=output, folder=bundle)
