"""Writes a copy of a trace that is safe to share: `scrub`."""

import contextlib
import os
from pathlib import Path

from moe_advisor import bounded
from moe_advisor.errors import InputError, OutputError
from moe_advisor.ingest.json_stream import DEFAULT_LIMITS, StreamLimits
from moe_advisor.ingest.sniff import detect
from moe_advisor.output import writer
from moe_advisor.privacy import display_name
from moe_advisor.scrub.report import Removed, Report

__all__ = ["Removed", "Report", "scrub"]


def scrub(
    source: Path, target: Path, *, force: bool = False, limits: StreamLimits = DEFAULT_LIMITS
) -> Report:
    """Writes a copy of the trace at `source` to `target` that holds only what an analysis needs.

    `target` appears whole or not at all, and nothing is written beside `source` but it. JSON is
    gzipped where `target` ends in .gz. Raises InputError for what is no trace of a known kind,
    OutputError where `target` exists (without `force`), is the input or can't be written.
    """
    writer.refuse([writer.Output("trace", target)], [source], force=force)
    kind = detect(source)
    if kind not in ("kineto", "nsys-sqlite"):
        raise InputError(f"{display_name(source)}: {_INSTEAD[kind]}")
    bounded.check_size(source, display_name(source))
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        report = _write(source, temporary, target, kind, limits)
        writer.publish(temporary, target, force=force)
    except FileExistsError:
        raise OutputError(f"{target}: exists already: give --force to replace it") from None
    except OSError as error:
        raise OutputError(
            f"{target}: can't be written ({error.strerror}): name another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return report


_INSTEAD = {
    "nsys-rep": "a report holds more than can be taken out: nsys export -t sqlite "
    "--include-blobs=true it and scrub the export",
    "nsys-parquet": "a parquet export can't be scrubbed: export as SQLite (nsys export -t sqlite)",
    "result": "a result holds no trace: render it with --redact strict",
}


def _write(source: Path, temporary: Path, target: Path, kind: str, limits: StreamLimits) -> Report:
    if kind == "kineto":
        from moe_advisor.scrub import kineto

        return kineto.scrub(source, temporary, limits, packed=target.name.endswith(".gz"))
    from moe_advisor.scrub import nsys

    return nsys.scrub(source, temporary)
