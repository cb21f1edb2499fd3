"""Neighbours from the order of a 1F1B schedule."""

from moe_advisor.measure.schedule import BOTH, RECEIVES, SENDS, one_f_one_b


def test_two_stages_and_two_microbatches() -> None:
    assert one_f_one_b({0: [SENDS, BOTH, RECEIVES], 1: [RECEIVES, BOTH, SENDS]}) == {
        0: [1, 1, 1],
        1: [0, 0, 0],
    }


def test_a_middle_stage_alternates_between_its_neighbours() -> None:
    found = one_f_one_b(
        {
            0: [SENDS, SENDS, BOTH, RECEIVES, RECEIVES],
            1: [RECEIVES, SENDS, RECEIVES, BOTH, BOTH, BOTH, SENDS, RECEIVES, SENDS],
            2: [RECEIVES, BOTH, BOTH, SENDS],
        }
    )
    assert found is not None
    assert found[1] == [0, 2, 0, 2, 0, 2, 0, 2, 0]


def test_any_deviation_of_one_stage_tells_nothing() -> None:
    assert one_f_one_b({0: [SENDS, BOTH, RECEIVES], 1: [RECEIVES, SENDS, BOTH]}) is None
    assert one_f_one_b({0: [SENDS, RECEIVES], 2: [RECEIVES, SENDS]}) is None
