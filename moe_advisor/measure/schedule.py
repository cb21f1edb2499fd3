"""Whom the stages of a 1F1B pipeline exchange with, from the order of sends and receives alone."""

from collections.abc import Mapping, Sequence

SENDS, RECEIVES, BOTH = 0, 1, 2
"""What a point-to-point kernel does."""


def one_f_one_b(ways: Mapping[int, Sequence[int]]) -> dict[int, list[int]] | None:
    """Per stage the peer of each of its kernels, given what each kernel does, in launch order.

    Megatron's schedule without virtual stages: warm-up forwards, one forward and one backward in
    turn, cool-down backwards, each exchange with one neighbour. None unless every stage does
    exactly what the schedule asks of it for one number of micro-batches.
    """
    stages = len(ways)
    if sorted(ways) != list(range(stages)):
        return None
    for microbatches in range(1, len(ways[0]) + 1):
        plans = {stage: _plan(stage, stages, microbatches) for stage in ways}
        if all([way for way, _ in plans[stage]] == list(ways[stage]) for stage in ways):
            return {stage: [peer for _, peer in plan] for stage, plan in plans.items()}
    return None


def _plan(stage: int, stages: int, microbatches: int) -> list[tuple[int, int]]:
    """(what it does, with whom) of each exchange of one stage in one step."""
    first, last = stage == 0, stage == stages - 1
    warm = min(stages - stage - 1, microbatches)
    steady = microbatches - warm
    back, on = stage - 1, stage + 1
    plan: list[tuple[int, int]] = []

    def add(way: int, peer: int) -> None:
        if not (first if peer == back else last):
            plan.append((way, peer))

    for _ in range(warm):
        add(RECEIVES, back)
        add(SENDS, on)
    if steady:
        add(RECEIVES, back)
    for left in range(steady, 0, -1):
        add(BOTH, on)
        add(BOTH if left > 1 else SENDS, back)
    for _ in range(warm):
        add(RECEIVES, on)
        add(SENDS, back)
    return plan
