"""EP all-to-all beside compute: Megatron's merged micro-batches, or chunks of one layer."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_advisor.intervals import union
from moe_advisor.roles.roles import COMPUTE, Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import PAYLOAD, Block
from moe_advisor.whatif.changes.chunks import chunked
from moe_advisor.whatif.changes.edit import Ask, Case, Context, blocks_of, require
from moe_advisor.whatif.model import Edges, Flags, Lane, StepModel


def ep_overlap(model: StepModel, ask: Ask) -> StepModel:
    """All-to-all beside compute: merged micro-batches (1f1b) or chunks of one layer (chunked)."""
    blocks = blocks_of(model)
    require(
        len(model.participants) > 0 or len(model.lanes) == 1,
        "the ranks' all-to-alls could not be matched",
    )
    require(
        not any(block.recompute for lane in blocks for block in lane),
        "MoE layers run again in backward, which excludes EP overlap: apply recompute first",
    )
    require(
        not model.facts.get("allgather_dispatch"),
        "the all-gather dispatcher has no all-to-all to overlap: change the dispatcher first",
    )
    hidden = _hidden_share(model)
    require(
        hidden < calibrate.OVERLAPPED_ALREADY,
        f"{hidden:.0%} of the all-to-all runs beside compute already",
    )
    mode = ask.value or overlap_mode(model, ask.context)
    require(mode in ("chunked", "1f1b"), f"ep-overlap={ask.value}: the value is chunked or 1f1b")
    if mode == "1f1b":
        _require_memory(ask.context)
        lanes = [
            _merged(lane, found, ask.case, ask.context)
            for lane, found in zip(model.lanes, blocks, strict=True)
        ]
        return model.with_lanes(tuple(lanes))
    return chunked(model, blocks, ask.case)


def _hidden_share(model: StepModel) -> float:
    """Share of the all-to-all's time during which compute runs, in the traced step."""
    beside = total = 0
    for lane in model.lanes:
        items = lane.items
        end = items.start_ns + items.duration_ns
        wire, work = items.has_role(*PAYLOAD), items.has_role(*COMPUTE)
        resident = union(items.start_ns[wire], end[wire])
        total += resident.total
        beside += (resident & union(items.start_ns[work], end[work])).total
    return beside / total if total else 0.0


def overlap_mode(model: StepModel, context: Context) -> str:
    """How this program could overlap.

    Megatron merges micro-batches; elsewhere chunks within the layer are what one can write.
    """
    framework = str(context.config.get("framework") or model.facts.get("framework") or "")
    return "1f1b" if framework.startswith("megatron") else "chunked"


def _require_memory(context: Context) -> None:
    """The second micro-batch in flight needs its activations to fit."""
    headroom = context.metrics.get("memory_headroom_gib")
    peak = context.metrics.get("memory_peak_gib")
    if headroom is None or peak is None:
        return
    require(
        headroom > calibrate.MERGED_ACTIVATION_SHARE * peak,
        f"the merged schedule keeps a second micro-batch alive; {headroom:.1f} GiB of headroom "
        f"beside a peak of {peak:.1f} GiB leave no room for it",
    )


def _microbatches(found: Sequence[Block], context: Context) -> int:
    """Micro-batches per step: measured, else how often forward begins again after backward."""
    value = context.metrics.get("microbatches_per_step")
    if value is not None and value >= 1:
        return round(value)
    passes = [True, *(block.backward for block in found)]
    runs = sum(before and not now for before, now in itertools.pairwise(passes))
    require(runs > 0, "the number of micro-batches is unknown: give --set microbatches=N")
    return runs


def _merged(lane: Lane, found: list[Block], case: Case, context: Context) -> Lane:
    """Forward of one micro-batch beside backward of another: neither waits for its wire.

    Exposed stay the forward before the first backward and the backward after the last forward;
    without a pipeline that is one micro-batch each, with one all of warm-up and cool-down.
    """
    count = _microbatches(found, context)
    require(
        count >= calibrate.MERGE_MICROBATCHES,
        f"{count} micro-batches per step leave too few pairs to merge: the first forward and the "
        "last backward stay exposed",
    )
    forward = [block for block in found if not block.backward]
    backward = [block for block in found if block.backward]
    items = lane.items
    if items.has_role(Role.PP_P2P).any():
        first_backward = backward[0].begin if backward else len(items)
        last_forward = forward[-1].end if forward else 0
        hidden = [
            block
            for block in found
            if (block.begin > first_backward) or (block.backward and block.end < last_forward)
        ]
        hidden = [block for block in hidden if not (block.backward and block.begin > last_forward)]
    else:
        layers_forward, layers_backward = len(forward) // count, len(backward) // count
        hidden = forward[layers_forward:] + (backward[:-layers_backward] if layers_backward else [])
    moved = np.zeros(len(items), np.bool_)
    for block in hidden:
        for low, high in ((block.first, block.inside), (block.second, block.after)):
            moved[low:high] |= items.has_role(*PAYLOAD)[low:high]
    require(bool(moved.any()), "no all-to-all of this rank has other work beside it")
    lane = _on_side_stream(lane, moved)
    # The merged schedule calls autograd once per phase of a layer: more host work for all of it.
    inside = np.zeros(len(items), np.bool_)
    if found:
        inside[found[0].begin : found[-1].end] = True
    more = calibrate.MERGE_HOST[case]
    host = lane.items.host_ns + np.where(inside, lane.items.host_ns * more, 0.0).astype(np.int64)
    return lane.with_items(host_ns=host)


def _on_side_stream(lane: Lane, moved: Flags) -> Lane:
    """Moves items to a stream of their own.

    They still wait for what was before them; of the rest only later collectives that stay and the
    end of the step wait for them.
    """
    items = lane.items
    stream = items.stream.copy()
    rows = np.flatnonzero(moved)
    producers = []
    for row in rows.tolist():
        before = row - 1
        while before >= 0 and (moved[before] or stream[before] != items.stream[row]):
            before -= 1
        producers.append(before)
    on = np.asarray(producers, np.int64)
    known = on >= 0
    # One communicator runs its collectives in order, and there is one wire.
    others = np.flatnonzero(items.has_role(*PAYLOAD) & ~moved)
    others = others[others > rows[0]]
    newest = rows[np.searchsorted(rows, others) - 1]
    stays = ~moved[lane.edges.on]
    more = int(known.sum()) + len(others) + 1
    edges = Edges(
        np.concatenate([lane.edges.item[stays], rows[known], others, [len(items) - 1]]),
        np.concatenate([lane.edges.on[stays], on[known], newest, [rows[-1]]]),
        np.concatenate([lane.edges.lag_ns[stays], np.zeros(more, np.int64)]),
    )
    stream[rows] = int(stream.max()) + 1
    return replace(lane.with_items(stream=stream), edges=edges)
