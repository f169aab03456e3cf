"""What `headrace dev` tells: turns, errors with their place, log lines; text or JSON lines."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from headrace.cli.invocation import error_facts, print_error
from headrace.cli.terminal import show_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headrace.api.flow.v1 import flow_pb2
    from headrace.client.apply import AppliedComponent
    from headrace.client.run import RanFlow
    from headrace.model.errors import HeadraceError


class DevReport:
    """Text for a person on standard output and error, or one JSON object a line on standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def mesh_started(self, data: str, took_s: float) -> None:
        self._tell("mesh", f"a mesh of its own on {data} ({took_s:.1f} s)", data=data)

    def saved(self, files: Sequence[Path]) -> None:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        self._tell("saved", f"saved {', '.join(file.name for file in files[:3])}{more}", files=[*map(str, files)])

    def pushed(self, component: AppliedComponent) -> None:
        if component.created:
            self._tell(
                "pushed",
                f"{component.component}: pushed revision {component.revision}",
                component=component.component,
                revision=component.revision,
            )

    def ran(self, ran: RanFlow, took_s: float, try_it: str) -> None:
        """`try_it`: what a person types to see an answer; told where it is new."""
        from headrace.cli.flow import ran_words

        name = ran.status.flow.removeprefix("flows/")
        facts = {"flow": name, "action": ran.action, "seconds": round(took_s, 3), "try": try_it}
        self._tell("ran", f"{name}: {ran_words(ran)} ({took_s:.2f} s)", **facts)
        if try_it and not self._as_json:
            print(f"  {try_it}", flush=True)

    def failed(self, error: HeadraceError, still_runs: bool) -> None:
        if self._as_json:
            self._tell("failed", "", error=error_facts(error), still_runs=still_runs)
            return
        print_error(error)
        print(
            "  what ran before runs on; waiting for the next save" if still_runs else "  waiting for the next save",
            flush=True,
        )

    def log_line(self, line: flow_pb2.LogLine) -> None:
        from headrace.cli.logs import line_facts, line_text

        if self._as_json:
            print(json.dumps({"event": "log", **line_facts(line)}, ensure_ascii=False), flush=True)
        else:
            print(line_text(line), flush=True)

    def left(self, words: str) -> None:
        self._tell("left", words)

    def _tell(self, event: str, words: str, **facts: Any) -> None:
        if self._as_json:
            print(json.dumps({"event": event, **facts}, ensure_ascii=False), flush=True)
        else:
            show_text(f"{time.strftime('%H:%M:%S')}  {words}", flush=True)
