"""Forward work that runs again inside backward, from what the trace shows of its launch."""

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import distinct, few
from moe_advisor.intervals import union
from moe_advisor.model import NONE, ActivityKind, RangeKind, RankTrace
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.roles import Role

_ENGINE = "autograd::engine::evaluate_function"

_FUNCTION_NAME = re.compile(r"[A-Za-z_]\w*")
"""A custom autograd Function is recorded by its class's name; its backward node adds Backward."""

_FORWARD_NAMES = ("forward", "fwd", "fprop", "fmha_cutlassf", "topk", "silu_kernel")

MAX_ANCHORS = 4
"""So many forward passes are tried to find the one that a re-run forward repeats."""

MAX_EXTRA = 32
"""So many kernels may run again beside what ran first: with gradients recorded the router computes
its auxiliary loss too, 17 kernels in Megatron-Core."""

RESUMED = 6
"""So many kernels in the same order as before tell that the re-run goes on behind extra ones."""


@dataclass(frozen=True)
class Recompute:
    """Which activities belong to forward work run again; `reason` says why it can't be told."""

    rows: NDArray[np.bool_]
    reason: str | None = None


def find_recompute(rank: RankTrace, roles: RoleTable) -> Recompute:
    """The activities launched by forward operators that run again inside backward.

    With operators (Kineto): what runs inside a backward node while gradients are recorded.
    Without (nsys): kernels on the backward thread that repeat, around a kernel that is named after
    the forward pass or a forward annotation, the very sequence that the forward thread launched.
    """
    if (rank.ranges["forward_tid"] != NONE).any():
        return Recompute(_from_operators(rank))
    if len(rank.ranges.filter(pl.col("kind") == RangeKind.OPERATOR)):
        return Recompute(np.zeros(len(rank.activities), np.bool_))
    return _from_repeated_sequence(rank, roles)


def _from_operators(rank: RankTrace) -> NDArray[np.bool_]:
    """Operators that build an autograd graph while a backward node runs.

    An ATen operator has a sequence number only where gradients are recorded; backward runs without
    that, so inside a backward node such an operator is forward work run again. Custom autograd
    Functions are numbered always: they are evidence outside their own backward alone, as an
    `_AllToAllBackward` applies `_AllToAll`.
    """
    operators = rank.ranges.filter(pl.col("kind") == RangeKind.OPERATOR)
    # A tensor hook runs before its node's own record, which then loses its forward thread.
    engine = [number for number, text in enumerate(rank.names) if text.startswith(_ENGINE)]
    nodes = operators.filter((pl.col("forward_tid") != NONE) | pl.col("name").is_in(engine))
    numbered = operators.filter((pl.col("forward_tid") == NONE) & (pl.col("sequence") != NONE))
    again = numbered.filter(pl.col("name").is_in(_forward_operators(rank, numbered, nodes)))
    tids, times = rank.calls["tid"].to_numpy(), rank.calls["start_ns"].to_numpy()
    launched = np.zeros(len(tids), np.bool_)
    for (tid,), part in nodes.group_by("tid", maintain_order=True):
        own = again.filter(pl.col("tid") == tid)
        start, end = part["start_ns"].to_numpy(), part["end_ns"].to_numpy()
        outer = union(start, end)
        inside = outer.contains(own["start_ns"].to_numpy())
        if not inside.any():
            continue
        first, last = own["start_ns"].to_numpy()[inside], own["end_ns"].to_numpy()[inside]
        node = np.searchsorted(outer.starts, first, side="right") - 1
        opens = np.full(len(outer), np.iinfo(np.int64).max)
        closes = np.full(len(outer), np.iinfo(np.int64).min)
        np.minimum.at(opens, node, first)
        np.maximum.at(closes, node, last)
        region = union(opens, closes)
        # A reentrant checkpoint runs its real backward inside the same node.
        nested = region.contains(start) & ~np.isin(start, outer.starts)
        region = region - union(start[nested], end[nested])
        on_thread = np.flatnonzero(tids == tid)
        launched[on_thread] = region.contains(times[on_thread])
    call = rank.activities["call"].to_numpy()
    result = np.zeros(len(call), np.bool_)
    known = call >= 0
    result[known] = launched[call[known]]
    return result


