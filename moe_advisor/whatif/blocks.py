"""Finds the MoE layers in a lane: dispatch, what the experts do, combine, forward and backward."""

from collections.abc import Sequence
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
    local = items.has_role(*LOCAL).tolist()
    blocks: list[Block] = []
    reach = 0
    for number, inside in enumerate(links):
        if not inside:
            continue
        (first, first_end), (second, second_end) = clusters[number], clusters[number + 1]
        if first < reach:
            continue
        blocks.append(_block(items, local, reach, (first, first_end), (second, second_end)))
        reach = blocks[-1].end
    return blocks


def aligned(lanes: Sequence[Items], found: list[list[Block]]) -> list[list[Block]]:
    """The same blocks on every lane; `found` where the lanes' collectives don't tell them.

    A rank without a token runs no expert GEMM between its collectives, so its own work does not
    show the layer: the other ranks' does, through the collectives that all take part in.
    """
    most = max(range(len(found)), key=lambda lane: len(found[lane]))
    model = lanes[most].collective
    same: list[list[Block]] = []
    for items, own in zip(lanes, found, strict=True):
        if len(own) == len(found[most]):
            same.append(own)
            continue
        rows = np.flatnonzero(items.collective >= 0)
        place = dict(zip(items.collective[rows].tolist(), rows.tolist(), strict=True))
        local = items.has_role(*LOCAL)
        blocks: list[Block] = []
        for block in found[most]:
            edges = (block.first, block.inside - 1, block.second, block.after - 1)
            at = [place.get(int(model[edge]), -1) for edge in edges]
            if min(at) < 0:
                return found
            reach = blocks[-1].end if blocks else 0
            blocks.append(_block(items, local, reach, (at[0], at[1]), (at[2], at[3])))
        same.append(blocks)
    return same


def _block(
    items: Items,
    local: NDArray[np.bool_],
    reach: int,
    dispatch: tuple[int, int],
    combine: tuple[int, int],
) -> Block:
    """The block of these first and last collectives, with the local work around them."""
    begin, end = dispatch[0], combine[1] + 1
    while begin > reach and local[begin - 1]:
        begin -= 1
    while end < len(items) - 1 and local[end]:
        end += 1
    rows = slice(dispatch[0], combine[1] + 1)
    return Block(
        begin,
        dispatch[0],
        dispatch[1] + 1,
        combine[0],
        combine[1] + 1,
        end,
        bool(items.backward[rows].mean() > 0.5),
        bool(items.recompute[rows].mean() > 0.5),
    )


def _before(flags: NDArray[np.bool_]) -> list[int]:
    """Per item, how many of the items before it are flagged."""
    return np.concatenate([[0], np.cumsum(flags)]).tolist()  # type: ignore[no-any-return]
