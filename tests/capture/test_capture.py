"""The printed capture: commands that can be pasted, ranks that tell most, sizes, what is lacking."""

import ast
import re
import shlex

import pytest
from click.testing import CliRunner, Result

from moe_advisor.capture import FRAMEWORKS, LAUNCHERS, Wish, advice, group_ranks, size_mb
from moe_advisor.cli.capture import capture
from moe_advisor.errors import ConfigError


def printed(command: str) -> Result:
    return CliRunner().invoke(capture, shlex.split(command))


@pytest.mark.parametrize("profiler", ["nsys", "torch"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_capture_names_ranks_steps_reasons_size_and_what_is_lacking(
    framework: str, profiler: str
) -> None:
    command = f"--framework {framework} --profiler {profiler} --ranks 0-3 --steps 2 --start 20"
    done = printed(f"{command} --world-size 8")
    assert done.exit_code == 0, done.output
    for words in ("Why:", "4 ranks", "2 steps", "lacks", "Then: moe-advisor analyze", "0, 1, 2, 3"):
        assert words.replace(",", "") in done.output.replace(",", ""), words
    if framework == "megatron-lm" and profiler == "nsys":
        # The end step is not recorded, and one step is lost to the capture's edges.
        assert "--profile-step-start 20 --profile-step-end 23" in done.output
    assert printed(f"{command} --world-size 2").exit_code == 2


@pytest.mark.parametrize(
    ("framework", "profiler"), [("torch", "torch"), ("torch", "nsys"), ("nemo-run", "nsys")]
)
def test_printed_python_is_python(framework: str, profiler: str) -> None:
    ast.parse(advice(Wish(framework, profiler)).blocks[0][1])


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("framework", ["megatron-lm", "megatron-bridge", "torch"])
def test_nsys_stands_where_the_launcher_wants_it_and_names_a_report_of_its_own(
    framework: str, launcher: str
) -> None:
    block = advice(Wish(framework, "nsys", launcher=launcher)).blocks[-1][1]
    words = shlex.split(re.sub(r"<[^>]*>", "X", block.replace("\\\n", " ")))
    assert (
        (words.index("nsys") < words.index("torchrun"))
        if launcher == "torchrun"
        else (words.index("srun") < words.index("nsys") < words.index("python"))
    )
    (output,) = [word for word in words if word.startswith("--output=")]
    assert ("SLURM_PROCID" in output) == (launcher == "srun")
    assert output.startswith("--output=moe_")


@pytest.mark.parametrize(
    ("ep", "pp", "world", "ranks"),
    [
        (1, 1, None, (0,)),
        (4, 1, 8, (0, 1, 2, 3)),
        (4, 2, 16, (0, 1, 2, 3, 8)),
        (8, 4, 64, (*range(8), 16, 32, 48)),
    ],
)
def test_the_first_expert_group_and_a_rank_of_every_stage_are_captured(
    ep: int, pp: int, world: int | None, ranks: tuple[int, ...]
) -> None:
    assert group_ranks(ep, pp, world) == ranks


@pytest.mark.parametrize(
    ("ep", "pp", "world", "words"),
    [
        (3, 1, 8, "does not divide"),
        (4, 4, 24, "does not divide"),
        (4, 2, None, "give --world-size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(ep: int, pp: int, world: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        group_ranks(ep, pp, world)


def test_ranks_and_sizes_are_not_given_both() -> None:
    done = printed("--framework torch --ranks 0-3 --ep 4")
    assert (done.exit_code, "leave out --ep and --pp" in done.output) == (2, True)


def test_the_size_counts_the_step_that_is_lost_to_the_edges() -> None:
    one, two = (size_mb(Wish("megatron-lm", "nsys", steps=n, ranks=(0, 1))) for n in (1, 3))
    assert two == 2 * one
    assert size_mb(Wish("torch", "nsys", steps=3)) == 3 * size_mb(Wish("torch", "nsys", steps=1))
