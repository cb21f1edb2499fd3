"""Which pipeline stage a rank is, and means that count every stage alike.

A run's value is the mean over the ranks of a stage, then over the stages. Where every stage was
read with the same number of ranks, that is the plain mean over ranks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.pairs import stage_places
from moe_advisor.measure.partial import RankPartial
from moe_advisor.roles.roles import Role


def stages_of(ranks: Sequence[RankPartial]) -> tuple[int, list[int]] | None:
    """(number of stages, stage of each rank); two ranks that exchange are two stages."""
    found = [one.facts["stage"] for one in ranks if one.facts.get("stage")]
    if len(found) == len(ranks):
        return max(len(members) for members, _ in found), [place for _, place in found]
    told = stage_places(ranks)
    if len(told) == len(ranks):
        return max(size for size, _ in told.values()), [told[one.rank][1] for one in ranks]
    talking = all(Role.PP_P2P.label in one.roles for one in ranks)
    if len(ranks) == 2 and talking and all((one.world_size or 2) <= 2 for one in ranks):
        return 2, [0, 1]
    return None


def weighted(ranks: Sequence[RankPartial]) -> list[RankPartial]:
    """The ranks with the weights that make every stage count alike; untouched where they do."""
    found = stages_of(ranks) if ranks else None
    if found is None:
        return list(ranks)
    read = Counter(found[1])
    if len(set(read.values())) == 1:
        return list(ranks)
    each = len(ranks) / len(read)
    return [
        replace(one, weight=each / read[stage]) for one, stage in zip(ranks, found[1], strict=True)
    ]


def mean(ranks: Sequence[RankPartial], values: Sequence[float]) -> float:
    """Mean of one value per rank, by the ranks' weights."""
    return float(np.average(values, weights=_weights(ranks)))


def mean_steps(
    ranks: Sequence[RankPartial], values: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Mean over ranks step by step; each rank has the same number of steps."""
    return np.asarray(np.average(values, axis=0, weights=_weights(ranks)))


def _weights(ranks: Sequence[RankPartial]) -> list[float] | None:
    """None where all count alike, so that the mean is the plain one to the last bit."""
    weights = [one.weight for one in ranks]
    return weights if any(weight != 1 for weight in weights) else None
