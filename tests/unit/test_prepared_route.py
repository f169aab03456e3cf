"""What is made once per route says what is made for each request, and no two requests draw the same value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.model.message_ids import StimulusIds, first_message_id, stimulus_id
from headrace.model.route import Route
from services.gateway.domain.request_headers import RequestHeaders
from services.gateway.prepared_route import DRAWN_BYTES, DrawnValues, PreparedRoutes

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(texts, texts, texts, texts)
def test_prepared_ids_are_the_ids(flow: str, source: str, entry: str, value: str) -> None:
    ids = StimulusIds(flow, source, entry)
    assert ids.stimulus(value) == stimulus_id(flow, source, value)
    assert ids.first_message(value) == first_message_id(value, entry)


def test_values_are_drawn_once() -> None:
    drawn = DrawnValues()
    values = [drawn.next() for _ in range(DRAWN_BYTES)]
    assert len(set(values)) == len(values)
    assert {len(value) for value in values} == {32}


def test_a_new_version_of_a_route_is_prepared_anew() -> None:
    routes = PreparedRoutes()
    old, new = Route("f", "RUNNING", trigger="a"), Route("f", "RUNNING", trigger="b", key="header:k", slots=4)
    stimulus = routes.of(old).stimulus("key")
    assert routes.of(old) is routes.of(old)
    assert routes.of(new).stimulus("key") == stimulus
    assert routes.of(old).message_id(stimulus) != routes.of(new).message_id(stimulus)
    slots = {routes.of(new).slot(RequestHeaders({"k": str(n)}), b"", "m") for n in range(50)}
    assert (routes.of(old).slot(RequestHeaders({}), b"", "m"), slots) == (0, {0, 1, 2, 3})
