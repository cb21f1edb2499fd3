"""What is fuzzed: each target turns bytes into files, runs the program's own code and judges.

An execution is right when it ends in a result that holds together, or in the program's own error
of one line. Everything else is a finding.
"""

import gzip
import hashlib
import json
import math
import re
import shutil
import sqlite3
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from fuzz import mutators as m
from fuzz import seeds
from moe_advisor.errors import MoeAdvisorError
from moe_advisor.result import Result

RENDER_ONE_IN = 8
"""HTML takes twice as long as an analysis: so often all outputs are rendered."""


class BrokenPromiseError(AssertionError):
    """A result that contradicts itself, or an input that was changed."""


@dataclass(frozen=True)
class Target:
    """`run` raises MoeAdvisorError for a refusal and anything else for a finding."""

    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, m.Pick, bytes], bytes]
    run: Callable[[bytes, Path], None]


# --- judging --------------------------------------------------------------------------------


def demand(holds: bool, what: str) -> None:
    """Raises BrokenPromiseError that says `what` unless it `holds`."""
    if not holds:
        raise BrokenPromiseError(what)


def check(result: Result) -> None:
    """What every result must fulfil, whatever the input was."""
    from moe_advisor.output import json_output

    data = json_output.encode(result)
    demand(json_output.encode(json_output.decode(data)) == data, "result changes when read again")
    _finite(json.loads(data), "result")
    for name, metric in result.metrics.items():
        measured = metric.value is not None
        demand(measured == (metric.status != "not_measured"), f"{name}: value against status")
        demand(measured or bool(metric.reason), f"{name}: not measured without a reason")
    step = result.metrics["step_ms"].value
    if step is not None and result.step_parts:
        total = sum(part.ms for part in result.step_parts)
        demand(math.isclose(total, step, rel_tol=1e-4, abs_tol=1e-3), "parts do not make the step")
        demand(all(part.ms >= 0 for part in result.step_parts), "a part below zero")
    for share in ("ep_a2a_exposed_share", "expert_gemm_share", "graph_opaque_share"):
        value = result.metrics[share].value
        demand(value is None or -1e-9 <= value <= 1 + 1e-6, f"{share} is {value}")


def _finite(value: Any, where: str) -> None:
    if isinstance(value, float):
        demand(math.isfinite(value), f"{where} is {value}")
    elif isinstance(value, dict):
        for key, item in value.items():
            _finite(item, f"{where}.{key}"[:80])
    elif isinstance(value, list):
        for item in value:
            _finite(item, where)


def render_all(result: Result) -> None:
    """Every output of a result; an inert one."""
    from moe_advisor.cli.outputs import render_one

    for kind in ("html", "markdown", "junit", "text"):
        text = render_one(result, kind)
        demand("\x1b" not in str(text), f"{kind} holds an escape character")


def analyze(path: Path, data: bytes) -> None:
    """The whole program on one input, which must be as it was afterwards."""
    from moe_advisor import analysis

    before = _state(path.parent)
    try:
        result = analysis.analyze([str(path)])
    finally:
        demand(_state(path.parent) == before, "the input's folder changed")
    check(result)
    if hashlib.sha256(data).digest()[0] % RENDER_ONE_IN == 0:
        render_all(result)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    return [
        (str(path), path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted([folder, *folder.rglob("*")])
    ]


# --- traces ---------------------------------------------------------------------------------


def _json_tree(data: bytes, pick: m.Pick, donor: bytes) -> bytes:
    try:
        tree = json.loads(data)
        other = json.loads(donor)
    except (ValueError, RecursionError):
        return m.mutate_bytes(data, pick, donor)
    if not isinstance(tree, dict | list):
        return m.mutate_bytes(data, pick, donor)
    events = tree.get("traceEvents") if isinstance(tree, dict) else tree
    inside = isinstance(events, list) and events and pick(5)
    try:
        m.mutate_tree(events if inside else tree, pick, other)
        return json.dumps(tree).encode()
    except (ValueError, RecursionError, OverflowError):
        return data


def _bytes(data: bytes, pick: m.Pick, donor: bytes) -> bytes:
    return m.mutate_bytes(data, pick, donor)


def _run_kineto(data: bytes, folder: Path) -> None:
    path = folder / "trace.json"
    path.write_bytes(data)
    analyze(path, data)


def _gzip_seeds() -> list[bytes]:
    small, *_, real = seeds.kineto()
    return [gzip.compress(small, 1, mtime=0), gzip.compress(small[:900]) + gzip.compress(small[900:]),
            gzip.compress(real, 9, mtime=0)]  # fmt: skip


def _run_gzip(data: bytes, folder: Path) -> None:
    path = folder / "trace.json.gz"
    path.write_bytes(data)
    analyze(path, data)


def _tables(data: bytes, pick: m.Pick, donor: bytes) -> bytes:
    try:
        document = json.loads(data)
        other = json.loads(donor)
        if pick(8) == 0 and other:
            name = m.pick_from(pick, sorted(other))
            document[name] = other[name]
        return json.dumps(m.mutate_tables(document, pick)).encode()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return m.mutate_bytes(data, pick, donor)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        return {
            str(name): {
                "columns": [(str(one[0]), str(one[1])) for one in table["columns"]],
                "rows": [[_value(one) for one in row] for row in table["rows"]],
            }
            for name, table in document.items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise NotAnInputError from None


class NotAnInputError(Exception):
    """These bytes describe no file: the execution doesn't count."""


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value) if abs(value) < 10**300 else str(value)[:100]
    return str(value) if isinstance(value, list) else value


def _write_sqlite(data: bytes, path: Path, page: int = 4096) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"pragma page_size={page}")
        try:
            for name, table in _document(data).items():
                typed = ", ".join(f"{_quoted(one)} {kind}" for one, kind in table["columns"])
                database.execute(f"create table {_quoted(name)} ({typed})")
                marks = ", ".join("?" * len(table["columns"]))
                database.executemany(f"insert into {_quoted(name)} values ({marks})", table["rows"])
        except (sqlite3.Error, UnicodeError, OverflowError, ValueError):
            raise NotAnInputError from None
        database.commit()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _run_nsys(data: bytes, folder: Path) -> None:
    path = folder / "run.sqlite"
    _write_sqlite(data, path)
    analyze(path, data)


