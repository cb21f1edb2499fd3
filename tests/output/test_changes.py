"""Diffs to read, text to paste."""

from moe_advisor.output.changes import Diff, diffs, short
from moe_advisor.result import Change


def _one(**fields: object) -> Diff:
    return diffs([Change(**fields)])[0]  # type: ignore[arg-type]


def _lines(diff: Diff) -> list[str]:
    return [f"{line.sign} {line.text}" for line in diff.lines]


def test_bridge_setting_is_python_with_its_old_value() -> None:
    diff = _one(framework="megatron-bridge", key="model.a", from_=False, to="flex", note="alone")
    assert _lines(diff) == ["- cfg.model.a = False", "+ cfg.model.a = 'flex'", "  # alone"]
    assert diff.copy == "cfg.model.a = 'flex'\n"


def test_flag_that_is_switched_on_is_just_the_flag() -> None:
    assert _one(framework="megatron-lm", key="--a", from_=False, to=True).copy == "--a\n"


def test_flag_that_is_switched_off_is_removed() -> None:
    diff = _one(framework="megatron-lm", key="--a", from_=True, to=False)
    assert (_lines(diff), diff.copy) == (["- --a"], "# remove: --a\n")


def test_no_flag_that_is_switched_off_is_added() -> None:
    assert _one(framework="megatron-lm", key="--no-a", to=False).copy == "--no-a\n"


def test_flag_with_values_lists_them() -> None:
    diff = _one(framework="megatron-lm", key="--modules", from_="x", to=["a", "b"])
    assert _lines(diff) == ["- --modules x", "+ --modules a b"]
    assert diff.copy == "--modules a b\n"


def test_environment_is_exported() -> None:
    diff = _one(framework="env", key="CUDA_X", from_="1", to="8")
    assert (_lines(diff), diff.copy) == (
        ["- export CUDA_X=1", "+ export CUDA_X=8"],
        "export CUDA_X=8\n",
    )


def test_prose_for_pytorch_is_not_quoted() -> None:
    assert _lines(_one(framework="pytorch", key="index_select", to="a fused kernel")) == [
        "+ index_select: a fused kernel"
    ]


def test_frameworks_come_in_a_fixed_order_with_their_versions() -> None:
    changes = [
        Change(framework="env", key="A", to="1"),
        Change(framework="megatron-lm", key="--b", to=True, since="0.14"),
        Change(framework="megatron-bridge", key="b", to=True, until="0.17"),
    ]
    assert [(diff.title, diff.version) for diff in diffs(changes)] == [
        ("Megatron-Bridge", "until 0.17"),
        ("Bridge CLI (Hydra)", ""),
        ("Megatron-LM", "since 0.14"),
        ("Environment", ""),
    ]


def test_short_form_shows_both_values() -> None:
    assert short(Change(framework="env", key="A", from_="1", to="8")) == "A: '1' → '8'"


def test_a_bridge_setting_is_also_an_override_for_the_command_line() -> None:
    changes = [Change(framework="megatron-bridge", key="model.a", to=["x", "y"])]
    python, cli = diffs(changes)
    assert python.copy == "cfg.model.a = ['x', 'y']\n"
    assert (cli.title, cli.copy) == ("Bridge CLI (Hydra)", "'model.a=[x,y]'\n")


def test_what_is_on_by_default_is_switched_on_by_removing_the_flag_against_it() -> None:
    diff = _one(framework="megatron-lm", key="--no-overlap-p2p-communication", to=True)
    assert _lines(diff) == ["- --no-overlap-p2p-communication"]
