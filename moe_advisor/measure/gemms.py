"""What matrix products achieve: operations by their shapes over the time of their kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.intervals import union
from moe_advisor.model import NONE, RankTrace
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.roles import GEMMS, Role

COVERED = 0.5
"""Shapes must be known for half of a role's GEMM time: else the rate would be of a few kernels."""

MAX_ROW_COUNTS = 4_096
"""Forward products whose row counts are kept per rank: more than any capture's layers."""


def gemm_work(rank: RankTrace, roles: RoleTable, step: NDArray[np.int64]) -> dict[str, Any]:
    """Per GEMM role `flops` and `ns` of the products whose shapes are known, and `covered`.

    `rows` lists the token rows of the forward grouped products of the experts, as
    [step, rows, groups], in launch order. Empty where the trace holds no shapes.
    """
    products = rank.matmuls
    if not len(products):
        return {}
    owner = _owners(rank)
    call = rank.activities["call"].to_numpy()
    start, end = rank.activities["start_ns"].to_numpy(), rank.activities["end_ns"].to_numpy()
    gemm = np.flatnonzero(np.isin(roles.roles, GEMMS) & (call >= 0) & (step >= 0))
    product = owner[call[gemm]]
    flops, rows = products["flops"].to_numpy(), products["rows"].to_numpy()
    groups = products["groups"].to_numpy()
    found: dict[str, Any] = {}
    for role in GEMMS:
        mine = roles.roles[gemm] == role
        if not mine.any():
            continue
        known = mine & (product >= 0)
        at = gemm[known]
        all_ns = int((end - start)[gemm[mine]].sum())
        own_ns = int((end - start)[at].sum())
        found[role.label] = {
            "flops": int(flops[np.unique(product[known])].sum()),
            "ns": union(start[at], end[at]).total,
            "covered": own_ns / all_ns if all_ns else 0.0,
        }
    expert = product[(roles.roles[gemm] == Role.EXPERT_GEMM) & (product >= 0)]
    first = gemm[(roles.roles[gemm] == Role.EXPERT_GEMM) & (product >= 0)]
    backward = roles.contexts.backward
    forward = ~backward[call[first]] if len(backward) else np.ones(len(first), np.bool_)
    expert, first = expert[forward], first[forward]
    once, place = np.unique(expert, return_index=True)
    counted = rows[once] != NONE
    found["rows"] = [
        [int(step[first[at]]), int(rows[one]), int(groups[one])]
        for one, at in zip(once[counted].tolist(), place[counted].tolist(), strict=True)
    ][:MAX_ROW_COUNTS]
    return found


def _owners(rank: RankTrace) -> NDArray[np.int64]:
    """Per call, the product under which it was launched, or -1. Products do not nest."""
    products, calls = rank.matmuls, rank.calls
    tids, times = calls["tid"].to_numpy(), calls["start_ns"].to_numpy()
    owner = np.full(len(calls), -1, np.int64)
    product_tid = products["tid"].to_numpy()
    start, end = products["start_ns"].to_numpy(), products["end_ns"].to_numpy()
    for tid in np.unique(product_tid).tolist():
        own = np.flatnonzero(product_tid == tid)
        rows = np.flatnonzero(tids == tid)
        place = np.searchsorted(start[own], times[rows], side="right") - 1
        at = own[np.maximum(place, 0)]
        inside = (place >= 0) & (times[rows] < end[at])
        owner[rows[inside]] = at[inside]
    return owner


def rate_tflops(work: dict[str, Any], role: Role) -> float | None:
    """TFLOP/s of one rank's products of a role; None where too few shapes are known."""
    one = work.get(role.label)
    if not one or one["covered"] < COVERED or not one["ns"] or not one["flops"]:
        return None
    return float(one["flops"]) / float(one["ns"]) / 1e3  # per ns is GFLOP/s