@cache
def _sqlite_seeds() -> list[bytes]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (data, page) in enumerate(zip(seeds.tables(), (512, 4096) * 5, strict=False)):
            path = Path(folder) / f"{number}.sqlite"
            _write_sqlite(data, path, page)
            found.append(path.read_bytes())
    return found


def _run_sqlite(data: bytes, folder: Path) -> None:
    path = folder / "run.sqlite"
    path.write_bytes(data)
    analyze(path, data)


_PARQUET_TYPES = ("Int64", "UInt64", "Int32", "Float64", "String", "Binary", "Boolean")


def _run_parquet(data: bytes, folder: Path) -> None:
    """The first byte of the digest chooses a table whose file is damaged, or none."""
    import polars as pl

    root = folder / "export"
    root.mkdir()
    digest = hashlib.sha256(data).digest()
    for number, (name, table) in enumerate(_document(data).items()):
        columns = {}
        for at, (column, kind) in enumerate(table["columns"]):
            values = [row[at] if at < len(row) else None for row in table["rows"]]
            dtype = kind if kind in _PARQUET_TYPES else None
            try:
                columns[column] = pl.Series(
                    column, values, getattr(pl, dtype or "", None), strict=False
                )
            except (pl.exceptions.PolarsError, TypeError, OverflowError, ValueError):
                columns[column] = pl.Series(column, [str(value) for value in values])
        try:
            path = root / f"{name.replace('/', '_')[:100]}.parquet"
            pl.DataFrame(list(columns.values())).write_parquet(path)
        except (pl.exceptions.PolarsError, OSError, ValueError):
            raise NotAnInputError from None
        if number == digest[0] and path.stat().st_size:
            whole = bytearray(path.read_bytes())
            for byte in digest[1:9]:
                whole[(byte * 7919) % len(whole)] ^= digest[9]
            path.write_bytes(whole)
    if not any(root.iterdir()):
        raise NotAnInputError
    analyze(root, data)


# --- rules, configuration, logs, results -------------------------------------------------------


def _text(data: bytes, pick: m.Pick, donor: bytes) -> bytes:
    if pick(6) == 0:
        return m.mutate_bytes(data, pick, donor)
    text = m.mutate_text(data.decode("utf-8", "replace"), pick, donor.decode("utf-8", "replace"))
    return text.encode("utf-8", "replace")


@cache
def _facts() -> Any:
    from moe_advisor import analysis
    from moe_advisor.advise import Facts
    from moe_advisor.resources import demo_traces

    measured = analysis.measure([str(path) for path in demo_traces()], analysis.Options())
    run = analysis.judged(measured, analysis.Options())
    return Facts(
        m={name: one.value for name, one in run.metrics.items() if one.value is not None},
        metric_status=run.metrics,
        c=run.given,
        hw=run.figures,
        t=run.facts,
        walls=run.walls,
    )


