"""What started a flow's executions: `StimulusService`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from headrace.api.stimulus.v1 import stimulus_pb2, stimulus_pb2_grpc
from headrace.client.session import Session, resource, timestamp_of

REPLAY_TIMEOUT_S = 30.0
MAX_PAGE = 500


class StimulusCalls(Session):
    """A stimulus is named by its number within its flow."""

    async def list_stimuli(
        self,
        flow: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str = "",
        limit: int = 50,
        page_token: str = "",
    ) -> stimulus_pb2.ListStimuliResponse:
        """The newest `limit` that fit, newest first, without bodies; `next_page_token` where there are more."""
        answer = stimulus_pb2.ListStimuliResponse(next_page_token=page_token)
        while len(answer.stimuli) < limit:
            request = stimulus_pb2.ListStimuliRequest(
                parent=resource("flows", flow),
                since=timestamp_of(since),
                until=timestamp_of(until),
                text=text,
                page_size=min(MAX_PAGE, limit - len(answer.stimuli)),
                page_token=answer.next_page_token,
            )
            page = await self._call(self._stimuli().ListStimuli, request)
            answer.stimuli.extend(page.stimuli)
            answer.next_page_token = page.next_page_token
            answer.counts.CopyFrom(page.counts)
            if not page.next_page_token:
                break
        return answer

    async def get_stimulus(self, flow: str, number: int, *, max_body_bytes: int = 0) -> stimulus_pb2.Stimulus:
        """One, with its headers and up to `max_body_bytes` (0: 64 KiB) of its body."""
        request = stimulus_pb2.GetStimulusRequest(name=_name(flow, number), max_body_bytes=max_body_bytes)
        answer: stimulus_pb2.Stimulus = await self._call(self._stimuli().GetStimulus, request)
        return answer

    async def replay_stimuli(
        self, flow: str, numbers: Sequence[int], *, validate_only: bool = False
    ) -> stimulus_pb2.ReplayStimuliResponse:
        """Runs their executions again from the start; 1 to 100 of them."""
        request = stimulus_pb2.ReplayStimuliRequest(
            parent=resource("flows", flow),
            names=[_name(flow, number) for number in numbers],
            validate_only=validate_only,
        )
        answer: stimulus_pb2.ReplayStimuliResponse = await self._call(
            self._stimuli().ReplayStimuli, request, timeout_s=REPLAY_TIMEOUT_S
        )
        return answer

    def _stimuli(self) -> Any:
        return stimulus_pb2_grpc.StimulusServiceStub(self.channel)


def _name(flow: str, number: int) -> str:
    return f"{resource('flows', flow)}/stimuli/{number}"
