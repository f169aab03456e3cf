"""The error tree that domain code raises; one interceptor turns it into gRPC status with details.

    HeadraceError
    ├── InvalidInput          INVALID_ARGUMENT     a field's value is wrong
    ├── NotFound              NOT_FOUND
    ├── AlreadyExists         ALREADY_EXISTS
    ├── WrongState            FAILED_PRECONDITION  the verb does not fit the state
    ├── Conflict              ABORTED              somebody else changed it meanwhile (etag, generation)
    ├── Exhausted             RESOURCE_EXHAUSTED   a bound is reached
    ├── Cancelled             CANCELLED            a person gave the operation up; it was undone
    ├── DeadlineExceeded      DEADLINE_EXCEEDED
    ├── Unavailable           UNAVAILABLE          a part of the mesh does not answer
    ├── OutOfRange            OUT_OF_RANGE         what a watch asks to go on from is not there any more
    └── Damaged               DATA_LOSS            what was stored is altered or partly gone

Every error names what is wrong (`message`), a machine-readable `reason` in UPPER_CASE, where it came from
(`field`, `value`) and the next thing to do (`next_step`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path, and what is wrong with its value."""

    field: str
    description: str


class HeadraceError(Exception):
    """Root of all errors that may reach a client."""

    code = "INTERNAL"
    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        next_step: str = "",
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.next_step = next_step
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    @property
    def field(self) -> str:
        """Path of the (first) field that is wrong, for example `steps[1].to[0]`; empty where none is."""
        return self.metadata.get("field") or (self.violations[0].field if self.violations else "")

    @property
    def value(self) -> str:
        """The wrong value as it was shown (cut to 120 characters); empty where the error names none."""
        return self.metadata.get("value", "")

    def __str__(self) -> str:
        return f"{self.message}. {self.next_step}" if self.next_step else self.message


class InvalidInput(HeadraceError):
    """A value that the caller gave is wrong; `field` is its path, for example `steps[1].to[0]`."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_INPUT"

    @classmethod
    def at(
        cls, field: str, value: object, problem: str, *, next_step: str = "", reason: str | None = None
    ) -> InvalidInput:
        """An error for one field: names the field, the value and what is wrong with it."""
        if len(field) > 300:  # a key that somebody made up; a status has room for some kilobytes
            field = f"{field[:297]}..."
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        violation = FieldViolation(field, f"{shown} {problem}")
        return cls(
            f"{field}: {shown} {problem}",
            reason=reason,
            next_step=next_step,
            violations=[violation],
            metadata={"field": field, "value": shown},
        )


class NotFound(HeadraceError):
    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExists(HeadraceError):
    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class WrongState(HeadraceError):
    code = "FAILED_PRECONDITION"
    default_reason = "WRONG_STATE"


class Conflict(HeadraceError):
    code = "ABORTED"
    default_reason = "CONFLICT"


class Exhausted(HeadraceError):
    code = "RESOURCE_EXHAUSTED"
    default_reason = "EXHAUSTED"


class Cancelled(HeadraceError):
    code = "CANCELLED"
    default_reason = "CANCELLED"


class DeadlineExceeded(HeadraceError):
    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class Unavailable(HeadraceError):
    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class OutOfRange(HeadraceError):
    code = "OUT_OF_RANGE"
    default_reason = "REVISION_GONE"


class Damaged(HeadraceError):
    code = "DATA_LOSS"
    default_reason = "DAMAGED"
