"""Every verb that reads a trace, with all it can write, as one list."""

from collections.abc import Iterator
from pathlib import Path

from tests.hostile.run_cases import Ended, program

BUDGETS = """\
[[budget]]
name = "step"
expect = "m.step_ms <= 0.000001"
[[budget]]
name = "sync"
expect = "m.mfu > 0.5"
"""


def runs(trace: Path, out: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, arguments) of every verb on `trace`, in an order in which each finds its inputs."""
    out.mkdir(exist_ok=True)
    (out / "moe-advisor.toml").write_text(BUDGETS)
    result = out / "report" / "result.json"
    report = [f"--format={kind}" for kind in ("html", "json", "markdown", "junit", "text")]
    tables = [f"--format={kind}={out / ('t.' + kind)}" for kind in ("perfetto", "parquet", "csv")]
    yield "analyze", ["analyze", str(trace), "-o", str(out / "report"), *report, *tables]
    cached = ["analyze", str(trace), "-q", "--cache", str(out / "cache")]
    yield "analyze with a cache", [*cached, "-o", str(out / "first")]
    yield "analyze from the cache", [*cached, "-o", str(out / "second")]
    yield "render", ["render", str(result), "-o", str(out / "again"), *report]
    yield "render to a pipe", ["render", str(result), "--format", "markdown", "-o", "-"]
    strict = ["--redact", "strict", "-o", str(out / "strict"), *report]
    yield "analyze redacted", ["analyze", str(trace), *strict]
    budgets = ["--budgets", str(out / "moe-advisor.toml"), "-o", str(out / "check")]
    kinds = ("json", "junit", "markdown", "gitlab", "openmetrics", "html", "result")
    formats = [f"--format={kind}" for kind in kinds]
    yield "check", ["check", str(trace), *budgets, *formats]
    yield "compare", ["compare", str(trace), str(result)]
    yield "whatif", ["whatif", str(trace)]
    yield "whatif as JSON", ["whatif", str(trace), "--format", "json"]
    database = str(out / "runs.db")
    yield "history add", ["history", "add", database, str(trace), "--commit", "1"]
    yield "history show", ["history", "show", database]
    yield "history html", ["history", "html", database, "-o", str(out / "history.html")]
    ending = ".sqlite" if trace.suffix == ".sqlite" else ".json.gz"
    yield "scrub", ["scrub", str(trace), str(out / f"shared{ending}")]
    yield "scrub as JSON", ["scrub", str(trace), str(out / f"other{ending}"), "--json"]
    yield "gate", ["analyze", str(trace), "-o", str(out / "gate"), "--fail-on", "m.step_ms > 0.0"]
    yield "refused", ["analyze", str(trace), "-o", str(out / "report")]
    yield "steps that are not there", ["analyze", str(trace), "--steps", "90:91"]
    yield "debug", ["--debug", "render", str(trace)]


def run(arguments: list[str]) -> Ended:
    """One run; with --debug the error comes out and counts as said."""
    try:
        return program(arguments)
    except Exception:
        import traceback

        return Ended(2, "", traceback.format_exc())


def written(out: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of everything below `out`, unpacked where it is packed."""
    import gzip
    import zipfile

    for path in sorted(out.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        yield path.name, data
        if data.startswith(b"\x1f\x8b"):
            yield path.name, gzip.decompress(data)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield name, archive.read(name)
        if path.suffix == ".parquet" or data.startswith(b"PAR1"):
            import polars as pl

            yield path.name, pl.read_parquet(path).write_csv().encode()
