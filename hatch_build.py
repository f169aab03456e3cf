"""Build hook: generates the gRPC stubs before the package is built or installed in editable mode."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        script = Path(self.root) / "tools" / "generate_stubs.py"
        subprocess.run([sys.executable, str(script)], check=True)
