"""A component's own log: one JSON object a line on standard output, which the sidecar reads.

{"level": "info", "message": "priced", "fields": {"sku": "A-1"}, "execution_id": "...", "message_id": "...",
 "trace_id": "...", "span_id": "..."}

The span is that of the call's attempt, or the component's own (OpenTelemetry) that is current. What a call prints, or
writes through `logging`, is joined to it in the same way.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.sdk.telemetry import TELEMETRY

LogLine = dict[str, Any]
WriteLine = Callable[[LogLine], None]

# A sidecar cuts lines at 8 KiB, and a line that is cut is no JSON.
MAX_LINE_BYTES = 8_000
MAX_PART_BYTES = 3_500
_encoder = msgspec.json.Encoder(enc_hook=repr)


def write_stdout(line: LogLine) -> None:
    """Writes one line and flushes it, so that a killed process has lost none."""
    sys.stdout.write(line_text(line) + "\n")
    sys.stdout.flush()


def line_text(line: LogLine) -> str:
    """One line without its end; what cannot be encoded, or is longer than a sidecar takes, is told instead."""
    try:
        text = _encoder.encode(line)
    except Exception:
        # Fields that no encoder takes (cycles, odd keys) must not fail the call that logs them.
        text = _encoder.encode({**line, "fields": {"unprintable": repr(line.get("fields"))[:2000]}})
    if len(text) <= MAX_LINE_BYTES:
        return text.decode()
    cut = {**line, "message": _begin(str(line.get("message"))), "fields": {"cut": f"{len(text)} bytes"}}
    if "traceback" in line:
        cut["traceback"] = _begin(str(line["traceback"])[::-1])[::-1]  # where it broke is at its end
    return _encoder.encode(cut).decode()


def _begin(text: str) -> str:
    """As much of it as two of them leave room for the rest of a line, however its characters are written."""
    while len(_encoder.encode(text)) > MAX_PART_BYTES:
        text = text[: len(text) * 3 // 4]
    return text


class ComponentLog:
    """`log.info("message", key=value)`."""

    __slots__ = ("_execution_id", "_message_id", "_traceparent", "_write")

    def __init__(
        self, write: WriteLine = write_stdout, execution_id: str = "", message_id: str = "", traceparent: str = ""
    ) -> None:
        self._write = write
        self._execution_id = execution_id
        self._message_id = message_id
        self._traceparent = traceparent

    def bound(self, execution_id: str, message_id: str, traceparent: str = "") -> ComponentLog:
        """The same log for one call."""
        return ComponentLog(self._write, execution_id, message_id, traceparent)

    def debug(self, message: str, **fields: Any) -> None:
        self._line("debug", message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._line("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._line("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._line("error", message, fields)

    def exception(self, message: str, error: BaseException, **fields: Any) -> None:
        """An error line with the traceback."""
        self._line("error", message, fields, "".join(traceback.format_exception(error)))

    def ids(self) -> LogLine:
        """Execution, message, trace and span that a line belongs to, as far as there are any."""
        found: LogLine = {}
        if self._message_id:
            found = {"execution_id": self._execution_id, "message_id": self._message_id}
        trace_id, span_id = TELEMETRY.current_ids()
        if not trace_id and len(self._traceparent) == 55:
            trace_id, span_id = self._traceparent[3:35], self._traceparent[36:52]
        return found | {"trace_id": trace_id, "span_id": span_id} if trace_id else found

    def _line(self, level: str, message: str, fields: dict[str, Any], trace: str = "") -> None:
        line: LogLine = {"level": level, "message": str(message)}
        if fields:
            line["fields"] = fields
        line |= self.ids()
        if trace:
            line["traceback"] = trace
        self._write(line)


def _ids_of_call() -> LogLine:
    """Of the call that is running, if one is."""
    from headrace.sdk.context import _CURRENT  # which imports this module

    call = _CURRENT.get(None)
    return call.log.ids() if call is not None else {}


class _StandardLogging(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line: LogLine = {
                "level": record.levelname.lower().replace("critical", "error"),
                "message": record.getMessage(),
                "fields": {"logger": record.name},
                **_ids_of_call(),
            }
            if record.exc_info and record.exc_info[1] is not None:
                line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
            write_stdout(line)
        except Exception:
            self.handleError(record)


def capture_standard_logging() -> None:
    """Sends `logging` records (info and up) the same way as `ctx.log`."""
    root = logging.getLogger()
    root.handlers[:] = [_StandardLogging()]
    root.setLevel(logging.INFO)
