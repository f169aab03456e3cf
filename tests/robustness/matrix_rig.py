"""The fault rounds of one flow with traffic, and their ledger.

A round: one sidecar is told to stop itself (SIGSTOP) at a fault point; once it stands there, what it holds is read
from the broker; then comes the fault; the round is over when all that its step had been given is acknowledged. Rounds
of different steps may run side by side; those that concern the broker run alone, with nothing open of earlier rounds,
since that would be two failures at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nats.aio.client import Client as Nats

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import subjects
from headrace.model.names import instance_name
from headrace.wire.envelope import decode_dead_letter
from tests.robustness.faults import InFlight
from tests.robustness.matrix_flow import Effects, Lanes, Ledger, Request, check_matrix
from tests.robustness.step_watch import StepWatch
from tests.support.eventually import eventually
from tests.support.http_connection import serves
from tests.support.mesh import RunningMesh
from tests.support.soak import TOTALS
from tests.support.tcp_proxy import TcpProxy

WORKSPACE = "default"
FLOW = "matrix"
ACK_WAIT_S = 1.0
STOPS_S = {"stop": 1.5 * ACK_WAIT_S, "long stop": 5.0}
# Longer than another step may stand still meanwhile.
REACH_LIMIT_S = 8.0
KILLS = ("sidecar", "component", "broker")
CURSOR_POINTS = ("before-cursor", "after-cursor")
# How often a point is tried at which the victim happens to hold nothing.
TRIES = 8
RECOVERY_LIMIT_S = 30.0


@dataclass(frozen=True)
class Round:
    """One round. It counts only if `held` (the victim's unacknowledged messages when the fault came) is not zero."""

    step: str
    point: str
    fault: str
    held: int
    began: float
    recovered_s: float

    def line(self) -> str:
        return f"{self.fault} of {self.step} {self.point}, holding {self.held}: done again in {self.recovered_s:.2f} s"


class MatrixRig:
    """One flow of the mesh: `begin`, `one_round` as often as wanted, `settle` for the ledger, and again: what is
    settled is forgotten, so that a rig may run for days."""

    lanes: Lanes

    def __init__(
        self,
        folder: Path,
        mesh: RunningMesh,
        connection: Nats,
        broker: BrokerProcess | None = None,
        proxy: TcpProxy | None = None,
        *,
        flow: str = FLOW,
        keyed: bool = True,
    ) -> None:
        """`connection` goes straight to the broker; without `broker` and `proxy` there are no faults of those."""
        self.folder, self.broker, self.proxy, self.mesh = folder, broker, proxy, mesh
        self.effects = Effects(effects_file(folder, flow))
        self.rounds: list[Round] = []
        self.missed: list[str] = []
        self.flow = flow
        self.deployment = 1
        self._letters_read = 0
        self.connection = connection
        self.in_flight = InFlight(connection, flow, self.deployment)
        self._keyed = keyed
        self._watch = StepWatch(connection, flow)

    def begin(self, *, careful: int = 6, careless: int = 2) -> None:
        """Begins to send; nothing of before counts any more."""
        self.effects.forget()
        self.rounds.clear()
        self.lanes = Lanes(self.mesh.gateway, f"/hook/{self.flow}", careful=careful, careless=careless)
        self.lanes.start()

    def now_on(self, deployment: int) -> None:
        """Another deployment has taken over."""
        self.deployment = deployment
        self.in_flight = InFlight(self.connection, self.flow, deployment)

    async def end(self) -> None:
        """Ends traffic that nobody settled."""
        if hasattr(self, "lanes"):
            await self.lanes.abandon()

    # Rounds

    async def one_round(self, step: str, point: str, fault: str) -> Round | None:
        """None when the point was not reached in time (noted in `missed`). No other round may be open while the
        fault is the broker's, and nothing of earlier ones (`all_done`)."""
        process = "gateway" if step == "gateway" else instance_name(WORKSPACE, self.flow, self.deployment, step, 0)
        for _ in range(TRIES):
            pid = await self._stopped_at(point, step, process)
            if not pid:
                self.missed.append(f"{step} {point}")
                return None
            held, began = await self._held(step), time.time()
            try:
                if held:
                    await self._do(fault, step, process, pid)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if held:
                break
        try:
            await self._worked_off(step)
        except AssertionError as error:
            raise AssertionError(f"{fault} of {step} {point}: {error}\n{await self._stuck(began)}") from error
        done = Round(step, point, fault, held, began, time.time() - began)
        self.rounds.append(done)
        TOTALS.round(kills=int(fault in KILLS))
        return done

    async def _stopped_at(self, point: str, step: str, process: str) -> int:
        """The process that came to the point in time, and stands there; 0 if none did."""
        pid = await eventually(lambda: self._pid(step), within_s=RECOVERY_LIMIT_S)
        order = self.folder / "faults" / process
        new = self.folder / "faults" / f"{process}.new"
        new.write_text(f"{point}:stop")
        new.rename(order)
        if point in CURSOR_POINTS:
            os.kill(pid, signal.SIGKILL)  # it is the next one that reads the cursors
            pid = await eventually(lambda: self._pid(step, unlike=pid), within_s=RECOVERY_LIMIT_S)
        try:
            await eventually(lambda: is_stopped(pid), within_s=REACH_LIMIT_S, every_s=0.005)
        except AssertionError:
            order.unlink(missing_ok=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)  # it may have got there just now
            return 0
        return pid

    async def _do(self, fault: str, step: str, process: str, pid: int) -> None:
        match fault:
            case "sidecar":
                os.kill(pid, signal.SIGKILL)
            case "component":
                for component in self.mesh.pids_of("component", self.flow, step):
                    os.kill(component, signal.SIGKILL)
            case "broker":
                assert self.broker is not None
                self.broker.kill()
                assert self.broker.process is not None
                await self.broker.process.wait()
                await self.broker.start()
            case "cut":
                assert self.proxy is not None
                self.proxy.cut(process)
            case "stop" | "long stop":
                await asyncio.sleep(STOPS_S[fault])  # tidy: pace
            case _:
                raise AssertionError(f"no fault {fault}")

    def _pid(self, step: str, unlike: int = 0) -> int:
        """The sidecar (or gateway) that runs now; 0 between two."""
        if step == "gateway":
            return self.mesh.endpoints.processes["gateway"] or 0
        pids = self.mesh.pids_of("sidecar", self.flow, step, self.deployment)
        return next((pid for pid in pids if pid != unlike), 0)

    async def _held(self, step: str) -> int:
        return self.lanes.unanswered if step == "gateway" else await self._watch.held(self.deployment, step)

    async def _worked_off(self, step: str) -> None:
        if step == "gateway":
            await eventually(lambda: serves(self.mesh.gateway), within_s=RECOVERY_LIMIT_S, every_s=0.05)
        else:
            await self._watch.worked_off(self.deployment, step, within_s=RECOVERY_LIMIT_S)

    async def recovered(self) -> None:
        """Until every lane's next request, sent from now on, is done to the last effect."""
        now = time.time()

        def done() -> bool:
            fresh = [request for request in self._requests_since(now) if request.do == "ok"]
            return bool(fresh) and any(self._is_done(request) for request in fresh)

        await eventually(done, within_s=RECOVERY_LIMIT_S, every_s=0.02)

    async def all_done(self, until: float) -> None:
        """Until every answered request that was sent by then is done to its last effect."""
        open_ones = [request for request in self.lanes.requests.values() if request.sent_at <= until]

        def done() -> bool:
            self.effects.read()
            open_ones[:] = [request for request in open_ones if not self._is_over(request)]
            return not open_ones

        with contextlib.suppress(AssertionError):  # the ledger names what is lost
            await eventually(done, within_s=RECOVERY_LIMIT_S, every_s=0.02)

    async def _stuck(self, since: float) -> str:
        """What was asked for and has not happened, and where messages wait."""
        stream = subjects.flow_stream(WORKSPACE, self.flow)
        infos = await JetStreamAssets(self.connection).consumers(stream)
        held = {info["name"]: (info["num_pending"], info["num_ack_pending"], info["num_waiting"]) for info in infos}
        self.effects.read()
        requests = [
            request for request in self.lanes.requests.values() if request.outcome is None or not self._is_over(request)
        ]
        return "\n".join(
            [f"pending, unacknowledged, pulls: {held}", f"since {since:.3f}, now {time.time():.3f}"]
            + [f"{request}\n{self.history(request.id)}" for request in requests[:12]]
        )

    def _requests_since(self, at: float) -> list[Request]:
        found = []
        for request in reversed(self.lanes.requests.values()):
            if request.sent_at < at:
                break
            found.append(request)
        return found

    def _is_done(self, request: Request) -> bool:
        self.effects.read()
        return self.effects.is_complete(request)

    def _is_over(self, request: Request) -> bool:
        unknown = request.outcome is not None and request.outcome.value != "OK"
        return self.effects.is_complete(request) or (unknown and not self.effects.leaves[request.id])

    # Verdict

    async def settle(self) -> Ledger:
        """Ends the traffic, waits until the flow is empty, and compares everything since `begin`."""
        began = time.time()
        try:
            await self.lanes.finish()
        except TimeoutError as error:
            raise AssertionError(f"callers wait for ever\n{await self._stuck(began)}") from error
        await self.all_done(time.time())
        await eventually(self.in_flight.is_empty, within_s=RECOVERY_LIMIT_S, every_s=0.1)
        self.effects.read()
        cut_off = {each.step for each in self.rounds if each.fault in ("sidecar", "component")}
        dead = await self._new_dead_letters()
        ledger = check_matrix(
            self.lanes.requests.values(), self.effects.lines, dead, cut_off=frozenset(cut_off), keyed=self._keyed
        )
        TOTALS.judge(
            ledger.attempted,
            lost=len(ledger.lost),
            duplicated=len(ledger.duplicated),
            disordered=len(ledger.disordered),
            wrong=len(ledger.wrong),
        )
        return ledger

    async def _new_dead_letters(self) -> Counter[str]:
        """Dead letters since the last time, by the id of the request that they belong to."""
        assets = JetStreamAssets(self.connection)
        stream = subjects.dead_letter_stream(WORKSPACE, self.flow)
        found: Counter[str] = Counter()
        while True:
            following = self._letters_read + 1
            message = await assets.next_message(stream, subjects.dead_letter_filter(WORKSPACE, self.flow), following)
            if message is None:
                return found
            self._letters_read = message.sequence
            found[json.loads(decode_dead_letter(message.data).original.body)["id"]] += 1

    def history(self, id: str) -> str:
        """All that is known of one request, in order of time."""
        request = self.lanes.requests.get(id)
        events: list[tuple[float, str]] = []
        if request is not None:
            events.append((request.sent_at, f"sent, {request.do}"))
            answered = f"answered {request.outcome} {request.detail}"
            events.append((request.answered_at or time.time(), answered))
            for each in self.rounds:
                if request.sent_at - 5 <= each.began <= (request.answered_at or time.time()) + 5:
                    events.append((each.began, f"fault: {each.line()}"))
        for line in self.effects.lines:
            if line["id"] == id:
                what = f"effect {line['leaf']}, message {line['message_id']}, attempt {line['attempt']}"
                events.append((line["at"], what))
        return "\n".join([f"history of {id}:"] + [f"  {at:.3f} {text}" for at, text in sorted(events)])


def is_stopped(pid: int) -> bool:
    """Whether a process stands still by SIGSTOP; AssertionError when it is gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        state = "X"
    return state == "T"


def effects_file(folder: Path, flow: str) -> Path:
    return folder / f"{flow}.effects.jsonl"
