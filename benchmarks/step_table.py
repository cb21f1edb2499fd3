"""Keeps the modelled step of a capture that is too large for the repository: step_table.py NAME...

A table is one step of all ranks as `whatif.build` made it (GPU work, launches, dependencies, host
times) and the few metrics that predictions read, xz-compressed. `validate_whatif.py` predicts from
it where the capture itself is not there. NAME is a capture as in whatif_pairs.yaml; captures are
looked for in the folders named by --captures.
"""

import argparse
import io
import json
import lzma
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from moe_advisor.measure.summary import Summary
from moe_advisor.whatif.engine import METRICS_USED
from moe_advisor.whatif.model import Calibration, Edges, Items, Lane, StepModel, Waits

FOLDER = Path(__file__).parent.parent / "tests" / "fixtures" / "steps"
TABLES = (("items", Items), ("edges", Edges), ("waits", Waits))


def path_of(name: str) -> Path:
    """Where the table of a capture such as `torch/mcore_flash` lies."""
    return FOLDER / f"{name.replace('/', '_')}.step.xz"


def name_of(path: Path) -> str:
    """The capture whose table this is."""
    return path.name.removesuffix(".step.xz").replace("_", "/", 1)


def save(model: StepModel, summary: Summary, path: Path) -> None:
    """Writes the table; names of work that is not in the step are left out."""
    used = sorted({int(n) for lane in model.lanes for n in np.unique(lane.items.name)})
    number = np.zeros(max(used, default=0) + 1, np.int64)
    number[used] = np.arange(len(used))
    columns: dict[str, Any] = {}
    for at, lane in enumerate(model.lanes):
        for table, kind in TABLES:
            for one in fields(kind):
                rows = _remainders(lane.items) if table == "items" else getattr(lane, table)
                values = getattr(rows, one.name)
                values = number[values] if (table, one.name) == ("items", "name") else values
                columns[f"{at}.{table}.{one.name}"] = _small(values)
    scalars = ("rank", "step", "host_start_ns", "step_ns", "offset_ns")
    head = {
        "lanes": [{key: getattr(lane, key) for key in scalars} for lane in model.lanes],
        "participants": model.participants,
        "calibration": asdict(model.calibration),
        "hardware": dict(model.hardware),
        "names": [model.names[one] for one in used],
        "scopes": model.scopes,
        "facts": {k: v for k, v in model.facts.items() if _plain(v)},
        "merged": model.merged,
        "whole_ns": model.whole_ns,
        "metrics": {
            name: summary.metrics[name].value
            for name in METRICS_USED
            if name in summary.metrics and summary.metrics[name].value is not None
        },
    }
    columns["head"] = np.frombuffer(json.dumps(head, default=list).encode(), np.uint8)
    raw = io.BytesIO()
    np.savez(raw, **columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def load(path: Path) -> tuple[StepModel, Summary]:
    """The model and a summary that holds the metrics which predictions read."""
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as stored:
        columns = {name: stored[name] for name in stored.files}
    head = json.loads(columns.pop("head").tobytes())
    lanes = []
    for at, scalars in enumerate(head["lanes"]):
        tables = {}
        for table, kind in TABLES:
            found = {one.name: columns[f"{at}.{table}.{one.name}"] for one in fields(kind)}
            tables[table] = kind(
                **{k: v if v.dtype == np.bool_ else v.astype(np.int64) for k, v in found.items()}
            )
        tables["items"] = _whole(tables["items"])
        lanes.append(Lane(**scalars, **tables))
    model = StepModel(
        tuple(lanes),
        tuple(tuple(one) for one in head["participants"]),
        Calibration(**head["calibration"]),
        head["hardware"],
        tuple(head["names"]),
        tuple(head["scopes"]),
        head["facts"],
        head["merged"],
        head["whole_ns"],
    )
    metrics = {name: SimpleNamespace(value=value) for name, value in head["metrics"].items()}
    return model, cast("Summary", SimpleNamespace(metrics=metrics))


def _remainders(items: Items) -> Items:
    """The items with launches, starts and transfers as what other columns don't foretell.

    A launch follows the one before by the host's time, a start the stream or the launch, and a
    transfer is most often the whole duration: the rest is mostly zero and takes half the space.
    """
    launch = np.diff(items.launch_ns, prepend=0) - items.host_ns
    foretold, end = np.zeros(len(items), np.int64), dict[int, int]()
    for at, stream in enumerate(items.stream.tolist()):
        foretold[at] = _foretold(items, at, int(items.launch_ns[at]), end.get(stream, 0))
        end[stream] = int(items.start_ns[at] + items.duration_ns[at])
    start = items.start_ns - foretold
    transfer = items.transfer_ns - items.duration_ns
    return replace(items, launch_ns=launch, start_ns=start, transfer_ns=transfer)


def _whole(items: Items) -> Items:
    """What `_remainders` was made of."""
    launch = np.cumsum(items.launch_ns + items.host_ns)
    start, end = np.zeros(len(items), np.int64), dict[int, int]()
    for at, stream in enumerate(items.stream.tolist()):
        foretold = _foretold(items, at, int(launch[at]), end.get(stream, 0))
        start[at] = foretold + items.start_ns[at]
        end[stream] = int(start[at] + items.duration_ns[at])
    transfer = items.transfer_ns + items.duration_ns
    return replace(items, launch_ns=launch, start_ns=start, transfer_ns=transfer)


def _foretold(items: Items, at: int, launch_ns: int, stream_end_ns: int) -> int:
    return max(stream_end_ns + int(items.gap_ns[at]), launch_ns + int(items.latency_ns[at]))


def _small(values: Any) -> Any:
    """The values in the smallest integers that hold them."""
    if values.dtype == np.bool_ or not len(values):
        return values
    for kind in (np.int8, np.int16, np.int32):
        info = np.iinfo(kind)
        if info.min <= values.min() and values.max() <= info.max:
            return values.astype(kind)
    return values


def _plain(value: Any) -> bool:
    """Whether a fact is made of numbers and text alone."""
    if isinstance(value, Mapping):
        return all(_plain(one) for one in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_plain(one) for one in value)
    return value is None or isinstance(value, str | int | float | bool)


def main() -> None:
    """Writes the tables of the captures named."""
    from validate_whatif import Captures

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--captures", action="append", default=[], type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        captures = Captures(arguments.captures, Path(scratch), tables=False)
        for name in arguments.names:
            found = captures.model(name)
            if found is None:
                raise SystemExit(f"{name}: no such capture in the folders given")
            save(*found, path_of(name))
            print(f"{path_of(name).name} {path_of(name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
