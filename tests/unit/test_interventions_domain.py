"""Small laws of interventions: what is in doubt after a kill, limits, ids of moved messages, usage of the command."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from headrace.cli.flow import app
from headrace.model.deployment import DrainDecision
from headrace.model.errors import InvalidInput
from headrace.model.message_ids import moved_message_id
from services.orchestrator.domain.scaling import check_replicas
from services.orchestrator.message_settler import REMEMBERED_S, doubtful_through


@pytest.mark.parametrize(
    ("through", "claimed", "age_s", "doubtful"),
    [
        (0, 0, 1000.0, 0),
        (10, 10, 1000.0, 0),
        (10, 20, REMEMBERED_S - 1, 0),
        (10, 20, REMEMBERED_S + 1, 20),
    ],
)
def test_only_what_was_claimed_long_ago_and_not_noted_is_in_doubt(
    through: int, claimed: int, age_s: float, doubtful: int
) -> None:
    drain = DrainDecision("op", "MOVE", 0.0, through=through, claimed=claimed, claimed_at=5000.0)
    assert doubtful_through(drain, 5000.0 + age_s) == doubtful


def test_ids_of_moved_messages_follow_from_message_step_and_choice() -> None:
    assert moved_message_id("m", "price", 7) == moved_message_id("m", "price", 7)
    others = {moved_message_id("m", "price", 8), moved_message_id("m", "check", 7), moved_message_id("n", "price", 7)}
    assert len(others | {moved_message_id("m", "price", 7), "m"}) == 5


@pytest.mark.parametrize("replicas", [0, 65])
def test_replicas_are_bounded(replicas: int) -> None:
    with pytest.raises(InvalidInput, match="1 and 64"):
        check_replicas(replicas)


@pytest.mark.parametrize("scaled", ["price", "price=", "price=many", "=3"])
def test_scale_says_how_it_is_written(scaled: str) -> None:
    result = CliRunner().invoke(app, ["scale", "orders", scaled, "--address", "127.0.0.1:1"])
    assert result.exit_code == 2
    assert "is not STEP=N, for example price=4" in result.output
