"""What a gateway must know of a flow: one KV document per flow, written by the orchestrator."""

from __future__ import annotations

import msgspec


class Route(msgspec.Struct, frozen=True):
    """`state` is a flow state's name; a gateway takes requests unless it is STOPPED or STOPPING.

    `trigger` is the step that stimuli go to, the flow's entry: the trigger, or the receiver of one that runs no process
    (headrace.model.mesh_trigger); empty when the flow has never run, and where a listener starts it. `refuses`
    says why no more is taken although the state would allow it (SUSPEND_LIMIT). `reply_timeout_s` 0 means 202.
    `rate_limit`: requests per second that each gateway takes; 0 for no limit. `key` and `slots` are that step's:
    they say to which slot a message goes (headrace.model.slots.keying). `fenced`: the stream itself says who owns the
    ingress (headrace.model.ingress_owner), else its transform does. `group_commits`: the broker syncs every write, so
    that stimuli which wait are stored together (headrace.edge.group_commit).
    `epoch` is that of the orchestrator
    which decided it: routes are written by compare-and-set, each new leader writes all of them once, and a reader
    keeps what has the higher one.
    """

    flow: str
    state: str
    trigger: str = ""
    reply_timeout_s: float = 0.0
    version: int = 0
    deployment: int = 0
    refuses: str = ""
    rate_limit: float = 0.0
    key: str = ""
    slots: int = 1
    epoch: int = 0
    fenced: bool = False
    group_commits: bool = False


def encode_route(route: Route) -> bytes:
    return msgspec.json.encode(route)


def decode_route(raw: bytes) -> Route:
    return msgspec.json.decode(raw, type=Route)
