"""What is kept of a deployment's startup and shutdown hooks: one document in the bucket of deployments.

Written by the sidecar that runs them (replica 0 of the step that messages come to first), and only where the component
has such hooks. That it is there means that the startup hook has ended, well or not, and is never called again.
"""

from __future__ import annotations

import msgspec

from headrace.model.limits import MAX_HOOK_RESULT_BYTES

HOOK_LIMIT_S = 60.0


class HookRecord(msgspec.Struct, frozen=True):
    """`startup_json`: what the startup hook returned. `shutdown`: there is a shutdown hook; `concluded`: it ended."""

    startup_json: str = "null"
    startup_error: str = ""
    shutdown: bool = False
    concluded: bool = False
    shutdown_error: str = ""

    @property
    def to_conclude(self) -> bool:
        """Whether the shutdown hook is still to be called."""
        return self.shutdown and not self.concluded


def result_problem(text: str) -> str:
    """Why a startup hook's answer cannot be kept, as a phrase; empty where it can."""
    if len(text.encode()) > MAX_HOOK_RESULT_BYTES:
        return f"is larger than {MAX_HOOK_RESULT_BYTES} bytes"
    try:
        msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        return f"is no JSON: {error}"
    return ""


def encode_hooks(record: HookRecord) -> bytes:
    return msgspec.json.encode(record)


def decode_hooks(raw: bytes) -> HookRecord:
    return msgspec.json.decode(raw, type=HookRecord)
