"""Every kernel family knows its own cases, and users can put theirs first."""

from pathlib import Path

import pytest

from moe_advisor.errors import ConfigError
from moe_advisor.roles.taxonomy import GROUP_FAMILIES, builtin, load, parse

FAMILIES = builtin().kernels


@pytest.mark.parametrize(
    ("family", "case"),
    [(family, case) for family in FAMILIES for case in family.cases],
    ids=lambda value: value if isinstance(value, str) else value.id,
)
def test_family_is_the_first_to_know_its_case(family, case: str) -> None:
    found = builtin().kernel(case)
    assert found is not None
    assert found.id == family.id


def test_every_family_has_cases_and_a_source() -> None:
    assert [family.id for family in FAMILIES if not family.cases or not family.source] == []


@pytest.mark.parametrize(
    ("description", "family"),
    [
        ("EXPERT_MODEL_PARALLEL_GROUP", "ep"),
        ("EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP", "ep"),
        ("EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP", "norm"),
        ("EXPERT_DATA_PARALLEL_GROUP", "dp"),
        ("EXPERT_TENSOR_PARALLEL_GROUP", "tp"),
        ("DATA_PARALLEL_GROUP_WITH_CP", "dp"),
        ("TENSOR_MODEL_PARALLEL_GROUP", "tp"),
        ("PIPELINE_MODEL_PARALLEL_GROUP", "pp"),
        ("HIERARCHICAL_CONTEXT_PARALLEL_GROUP_L0", "cp"),
        ("DATA_PARALLEL_GROUP_GLOO", "none"),
        ("mesh_ep", "ep"),
        ("mesh_dp_shard", "dp"),
        ("default_pg", None),
    ],
)
def test_groups_that_begin_with_expert_are_not_all_ep(description: str, family: str | None) -> None:
    assert builtin().group_family(description) == family
    assert family is None or family in GROUP_FAMILIES


def test_own_families_come_first(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("kernels:\n- {id: mine, pattern: my_dispatch, nature: ep_dispatch}\n")
    assert load(own).kernel("void my_dispatch<3>(x)").id == "mine"  # type: ignore[union-attr]
    assert load(own).kernel("nvjet_sm90_x").id == "gemm"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernels: [{id: a, pattern: x, nature: magic}]", "unknown nature 'magic'"),
        ("kernels: [{id: a, pattern: '(', nature: gemm}]", "bad pattern"),
        ("kernels: 3", "expected a list"),
        ("- 1", "expected the sections"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_taxonomy_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text, "own.yaml")
