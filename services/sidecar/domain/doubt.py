"""When nobody can tell whether an input's outputs were stored before: the broker may have forgotten their ids (as it
restarted, or since the duplicate window is over), and the process that sent them is not this one. Such an input is
worked on, counted, and marked.
"""

from __future__ import annotations

KEPT_SERVERS = 8


def note_server(known: dict[str, float], server: str, now: float) -> dict[str, float] | None:
    """The broker processes that were ever met, and when each was met first (Unix seconds), with this one; None if it
    is among them. The oldest go beyond 8."""
    if server in known:
        return None
    newest = sorted({**known, server: now}.items(), key=lambda item: item[1])[-KEPT_SERVERS:]
    return dict(newest)


def in_doubt(
    *,
    attempt: int,
    stored_at: float,
    started_at: float,
    broker_since: float,
    replicas: int,
    now: float,
    window_s: float,
) -> bool:
    """Whether an input is in doubt that this process does not remember. Times are Unix seconds: when the input was
    stored, this process started, and the broker's process was met first (0: not known).

    The broker remembers the ids of its outputs if none can be older than the window or than the broker's process:
    they are younger than the input. Stored while this process was its step's only one: whatever became of it is known
    here.
    """
    if attempt <= 1 or (stored_at >= started_at and replicas == 1):
        return False
    return stored_at < broker_since or now - stored_at >= window_s
