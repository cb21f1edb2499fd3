"""Means count pipeline stages alike, however many ranks of each were read."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.stages import weighted
from moe_advisor.measure.summary import Summary, summarise
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import FLASH, TraceBuilder


def of_stage(number: int, stage: int, busy_us: int) -> RankPartial:
    b = TraceBuilder(rank=number)
    for step in range(2):
        at = step * 1000
        b.range(at, at + 1000, f"iteration {step}")
        b.kernel(at, at + busy_us, FLASH, launch=at)
        b.kernel(at + 900, at + 1000, FLASH, launch=at + 900)
    one = measure_rank(b.build(), builtin()).partial
    return replace(one, facts={**one.facts, "stage": ((0, 1), stage)})


def summary(ranks: Sequence[RankPartial]) -> Summary:
    return summarise(ranks, {})


def test_two_ranks_of_one_stage_weigh_as_much_as_one_of_another() -> None:
    # Compute of a step: 300 and 500 µs in stage 0, 900 µs in stage 1.
    ranks = [of_stage(0, 0, 200), of_stage(1, 0, 400), of_stage(2, 1, 800)]
    found = summary(ranks)
    assert (found.metrics["compute_ms"].value or 0) * 1e3 == pytest.approx((400 + 900) / 2)
    assert found.metrics["compute_ms"].per_rank[2].value == 0.9
    (role,) = found.roles
    assert role.ms * 1e3 == pytest.approx(650)
    (kernel,) = found.kernels
    assert kernel.ms * 1e3 == pytest.approx(650)
    assert sum(part.ms for part in found.step_parts) * 1e3 == pytest.approx(1000)
    assert {part.part: round(part.ms * 1e3) for part in found.step_parts}["attention"] == 650
    assert found.compute_absent is not None
    assert found.compute_absent.ms * 1e3 == pytest.approx(350)
    assert sum(cause.ms for cause in found.idle_causes) * 1e3 == pytest.approx(350, abs=1)


def test_equally_read_or_unknown_stages_keep_every_rank_at_one() -> None:
    even = [of_stage(0, 0, 200), of_stage(1, 1, 800)]
    assert [one.weight for one in weighted(even)] == [1, 1]
    unknown = [replace(one, facts={**one.facts, "stage": None}) for one in even]
    assert [one.weight for one in weighted(unknown)] == [1, 1]
    assert weighted([]) == []
    assert [one.weight for one in weighted([*even, of_stage(2, 1, 800)])] == [1.5, 0.75, 0.75]
