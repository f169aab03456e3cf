"""What the edges of a step make of one output: their expressions, compiled once.

In the mesh it runs in a process of its own (`services/sidecar/expression_worker.py`), which bounds it; in the SDK's
test harness in the test itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.model.expressions import load_jsonata, place_words, reason_of, shown
from headrace.model.limits import MAX_BODY_BYTES

CPU_LIMIT_S = 1.0
MEMORY_WORDS = "256 MiB"
_SAME = True

Edge = tuple[str, str, str]
"""Receiver, condition, mapping; empty where it has none."""
Body = None | bool | bytes
"""For one edge: not taken, as it was emitted, or mapped."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class TooLong(BaseException):
    """Raised by a signal in the middle of an evaluation; not an Exception, so that nothing in there takes it."""


class ExpressionError(Exception):
    """Says which expression failed, where and why."""


class _Expression:
    def __init__(self, source: str) -> None:
        self._source = source
        self._class = load_jsonata()
        self._compiled = self._class(source)
        self._compiled.set_validate_input(False)  # it was decoded from JSON
        self._compiled.set_output_convert_nulls(False)  # null and nothing are different things

    def value(self, context: Mapping[str, Any]) -> Any:
        """None: no value at all."""
        # The library keeps "the" expression of a thread, by which $now() and $eval() go.
        self._class.CURRENT.jsonata = self._compiled
        try:
            # With bindings every evaluation has a frame of its own: what it binds is gone after it.
            return self._compiled.evaluate(context, {})
        except TooLong as error:
            raise self.failed(f"took more than {CPU_LIMIT_S:g} s of processor time", _position_in(error)) from None
        except RecursionError as error:
            raise self.failed("recurses too deeply", _position_in(error)) from None
        except MemoryError as error:
            raise self.failed(f"needs more than {MEMORY_WORDS} of memory", _position_in(error)) from None
        except Exception as error:  # whatever the library meets in what a person wrote
            text, position = reason_of(error)
            raise self.failed(text, position or _position_in(error)) from None

    def failed(self, why: str, position: int = 0) -> ExpressionError:
        return ExpressionError(f"{shown(self._source)}{place_words(self._source, position)}: {why}")


class EdgeProgram:
    """Of one step."""

    def __init__(self, edges: Sequence[Edge]) -> None:
        from jsonata.functions import Functions
        from jsonata.utils import Utils

        self._truth, self._without_nulls = Functions.to_boolean, Utils.convert_nulls
        self._edges = [
            (receiver, _Expression(condition) if condition else None, _Expression(mapping) if mapping else None)
            for receiver, condition, mapping in edges
        ]

    def route(
        self,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str],
        message: Mapping[str, str],
        passed: Sequence[tuple[str, bytes, str, Mapping[str, str]]] | None,
    ) -> tuple[str, list[Body] | None]:
        """The error, or what each edge gets."""
        try:
            context: dict[str, Any] = {**_readable(body, content_type), "headers": headers}
            context["message"] = {**message, "content_type": content_type}
            if passed is not None:
                earlier = {step: {**_readable(raw, kind), "headers": their} for step, raw, kind, their in passed}
                own = {name: context[name] for name in ("body", "headers") if name in context}
                context["steps"] = {**earlier, message["sender"]: own}
        except ValueError as error:
            return f"the body is not JSON, as its content type {content_type!r} says: {error}", None
        bodies: list[Body] = []
        for receiver, condition, mapping in self._edges:
            what = "condition"
            try:
                if condition is not None and not self._truth(condition.value(context)):
                    bodies.append(None)
                    continue
                what = "mapping"
                bodies.append(self._mapped(mapping, context) if mapping is not None else _SAME)
            except ExpressionError as error:
                return f"the {what} of the edge to {receiver!r} failed: {error}", None
        return "", bodies

    def _mapped(self, mapping: _Expression, context: Mapping[str, Any]) -> bytes:
        value = mapping.value(context)
        if value is None:
            raise mapping.failed("yields no value; for JSON's null write null, to send nothing add a condition")
        try:
            raw = _encode(self._without_nulls(value))
        except (MemoryError, RecursionError) as error:
            raise mapping.failed(f"its value cannot be written: {type(error).__name__}") from None
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
            raise mapping.failed("yields something that has no JSON, such as a function") from None
        if len(raw) > MAX_BODY_BYTES:
            raise mapping.failed(f"yields {len(raw)} bytes, more than {MAX_BODY_BYTES}")
        return raw


def _readable(body: bytes, content_type: str) -> dict[str, Any]:
    """`body` as expressions see it: decoded where it is JSON and not said to be text, else text; nothing where it is
    neither. ValueError for bytes that are not the JSON they are said to be."""
    if not content_type.startswith("text/"):
        try:
            return {"body": _decode(body)}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if "json" in content_type:
                raise ValueError(str(error)) from None
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {}


def _position_in(error: BaseException) -> int:
    """The library does not say where it was: its frames do."""
    position, frame = 0, error.__traceback__
    while frame is not None:
        found = getattr(frame.tb_frame.f_locals.get("expr"), "position", None)
        if isinstance(found, int) and found > 0:
            position = found
        frame = frame.tb_next
    return position
