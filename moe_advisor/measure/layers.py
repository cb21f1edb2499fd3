"""Layer by layer: dispatch, experts, combine, attention and gaps, forward and backward.

The attention kernels mark the layers: each layer runs one forward and one backward. A layer's
forward time reaches from its attention to the next layer's; its backward time from the attention
backward of the layer after it to its own. What is launched before the first or after the last mark
(embedding, loss head, optimizer) belongs to no layer. Where one micro-batch's forward runs amid
another's backward, each direction is cut by its own marks and holds only what it launched itself;
gaps belong to neither then.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moe_advisor.intervals import Intervals, union
from moe_advisor.model import RankTrace
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.roles import Role

PHASES = ("attention", "dispatch", "expert_gemm", "combine", "gap")

_DIRECTED = {
    "attention": (Role.ATTENTION,),
    "dispatch": (Role.EP_DISPATCH, Role.EP_NOTIFY),
    "expert_gemm": (Role.EXPERT_GEMM,),
    "combine": (Role.EP_COMBINE,),
}

MAX_LAYERS = 200
"""More marks in one pass than any published model has layers: they mark something else."""

Layers = dict[tuple[int, str], tuple[int, int]]
"""(layer, phase) -> (forward ns, backward ns) over all steps."""


def find_layers(
    rank: RankTrace,
    roles: RoleTable,
    step: NDArray[np.int64],
    *,
    steps: int,
    passes: float | None,
    merged: float | None,
    recompute: NDArray[np.bool_],
    phases: Mapping[str, Intervals],
) -> tuple[Layers, str | None]:
    """The layers of every pass; or none, and why not.

    `passes` are backward passes per step, one after the other; `merged` the micro-batches per step
    where passes run into each other. `phases` are the sets (ns) of PHASES.
    """
    each = passes or merged
    if not each or not steps:
        return {}, "how many passes a step has is not in the trace"
    start, end = rank.activities["start_ns"].to_numpy(), rank.activities["end_ns"].to_numpy()
    call = rank.activities["call"].to_numpy()
    under = roles.contexts.backward
    backward = np.where(call >= 0, under[np.maximum(call, 0)], False)
    marks = (roles.has_nature("attention") | roles.has_nature("softmax")) & (step >= 0)
    marks &= roles.mask(Role.ATTENTION) & ~recompute
    forward_rows = _most_time(rank, marks & ~backward)
    backward_rows = _most_time(rank, marks & backward)
    count, per_pass = len(forward_rows), round(each * steps)
    if not count or count != len(backward_rows) or count % per_pass:
        return {}, (
            f"{count} forward and {len(backward_rows)} backward attention kernels do not mark the "
            f"layers of {per_pass} passes"
        )
    layers = count // per_pass
    if layers > MAX_LAYERS:
        return {}, f"{layers} attention kernels per pass are more than any model has layers"
    if not passes:
        return _merged(rank, roles, backward, forward_rows, backward_rows, layers), None
    opens_backward = np.sort(start[backward & (step >= 0)])
    first, last = start[forward_rows], end[backward_rows]
    number = np.arange(count)
    # Forward: until the next mark, whichever direction, or the first backward work.
    ends = np.minimum(_next(first, first), _next(opens_backward, first))
    # Backward: since the mark before, or the first backward work after the last forward mark.
    before = np.concatenate([[np.iinfo(np.int64).min], last[:-1]])
    turned = _last(first, last)
    begins = np.maximum(before, _next(opens_backward, turned))
    found: Layers = {}
    for phase in PHASES:
        ahead = phases[phase].within(first, np.maximum(ends, first))
        back = phases[phase].within(np.minimum(begins, last), last)
        forward_ns = np.bincount(number % layers, weights=ahead, minlength=layers)
        backward_ns = np.bincount(layers - 1 - number % layers, weights=back, minlength=layers)
        for layer in range(layers):
            found[layer, phase] = (int(forward_ns[layer]), int(backward_ns[layer]))
    return found, None


def _merged(
    rank: RankTrace,
    roles: RoleTable,
    backward: NDArray[np.bool_],
    forward_rows: NDArray[np.int64],
    backward_rows: NDArray[np.int64],
    layers: int,
) -> Layers:
    """The layers where passes run into each other: each direction by its own marks and work."""
    start, end = rank.activities["start_ns"].to_numpy(), rank.activities["end_ns"].to_numpy()
    first, last = start[forward_rows], end[backward_rows]
    ends = np.append(first[1:], np.iinfo(np.int64).max)
    begins = np.concatenate([[np.iinfo(np.int64).min], last[:-1]])
    number = np.arange(len(first))
    found: Layers = {}
    for phase, wanted in _DIRECTED.items():
        mine = roles.mask(*wanted)
        ahead, back = mine & ~backward, mine & backward
        forward = union(start[ahead], end[ahead]).within(first, ends)
        returned = union(start[back], end[back]).within(begins, last)
        forward_ns = np.bincount(number % layers, weights=forward, minlength=layers)
        backward_ns = np.bincount(layers - 1 - number % layers, weights=returned, minlength=layers)
        for layer in range(layers):
            found[layer, phase] = (int(forward_ns[layer]), int(backward_ns[layer]))
    return found


def _most_time(rank: RankTrace, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of these rows, those of the kernel name that takes the most time, in time order."""
    at = np.flatnonzero(rows)
    if not len(at):
        return at
    table = rank.activities
    names = table["name"].to_numpy()[at]
    length = (table["end_ns"].to_numpy() - table["start_ns"].to_numpy())[at]
    chosen = int(np.argmax(np.bincount(names, weights=length)))
    return np.asarray(at[names == chosen], np.int64)


def _next(times: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.int64]:
    """Per entry of `after`, the first of the sorted `times` beyond it; far away if none."""
    place = np.searchsorted(times, after, side="right")
    far = np.append(times, np.iinfo(np.int64).max)
    return np.asarray(far[place], np.int64)


def _last(times: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """Per entry of `before`, the last of the sorted `times` ahead of it; far back if none."""
    place = np.searchsorted(times, before)
    far = np.concatenate([[np.iinfo(np.int64).min], times])
    return np.asarray(far[place], np.int64)
