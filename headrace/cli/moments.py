"""Times as people type them, and as they read them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import typer

from headrace.model.durations import parse_duration
from headrace.model.errors import HeadraceError


def moment(text: str) -> datetime:
    """`10m` (ago), or a time in ISO 8601; without a zone it is this machine's. Wrong usage else."""
    now = datetime.now().astimezone()
    try:
        if text[-1:].isalpha() and text[-1] != "Z":
            return now - timedelta(seconds=parse_duration("since", text))
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, HeadraceError):
        raise typer.BadParameter(f"{text!r} is no time: write 10m, 2h or 2026-11-21T15:04:05Z") from None


def moment_text(time: Any) -> str:
    """A protobuf Timestamp in UTC, to the second; the heads of tables need no zone."""
    return str(time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"))
