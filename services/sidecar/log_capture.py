"""What a component writes to its standard output and error, line by line, as LogLine on the log subject.

A line that is a JSON object with `message` (the SDK's `ctx.log`) keeps its level and fields, and the call that it
belongs to; any other is an `info` line. Secrets are masked here, before a line goes anywhere. Lines are cut at 8 KiB
and limited in rate; what is dropped is counted and said. The last lines are kept, so that a crash can be explained.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.model.secret_mask import SecretMask

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan

log = get_logger(__name__)

MAX_LINE_BYTES = 8 * 1024
KEPT_LINES = 20
# Of a traceback, its last lines: where it broke, and how.
TRACE_LINES = 3
LINES_PER_S = 500
BURST_LINES = 1_000
BYTES_PER_S = 2 * 1024 * 1024
BURST_BYTES = 4 * 1024 * 1024
SAY_DROPPED_S = 1.0
MAX_ID = 200
_TRACE_ID, _SPAN_ID = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{16}")
_LEVELS = frozenset({"debug", "info", "warning", "error"})


class LogCapture:
    """Feed it raw chunks. `publish` takes a serialized `headrace.api.flow.v1.LogLine`; it may not block."""

    def __init__(
        self,
        *,
        flow: str,
        step: str,
        deployment: int,
        instance: str,
        publish: Callable[[bytes], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], object] = lambda delay_s, call: None,
    ) -> None:
        """`later` calls back after so many seconds: a flood that ended is told then."""
        self._identity: dict[str, Any] = {"flow": flow, "step": step, "deployment": deployment, "instance": instance}
        self.publish = publish
        self.export: Callable[[Any], None] | None = None
        """Gets each line besides, where they are exported."""
        self.mask = SecretMask()
        self._later = later
        self._will_say = False
        self._clock = clock
        self._bytes_left = float(BURST_BYTES)
        self._fed_at = clock()
        self._partial = b""
        self._cutting = False
        self._allowance = float(BURST_LINES)
        self._filled_at = clock()
        self.dropped = 0
        self._dropped_unsaid = 0
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def last_lines(self) -> list[str]:
        """Oldest first."""
        return list(self._kept)

    def feed(self, chunk: bytes) -> float:
        """Takes a chunk as read from the pipe; answers for how many seconds no more is to be read. Reading costs the
        sidecar more than writing costs the component, so a flood is slowed down and not only thinned out."""
        self._bytes_left = min(BURST_BYTES, self._bytes_left + (self._clock() - self._fed_at) * BYTES_PER_S) - len(
            chunk
        )
        self._fed_at = self._clock()
        *lines, rest = (self._partial + chunk).split(b"\n")
        for line in lines:
            if self._cutting:  # the rest of a line that was cut
                self._cutting = False
                continue
            self._take(line)
        if len(rest) > MAX_LINE_BYTES:
            if not self._cutting:
                self._take(rest)
            self._cutting, rest = True, b""
        self._partial = rest
        return max(0.0, -self._bytes_left / BYTES_PER_S)

    def end(self) -> None:
        """The process is gone: an unfinished line counts as one."""
        if self._partial and not self._cutting:
            self._take(self._partial)
        self._partial, self._cutting = b"", False
        self._say_dropped()

    def of(self, plan: DeploymentPlan, step: StepPlan) -> None:
        """Whose lines they are from now on; secrets of the step's configuration are masked in them."""
        self.mask.learn(step.config)
        pin = step.pin
        self._identity |= {
            "version": plan.version,
            "revision": f"{pin.component}@{pin.revision_number}",
            "digest": pin.digest,
        }

    def say(self, level: str, message: str, **fields: Any) -> None:
        """A line of the sidecar's own in the same stream (`source` is `sidecar`)."""
        self._send(level, message, fields, source="sidecar")

    def _take(self, raw: bytes) -> None:
        text = raw[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r")
        if len(raw) > MAX_LINE_BYTES:
            text += " …"
        if not text.strip():
            return
        level, message, fields = parse_line(text)
        message, fields = self.mask.text(message), self.mask.fields(fields)
        call = _call_of(fields)
        self._keep(message, fields)
        if not self._allowed():
            self._drop()
            return
        self._say_dropped()
        self._send(level, message, fields, source="component", **call)

    def _drop(self) -> None:
        self.dropped += 1
        self._dropped_unsaid += 1
        if not self._will_say:
            self._will_say = True
            self._later(SAY_DROPPED_S, self._say_dropped)

    def _say_dropped(self) -> None:
        self._will_say = False
        if self._dropped_unsaid:
            count, self._dropped_unsaid = self._dropped_unsaid, 0
            self.say("warning", "log lines dropped: more was written than the limit takes", dropped=count)

    def _keep(self, message: str, fields: dict[str, Any]) -> None:
        """For causes of failures: a traceback takes lines of its own, its end first of all."""
        others = {name: value for name, value in fields.items() if name != "traceback"}
        self._kept.append(f"{message} {json.dumps(others, ensure_ascii=False)}" if others else message)
        trace = str(fields.get("traceback", "")).strip().splitlines()
        self._kept.extend(trace[-TRACE_LINES:])

    def _allowed(self) -> bool:
        now = self._clock()
        self._allowance = min(BURST_LINES, self._allowance + (now - self._filled_at) * LINES_PER_S)
        self._filled_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _send(self, level: str, message: str, fields: dict[str, Any], *, source: str, **call: Any) -> None:
        if self.publish is None:
            log.info("component wrote", line=message, level_written=level)
            return
        from headrace.api.flow.v1 import flow_pb2  # only instances that write pay for it

        line = flow_pb2.LogLine(**self._identity, level=level, message=message, source=source, **call)
        line.time.FromNanoseconds(time.time_ns())
        if fields:
            line.fields_json = json.dumps(fields, ensure_ascii=False, default=str)
        try:
            self.publish(line.SerializeToString())
        except Exception:  # a line is not worth waiting for, whatever the lane says
            self._drop()
        if self.export is not None:
            self.export(line)


def _call_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The call that a line says it belongs to; what says so is no field any more."""
    call: dict[str, Any] = {}
    for name in ("execution_id", "message_id"):
        if isinstance(fields.get(name), str):
            call[name] = fields.pop(name)[:MAX_ID]
    for name, pattern in (("trace_id", _TRACE_ID), ("span_id", _SPAN_ID)):
        if isinstance(fields.get(name), str) and pattern.fullmatch(fields[name]):
            call[name] = fields.pop(name)
    return call


def parse_line(text: str) -> tuple[str, str, dict[str, Any]]:
    """Level, message and fields of one line."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # a line may be nested as deep as it is long
            found = None
        if isinstance(found, dict) and isinstance(found.get("message"), str):
            level = str(found.pop("level", "info")).lower()
            message = found.pop("message")
            fields = found.pop("fields", None)
            if isinstance(fields, dict):
                found.update(fields)
            return level if level in _LEVELS else "info", message, found
    return "info", text, {}
