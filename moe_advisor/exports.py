"""What is made from the traces themselves: the activity table and the annotated trace."""

from collections.abc import Callable, Iterator
from typing import IO

import polars as pl

from moe_advisor.analysis import Measured, Options, each_rank
from moe_advisor.measure.activity_table import ACTIVITY_TABLE, activity_table, zeros
from moe_advisor.measure.rank import MeasuredRank
from moe_advisor.measure.summary import representative_step
from moe_advisor.measure.timeline import FULL, timeline
from moe_advisor.output import perfetto
from moe_advisor.output.run_view import run_name
from moe_advisor.result import Result

PARQUET_ROWS = 200_000
"""Rows of one group: enough to compress well, few enough to read a part of a large table."""

US_PER_NS = 1e-3


def activities(measured: Measured, options: Options) -> Iterator[pl.DataFrame]:
    """The activity table of each rank, in the order of `measured.partials`."""
    zero = zeros(measured.partials)
    for one in each_rank(measured, options):
        yield activity_table(one, zero.get(one.partial.rank))


def write_csv(tables: Iterator[pl.DataFrame], file: IO[bytes]) -> None:
    """The tables as one CSV with a head line; an absent value is an empty field."""
    file.write(",".join(ACTIVITY_TABLE).encode() + b"\n")
    for table in tables:
        table.write_csv(file, include_header=False)


def write_parquet(tables: Iterator[pl.DataFrame], file: IO[bytes]) -> None:
    """The tables as one Parquet file; only one rank's is in memory."""
    from polars.io.plugins import register_io_source

    def batches(
        columns: list[str] | None, where: pl.Expr | None, rows: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        del columns, where, rows  # the whole table is written
        yield from tables

    lazy = register_io_source(batches, schema=ACTIVITY_TABLE)
    lazy.sink_parquet(file, compression="zstd", row_group_size=PARQUET_ROWS)


def render_perfetto(measured: Measured, result: Result) -> str:
    """The representative step of the lowest rank, and the same step of the others kept beside it.

    Ranks of one host with a common clock stand where they stood in time.
    """
    ranks = sorted(measured.kept, key=lambda one: one.partial.rank)
    ranks = [one for one in ranks if len(one.windows)]
    zero = zeros([one.partial for one in ranks])
    shown: list[tuple[MeasuredRank, int]] = []
    for one in ranks:
        step = _same_step(shown[0] if shown else None, one)
        shown.append((one, step))
    steps = []
    first = shown[0][0].partial if shown else None
    for one, number in shown:
        drawn = timeline(one, number, FULL)
        if drawn is None or first is None:
            continue
        aligned = one.partial is first or (
            one.partial.host == first.host and None not in (one.partial.epoch_ns, first.epoch_ns)
        )
        start = int(one.windows.start[number]) - zero[one.partial.rank] if aligned else 0
        steps.append((drawn, start, aligned))
    base = min((start for _, start, aligned in steps if aligned), default=0)
    return perfetto.render(
        [
            perfetto.RankStep(
                drawn, round((start - base) * US_PER_NS, 3) if aligned else 0.0, aligned
            )
            for drawn, start, aligned in steps
        ],
        title=run_name(result),
    )


def _same_step(first: tuple[MeasuredRank, int] | None, one: MeasuredRank) -> int:
    """The number of `one`'s step that is called as the first rank's, else its representative."""
    if first is not None:
        name = first[0].windows.names[first[1]]
        if name in one.windows.names:
            return one.windows.names.index(name)
    return representative_step(one.partial)


def writer_of(
    kind: str, measured: Measured, options: Options, result: Result
) -> Callable[[IO[bytes]], None]:
    """What fills a file with `kind`: perfetto, parquet or csv."""
    if kind == "perfetto":
        return lambda file: _write_text(render_perfetto(measured, result), file)
    write = write_parquet if kind == "parquet" else write_csv
    return lambda file: write(activities(measured, options), file)


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())
