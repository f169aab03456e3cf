"""Names and numbers in resource names: found by fuzzing, `isdigit` takes what `int` does not."""

from __future__ import annotations

import pytest

from headrace.model.errors import InvalidInput
from headrace.model.names import is_number, is_semver, parse_reference, parse_resource
from headrace.model.subjects import parse_data_subject

NO_NUMBERS = ("²", "٣", "9" * 19, "9" * 5000, "-1", "1 ", "")


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_of_ours_is_refused_everywhere(text: str) -> None:
    assert not is_number(text)
    with pytest.raises(InvalidInput, match="does not end in a number"):
        parse_resource("name", f"flows/orders/versions/{text}", "flows", "versions")
    with pytest.raises(InvalidInput, match="is not a tag"):
        parse_reference("reference", f"price@{text}")
    with pytest.raises(ValueError, match="not a data subject"):
        parse_data_subject(f"hr.default.orders.d1.price.{text}")


@pytest.mark.parametrize("text", ["0", "7", "9" * 18])
def test_numbers(text: str) -> None:
    assert parse_resource("name", f"flows/orders/versions/{text}", "flows", "versions") == ["orders", text]


@pytest.mark.parametrize("text", ["1.2.٣", "1.2." + "9" * 70, "01.2.3", "1.2"])
def test_what_is_no_semantic_version(text: str) -> None:
    assert not is_semver(text)
