"""What a role's time is made of: short names, the longest first, the rest summed up."""

from dataclasses import replace

import pytest

from moe_advisor.measure.kernels import SHOWN_PER_ROLE, merge_kernels, short_name
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import FLASH, TraceBuilder


def partial(steps: int = 2) -> RankPartial:
    b = TraceBuilder()
    for step in range(steps):
        at = 100 * step
        b.range(at, at + 100, f"iteration {step}")
        b.kernel(at + 1, at + 4, FLASH, launch=at)
        b.kernel(at + 5, at + 6, FLASH.replace("<x>", "<y>"), launch=at)
        b.kernel(at + 10, at + 12, "void pytorch_flash::flash_fwd_combine<x>()", launch=at)
    return measure_rank(b.build(), builtin()).partial


def test_templates_of_one_kernel_count_together_per_step() -> None:
    rows = [(k.role, k.name, k.ms, k.count) for k in merge_kernels([partial()])]
    assert rows == [
        ("attention", "pytorch_flash::flash_fwd_kernel", 0.004, 2.0),
        ("attention", "pytorch_flash::flash_fwd_combine", 0.002, 1.0),
    ]


def test_ranks_are_averaged_in_any_order() -> None:
    other = replace(partial(), rank=1, kernels={("attention", "slow"): (2, 8_000)})
    rows = {k.name: (k.ms, k.count) for k in merge_kernels([partial(), other])}
    assert rows["slow"] == (0.002, 0.5)
    assert rows["pytorch_flash::flash_fwd_kernel"] == (0.002, 1.0)
    assert merge_kernels([other, partial()]) == merge_kernels([partial(), other])


def test_the_shortest_are_summed_so_that_a_role_adds_up() -> None:
    many = {("permute", f"k{i:02}"): (2, 2_000 * (i + 1)) for i in range(SHOWN_PER_ROLE + 3)}
    rows = merge_kernels([replace(partial(), kernels=many)])
    assert len(rows) == SHOWN_PER_ROLE + 1
    assert (rows[-1].name, rows[-1].count, rows[-1].ms) == ("", 3.0, 0.006)
    assert sum(row.ms for row in rows) == pytest.approx(sum(i + 1 for i in range(15)) / 1000)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (FLASH, "pytorch_flash::flash_fwd_kernel"),
        ("(anonymous namespace)::softmax_warp_forward<float, 5>(float*)", "softmax_warp_forward"),
        ("void at::native::(anonymous namespace)::gather<int>()", "at::native::gather"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "ncclDevKernel_SendRecv"),
        ("nvjet_sm90_tst_256x128", "nvjet_sm90_tst_256x128"),
    ],
)
def test_short_names_are_what_people_say(name: str, short: str) -> None:
    assert short_name(name) == short
