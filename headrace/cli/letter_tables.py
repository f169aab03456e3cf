"""Dead letters and their counts as text."""

from __future__ import annotations

from headrace.api.deadletter.v1 import dead_letter_pb2
from headrace.cli.moments import moment_text
from headrace.cli.tables import byte_size, short_digest, table

SHORT_ERROR = 60
DOUBT_HEADINGS = ("TIME (UTC)", "STEP", "DEPLOYMENT", "MESSAGE", "EXECUTION")
HEADINGS = ("NUMBER", "TIME (UTC)", "STEP", "REASON", "ATTEMPTS", "ERROR")


def counts_line(counts: dead_letter_pb2.DeadLetterCounts) -> str:
    """`dead letters 12 (3.4 KiB), ever 40: 20 replayed, 5 discarded, 3 pushed out`."""
    words = [f"dead letters {counts.waiting} ({byte_size(counts.bytes)})"]
    if counts.total != counts.waiting:
        gone = [f"{counts.replayed} replayed", f"{counts.discarded} discarded", f"{counts.pushed_out} pushed out"]
        words.append(f"ever {counts.total}: {', '.join(gone)}")
    if counts.replay_in_doubt:
        words.append(f"{counts.replay_in_doubt} whose replay is in doubt")
    return ", ".join(words)


def letter_text(letter: dead_letter_pb2.DeadLetter) -> str:
    """All of a letter, a line each, its body as text where it is text."""
    flow, _, number = letter.name.removeprefix("flows/").partition("/deadLetters/")
    lines = [
        f"{flow} {number}  {letter.step}  {letter.reason}  {moment_text(letter.time)}",
        f"deployment {letter.deployment}  version {letter.version}  revision {short_digest(letter.revision) or '-'}",
        f"execution {letter.execution_id or '-'}  message {letter.message_id}  from {letter.sender or 'the ingress'}",
    ]
    if letter.trace_id:
        lines.append(f"trace {letter.trace_id}")
    if letter.replay_in_doubt:
        lines.append("its replay may have been stored already (the orchestrator died just then)")
    rows = [
        (item.attempt or "-", moment_text(item.time), item.code, item.message.partition("\n")[0] or "-")
        for item in letter.attempts
    ]
    if rows:
        lines += ["", table(("ATTEMPT", "TIME", "CODE", "ERROR"), rows)]
        if letter.attempt_count > len(rows):
            lines.append(f"({letter.attempt_count} attempts in all)")
    if letter.pins:
        lines += ["", "pins " + ", ".join(f"{step}={short_digest(pin)}" for step, pin in sorted(letter.pins.items()))]
    lines += ["", *(f"{name}: {value}" for name, value in sorted(letter.headers.items()))]
    cut = f", the first {byte_size(len(letter.body))}" if letter.body_truncated else ""
    lines.append(f"body {letter.content_type or 'of no type'}, {byte_size(letter.body_size)}{cut}")
    lines.append(letter.body.decode(errors="backslashreplace"))
    if letter.attachments:
        rows = [
            (item.name or "(body)", item.content_type or "-", byte_size(item.size), item.id)
            for item in letter.attachments
        ]
        lines += ["", table(("ATTACHMENT", "TYPE", "SIZE", "ID"), rows)]
    if letter.HasField("edit"):
        edit = letter.edit
        lines += ["", f"a replay sends instead (edited by {edit.editor}, {moment_text(edit.time)}):"]
        lines += [f"{name}: {value}" for name, value in sorted(edit.headers.items())]
        lines.append(f"body {edit.content_type or 'of no type'}, {byte_size(len(edit.body))}")
        lines.append(edit.body.decode(errors="backslashreplace"))
    return "\n".join(lines)


def letter_row(letter: dead_letter_pb2.DeadLetter) -> tuple[object, ...]:
    error = letter.error.partition("\n")[0]
    shown = error if len(error) <= SHORT_ERROR else error[: SHORT_ERROR - 3] + "..."
    doubt = " (replay in doubt)" if letter.replay_in_doubt else ""
    number = letter.name.rpartition("/")[2]
    return number, moment_text(letter.time), letter.step, letter.reason + doubt, letter.attempt_count, shown or "-"


def doubt_row(message: dead_letter_pb2.InDoubt) -> tuple[object, ...]:
    return (moment_text(message.time), message.step, message.deployment, message.message_id, message.execution_id)
