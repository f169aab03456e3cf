"""Credit given back before the acknowledgement: bounded in number and bytes, and never given back twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.sidecar.domain.early_credit import LEAST_PREFETCH, MOST, MOST_BYTES, EarlyCredit

STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 900), st.sampled_from([1, 300, 60_000, 500_000])), max_size=900
)


@given(steps=STEPS)
def test_each_credit_is_given_back_once_and_few_are_out(steps: list[tuple[bool, int, int]]) -> None:
    early = EarlyCredit(LEAST_PREFETCH)
    out: dict[str, int] = {}
    for taking, number, size in steps:
        name = str(number)
        if taking:
            if early.take(name, size):
                assert name not in out
                out[name] = size
        else:
            assert early.give_back(name) == (out.pop(name, None) is not None)
        assert len(out) <= MOST
        assert sum(out.values()) <= MOST_BYTES


def test_a_step_that_is_to_have_little_in_work_has_no_more() -> None:
    assert not EarlyCredit(LEAST_PREFETCH - 1).take("a", 1)
