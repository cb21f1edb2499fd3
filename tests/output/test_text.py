"""The terminal summary: one screen, 100 columns, plain when asked."""

import re

import pytest

from moe_advisor.output import step_view, text
from tests.output.result_builder import ALL, balanced, empty, one_rank

BALANCED = """\
COMMUNICATION WALL   limiter EP all-to-all · margin 54.8 points · capture complete
More than half of every step is expert all-to-all that nothing hides: 183.4 of 332.7 ms.
It is the wire, not waiting: 181.1 ms transfer, 2.3 ms wait.

Walls           recoverable, % of the step, 10 points needed to call it
Communication   WWWWWWWWWWWWWWWWWWWWWWWWDDDD                  63.1  EP all-to-all on the wire 54.5…
Compute & host  cchw                                           8.3  next wall
Memory          ??                                               –  Peak memory: no memory events…

Step 332.7 ms   3 steps × 2 ranks, ±0.7 ms · 330.3 without profiler
EEEEEEEEcccccccccccccccccccccccccWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWDDDDDDDDDhhi
E Expert GEMM                     27.2    8.2 %   W EP all-to-all, on the wire     181.1   54.4 %
c Permutation                     30.0    9.0 %   w EP all-to-all, waiting           2.3    0.7 %
c Dense GEMM                      16.2    4.9 %   D DP collectives                  28.6    8.6 %
c Elementwise                     15.6    4.7 %   o Copies                           0.6    0.2 %
c Attention                        8.0    2.4 %   h Host gaps                        7.3    2.2 %
c Other compute                   13.2    4.0 %   i Dependency idle                  2.6    0.8 %

Plan   gain in ms of 332.7, scale −16.0 to 136.0
1 Overlap EP all-to-all with compute             ┊├──●──┤                  ≈ 26.6 ms 6.7 to 47.0
2 Fuse token permutation                         ┊ ├●                        18.0 ms 12.0 to 22.0
3 Delay expert weight gradients               ├──●─┤                        ≈ 0.4 ms −16.0 to 12.0
A instead of 1: Faster dispatcher: flex with…   ├─●────────────────────┤    ≈ 9.8 ms −6.7 to 136.0
– not yet: Capture attention in CUDA graphs  gain not measured
Steps 1 to 2 together: 40.9 ms (12.3 %), 17.0 to 65.0 → step 291.8 ms

? not measured  Peak memory: no memory events in the trace; give --log or recapture
Report a.moe.html   Why moe-advisor rules show exposed-expert-all-to-all
"""


def test_plain_summary_is_exactly_this() -> None:
    assert text.render(balanced(), outputs=[("Report", "a.moe.html")]) == BALANCED


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [60, 80, 100, 250])
@pytest.mark.parametrize("unicode", [True, False])
def test_it_fits_the_screen(name: str, width: int, unicode: bool) -> None:
    lines = text.render(ALL[name](), width=width, unicode=unicode).splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= min(width, 100)


@pytest.mark.parametrize("name", ALL)
def test_plain_text_holds_no_escape_codes_or_controls(name: str) -> None:
    plain = text.render(ALL[name]())
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", plain) is None


@pytest.mark.parametrize("name", ALL)
def test_ascii_is_ascii(name: str) -> None:
    assert text.render(ALL[name](), unicode=False).isascii()


def test_colour_draws_blocks_and_says_the_same() -> None:
    coloured = text.render(balanced(), color=True)
    assert "\x1b[" in coloured
    assert "█" in coloured
    words = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "183.4 of 332.7 ms" in words
    assert "WWWW" not in words


@pytest.mark.parametrize("name", ALL)
def test_coloured_lines_fit_too(name: str) -> None:
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", text.render(ALL[name](), color=True))
    assert max(map(len, coloured.splitlines())) <= 100
    assert "\x1b" not in coloured


def test_hostile_strings_bring_no_escape_codes_of_their_own() -> None:
    coloured = text.render(ALL["hostile"](), color=True)
    assert "\x1b[31m" not in coloured


def test_environment_does_not_change_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = text.render(balanced(), color=True)
    for name, value in {"NO_COLOR": "1", "COLUMNS": "20", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert text.render(balanced(), color=True) == before


def test_nothing_measured_shows_no_zero_for_a_wall() -> None:
    walls = [line for line in text.render(empty()).splitlines() if line.startswith("Memory")]
    assert " – " in walls[0]
    assert "0.0" not in walls[0]


def test_one_rank_says_so_before_the_verdict() -> None:
    assert "From 1 rank of 16 only: " in text.render(one_rank())


def test_parts_on_screen_add_up_to_the_step() -> None:
    mean = step_view.mean_bar(balanced())
    assert mean is not None
    merged = text._merged(mean)
    assert sum(segment.tenths for segment in merged) == 3327
