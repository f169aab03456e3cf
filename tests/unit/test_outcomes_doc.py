"""docs/outcomes.md says what the sidecar's tables say, and the tables are whole."""

from __future__ import annotations

from headrace.edge import attachment_store as attachments
from headrace.model.letter_reasons import OTHER_REASONS, OWN_REASONS, reason_label
from headrace.model.retry_codes import OUTSIDE_THE_POLICY
from services.sidecar import passthrough
from services.sidecar.domain import snapshot_problems as problems
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


def test_every_reason_of_the_tables_is_a_label_of_its_own() -> None:
    """In the metric of dead letters by reason; what components make up is one label, whatever it is."""
    endings = {rule.problem.code for rule in OUTCOMES.values() if rule.problem}
    refusals = {rule.code for rule in ANSWERS.values() if rule.code}
    others = {problems.CONFLICT, problems.REFUSED, passthrough.CODE, attachments.GONE, attachments.DAMAGED}
    assert endings | refusals | others | {attachments.TOO_LARGE} <= OWN_REASONS
    assert {reason_label(code) for code in ("OUT_OF_STOCK", "order-17", "", OTHER_REASONS)} == {OTHER_REASONS}
