"""How many of the GPU's multiprocessors (SMs) communication kernels hold while they run."""

import numpy as np
from numpy.typing import NDArray

from moe_advisor.model import ActivityKind, RankTrace
from moe_advisor.roles.roles import Family, Role

FAMILIES = (Family.EP, Family.DP, Family.TP, Family.CP, Family.PP)


def held_sms(
    rank: RankTrace, roles: NDArray[np.int8], step: NDArray[np.int64]
) -> dict[str, list[float]]:
    """Family -> [block-nanoseconds, nanoseconds] of its kernels inside steps.

    Communication kernels are persistent: each thread block holds an SM from start to end, waiting
    included. Copy-engine collectives hold none and are left out, as is a launch of unknown size.
    """
    table = rank.activities
    rows = np.flatnonzero((roles >= Role.EP_DISPATCH) & (roles <= Role.COLLECTIVE_OTHER))
    rows = rows[step[rows] >= 0]
    kernel = table["kind"].to_numpy()[rows] == ActivityKind.KERNEL
    blocks = table["blocks"].to_numpy()[rows]
    rows, blocks = rows[kernel & (blocks > 0)], blocks[kernel & (blocks > 0)]
    if rank.device.sm_count:
        blocks = np.minimum(blocks, rank.device.sm_count)
    length = (table["end_ns"].to_numpy() - table["start_ns"].to_numpy())[rows]
    found: dict[str, list[float]] = {}
    for family in FAMILIES:
        mine = np.isin(roles[rows], [role for role in Role if role.family is family])
        if mine.any():
            busy = float(length[mine].sum())
            found[str(family)] = [float((blocks * length)[mine].sum()), busy]
    return found
