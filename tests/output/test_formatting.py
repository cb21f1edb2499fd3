"""One rounding rule, real minus signs, and columns that add up as printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_advisor.output.formatting import (
    add_up,
    clean,
    count,
    figure,
    from_tenths,
    gain,
    middle_cut,
    ms,
    number,
    points,
    share,
    span,
    tenths,
)
from moe_advisor.result import Estimate, MetricValue


@pytest.mark.parametrize(
    ("value", "text"),
    [(332.66, "332.7"), (0.0, "0.0"), (-0.04, "0.0"), (-16.0, "−16.0"), (16384.0, "16,384.0")],
)
def test_milliseconds_have_one_decimal_and_a_real_minus(value: float, text: str) -> None:
    assert ms(value) == text


def test_share_has_a_space_before_the_sign() -> None:
    assert share(0.551) == "55.1 %"


def test_whole_points_lose_their_decimal() -> None:
    assert (points(0.1), points(0.548)) == ("10", "54.8")


def test_range_is_words_so_that_a_minus_is_no_dash() -> None:
    assert span(-16.0, 12.0) == "−16.0 to 12.0"


def test_counts_are_whole_unless_a_small_mean() -> None:
    assert (count(1412.0), count(0.667), count(16384)) == ("1,412", "0.7", "16,384")


def test_numbers_beyond_reading_turn_scientific() -> None:
    assert number(1e300) == "1.00e+300"


def test_not_measured_is_words_and_reason_never_zero() -> None:
    shown = figure(MetricValue(status="not_measured", value=None, unit="GiB", reason="no events"))
    assert (shown.text, shown.note, shown.measured) == ("Not measured", "no events", False)


def test_estimate_carries_its_range() -> None:
    value = MetricValue(status="estimated", value=20.0, unit="ms/step", low=9.5, high=47.0)
    shown = figure(value)
    assert (shown.text, shown.note) == ("≈ 20.0", "9.5 to 47.0")


def test_estimate_without_a_value_shows_its_bounds() -> None:
    shown = figure(MetricValue(status="estimated", value=None, unit="ms/step", low=9.5, high=47.0))
    assert str(shown) == "9.5 to 47.0 ms"


def test_gain_never_shows_the_expected_value_alone() -> None:
    estimate = Estimate(status="estimated", low_ms=6.7, expected_ms=26.6, high_ms=47.0)
    assert gain(estimate, 332.66) == "expected 26.6 ms (8.0 %), range 6.7 to 47.0 ms"


def test_gain_says_why_it_is_not_measured() -> None:
    assert (
        gain(Estimate(status="not_measured", reason="no log"), 1.0) == "gain not measured: no log"
    )


def test_the_other_part_takes_the_rounding() -> None:
    assert add_up([1.04, 1.04, 1.04], 3.12, absorbing=2) == [10, 10, 11]


def test_a_part_is_never_pushed_below_zero() -> None:
    assert add_up([0.06, 0.06, 0.0], 0.12, absorbing=2) == [0, 1, 0]


def test_parts_that_do_not_make_the_total_are_left_alone() -> None:
    assert add_up([1.0, 1.0], 5.0) == [10, 10]


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=30), st.booleans())
def test_printed_parts_add_up_to_the_printed_total(values: list[float], other: bool) -> None:
    total = sum(values)
    printed = add_up(values, total, len(values) - 1 if other else None)
    assert sum(printed) == tenths(total)
    assert all(abs(p - v * 10) <= 1.0001 for p, v in zip(printed[:-1], values[:-1], strict=True))
    assert all(value >= 0 for value in printed)


def test_tenths_print_as_they_were() -> None:
    assert from_tenths(3327) == "332.7"


def test_clean_removes_escape_codes_controls_and_direction_marks() -> None:
    assert clean("a\x1b[31mb\x1b[0m\x00c\u202ed\u2066e\nf\u2028g") == "abcde f g"


def test_clean_keeps_letters_of_any_script() -> None:
    assert clean("שלום 漢字 é") == "שלום 漢字 é"


def test_clean_cuts_endless_names() -> None:
    assert len(clean("x" * 1_000_000, 200)) == 200


def test_middle_cut_keeps_both_ends() -> None:
    assert middle_cut("abcdefghij", 7) == "abcd…ij"