def _forward_operators(rank: RankTrace, numbered: pl.DataFrame, nodes: pl.DataFrame) -> list[int]:
    """Operators of forward work alone: ATen's, and Functions that their backward does not apply."""
    found = []
    text_of = {number: rank.names[number] for number in distinct(nodes["name"].to_numpy())}
    for name in distinct(numbered["name"].to_numpy()):
        text = rank.names[name]
        if text.startswith("aten::"):
            found.append(name)
        elif _FUNCTION_NAME.fullmatch(text):
            own = [number for number, node in text_of.items() if node.endswith(f"{text}Backward")]
            if not own:
                continue
            at = numbered.filter(pl.col("name") == name)["start_ns"].to_numpy()
            part = nodes.filter(pl.col("name").is_in(own))
            spans = union(part["start_ns"].to_numpy(), part["end_ns"].to_numpy())
            if not spans.contains(at).any():
                found.append(name)
    return found


def _from_repeated_sequence(rank: RankTrace, roles: RoleTable) -> Recompute:
    """Sequences of the forward thread that the backward thread launches again."""
    none = np.zeros(len(rank.activities), np.bool_)
    call = rank.activities["call"].to_numpy()
    # Each thread's work in launch order: activities are sorted by time, calls too.
    rows = np.flatnonzero(call >= 0)
    if not len(rows):
        return Recompute(none, "no launches in the trace")
    rows = rows[np.argsort(call[rows], kind="stable")]
    backward = roles.contexts.backward[call[rows]]
    if not backward.any():
        reason = "backward can't be told from forward: no second launching thread, no operators"
        return Recompute(none, reason)
    names = rank.activities["name"].to_numpy()
    kernels = rank.activities["kind"].to_numpy()[rows] == ActivityKind.KERNEL
    again = rows[backward & kernels]
    first = rows[~backward & kernels]
    anchors = {number for number in distinct(names[first]) if _is_forward(rank.names[number])}
    reopened, annotated = _reopened_ranges(rank, roles)
    launched_again = np.zeros(len(rank.activities), np.bool_)
    launched_again[rows] = reopened[call[rows]]
    if not anchors:
        # Forward ranges that never open on the backward thread: nothing ran a second time there.
        told = annotated or launched_again.any()
        return Recompute(
            launched_again,
            None if told else "no kernel or range that is named after the forward pass",
        )
    first_names, again_names = names[first], names[again]
    backward_names = {n for n in distinct(again_names) if _is_backward(rank.names[n])}
    first_anchor = np.flatnonzero(np.isin(first_names, sorted(anchors)))
    again_anchor = np.flatnonzero(np.isin(again_names, sorted(anchors)))
    result = launched_again
    done = -1
    for at in again_anchor.tolist():
        if at <= done:
            continue
        choices = first_anchor[first_names[first_anchor] == again_names[at]][:MAX_ANCHORS]
        best = (0, 0)
        for choice in choices.tolist():
            left = _common(first_names[choice::-1], again_names[at::-1])
            right = _rerun(first_names[choice:], again_names[at:], backward_names)
            best = max(best, (left, right), key=sum)
        left, right = best
        result[again[at - left + 1 : at + right]] = True
        done = at + right - 1
    # Copies and memsets that the same calls region launched belong to it too.
    others = rows[backward & ~kernels]
    if len(others) and result.any():
        order = np.sort(call[again])
        marked = result[again][np.argsort(call[again], kind="stable")]
        place = np.searchsorted(order, call[others])
        inside = (place > 0) & (place < len(order))
        near = np.clip(place, 1, len(order) - 1)
        result[others] = inside & marked[near - 1] & marked[near]
    return Recompute(result)


