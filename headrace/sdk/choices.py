"""What hooks for metadata and models answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a function takes and emits: a JSON Schema, or a type that gives one; None where that is not said."""

    input: Any = None
    output: Any = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that can be chosen: what the configuration then says, and what people see."""

    value: Any
    label: str = ""
