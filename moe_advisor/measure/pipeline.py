"""The pipeline bubble of one rank: time without compute that a pipeline receive held up."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.codes import few
from moe_advisor.intervals import EMPTY, Intervals, union
from moe_advisor.measure.steps import StepWindows
from moe_advisor.model import RankTrace
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.roles import Role

PHASES = ("warmup", "steady", "cooldown")

EQUAL_PASSES = 1.5
"""Backward passes of one step launch the same work: runs of launches that differ by more than this
factor are pieces of a pass (overlapped micro-batches), and their number says nothing."""


@dataclass(frozen=True)
class Pipeline:
    """`region` runs, step by step, from the first forward or receive to the last backward.

    `phases` divides the bubble; `held` is where the host itself stood in a synchronising call
    behind a resident receive: it was not late, it waited. `passes` counts the backward passes of
    the steps in all (micro-batches × model chunks); None where they can't be counted.
    """

    region: Intervals
    phases: dict[str, Intervals]
    held: Intervals
    passes: float | None


def find_pipeline(
    rank: RankTrace,
    roles: RoleTable,
    windows: StepWindows,
    step: NDArray[np.int64],
    *,
    compute: Intervals,
    other_comm: Intervals,
    starved: Intervals,
    sync: Intervals,
) -> Pipeline:
    """The bubble of every step. `step` is the step of each activity or -1.

    `starved` is when the next compute kernel had not been issued: the host's own lateness is no
    bubble unless the host stood in a call behind the receive.
    """
    table = rank.activities
    start, end = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
    backward = _launched_backward(rank, roles)
    passes = _passes(rank, roles, step, len(windows), backward)
    p2p = roles.mask(Role.PP_P2P)
    if not p2p.any() or not len(windows):
        return Pipeline(EMPTY, dict.fromkeys(PHASES, EMPTY), EMPTY, passes)
    receives = p2p.copy()
    meta = rank.collectives
    if len(meta):
        receives[meta["activity"].to_numpy()[meta["bytes_received"].to_numpy() == 0]] = False
    resident = union(start[receives], end[receives])
    layers = roles.has_nature("gemm") | roles.has_nature("expert_gemm")
    layers |= roles.has_nature("attention")
    edges: dict[str, list[tuple[int, int]]] = {phase: [] for phase in ("region", *PHASES)}
    for number in range(len(windows)):
        inside = step == number
        opens, closes = inside & (layers | p2p), inside & layers & backward
        if not opens.any():
            continue
        first = int(start[opens].min())
        turned = bool(closes.any())
        last = int(end[closes].max()) if turned else int(end[opens].max())
        forward = inside & layers & ~backward & (start < last)
        turn = int(start[closes].min()) if turned else last
        drain = int(end[forward].max()) if forward.any() else first
        drain = min(max(drain, turn), last)
        edges["region"].append((first, last))
        for phase, low, high in (
            ("warmup", first, turn),
            ("steady", turn, drain),
            ("cooldown", drain, last),
        ):
            edges[phase].append((low, high))
    parts = {name: union(*zip(*pairs, strict=True)) for name, pairs in edges.items() if pairs}
    region = parts.get("region", EMPTY)
    held = resident & sync
    bubble = ((resident - compute - other_comm) & region) - (starved - held)
    phases = {phase: bubble & parts.get(phase, EMPTY) for phase in PHASES}
    return Pipeline(region, phases, held, passes)


def _launched_backward(rank: RankTrace, roles: RoleTable) -> NDArray[np.bool_]:
    call = rank.activities["call"].to_numpy()
    backward = roles.contexts.backward
    if not len(backward):
        return np.zeros(len(call), np.bool_)
    return np.where(call >= 0, backward[np.maximum(call, 0)], False)


def _passes(
    rank: RankTrace,
    roles: RoleTable,
    step: NDArray[np.int64],
    steps: int,
    backward: NDArray[np.bool_],
) -> float | None:
    """Backward passes per step: runs of backward launches with forward launches between them.

    The thread that calls backward launches nothing until the pass is over.
    """
    call = rank.activities["call"].to_numpy()
    layers = roles.has_nature("gemm") | roles.has_nature("expert_gemm")
    layers |= roles.has_nature("attention")
    if not steps or not (backward & layers).any():
        return None
    tids = rank.calls["tid"].to_numpy()
    thread = np.where(call >= 0, tids[np.maximum(call, 0)], -1)
    elsewhere = np.ones(len(thread), np.bool_)
    for one in few(thread[backward]):
        elsewhere &= thread != one
    rows = np.flatnonzero((call >= 0) & (step >= 0) & ((layers & backward) | elsewhere))
    rows = rows[np.argsort(call[rows], kind="stable")]
    key = np.where(backward[rows], step[rows], -1)
    if not len(rows):
        return None
    opens = np.concatenate([[True], key[1:] != key[:-1]])
    run = np.cumsum(opens) - 1
    sizes = np.bincount(run, weights=layers[rows])[key[opens] >= 0]
    if not len(sizes) or sizes.max() > EQUAL_PASSES * sizes.min():
        return None
    return len(sizes) / steps