def _reopened_ranges(rank: RankTrace, roles: RoleTable) -> tuple[NDArray[np.bool_], bool]:
    """Which calls stand, on a backward thread, in a range that the forward thread also opens.

    Also says whether the forward thread has such ranges at all: without them nothing follows.
    """
    marked = np.zeros(len(rank.calls), np.bool_)
    ranges = rank.ranges.filter(pl.col("kind") == RangeKind.ANNOTATION)
    tids, times = rank.calls["tid"].to_numpy(), rank.calls["start_ns"].to_numpy()
    threads = few(tids[roles.contexts.backward])
    forward = ranges.filter(~pl.col("tid").is_in(threads))
    phases = forward.group_by("name").len().filter(pl.col("len") > 1)["name"].to_list()
    phases = [name for name in phases if not _is_library_call(rank.names[name])]
    again = ranges.filter(pl.col("tid").is_in(threads) & pl.col("name").is_in(phases))
    for (tid,), part in again.group_by("tid", maintain_order=True):
        region = union(part["start_ns"].to_numpy(), part["end_ns"].to_numpy())
        on_thread = np.flatnonzero(tids == tid)
        marked[on_thread] = region.contains(times[on_thread])
    return marked, len(phases) > 0


def _is_library_call(name: str) -> bool:
    """Transformer Engine's own ranges around its C calls: a GEMM's opens in real backward too."""
    return name.startswith(("nvte_", "quantize_")) and not name.endswith(("_fwd", "_forward"))


def _is_forward(name: str) -> bool:
    """Kernels whose names say that they belong to a forward pass (attention, softmax, norms).

    The router's top-k does too, as the gradient of a choice is scattered, never chosen again, and
    PyTorch's SiLU, which has a kernel of its own for backward.
    """
    lowered = name.lower()
    told = any(text in lowered for text in _FORWARD_NAMES)
    return told and not _is_backward(name)


def _is_backward(name: str) -> bool:
    """Kernels whose names say that they belong to a backward pass."""
    lowered = name.lower()
    return any(text in lowered for text in ("backward", "bwd", "bprop"))


def _rerun(first: NDArray[np.uint32], again: NDArray[np.uint32], backward: Collection[int]) -> int:
    """How many leading entries of `again` run `first` again, extra ones in between included."""
    end = _common(first, again)
    done = end
    while True:
        goal = first[done : done + RESUMED]
        extra = again[end : end + MAX_EXTRA + RESUMED]
        if len(goal) < RESUMED or len(extra) <= RESUMED:
            return end
        places = np.lib.stride_tricks.sliding_window_view(extra, RESUMED)
        found = np.flatnonzero((places == goal).all(axis=1))
        if not len(found) or any(one in backward for one in extra[: found[0]].tolist()):
            return end
        end += int(found[0])
        more = _common(first[done:], again[end:])
        done, end = done + more, end + more


def _common(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> int:
    """How many leading entries two sequences share."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length


_MODULES = {
    Role.EXPERT_GEMM: "experts",
    Role.ACTIVATION: "experts",
    Role.ATTENTION: "attention",
    Role.ROUTER: "router",
    Role.PERMUTE: "token permutation",
    Role.NORM: "norms",
    Role.DENSE_GEMM: "dense layers",
    Role.EMBEDDING_LOSS: "embedding and loss",
    Role.TP_COLLECTIVE: "tensor-parallel communication",
    Role.CP_COLLECTIVE: "context-parallel communication",
    **dict.fromkeys((Role.EP_DISPATCH, Role.EP_COMBINE, Role.EP_NOTIFY), "expert all-to-all"),
}


def by_module(
    rank: RankTrace, roles: RoleTable, rows: NDArray[np.bool_], step: NDArray[np.int64]
) -> dict[str, int]:
    """Module -> ns (union) of the work of `rows` inside steps; what no module owns is `other`."""
    chosen = np.flatnonzero(rows & (step >= 0))
    start, end = rank.activities["start_ns"].to_numpy(), rank.activities["end_ns"].to_numpy()
    owner = np.asarray([_MODULES.get(role, "other") for role in Role], dtype=object)
    names = owner[roles.roles[chosen]]
    return {
        str(name): union(start[chosen[names == name]], end[chosen[names == name]]).total
        for name in sorted(set(names.tolist()))
    }
