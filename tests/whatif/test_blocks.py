"""MoE layers of a rank that the routing left without tokens; times in µs."""

import numpy as np

from moe_advisor.roles.roles import Role
from moe_advisor.whatif.blocks import aligned, find_blocks
from moe_advisor.whatif.build import _agreed
from moe_advisor.whatif.model import Items
from tests.whatif.steps import Step


def rank(*tokens: bool) -> Items:
    """One layer per entry; a rank without tokens runs no expert GEMM."""
    s = Step()
    for number, some in enumerate(tokens):
        s.item(40, Role.PERMUTE)
        s.item(90, Role.EP_DISPATCH, collective=2 * number)
        s.item(5, Role.PERMUTE)
        if some:
            s.item(80, Role.EXPERT_GEMM)
        s.item(90, Role.EP_COMBINE, collective=2 * number + 1)
        s.item(60, Role.PERMUTE)
        s.item(100, Role.DENSE_GEMM)
    return s.lane(1).items


def edges(items: Items, found: list) -> list[tuple[int, ...]]:
    return [tuple(items.collective[[b.first, b.second]].tolist()) for b in found]


def test_a_layer_without_tokens_is_told_from_the_other_ranks() -> None:
    full, starved = rank(True, True, True), rank(True, False, True)
    own = [find_blocks(full), find_blocks(starved)]
    assert [len(one) for one in own] == [3, 2]
    same = aligned([full, starved], own)
    assert edges(full, same[0]) == edges(starved, same[1]) == [(0, 1), (2, 3), (4, 5)]
    layer = same[1][1]
    assert (layer.begin, layer.inside, layer.second, layer.end) == (7, 9, 10, 12)


def test_ranks_whose_collectives_differ_keep_their_own_layers() -> None:
    full, other = rank(True, True), rank(True)
    own = [find_blocks(full), find_blocks(other)]
    assert aligned([full, other], own) == own


def test_a_payload_of_next_to_nothing_has_the_role_that_it_has_on_other_ranks() -> None:
    busy, starved, counts = Step(), Step(), Step()
    for s, role in ((busy, Role.EP_COMBINE), (starved, Role.EP_NOTIFY), (counts, Role.EP_NOTIFY)):
        s.item(6, Role.EP_NOTIFY, collective=0)
        s.item(90, role, collective=1)
        s.item(6, Role.EP_NOTIFY)
    lanes = [busy.lane(1), starved.lane(1, rank=1), counts.lane(1, rank=2)]
    for lane in _agreed(lanes, 2):
        expected = [Role.EP_NOTIFY, Role.EP_COMBINE, Role.EP_NOTIFY, Role.COMPUTE_OTHER]
        assert np.array_equal(lane.items.role, expected)
