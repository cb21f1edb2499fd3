"""What the base's plan promised for what was then changed, beside what was measured."""

from collections.abc import Sequence
from typing import Any

from moe_advisor.compare.model import Delta, KeyChange, Promise
from moe_advisor.ingest.run_config import normalise
from moe_advisor.result import Recommendation, Result

OF_WHATIF: dict[str, tuple[str, tuple[Any, ...]]] = {
    "ep-overlap": ("overlap_moe_expert_parallel_comm", (True,)),
    "permute-fusion": ("moe_permute_fusion", (True,)),
    "grouped-gemm": ("moe_grouped_gemm", (True,)),
    "cuda-graphs": ("cuda_graph_impl", ("local", "transformer_engine", "full_iteration")),
}
"""What-if -> the setting that a trace shows it by, whatever framework made the change."""


def promises(base: Sequence[Result], config: Sequence[KeyChange], step: Delta) -> list[Promise]:
    """The recommendations of the base whose change the new run shows, with the measured gain.

    A setting that is not known on one side of the comparison proves nothing on its own; it counts
    where the recommendation says that it was not set.
    """
    if step.base is None or step.new is None or step.window_change is None:
        return []
    changed = {one.key: one.new for one in config if one.new is not None}
    followed = [one for one in base[0].recommendations if _is_followed(one, changed)]
    gain = -step.window_change
    bounds = [-bound for bound in (step.low, step.high) if bound is not None]
    return [
        Promise(
            rule=one.rule,
            title=one.title,
            low_ms=one.estimate.low_ms,
            expected_ms=one.estimate.expected_ms,
            high_ms=one.estimate.high_ms,
            measured_ms=round(gain, 6),
            measured_low_ms=round(min(bounds), 6) if len(bounds) == 2 else None,
            measured_high_ms=round(max(bounds), 6) if len(bounds) == 2 else None,
            inside=None
            if one.estimate.low_ms is None or one.estimate.high_ms is None
            else one.estimate.low_ms <= gain <= one.estimate.high_ms,
            together=len(followed) > 1,
            others=sorted(set(changed) - _keys(one)),
        )
        for one in followed
    ]


def _is_followed(found: Recommendation, changed: dict[str, Any]) -> bool:
    wanted = normalise({change.key: change.to for change in found.changes})
    if found.whatif in OF_WHATIF:
        key, values = OF_WHATIF[found.whatif]
        if changed.get(key) in values:
            return True
    return any(key in changed and changed[key] == value for key, value in wanted.items())


def _keys(found: Recommendation) -> set[str]:
    keys = set(normalise({change.key: change.to for change in found.changes}))
    return keys | ({OF_WHATIF[found.whatif][0]} if found.whatif in OF_WHATIF else set())
