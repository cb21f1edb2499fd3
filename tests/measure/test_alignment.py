"""Which of two ranks' collectives are the same one, where some are lost."""

import numpy as np
import pytest

from moe_advisor.measure.alignment import by_sequence, certain, unmistakable
from moe_advisor.model import NONE


def fit(one: str, other: str) -> np.ndarray:
    return np.asarray([[a == b for b in other] for a in one])


@pytest.mark.parametrize(
    ("whole", "part", "expected"),
    [
        ("NDCNDC", "DCNDC", [1, 2, 3, 4, 5]),  # the first is lost
        ("NDCNDC", "NDCND", [0, 1, 2, 3, 4]),  # the last
        ("NDCNDCNDC", "NDCNCNDC", [0, 1, 2, 3, 5, 6, 7, 8]),  # one in the middle
        ("ABCDEF", "ABC", [0, 1, 2]),  # the second half
        ("NDCNDC", "NDC", [NONE, NONE, NONE]),  # a whole period: which one can't be told
        ("AAAA", "AAA", [NONE, NONE, NONE]),
        ("AABC", "ABC", [NONE, 2, 3]),  # only the first is open
    ],
)
def test_only_what_every_longest_alignment_agrees_on_is_certain(
    whole: str, part: str, expected: list[int]
) -> None:
    found, longest = certain(fit(part, whole))
    assert found.tolist() == expected
    assert longest == len(part)


def test_where_both_sides_lost_rows_only_unique_partners_are_safe() -> None:
    """`abcabca` without its first and without its last three: the longest alignment is wrong."""
    wrong, _ = certain(fit("abca", "bcabca"))
    assert wrong.tolist() == [2, 3, 4, 5]
    assert unmistakable(fit("abca", "bcabca"), wrong).tolist() == [NONE] * 4
    unique, _ = certain(fit("xyz", "yzw"))
    assert unmistakable(fit("xyz", "yzw"), unique).tolist() == [NONE, 0, 1]


def test_numbers_match_whatever_is_missing_and_are_not_trusted_where_they_repeat() -> None:
    first, second = np.asarray([3, 4, 6, 7]), np.asarray([4, 5, 6])
    found = by_sequence([first, second])
    assert found is not None
    assert [one.tolist() for one in found] == [[1, 2], [0, 2]]
    assert by_sequence([first, np.asarray([4, 4, 6])]) is None
    assert by_sequence([first, np.asarray([4, NONE])]) is None


def test_too_many_rows_to_compare_stay_unmatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_advisor.measure.alignment.MAX_CELLS", 8)
    found, longest = certain(fit("ABC", "ABC"))
    assert (found.tolist(), longest) == ([NONE] * 3, 0)
