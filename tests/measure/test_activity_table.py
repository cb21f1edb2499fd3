"""The activity table on a step of four activities; µs in, exact ns out."""

from dataclasses import replace

import polars as pl

from moe_advisor.measure.activity_table import ACTIVITY_TABLE, activity_table, zeros
from moe_advisor.measure.rank import MeasuredRank, measure_rank
from moe_advisor.model import ActivityKind, CollectiveKind, RankTrace
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import FLASH, GROUPED, TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"


def trace() -> RankTrace:
    """A step from 10 to 50 µs: a GEMM beside the last 5 of a 15 µs all-to-all, then a copy."""
    b = TraceBuilder()
    b.range(9, 50, "iteration 4")
    b.kernel(10, 12, FLASH, launch=9)
    b.collective(15, 30, CollectiveKind.ALL_TO_ALL, "1", EP, launch=9, stream=20)
    b.kernel(25, 35, GROUPED, launch=9, blocks=8)
    b.kernel(40, 42, "Memcpy HtoD", launch=9, kind=ActivityKind.MEMCPY, size=512)
    b.kernel(90, 95, FLASH, launch=89)
    return b.build()


def measured() -> MeasuredRank:
    return measure_rank(trace(), builtin())


def test_one_row_an_activity_with_its_role_and_what_of_it_is_exposed() -> None:
    table = activity_table(measured(), 10_000)
    assert dict(table.schema) == ACTIVITY_TABLE
    shown = table.select("start_ns", "duration_ns", "exposed_ns", "stream", "kind", "role")
    assert shown.rows() == [
        (0, 2_000, None, 7, "kernel", "attention"),
        (5_000, 15_000, 10_000, 20, "kernel", "ep_dispatch"),
        (15_000, 10_000, None, 7, "kernel", "expert_gemm"),
        (30_000, 2_000, None, 7, "memcpy", "memcpy"),
        (80_000, 5_000, None, 7, "kernel", "attention"),
    ]


def test_steps_are_named_and_work_outside_them_has_none() -> None:
    assert activity_table(measured())["step"].to_list() == ["iteration 4"] * 4 + [None]


def test_what_the_trace_does_not_say_is_null() -> None:
    row = activity_table(measured()).row(1, named=True)
    assert (row["collective"], row["group_size"], row["bytes_sent"]) == ("all_to_all", 2, 1 << 20)
    assert (row["blocks"], row["bytes"]) == (1, None)
    first = activity_table(measured()).row(0, named=True)
    assert (first["collective"], first["bytes_sent"]) == (None, None)


def test_names_lose_control_characters() -> None:
    b = TraceBuilder()
    b.range(0, 50, "iteration 1")
    b.kernel(1, 2, "evil\x1b[31m\u202ename" + "x" * 1000, launch=0)
    name = activity_table(measure_rank(b.build(), builtin()))["name"][0]
    assert name.startswith("evilname")
    assert len(name) == 400


def test_ranks_of_one_host_share_a_zero_and_others_count_from_their_own_step() -> None:
    base = measured().partial
    partials = [
        replace(base, rank=0, epoch_ns=1_000_000),
        replace(base, rank=1, epoch_ns=1_000_500),
        replace(base, rank=2, epoch_ns=None),
        replace(base, rank=3, host=2, epoch_ns=5_000_000),
    ]
    assert zeros(partials) == {0: 9_000, 1: 8_500, 2: 9_000, 3: 9_000}


def test_a_rank_without_gpu_work_is_an_empty_table() -> None:
    b = TraceBuilder()
    b.range(0, 50, "iteration 1")
    table = activity_table(measure_rank(b.build(), builtin()))
    assert len(table) == 0
    assert table.schema == pl.Schema(ACTIVITY_TABLE)
