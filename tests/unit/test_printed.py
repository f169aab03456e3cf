"""What a call prints is joined to it, line by line, also when calls print side by side."""

from __future__ import annotations

import io
import json
from contextvars import copy_context

from headrace.sdk.context import _CURRENT
from headrace.sdk.log import MAX_LINE_BYTES, ComponentLog, line_text
from headrace.sdk.printed import MAX_PARTIAL, PrintedLines

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


class Call:
    """As much of a Context as is asked for."""

    def __init__(self, number: int) -> None:
        self.call = number
        self.log = ComponentLog(execution_id=f"e{number}", message_id=f"m{number}", traceparent=TRACEPARENT)


def test_lines_of_calls_are_joined_and_others_pass() -> None:
    copy_context().run(_prints)


def _prints() -> None:
    out = io.StringIO()
    lines = PrintedLines(out)
    one, two = Call(1), Call(2)

    lines.write("at import\n")
    _CURRENT.set(one)  # type: ignore[arg-type]
    lines.write("half ")
    _CURRENT.set(two)  # type: ignore[arg-type]
    lines.write("other\n")
    lines.write('{"message": "own"}\n')
    _CURRENT.set(one)  # type: ignore[arg-type]
    lines.write("whole\nrest")
    lines.write("\n")
    lines.write("z" * (MAX_PARTIAL + 1))
    lines.flush()

    written = out.getvalue().splitlines()
    assert written[0] == "at import"
    assert json.loads(written[1]) == {
        "level": "info",
        "message": "other",
        "execution_id": "e2",
        "message_id": "m2",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
    }
    assert written[2] == '{"message": "own"}'
    assert [json.loads(line)["message"][:10] for line in written[3:]] == ["half whole", "rest", "z" * 10]
    assert {json.loads(line)["execution_id"] for line in written[3:]} == {"e1"}


def test_a_line_is_never_longer_than_a_sidecar_takes() -> None:
    for message in ("x" * 20_000, "ü" * 9_000, '"' * 9_000, "\x01" * 9_000):
        text = line_text({"level": "error", "message": message, "traceback": message + "end", "execution_id": "e"})
        assert len(text.encode()) <= MAX_LINE_BYTES
        line = json.loads(text)
        assert message.startswith(line["message"])
        assert line["traceback"].endswith("end")
        assert line["execution_id"] == "e"
