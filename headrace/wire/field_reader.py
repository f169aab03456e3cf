"""Reads fields of a YAML file that a person wrote: each refusal names field, value and next step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

from headrace.model.durations import parse_duration
from headrace.model.errors import FieldViolation, InvalidInput
from headrace.model.suggestion import did_you_mean

_T = TypeVar("_T")


class FieldReader:
    """All methods raise InvalidInput; `reason` is theirs where what is wrong has no better one."""

    reason = "INVALID_INPUT"

    def mapping(self, field: str, value: Any, known: Collection[str] | None = None) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.fail(field or "(file)", value, "is not a mapping" if value is not None else "is missing")
        for key in value:
            path = f"{field}.{key}" if field else str(key)
            if not isinstance(key, str):
                self.fail(path, key, "is not a text key", "Put it in quotes")
            if known is not None and key not in known:
                hint = did_you_mean(key, known)
                self.fail(path, key, "is not a known key", hint or f"Known: {', '.join(known)}", reason="UNKNOWN_FIELD")
        return value

    def text(self, field: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(field, value, "is missing" if value is None else "is not text")
        return value

    def count(self, key: str, mapping: Mapping[str, Any], default: int, low: int, high: int, field: str = "") -> int:
        value = mapping.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(f"{field}.{key}" if field else key, value, f"is not a whole number from {low} to {high}")
        return value

    def fraction(self, key: str, mapping: Mapping[str, Any], default: float, field: str) -> float:
        value = mapping.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self.fail(f"{field}.{key}", value, "is not a number from 0 to 1", "Write for example 0.2")
        return float(value)

    def duration(self, key: str, mapping: Mapping[str, Any], default: float, field: str = "") -> float:
        if key not in mapping:
            return default
        return self.checked(f"{field}.{key}" if field else key, parse_duration, mapping[key])

    def checked(self, field: str, check: Callable[[str, Any], _T], value: Any) -> _T:
        """Runs a check of the model."""
        try:
            return check(field, value)
        except InvalidInput as error:
            raise self._refusal(
                field, error.message, error.violations[0].description, error.next_step, error.reason
            ) from error

    def fail(self, field: str, value: object, problem: str, next_step: str = "", reason: str = "") -> NoReturn:
        if value is None:
            reason = reason or ("MISSING_FIELD" if problem == "is missing" else "")
            raise self._refusal(field, f"{field}: {problem}", problem, next_step, reason)
        plain = InvalidInput.at(field, value, problem)
        raise self._refusal(field, plain.message, plain.violations[0].description, next_step, reason)

    def refuse(self, field: str, problem: str, next_step: str = "", reason: str = "") -> NoReturn:
        """As `fail`, where the problem names the value itself."""
        raise self._refusal(field, f"{field}: {problem}", problem, next_step, reason)

    def _refusal(self, field: str, message: str, description: str, next_step: str, reason: str = "") -> InvalidInput:
        return InvalidInput(
            message,
            reason=self.reason if reason in ("", InvalidInput.default_reason) else reason,
            next_step=next_step or "Correct it",
            violations=[FieldViolation(field, description)],
        )