def _run_rules(data: bytes, folder: Path) -> None:
    from moe_advisor.advise import advise, load_rules

    (folder / "topic").mkdir()
    named = re.search(rb"^id: ([a-z-]{1,60})$", data, re.MULTILINE)
    stem = named[1].decode() if named else "own"
    (folder / "topic" / f"{stem}.yaml").write_bytes(data)
    rules = [rule for rule in load_rules([folder]) if rule.foreign]
    advise(_facts(), rules, {})


def _run_expression(data: bytes, _: Path) -> None:
    from moe_advisor.advise.engine import effective
    from moe_advisor.advise.expressions import check_source

    source = data.decode("utf-8", "replace")
    if check_source(source) is None:
        answer = _sandbox()(source, effective(_facts()))
        demand("no answer within" not in answer.error, "an accepted expression runs out of bounds")


@cache
def _sandbox() -> Any:
    from moe_advisor.advise.sandbox import Sandbox

    return Sandbox()


def _run_config(data: bytes, folder: Path) -> None:
    from moe_advisor.ingest import run_config

    path = folder / "run.yaml"
    path.write_bytes(data)
    found = run_config.load(path)
    _finite({key: one.value for key, one in found.items()}, "config")


def _run_log(data: bytes, folder: Path) -> None:
    from moe_advisor.ingest import training_log

    packed = data[:1] == b" "
    path = folder / ("train.log.gz" if packed else "train.log")
    path.write_bytes(gzip.compress(data) if packed else data)
    log = training_log.load(path)
    figures = (
        log.step_ms(),
        log.tflops_per_gpu(),
        log.tokens_per_s_per_gpu(),
        log.memory_peak_gib(),
    )
    for value in figures:
        demand(value is None or (math.isfinite(value) and value > 0), f"a figure of {value}")


_EVERY_CHOICE = {
    "level": ("error", "warn"),
    "scope": ("run", "rank", "step"),
    "if_not_measured": ("fail", "pass"),
}


def _toml(rows: list[dict[str, str]]) -> bytes:
    lines = []
    for row in rows:
        lines += ["[[budget]]", *(f"{key} = {json.dumps(value)}" for key, value in row.items()), ""]
    return "\n".join(lines).encode("utf-8", "replace")


@cache
def _budget_seeds() -> list[bytes]:
    rows = [
        {
            "name": f"budget-{number}",
            "expect": text,
            **{key: words[number % len(words)] for key, words in _EVERY_CHOICE.items()},
        }
        for number, text in enumerate(seeds.EXPECTATIONS)
    ]
    return [seeds.BUDGETS, *(_toml(rows[at : at + 3]) for at in range(0, len(rows), 3))]


def _budgets(data: bytes, pick: m.Pick, donor: bytes) -> bytes:
    """Mostly budgets that can be judged: other expressions, metrics, numbers, scopes."""
    from moe_advisor.measure.registry import METRICS

    try:
        if pick(6) == 0:
            raise ValueError
        rows = [dict(row) for row in tomllib.loads(data.decode())["budget"]]
    except (ValueError, KeyError, TypeError):
        return _text(data, pick, donor)
    for number, row in enumerate(rows):
        key = m.pick_from(pick, sorted(_EVERY_CHOICE))
        row[key] = m.pick_from(pick, _EVERY_CHOICE[key])
        expect = str(row.get("expect", ""))
        kind = pick(6)
        if kind == 0:
            expect = m.pick_from(pick, seeds.EXPECTATIONS)
        elif kind == 1:
            metric = m.pick_from(pick, sorted(METRICS))
            expect = re.sub(r"m\.\w+", f"m.{metric}", expect, count=1)
        elif kind == 2:
            figure = m.pick_from(pick, ("0.0", "-1.0", "1e300", "0.5", "m.step_ms", "(1.0 / 0.0)"))
            expect = re.sub(r"\d+\.\d+", figure, expect, count=1)
        elif kind == 3:
            sign = m.pick_from(pick, ("<", "<=", ">", ">=", "==", "!="))
            expect = re.sub(r"[<>=!]=|[<>]", sign, expect, count=1)
        elif kind == 4:
            other = m.pick_from(pick, seeds.EXPECTATIONS)
            expect = f"({expect}) {m.pick_from(pick, ('&&', '||'))} !({other})"
        else:
            row["message"] = str(m.pick_from(pick, m.TEXTS))
        row["expect"] = expect[:1000]
        row["name"] = f"budget-{number}"
    return _toml(rows)


