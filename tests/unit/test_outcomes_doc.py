"""docs/outcomes.md says what the sidecar's tables say, and the tables are whole."""

from __future__ import annotations

from headrace.model.retry_codes import OUTSIDE_THE_POLICY
from services.sidecar.domain.delivery import OUTCOMES, Ending
from services.sidecar.domain.output_answers import ANSWERS, OutputAnswer
from tools.outcomes_doc import PLACE, render


def test_the_document_is_the_tables() -> None:
    assert PLACE.read_text() == render(), "run: python -m tools.outcomes_doc"


def test_every_ending_and_every_answer_has_its_row() -> None:
    assert set(OUTCOMES) == set(Ending)
    assert set(ANSWERS) == set(OutputAnswer)
    never_retried = {rule.problem.code for rule in OUTCOMES.values() if rule.problem and rule.again.name != "BY_POLICY"}
    assert never_retried <= set(OUTSIDE_THE_POLICY)
