"""Which names and values of changes are understood."""

import msgspec
import pytest
from click.testing import CliRunner

from moe_advisor.cli.whatif import whatif as command
from moe_advisor.whatif import CHANGES, fault


@pytest.mark.parametrize(
    "name",
    [
        *CHANGES,
        "ep-overlap=1f1b",
        "ep-overlap=chunked",
        "cuda-graphs=attn,moe_router",
        "cuda-graphs=full",
        "recompute=none",
        "recompute=selective",
        "recompute=core_attn,moe_act",
        "dispatcher=hybridep",
        "link=nvlink",
        "link=2.5",
    ],
)
def test_a_change_that_exists_is_no_fault(name: str) -> None:
    assert fault([name]) is None


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["ep_overlap"], "ep_overlap: there is no such change; did you mean ep-overlap?"),
        (["xyz"], "xyz: there is no such change; --list shows them"),
        (["link", "link=2"], "link=2: link is given twice; a change is made once"),
        (["stragglers=1"], "stragglers=1: stragglers takes no value"),
        (["dispatcher=nccl"], "dispatcher=nccl: the value is deepep (default) or hybridep"),
    ],
)
def test_a_fault_says_what_is_wrong_and_what_would_do(names: list[str], text: str) -> None:
    assert fault(names) == text


@pytest.mark.parametrize(
    "name",
    [
        *("link=0", "link=-3", "link=nan", "link=inf", "link=fast", "link="),
        *("cuda-graphs=attn,ffn", "cuda-graphs=", "ep-overlap=2", "recompute=none,moe"),
    ],
)
def test_a_value_that_is_none_of_the_change_s_is_a_fault(name: str) -> None:
    change = name.partition("=")[0]
    assert fault([name]) == f"{name}: the value is {CHANGES[change].parameters}"


def test_the_list_names_every_change_with_its_parameters_as_text_and_json() -> None:
    text = CliRunner().invoke(command, ["--list"]).output
    rows = msgspec.json.decode(CliRunner().invoke(command, ["--list", "--format", "json"]).output)
    assert [row["name"] for row in rows] == list(CHANGES)
    for row in rows:
        takes = f"{row['name']}=VALUE: {row['parameters']}" if row["parameters"] else "takes no"
        assert takes in text
        assert row["assumptions"]
