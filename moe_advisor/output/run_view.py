"""What the run and its capture are: name, size, ranks, steps, what was lost."""

from typing import Any

from moe_advisor.output.formatting import NOT_MEASURED, count, plural, share
from moe_advisor.result import Result

_LOST = frozenset(
    {"launches-without-kernel", "launches-missing", "gpu-work-without-launch", "rank-sparser"}
)
"""Issues whose count is of events that the profiler did not write."""


def step_ms(result: Result) -> float | None:
    """The run's step time in ms, or None where no step was measured."""
    metric = result.metrics.get("step_ms")
    return metric.value if metric is not None and metric.value else None


def run_name(result: Result) -> str:
    """What the run is called: the common start of the input names."""
    names = [one.name for one in result.inputs]
    if not names:
        return "run"
    shortest = min(len(name) for name in names)
    same = 0
    while same < shortest and len({name[same] for name in names}) == 1:
        same += 1
    base = names[0] if len(names) == 1 else names[0][:same]
    for ending in (".gz", ".json", ".sqlite", ".nsys-rep", ".moe"):
        base = base.removesuffix(ending)
    base = base.removesuffix(".rank0").rstrip("._- ").removesuffix(".rank").removesuffix("_rank")
    return base if base not in ("", "rank") else f"{len(names)} files"


def identity(result: Result) -> list[str]:
    """The run in a few words: GPUs, parallelism, dispatcher, model."""
    run = result.run
    words = []
    if run.gpu:
        words.append(f"{run.world_size} × {run.gpu}" if run.world_size else run.gpu)
    sizes = {
        "EP": "expert_model_parallel_size",
        "TP": "tensor_model_parallel_size",
        "PP": "pipeline_model_parallel_size",
        "CP": "context_parallel_size",
    }
    for short, key in sizes.items():
        value = config(result, key)
        if isinstance(value, int | float) and (value > 1 or short == "EP"):
            words.append(f"{short} {count(value)}")
    if run.dispatcher:
        words.append(f"dispatcher {run.dispatcher}")
    layers, experts, topk = (
        config(result, key) for key in ("num_layers", "num_moe_experts", "moe_router_topk")
    )
    model = [
        text
        for value, text in (
            (layers, f"{layers} layers"),
            (experts, f"{experts} experts"),
            (topk, f"top-{topk}"),
        )
        if isinstance(value, int)
    ]
    if model:
        words.append(", ".join(model))
    return words


def config(result: Result, key: str) -> Any:
    """A value of the run configuration, or None."""
    entry = result.run.config.get(key)
    return entry.value if entry else None


def capture_state(result: Result) -> tuple[str, str]:
    """The badge of the capture: `good`, `warn` or `bad`, and its words."""
    ranks = len(ranks_read(result))
    world = result.run.world_size
    worst = {issue.severity for issue in result.capture.issues}
    if "error" in worst:
        return "bad", "Damaged"
    if world and ranks < world:
        return "warn", f"Partial: {ranks} of {plural(world, 'rank')}"
    if not result.capture.complete:
        return "warn", "Partial"
    if "warning" in worst:
        return "warn", "Complete, with warnings"
    return "good", "Complete"


def ranks_read(result: Result) -> list[int]:
    """The ranks that any input held."""
    return sorted({rank for one in result.inputs for rank in one.ranks})


def capture_rows(result: Result) -> list[tuple[str, str]]:
    """Label and value of the capture-quality box."""
    ranks, world = len(ranks_read(result)), result.run.world_size
    lost = [issue for issue in result.capture.issues if issue.id in _LOST]
    dropped = len(result.steps.dropped)
    left_out = sum(issue.id == "rank-sparser" for issue in result.capture.issues)
    read = f"{ranks} of {world}" if world else f"{ranks}, world size unknown"
    rows = [
        ("Ranks read", f"{read}, {left_out} left out" if left_out else read),
        (
            "Steps kept",
            f"{result.steps.count}, {f'{dropped} dropped' if dropped else 'none dropped'}",
        ),
        (
            "Events lost by profiler",
            count(sum(issue.count for issue in lost)) if lost else "none reported",
        ),
    ]
    unclassified = result.metrics.get("unclassified_share")
    rows.append(
        ("Unclassified compute", f"{share(unclassified.value)} of step")
        if unclassified is not None and unclassified.value is not None
        else ("Unclassified compute", NOT_MEASURED)
    )
    overhead = profiler_overhead(result)
    rows.append(
        (
            "Profiler overhead",
            f"{share(overhead)} of step" if overhead is not None else NOT_MEASURED,
        )
    )
    return rows


def unprofiled_ms(result: Result) -> float | None:
    """The step without the profiler where a log gave it."""
    value = result.run.facts.get("unprofiled_step_ms")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def profiler_overhead(result: Result) -> float | None:
    """How much longer the traced step is, as a share of it; None where no log gave the other."""
    bare, traced = unprofiled_ms(result), step_ms(result)
    return (traced - bare) / traced if bare and traced else None
