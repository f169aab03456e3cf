"""StimulusService: what started a flow's executions, to look at and to send in again."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from headrace.api.message.v1.message_pb2 import Origin
from headrace.api.stimulus.v1 import stimulus_pb2, stimulus_pb2_grpc
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.request_book import RequestBook, Ticket
from headrace.model import subjects
from headrace.model.errors import Exhausted, InvalidInput, NotFound, WrongState
from headrace.model.names import parse_resource
from headrace.wire.flow import duration_from_seconds
from services.orchestrator.asked_messages import asked_span
from services.orchestrator.domain.documents import FlowDocument, acted
from services.orchestrator.rpc_rollouts import flow_of
from services.orchestrator.stimulus_replay import StimulusReplay, stimulus_name
from services.orchestrator.stimulus_store import Stimulus, StimulusFilter, StimulusStore
from services.orchestrator.stores import Stores

SERVICE_NAME = "headrace.api.stimulus.v1.StimulusService"
DEFAULT_BODY = 64 * 1024
MAX_BODY = 512 * 1024
MOST_NAMES = 100
# Less than the duplicate window (120 s) of the flow's stream: past it nobody knows what an interrupted call has stored.
REMEMBERED_S = 90.0
NANOS = 1_000_000_000
ORIGINS = {Origin.ORIGIN_UNSPECIFIED: "request", Origin.ORIGIN_TICK: "tick", Origin.ORIGIN_INJECTED: "injected"}


def add_stimuli(
    server: GrpcServer, stores: Stores, store: StimulusStore, replay: StimulusReplay, requests: RequestBook
) -> None:
    """Serves them."""
    rpc = StimulusRpc(stores, store, replay, requests)
    server.add(stimulus_pb2_grpc.add_StimulusServiceServicer_to_server, rpc, SERVICE_NAME)


@dataclass
class StimulusRpc:
    """The servicer."""

    stores: Stores
    store: StimulusStore
    replay: StimulusReplay
    requests: RequestBook

    async def ListStimuli(self, request: Any, context: Any) -> stimulus_pb2.ListStimuliResponse:
        del context
        flow = flow_of(request.parent, "parent")
        counts = await self._counts(flow)
        found, token = await self.store.page(
            flow, StimulusFilter(*asked_span(request)), request.page_size, request.page_token
        )
        messages = [stimulus_message(flow, item) for item in found]
        return stimulus_pb2.ListStimuliResponse(stimuli=messages, next_page_token=token, counts=counts)

    async def GetStimulus(self, request: Any, context: Any) -> stimulus_pb2.Stimulus:
        del context
        if request.max_body_bytes > MAX_BODY:
            raise InvalidInput.at("max_body_bytes", request.max_body_bytes, f"is more than {MAX_BODY}")
        flow, number = parse_resource("name", request.name, "flows", "stimuli")
        counts = await self._counts(flow)
        found = await self.store.stimulus(flow, int(number))
        if found is None:
            raise NotFound(
                f"flow {flow!r} keeps no stimulus {number}: it was pushed out or is too old, or never was",
                reason="STIMULUS_NOT_FOUND",
                next_step=f"List them: headrace stimuli list {flow}" if counts.max_count else _keep_it(flow),
            )
        message, most = stimulus_message(flow, found), request.max_body_bytes or DEFAULT_BODY
        message.body = found.envelope.body[:most]
        message.body_truncated = len(found.envelope.body) > most
        message.headers.update(found.envelope.headers)
        return message

    async def ReplayStimuli(self, request: Any, context: Any) -> stimulus_pb2.ReplayStimuliResponse:
        del context

        async def replay(ticket: Ticket) -> stimulus_pb2.ReplayStimuliResponse:
            flow, numbers = _named(request)
            return await self._replay(flow, numbers, ticket, dry=request.validate_only)

        kind = stimulus_pb2.ReplayStimuliResponse
        return await self.requests.once("StimulusService/ReplayStimuli", request, kind, replay)

    async def _replay(
        self, flow: str, numbers: list[int], ticket: Ticket, *, dry: bool
    ) -> stimulus_pb2.ReplayStimuliResponse:
        answer = stimulus_pb2.ReplayStimuliResponse()
        start = await self.replay.start(flow)
        incarnation = 0 if dry else await _incarnation(ticket, flow)
        for number in numbers:
            name = stimulus_name(flow, number)
            found = await self.store.stimulus(flow, number)
            if found is None:
                text = "it was pushed out or is too old, or never was"
                answer.refusals.add(stimulus=name, reason="NOT_FOUND", message=text)
                continue
            envelope = self.replay.again(start, found, incarnation)
            try:
                if not dry:
                    await self.replay.send(start, found, envelope)
            except Exhausted as error:
                answer.refusals.add(stimulus=name, reason="FLOW_FULL", message=error.message)
                continue
            except NotFound as error:
                answer.refusals.add(stimulus=name, reason=error.reason, message=error.message)
                continue
            sent = answer.replays.add(stimulus=name, step=start.entry.name, execution_id=envelope.execution_id)
            sent.message_id = "" if dry else envelope.id
        if answer.replays and not dry:
            await self._record(flow, [item.stimulus.rpartition("/")[2] for item in answer.replays], ticket)
        return answer

    async def _record(self, flow: str, numbers: list[str], ticket: Ticket) -> None:
        shown = ", ".join(numbers[:10]) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")

        async def noted(document: FlowDocument) -> FlowDocument:
            return acted(document, "stimuli-replay", f"{len(numbers)} from the start: {shown}")

        await self.stores.change_flow(flow, noted, mark=ticket.mark)

    async def _counts(self, flow: str) -> stimulus_pb2.StimulusCounts:
        """All zero where nothing was ever filed; NotFound where there is no such flow."""
        document, _ = await self.stores.existing_flow(flow)
        counts = stimulus_pb2.StimulusCounts()
        info = await self.store.assets.stream_info(subjects.stimulus_stream(self.store.workspace, flow))
        if info is not None:
            config, state = info["config"], info["state"]
            counts.kept, counts.bytes, counts.total = state["messages"], state["bytes"], state["last_seq"]
            counts.pushed_out = max(0, counts.total - counts.kept)
            counts.max_count, counts.max_bytes = config["max_msgs"], config["max_bytes"]
            counts.max_age.CopyFrom(duration_from_seconds(config["max_age"] / NANOS))
        plan = await self.replay.reader.plan(flow, document.active) if document.active else None
        counts.files = plan is not None and plan.history is not None
        return counts


def stimulus_message(flow: str, found: Stimulus) -> stimulus_pb2.Stimulus:
    """As in a list."""
    envelope = found.envelope
    message = stimulus_pb2.Stimulus(
        name=stimulus_name(flow, found.number),
        execution_id=envelope.execution_id,
        message_id=envelope.id,
        origin=ORIGINS.get(envelope.origin, ""),
        step=found.step,
        content_type=envelope.content_type,
        body_size=len(envelope.body),
        replay_of=envelope.replayed.dead_letter or envelope.replayed.stimulus,
    )
    message.time.FromNanoseconds(found.at_unix_ns)
    return message


async def _incarnation(ticket: Ticket, flow: str) -> int:
    """Of this call: written down before anything is sent, so that a repeat sends the same ids."""
    if not ticket.note:
        drawn = secrets.randbelow(2**32 - 1) + 1
        await ticket.write(f"{drawn} {time.time():.0f}")
        return drawn
    incarnation, begun_at = ticket.note.split()
    if not 0 <= time.time() - int(begun_at) <= REMEMBERED_S:
        raise WrongState(
            "an earlier call under this request_id was interrupted, and nobody knows any more what it has sent",
            reason="REPLAY_IN_DOUBT",
            next_step=f"See what it filed: headrace stimuli list {flow}; send the rest under another request_id",
        )
    return int(incarnation)


def _named(request: Any) -> tuple[str, list[int]]:
    flow = flow_of(request.parent, "parent")
    if not 1 <= len(request.names) <= MOST_NAMES:
        next_step = f"Name them: headrace stimuli list {flow}"
        raise InvalidInput.at("names", len(request.names), f"is not 1 to {MOST_NAMES}", next_step=next_step)
    numbers: list[int] = []
    for name in dict.fromkeys(request.names):
        of, number = parse_resource("names", name, "flows", "stimuli")
        if of != flow:
            raise InvalidInput.at("names", name, f"is not a stimulus of flows/{flow}")
        numbers.append(int(number))
    return flow, numbers


def _keep_it(flow: str) -> str:
    return (
        f"Nothing was filed yet: write `history: true` into the flow's file and publish it: headrace flow apply {flow}"
    )
