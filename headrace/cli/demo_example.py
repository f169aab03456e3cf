"""The example that the demo runs: its flow, its orders as HTTP requests, what is expected, its effects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

import headrace
from headrace.cli.http_caller import HttpRequest
from headrace.cli.order_check import Expected
from headrace.model.errors import InvalidInput, NotFound
from headrace.wire.flow_file import FlowFile, load_flow_file

EFFECT_SETTING = "path"
LONGEST_SAMPLE = 400


@dataclass(frozen=True, slots=True)
class Example:
    """`requests` and `expected` stand in the same order."""

    flow_file: FlowFile
    requests: tuple[HttpRequest, ...]
    expected: tuple[Expected, ...]
    effects_file: Path

    @property
    def flow(self) -> str:
        return self.flow_file.name

    @property
    def sample(self) -> str:
        """The body of one order that fits on a line, for `curl`."""
        fitting = [
            request.body.decode()
            for request, expected in zip(self.requests, self.expected, strict=True)
            if expected.status == 200 and len(request.body) < LONGEST_SAMPLE and b"'" not in request.body
        ]
        return min(fitting, key=len, default="{}")

    def plain_orders(self) -> list[dict[str, Any]]:
        """Bodies of the orders that are answered with 200 and repeat nothing; JSON objects all."""
        return [
            json.loads(request.body)
            for request, expected in zip(self.requests, self.expected, strict=True)
            if expected.status == 200 and not request.group and not expected.repeats
        ]

    def read_effects(self) -> list[dict[str, Any]]:
        """The effects so far; a line that is no JSON object counts as an effect nobody expected."""
        try:
            text = self.effects_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [_object(line) for line in _split(text)]


def load_example(folder: Path | None, *, effects: Path) -> Example:
    """Reads flow.yaml, orders.jsonl and expected.jsonl; every step that has a `path` to write to gets `effects`."""
    place = (folder or default_folder()).resolve()
    orders, expected = _lines(place / "orders.jsonl"), _lines(place / "expected.jsonl")
    if [order.get("id") for order in orders] != [item.get("id") for item in expected]:
        raise InvalidInput(
            f"{place}: orders.jsonl and expected.jsonl do not name the same orders",
            reason="BAD_EXAMPLE",
            next_step=f"Make it anew: python {place}/make_expected.py",
        )
    flow_file = load_flow_file(place)
    path = f"/hook/{flow_file.name}"
    groups = _groups(orders)
    return Example(
        flow_file=_with_effects(flow_file, effects),
        requests=tuple(_request(path, order, groups) for order in orders),
        expected=tuple(_expected(item) for item in expected),
        effects_file=effects,
    )


def default_folder() -> Path:
    """`examples/orders` of this repository."""
    folder = Path(headrace.__file__).resolve().parents[1] / "examples" / "orders"
    if not folder.is_dir():
        raise NotFound(
            f"{folder}: no such folder",
            reason="NO_EXAMPLE",
            next_step="Run the demo from a clone of the repository, or name its folder with --example",
        )
    return folder


def _with_effects(flow_file: FlowFile, effects: Path) -> FlowFile:
    steps = tuple(
        msgspec.structs.replace(step, config={**step.config, EFFECT_SETTING: str(effects)})
        if EFFECT_SETTING in step.config
        else step
        for step in flow_file.spec.steps
    )
    spec = msgspec.structs.replace(flow_file.spec, steps=steps)
    return replace(flow_file, spec=spec)


def _request(path: str, order: Mapping[str, Any], groups: Mapping[str, str]) -> HttpRequest:
    headers = {"content-type": "application/json", **order.get("headers", {})}
    body = json.dumps(order["body"], ensure_ascii=False).encode()
    return HttpRequest(path, body, headers, group=groups.get(order["id"], ""))


def _groups(orders: list[dict[str, Any]]) -> dict[str, str]:
    """Orders that come `after` another share its group, named after the first: one connection, in order."""
    groups: dict[str, str] = {}
    seen = set()
    for order in orders:
        if before := order.get("after"):
            if before not in seen:
                raise InvalidInput.at(f"{order['id']}.after", before, "does not stand earlier", reason="BAD_EXAMPLE")
            group = groups.setdefault(before, before)
            groups[order["id"]] = group
        seen.add(order["id"])
    return groups


def _expected(item: Mapping[str, Any]) -> Expected:
    return Expected(
        order=item["id"],
        status=item["status"],
        answer=item["answer"],
        effects=tuple(item.get("effects", ())),
        repeats=item.get("repeats", ""),
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(
            f"{file}: {error.strerror}", reason="NO_EXAMPLE", next_step="Name a folder like examples/orders"
        ) from error
    found = []
    for number, line in enumerate(_split(text), 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise InvalidInput(f"{file}:{number}: is not JSON: {error}", reason="BAD_EXAMPLE") from error
    return found


def _split(text: str) -> list[str]:
    """Lines by newline only: names and notes may hold other line separators."""
    return text.removesuffix("\n").split("\n") if text else []


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"unreadable": line}
