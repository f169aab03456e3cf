"""Says what a component offers: `python -m headrace.sdk.describe DIR` prints one JSON object,

    {"price": {"kind": "action", "in": {...JSON Schema...}, "out": {...}}}

with null for what is not typed. Exit status 3 and a last line on standard error if it cannot be loaded. What
the component's own code prints while it is imported goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec

from headrace.sdk.component import Component
from headrace.sdk.loading import load_component, read_entrypoint

EXIT_BAD_COMPONENT = 3


def describe(component: Component) -> dict[str, dict[str, Any]]:
    """Kind and schemas of each function of a component that was resolved."""
    return {
        function.name: {"kind": function.kind, "in": function.in_schema, "out": function.out_schema}
        for function in component.functions.values()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.sdk.describe", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entrypoint", default="", help="MODULE:ATTRIBUTE; default: what component.yaml says")
    given = parser.parse_args(arguments)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            entrypoint = given.entrypoint or read_entrypoint(given.folder)
            described = describe(load_component(given.folder, entrypoint))
    except BaseException as error:
        if not isinstance(error, (SystemExit, KeyboardInterrupt)):
            traceback.print_exception(error)
        print(f"the component cannot be loaded: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_BAD_COMPONENT
    sys.stdout.write(msgspec.json.encode(described, order="deterministic").decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
