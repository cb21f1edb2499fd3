"""A short run of every fuzz target; hypothesis chooses, so that what it finds is shrunk."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import mutators, seeds
from fuzz.targets import TARGETS, BrokenPromiseError, execute

EXAMPLES = {
    "kineto": 15,
    "nsys": 12,
    "sqlite-bytes": 15,
    "parquet": 10,
    "gzip": 10,
    "result": 6,
    "budgets": 6,
}
"""Executions of a target in CI: the slow ones get fewer; a campaign makes hundreds of thousands."""
OTHERS = 12
SMALL = 12_000
"""Seeds up to so many bytes: the pieces of real traces are for campaigns."""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_mutated_inputs_end_in_a_result_or_a_refusal(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    corpus = [one for one in target.seeds() if len(one) <= SMALL] or target.seeds()[:2]

    @settings(
        max_examples=EXAMPLES.get(name, OTHERS),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        def pick(count: int) -> int:
            return data.draw(st.integers(0, max(count - 1, 0)))

        chosen, donor = corpus[pick(len(corpus))], corpus[pick(len(corpus))]
        execute(name, target.mutate(chosen, pick, donor), tmp_path)

    one()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_seed_is_an_input(name: str, tmp_path: Path) -> None:
    outcomes = {execute(name, data, tmp_path) for data in TARGETS[name].seeds()[:3]}
    assert outcomes == {"result"}


def test_a_mutation_is_decided_by_its_choices_alone() -> None:
    seed = seeds.tables()[0]
    mutate = TARGETS["nsys"].mutate
    assert mutate(seed, lambda n: n // 2, seed) == mutate(seed, lambda n: n // 2, seed)
    assert mutate(seed, lambda n: n // 2, seed) != seed
    assert mutators.mutate_bytes(b"abcdef", lambda n: 0) != b"abcdef"


def test_the_judge_sees_a_result_that_contradicts_itself() -> None:
    import msgspec

    from fuzz.targets import check
    from tests.output.result_builder import balanced

    result = balanced()
    step = msgspec.structs.replace(
        result.metrics["step_ms"], value=10 * (result.metrics["step_ms"].value or 1)
    )
    with pytest.raises(BrokenPromiseError, match="parts"):
        check(msgspec.structs.replace(result, metrics={**result.metrics, "step_ms": step}))
