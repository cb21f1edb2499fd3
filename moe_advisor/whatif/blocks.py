"""Finds the MoE layers in a lane: dispatch, what the experts do, combine, forward and backward."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.roles.roles import Role
from moe_advisor.whatif.model import Items

LOCAL = (
    Role.PERMUTE,
    Role.MEMCPY,
    Role.MEMSET,
    Role.EP_NOTIFY,
    Role.ELEMENTWISE,
    Role.CAST_QUANTIZE,
    Role.COMPUTE_OTHER,
)
"""Roles of the work that brings tokens to the wire and back into order. Without annotations its
elementwise part can't be told from a residual addition, which is small beside it."""

PAYLOAD = (Role.EP_DISPATCH, Role.EP_COMBINE)

OUTSIDE = (
    Role.ATTENTION,
    Role.DENSE_GEMM,
    Role.GEMM_UNATTRIBUTED,
    Role.OPTIMIZER,
    Role.EMBEDDING_LOSS,
)
"""Work that stands between one MoE layer and the next."""


@dataclass(frozen=True)
class Block:
    """One pass through one MoE layer, as half-open item ranges in launch order.

    [begin, first): local work before the wire, [first, inside): first collectives,
    [inside, second): expert side, [second, after): second collectives, [after, end): local work.
    """

    begin: int
    first: int
    inside: int
    second: int
    after: int
    end: int
    backward: bool
    recompute: bool


def find_blocks(items: Items) -> list[Block]:
    """The MoE blocks of a lane, in launch order; empty where the structure can't be seen."""
    payload = np.flatnonzero(items.has_role(*PAYLOAD)).tolist()
    if not payload:
        return []
    experts = _before(items.has_role(Role.EXPERT_GEMM))
    outside = _before(items.has_role(*OUTSIDE))
    clusters: list[list[int]] = [[payload[0], payload[0]]]
    links: list[bool] = []  # whether expert GEMMs stand between two clusters
    for at in payload[1:]:
        last = clusters[-1][1]
        if experts[at] > experts[last]:
            links.append(True)
        elif outside[at] > outside[last] or items.recompute[at] != items.recompute[last]:
            links.append(False)
        else:
            clusters[-1][1] = at
            continue
        clusters.append([at, at])
    local = items.has_role(*LOCAL)
    blocks: list[Block] = []
    reach = 0
    for number, inside in enumerate(links):
        if not inside:
            continue
        (first, first_end), (second, second_end) = clusters[number], clusters[number + 1]
        if first < reach:
            continue
        begin = first
        while begin > reach and local[begin - 1]:
            begin -= 1
        end = second_end + 1
        while end < len(items) - 1 and local[end]:
            end += 1
        rows = slice(first, second_end + 1)
        blocks.append(
            Block(
                begin,
                first,
                first_end + 1,
                second,
                second_end + 1,
                end,
                bool(items.backward[rows].mean() > 0.5),
                bool(items.recompute[rows].mean() > 0.5),
            )
        )
        reach = end
    return blocks


def _before(flags: NDArray[np.bool_]) -> list[int]:
    """Per item, how many of the items before it are flagged."""
    return np.concatenate([[0], np.cumsum(flags)]).tolist()  # type: ignore[no-any-return]
