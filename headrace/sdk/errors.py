"""What a function raises to say how its call ended."""

from __future__ import annotations

import re

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

BAD_INPUT = "BAD_INPUT"
COMPONENT_ERROR = "COMPONENT_ERROR"
OUTPUT_REFUSED = "OUTPUT_REFUSED"
SNAPSHOT_REFUSED = "SNAPSHOT_REFUSED"
TIMEOUT = "TIMEOUT"
MAX_ERROR_CHARACTERS = 2_000


class ComponentError(Exception):
    """The call failed in a way the component knows.

    `code` is UPPER_CASE, for example `UNKNOWN_SKU`. `status` is the HTTP status for a waiting caller (400 to
    599; 0 for the default, 500). With `retryable` another attempt is made, if the step's policy has one left.
    """

    def __init__(self, code: str, message: str = "", *, status: int = 0, retryable: bool = False) -> None:
        if not _CODE.fullmatch(code):
            raise ValueError(f"error code {code!r}: use upper-case letters, digits and _, for example UNKNOWN_SKU")
        if status and not 400 <= status <= 599:
            raise ValueError(f"error status {status}: use 400 to 599, or leave it out")
        super().__init__(message or code)
        self.code = code
        self.message = message or code
        self.status = status
        self.retryable = retryable


class Rebound(Exception):
    """Asks for this input again later: nothing is wrong, its time has not come.

    `delay_s` is the wait in seconds; 0 lets the mesh choose.
    """

    def __init__(self, reason: str = "", *, delay_s: float = 0.0) -> None:
        if not 0 <= delay_s <= 86_400:
            raise ValueError(f"rebound delay {delay_s} s: use 0 to 86400")
        super().__init__(reason)
        self.reason = reason
        self.delay_s = delay_s


class DefinitionError(Exception):
    """A component's code does not fit the contract; found when it is loaded, not when a message comes."""


class EmitRefused(Exception):
    """The broker did not take a listener's emit, or the listener drains: do not commit its source."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
