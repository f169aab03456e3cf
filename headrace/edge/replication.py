"""How many servers of a broker cluster keep each stream, bucket and object store."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "HEADRACE_REPLICAS"
IN_A_CLUSTER = 3
ALLOWED = (1, 3, 5)


def copies(connection: Any) -> int:
    """What $HEADRACE_REPLICAS says (1, 3 or 5), else 3 where the server belongs to a cluster, else 1.

    Not the number of servers that are up: one that is down for a while must not make anybody keep fewer copies.
    `connection` is a nats-py client; one that is none (a broker in memory) keeps one copy.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen.isdigit() and int(chosen) in ALLOWED:
        return int(chosen)
    said = getattr(connection, "_server_info", None)  # nats-py has no public way to what INFO said
    return IN_A_CLUSTER if isinstance(said, dict) and said.get("cluster") else 1
