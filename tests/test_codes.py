"""Columns of small codes: the same answers as sorting them would give."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moe_advisor.codes import among, compact, distinct, few, hashed

CODES = arrays.arrays(np.uint32, st.integers(0, 30), elements=st.integers(0, 500))


@given(CODES)
def test_distinct_values_are_those_of_a_sort(codes: np.ndarray) -> None:
    assert distinct(codes) == np.unique(codes).tolist()


@given(CODES, st.lists(st.integers(0, 600), max_size=5))
def test_among_is_membership(codes: np.ndarray, wanted: list[int]) -> None:
    assert among(codes, wanted).tolist() == [code in wanted for code in codes.tolist()]


@given(CODES)
def test_compact_codes_lead_back_to_the_values(codes: np.ndarray) -> None:
    values, place = compact(codes)
    assert values.tolist() == sorted(set(codes.tolist()))
    assert values[place].tolist() == codes.tolist()


@given(arrays.arrays(np.int64, st.integers(0, 60), elements=st.integers(-(2**62), 2**62)))
def test_few_values_are_those_of_a_sort_however_many_they_are(values: np.ndarray) -> None:
    assert few(values) == np.unique(values).tolist()


@given(arrays.arrays(np.int64, st.integers(0, 60), elements=st.integers(-(2**62), 2**62)))
def test_hashed_values_are_those_of_a_sort(values: np.ndarray) -> None:
    found, place = hashed(values)
    assert found.tolist() == np.unique(values).tolist()
    assert found[place].tolist() == values.tolist()


def test_more_values_than_slots_are_told_apart_too() -> None:
    values = np.arange(300_000)[::-1] * 7
    found, place = hashed(values)
    assert found.tolist() == sorted(values.tolist())
    assert np.array_equal(found[place], values)
