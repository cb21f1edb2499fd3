"""Micro-batches from the work that each of them does exactly once: the embedding's backward.

Backward passes count micro-batches times model chunks, and where two micro-batches are merged they
can't be told apart. The embedding stands on one stage, in one chunk, and its gradient is computed
once per micro-batch whatever the schedule.
"""

import re

import numpy as np
from numpy.typing import NDArray

from moe_advisor.codes import among, distinct
from moe_advisor.model import ActivityKind, RankTrace

EMBEDDING_BACKWARD = re.compile(
    r"embedding_backward_feature_kernel|compute_grad_weight(?:_bags)?\b|embedding_backward_kernel",
    re.IGNORECASE,
)
"""PyTorch's kernels of the gradient of a lookup, one launch per call: for few and many indices."""


def embedding_passes(rank: RankTrace, step: NDArray[np.int64], steps: int) -> float | None:
    """Gradients of the embedding per step; None where it is not on this rank or steps differ."""
    names = [n for n, text in enumerate(rank.names) if EMBEDDING_BACKWARD.search(text)]
    if not names or not steps:
        return None
    table = rank.activities
    name = table["name"].to_numpy()
    rows = among(name, names) & (table["kind"].to_numpy() == ActivityKind.KERNEL) & (step >= 0)
    if not rows.any() or len(distinct(name[rows])) != 1:
        return None
    counts = np.bincount(step[rows], minlength=steps)
    return float(counts[0]) if counts.min() == counts.max() else None
