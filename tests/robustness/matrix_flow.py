"""The flow of the fault matrix, who calls it, and its ledger: every message of every execution, as sets.

    Without keys the trigger is the mesh's own, before hook: what comes in goes straight to hook, an action then.

    hook ─┬─ split ─┬─ left ──┬─ join          split fails for some (dead letter, error to its caller),
          │         └─ right ─┘                and once for others (retry)
          └─ keep ─── sink                     keyed: in order, or plain; sink replies

Callers go on in lanes, one request after the other, so that the order of a lane's key is known. A careful lane
repeats under an Idempotency-Key until it is answered; a careless one takes what it gets.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.ledger import Outcome
from tests.robustness.traffic import JSON_HEADERS
from tests.support.http_connection import HttpAnswer, HttpConnection

COMPONENTS = Path(__file__).parent / "components"
WEBHOOK = Path(__file__).parents[2] / "components" / "webhook"
# What makes hook, keep and sink keyed steps, where they are.
KEYED: dict[str, object] = {"key": "body:/key", "slots": 4}
KEYED_STEPS = ("hook", "keep", "sink")
STEPS = ("hook", "split", "left", "right", "join", "keep", "sink")
KEPT = frozenset({"sink0", "sink1", "sink2"})
LEAVES = KEPT | {"left0", "left1", "right0", "right1"}
ANSWER_LIMIT_S = 20.0
REPEAT_AFTER_S = 0.1


def write_flow(name: str, folder: Path, effects: Path, *, keyed: bool = True, reply_timeout: str = "15s") -> Path:
    """The flow file; without `keyed` no step has a key."""
    key = KEYED if keyed else {}
    config = {"path": str(effects)}

    def matrix(function: str, **more: object) -> dict[str, object]:
        retry = {"attempts": 3, "backoff": "50ms"}
        return {"component": str(COMPONENTS / "matrix"), "function": function, "retry": retry, **more}

    steps = (
        {
            "hook": {"component": str(WEBHOOK), "function": "receive", "to": ["split", "keep"], **key},
        }
        if keyed
        else {
            "receive": {"to": ["hook"]},
            "hook": matrix("take", to=["split", "keep"]),
        }
    )
    steps |= {
        "split": matrix("split", to=["left", "right"]),
        "left": matrix("side", to=["join"]),
        "right": matrix("side", to=["join"]),
        "join": matrix("join", config=dict(config)),
        "keep": matrix("keep", to=["sink"], **key),
        "sink": matrix("sink", config=dict(config), **key),
    }
    file = folder / f"{name}.yaml"
    # As JSON, which is YAML without aliases for what occurs twice.
    file.write_text(json.dumps({"name": name, "type": "realtime", "reply_timeout": reply_timeout, "steps": steps}))
    return file


@dataclass(slots=True)
class Request:
    """One request of a lane; times are time.time()."""

    id: str
    do: str
    sent_at: float
    outcome: Outcome | None = None
    answered_at: float = 0.0
    detail: str = ""


class Lanes:
    """`start`, then `finish` (or `abandon`). So many lanes are careful, so many careless."""

    def __init__(self, address: str, path: str, *, careful: int, careless: int, pace_s: float = 0.02) -> None:
        self._address, self._path, self._pace_s = address, path, pace_s
        self._careful = [True] * careful + [False] * careless
        self._stopping = False
        self.run = secrets.token_hex(3)
        self.requests: dict[str, Request] = {}
        self.newest: dict[int, Request] = {}
        self.repeats = 0
        self.sent = 0

    def start(self) -> None:
        """Begins to send."""
        self._tasks = [
            asyncio.create_task(self._go_on(number, careful), name=f"lane {number}")
            for number, careful in enumerate(self._careful)
        ]

    async def abandon(self) -> None:
        """Ends at once, whatever is open."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def finish(self, limit_s: float = 60.0) -> None:
        """Sends no more and waits for the answers that are due."""
        self._stopping = True
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*self._tasks)

    @property
    def unanswered(self) -> int:
        return sum(request.outcome is None for request in self.newest.values())

    async def _go_on(self, lane: int, careful: bool) -> None:
        connection: HttpConnection | None = None
        number = 0
        while not self._stopping:
            do = {3: "fail", 7: "flaky"}.get((number + lane) % 10, "ok")
            request = Request(f"{self.run}-{lane}-{number}", do, time.time())
            self.requests[request.id] = self.newest[lane] = request
            self.sent += 1
            while request.outcome is None:
                connection = await self._ask(request, lane, number, careful, connection)
            number += 1
            await asyncio.sleep(self._pace_s)  # tidy: pace
        if connection is not None:
            await connection.close()

    async def _ask(
        self, request: Request, lane: int, number: int, careful: bool, connection: HttpConnection | None
    ) -> HttpConnection | None:
        """One try; sets the outcome unless it is to be repeated."""
        body = json.dumps({"id": request.id, "do": request.do, "key": f"{self.run}-{lane}", "n": number}).encode()
        headers = {**JSON_HEADERS, "idempotency-key": request.id} if careful else JSON_HEADERS
        try:
            if connection is None or connection.is_closed:
                connection = await HttpConnection.open(self._address)
            answer = await connection.request("POST", self._path, body, headers, limit_s=ANSWER_LIMIT_S)
            outcome, request.detail = judge(request, answer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            sent = connection is not None and connection.sent
            outcome, request.detail = (Outcome.UNKNOWN if sent else Outcome.FAILED), repr(error)
            if connection is not None:
                connection.abort()
            connection = None
        request.answered_at = time.time()
        if outcome is not Outcome.OK:
            await asyncio.sleep(REPEAT_AFTER_S)  # tidy: pace
        if careful and outcome is not Outcome.OK and not request.detail.startswith("wrong"):
            self.repeats += 1
        else:
            request.outcome = outcome
        return connection


def judge(request: Request, answer: HttpAnswer) -> tuple[Outcome, str]:
    """OK is the answer that this request must get: its own id, or its own failure. `wrong ...` is never right."""
    text = f"{answer.status} {answer.body[:200]!r}"
    if answer.status == 504 and b'"REPLY_LOST"' in answer.body:
        return Outcome.OK, text  # the mesh says that it is done, and who was to say so is dead
    if answer.status in (502, 503, 504):
        return Outcome.UNKNOWN, text
    try:
        said = answer.json()
        right = (
            answer.status == 500 and said["error"]["code"] == "BROKEN_ORDER"
            if request.do == "fail"
            else answer.status == 200 and said["id"] == request.id
        )
    except (ValueError, KeyError, TypeError):
        right = False
    if right:
        return Outcome.OK, ""
    return (Outcome.FAILED, text) if answer.status in (409, 429) else (Outcome.FAILED, f"wrong answer {text}")


class Effects:
    """Lines of the effects file, read as they come."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0
        self.forget()

    def forget(self) -> None:
        """What was read so far is settled."""
        self.lines: list[dict[str, Any]] = []
        self.leaves: dict[str, Counter[str]] = defaultdict(Counter)

    def read(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._offset)
            raw = file.read()
        whole = raw.rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        for line in filter(None, whole.split(b"\n")):
            data = json.loads(line)
            self.lines.append(data)
            self.leaves[data["id"]][data["leaf"]] += 1

    def is_complete(self, request: Request) -> bool:
        """Whether everything that a request leads to has happened."""
        return wanted_leaves(request) <= self.leaves[request.id].keys()


def wanted_leaves(request: Request) -> frozenset[str]:
    return KEPT if request.do == "fail" else LEAVES


@dataclass
class Ledger:
    """The verdict over everything so far. `repeated` are second runs of one message at a step that was itself cut
    off in its work (allowed there, and only there); `cut_off` says where that may be."""

    attempted: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    effects: int = 0
    dead_letters: int = 0
    repeated: int = 0
    lost: dict[str, str] = field(default_factory=dict)
    duplicated: dict[str, str] = field(default_factory=dict)
    disordered: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.duplicated or self.disordered or self.wrong)

    @property
    def offenders(self) -> list[str]:
        return sorted({*self.lost, *self.duplicated, *self.disordered, *self.wrong})

    def why(self, id: str) -> str:
        """What is wrong with one request."""
        kinds = {"lost": self.lost, "duplicated": self.duplicated, "out of order": self.disordered, "wrong": self.wrong}
        return "; ".join(f"{kind}: {found[id]}" for kind, found in kinds.items() if id in found)

    def line(self) -> str:
        return (
            f"ledger {'ok' if self.ok else 'BROKEN'}: attempted {self.attempted} (answered {self.acknowledged}, "
            f"unknown {self.unknown}, refused {self.refused}), effected {self.effects}, dead letters "
            f"{self.dead_letters}, repeated where cut off {self.repeated}; lost {len(self.lost)}, duplicated "
            f"{len(self.duplicated)}, out of order {len(self.disordered)}, wrong {len(self.wrong)}"
        )


def check_matrix(
    requests: Iterable[Request],
    lines: list[dict[str, Any]],
    dead: Counter[str],
    *,
    cut_off: frozenset[str],
    keyed: bool = True,
) -> Ledger:
    """Compares what was asked with what happened. `dead` counts dead letters by id of request; `cut_off` names the
    steps (`join`, `sink`) whose own sidecar or component was killed: there one message may run twice."""
    ledger = Ledger(dead_letters=sum(dead.values()))
    by_leaf: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    known = {request.id: request for request in requests}
    for line in lines:
        by_leaf[(line["id"], line["leaf"])].append(line)
    for request in known.values():
        ledger.attempted += 1
        ledger.acknowledged += request.outcome is Outcome.OK
        ledger.unknown += request.outcome is Outcome.UNKNOWN
        ledger.refused += request.outcome is Outcome.FAILED
        if request.detail.startswith("wrong"):
            ledger.wrong[request.id] = request.detail
        _check_request(ledger, request, by_leaf, dead[request.id], cut_off)
    for id, leaf in by_leaf:
        if id not in known or leaf not in wanted_leaves(known[id]):
            ledger.wrong[id] = f"an effect {leaf} that nobody asked for"
    for id in dead.keys() - known.keys():
        ledger.wrong[id] = "a dead letter of something that nobody asked for"
    if keyed:
        careless = {request.id.rpartition("-")[0] for request in known.values() if request.outcome is Outcome.UNKNOWN}
        _check_order(ledger, lines, frozenset(careless))
    return ledger


def _check_request(
    ledger: Ledger,
    request: Request,
    by_leaf: dict[tuple[str, str], list[dict[str, Any]]],
    letters: int,
    cut_off: frozenset[str],
) -> None:
    wanted = wanted_leaves(request)
    found = {leaf for leaf in wanted if (request.id, leaf) in by_leaf}
    ledger.effects += len(found)
    dead_wanted = int(request.do == "fail")
    something = bool(found) or letters > 0
    if request.outcome is Outcome.FAILED and something:
        ledger.wrong[request.id] = f"refused ({request.detail}), and done all the same"
    if (request.outcome is Outcome.OK or something) and (missing := wanted - found):
        ledger.lost[request.id] = f"{request.outcome}: no effect at {sorted(missing)}"
    if (request.outcome is Outcome.OK or something) and letters < dead_wanted:
        ledger.lost[request.id] = "no dead letter"
    if letters > dead_wanted:
        ledger.duplicated[request.id] = f"{letters} dead letters, {dead_wanted} wanted"
    for leaf in found:
        runs = by_leaf[(request.id, leaf)]
        messages = {run["message_id"] for run in runs}
        step = "sink" if leaf in KEPT else "join"
        if len(messages) > 1 or (len(runs) > 1 and step not in cut_off):
            ledger.duplicated[request.id] = f"{leaf}: {runs}"
        ledger.repeated += len(runs) - len(messages)


def _check_order(ledger: Ledger, lines: list[dict[str, Any]], careless: frozenset[str]) -> None:
    """First effects of one key at the sink come as its lane asked and as `keep` emitted. Not for careless lanes: what
    nobody answered may be stored after what was asked next."""
    newest: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    for line in lines:
        if line["leaf"] not in KEPT or line["message_id"] in seen or line["key"] in careless:
            continue
        seen.add(line["message_id"])
        place, before = (line["n"], line["part"]), newest.get(line["key"], (-1, -1))
        if place < before:
            ledger.disordered[line["id"]] = f"{place} after {before} of {line['key']}"
        newest[line["key"]] = max(place, before)