def _run_budgets(data: bytes, folder: Path) -> None:
    from moe_advisor.budgets import judge, load

    path = folder / "moe-advisor.toml"
    path.write_bytes(data)
    budgets = load.load(path)
    judge.validate(budgets)
    for result in _results():
        judged = judge.judge(budgets, result, _sandbox())
        demand([one.budget for one in judged] == list(budgets), "a budget is not judged")
        for one in judged:
            demand(one.outcome == "pass" or bool(one.detail), "a missed budget without a reason")
            demand(one.outcome != "pass" or not one.where, "a pass that names where it failed")


def _run_taxonomy(data: bytes, folder: Path) -> None:
    from moe_advisor.roles import taxonomy

    path = folder / "own.yaml"
    path.write_bytes(data)
    taxonomy.load(path)


@cache
def _results() -> list[Result]:
    from moe_advisor import analysis
    from tests.nsys_builder import two_steps

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        path.write_bytes(seeds.kineto()[0])
        first = analysis.analyze([str(path)])
        return [first, analysis.analyze([str(two_steps().write(Path(folder) / "a.sqlite"))])]


@cache
def _result_seeds() -> list[bytes]:
    from moe_advisor import analysis
    from moe_advisor.output import json_output

    found = list(_results())
    for data in seeds.kineto()[2:]:  # pieces of real ones, with models, layers and groups
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            path.write_bytes(data)
            found.append(analysis.analyze([str(path)]))
    return [json_output.encode(result) for result in found]


def _result(data: bytes, pick: m.Pick, donor: bytes) -> bytes:
    """Mostly results that still fit the schema."""
    try:
        if pick(6) == 0:
            raise ValueError
        return json.dumps(m.mutate_values(json.loads(data), pick, json.loads(donor))).encode()
    except (ValueError, RecursionError, OverflowError):
        return _json_tree(data, pick, donor)


def _run_result(data: bytes, _: Path) -> None:
    from moe_advisor.cli.outputs import render_one
    from moe_advisor.compare.judge import compare
    from moe_advisor.output import json_output

    result = json_output.decode(data)
    again = json_output.encode(result)
    demand(json_output.encode(json_output.decode(again)) == again, "result changes when read again")
    digest = hashlib.sha256(data).digest()[0]
    kinds = ("html",) if digest % RENDER_ONE_IN == 0 else ("markdown", "junit", "text")
    for kind in kinds:
        demand("\x1b" not in str(render_one(result, kind)), f"{kind} holds an escape character")
    compare([result], [_results()[digest % 2]], ("a", "b"))


def _scrub_seeds() -> list[bytes]:
    return [*seeds.kineto()[:2], *_sqlite_seeds()[:3], *_gzip_seeds()[:1]]


def _run_scrub(data: bytes, folder: Path) -> None:
    from moe_advisor import scrub

    path = folder / "in.bin"
    path.write_bytes(data)
    out = folder / "out" / "scrubbed"
    out.parent.mkdir()
    try:
        scrub.scrub(path, out)
    except MoeAdvisorError:
        demand(list(out.parent.iterdir()) == [], "a refused scrub leaves files")
        raise
    demand([one.name for one in out.parent.iterdir()] == ["scrubbed"], "scrub leaves files")


TARGETS: dict[str, Target] = {
    "kineto": Target(seeds.kineto, _json_tree, _run_kineto),
    "kineto-bytes": Target(seeds.kineto, _bytes, _run_kineto),
    "gzip": Target(_gzip_seeds, _bytes, _run_gzip),
    "nsys": Target(seeds.tables, _tables, _run_nsys),
    "sqlite-bytes": Target(_sqlite_seeds, _bytes, _run_sqlite),
    "parquet": Target(seeds.tables, _tables, _run_parquet),
    "rules": Target(seeds.rules, _text, _run_rules),
    "expression": Target(seeds.expressions, _text, _run_expression),
    "config": Target(lambda: [seeds.BRIDGE, seeds.DUMP, seeds.COMMAND], _text, _run_config),
    "log": Target(lambda: [seeds.LOG, seeds.LOG + seeds.DUMP], _text, _run_log),
    "budgets": Target(_budget_seeds, _budgets, _run_budgets),
    "taxonomy": Target(lambda: [seeds.TAXONOMY], _text, _run_taxonomy),
    "result": Target(_result_seeds, _result, _run_result),
    "scrub": Target(_scrub_seeds, _bytes, _run_scrub),
}


def execute(name: str, data: bytes, folder: Path) -> str:
    """One execution in `folder`, which is emptied: "result", "refused" or "no input".

    Raises what the target let through.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        TARGETS[name].run(data, place)
    except MoeAdvisorError as error:
        text = str(error)
        demand(bool(text.strip()), "an error without words")
        return "refused"
    except NotAnInputError:
        return "no input"
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return "result"


def encode_findings(rows: list[dict[str, Any]]) -> bytes:
    """Findings as JSON lines."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
