"""EP all-to-all beside compute: Megatron's merged micro-batches, or chunks of one layer."""

import itertools
from collections.abc import Sequence

from moe_advisor.intervals import union
from moe_advisor.roles.roles import COMPUTE
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import PAYLOAD, Block
from moe_advisor.whatif.changes.chunks import chunked
from moe_advisor.whatif.changes.edit import Ask, Context, blocks_of, require, require_room
from moe_advisor.whatif.changes.merged import merged
from moe_advisor.whatif.model import Lane, StepModel

MODES = ("1f1b", "chunked")
"""Merged micro-batches, chunks of one layer."""


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
        f"{100 * hidden:.0f} % of the all-to-all runs beside compute already",
    )
    mode = ask.value or overlap_mode(model, ask.context)
    require(mode in MODES, f"ep-overlap={ask.value}: the value is chunked or 1f1b")
    if mode == "1f1b":
        require_room(
            ask.context,
            calibrate.MERGED_ACTIVATION_SHARE,
            "the second micro-batch that the merged schedule keeps alive",
        )
        lanes = [_merge(lane, found, ask) for lane, found in zip(model.lanes, blocks, strict=True)]
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


def _microbatches(found: Sequence[Block], context: Context) -> int:
    """Micro-batches per step: measured, else how often forward begins again after backward."""
    value = context.metrics.get("microbatches_per_step")
    if value is not None and value >= 1:
        return round(value)
    passes = [True, *(block.backward for block in found)]
    runs = sum(before and not now for before, now in itertools.pairwise(passes))
    require(runs > 0, "the trace does not tell the number of micro-batches: capture forward ranges")
    return runs


def _merge(lane: Lane, found: list[Block], ask: Ask) -> Lane:
    """Forward of one micro-batch beside backward of another, in Megatron-Core's order.

    Alone stay the forward before the first backward and the backward after the last forward:
    without a pipeline one micro-batch each, with one all of warm-up and cool-down.
    """
    count = _microbatches(found, ask.context)
    require(
        count >= calibrate.MERGE_MICROBATCHES,
        f"{count} micro-batches per step leave too few pairs to merge: the first forward and the "
        "last backward stay exposed",
    )
    new = merged(lane, found, calibrate.HANDOVER_NS[ask.case] / ask.host_scale)
    require(new is not lane, "no all-to-all of this rank has other work beside it")
    return new
