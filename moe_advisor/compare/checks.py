"""Whether two runs may be compared: the same machine, layout and model, seen the same way."""

from collections.abc import Callable, Collection
from typing import Any

from moe_advisor.compare.model import Check, KeyChange
from moe_advisor.errors import InputError
from moe_advisor.result import Result

ALLOWED = ("hardware", "world-size", "parallelism", "model", "link")
"""Checks that refuse, and that a user may allow."""

MODEL_KEYS = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "moe_ffn_hidden_size", "num_moe_experts"),
    *("moe_router_topk", "seq_length", "micro_batch_size", "global_batch_size"),
    *("num_attention_heads", "num_query_groups", "vocab_size"),
)
PARALLEL = (("ep_size", "EP"), ("tp_size", "TP"), ("pp_size", "PP"), ("cp_size", "CP"))

WEIGHT_RATIO = 1.25
"""Optimizer time follows the number of weights. In captures of one model it differs by 2 % (ten
captures of one, seven of another), by 9 % where routing is skewed; a distributed optimizer divides
it, so alone it refuses nothing."""

WORK_RATIO = 1.8
"""Dense GEMM time follows tokens times weights. Recomputing every layer adds 17 and 20 % in two
measured pairs, and FP8 can at most halve it; beyond this the runs do not do the same work."""

MIN_SIGNAL_MS = 0.5
"""Below this a family's time says nothing about the model."""


def compare_runs(base: Result, new: Result, allow: Collection[str] = ()) -> list[Check]:
    """Every check, those in `allow` warned of instead of refused."""
    checks = [
        _plain("hardware", "GPU", base.run.gpu, new.run.gpu, refuse=True),
        _plain("world-size", "World size", _world(base), _world(new), refuse=True),
        _parallelism(base, new),
        _model(base, new),
        _link(base, new),
        _ranks(base, new),
        _steps(base, new),
        _plain("profiler", "Profiler", profiler(base), profiler(new)),
        _plain("moe-advisor", "moe-advisor", base.tool.version, new.tool.version),
        _capture(base, new),
    ]
    return [_allowed(one) if one.id in allow else one for one in checks]


def refuse(checks: list[Check]) -> None:
    """Raises InputError for runs that must not be compared."""
    refused = [one for one in checks if one.state == "refused"]
    if refused:
        why = "; ".join(one.message for one in refused)
        how = " ".join(f"--allow {one.id}" for one in refused)
        raise InputError(f"these runs can't be compared: {why}; to compare them anyway: {how}")


def profiler(result: Result) -> str:
    """The profiler of a run, nsys or torch, as the trace facts say."""
    return str(result.run.facts.get("profiler", "unknown"))


def config_changes(base: Result, new: Result) -> list[KeyChange]:
    """Configuration keys whose values differ or that one side lacks, given ones first."""
    left, right = base.run.config, new.run.config
    rows = []
    for key in sorted({*left, *right}):
        a, b = left.get(key), right.get(key)
        if (a.value if a else None) != (b.value if b else None):
            sources = {one.source for one in (a, b) if one}
            rows.append(
                KeyChange(
                    key=key,
                    base=a.value if a else None,
                    new=b.value if b else None,
                    source=", ".join(sorted(sources)),
                )
            )
    return sorted(rows, key=lambda row: (row.base is None or row.new is None, row.key))


def _allowed(check: Check) -> Check:
    if check.state != "refused":
        return check
    return Check(
        id=check.id, state="differs", base=check.base, new=check.new, message=check.message
    )


def _world(result: Result) -> int | None:
    """The world size, unless more ranks were read than it counts: that is one group's size."""
    size, read = result.run.world_size, result.run.facts.get("ranks_read", 0)
    return size if size is None or size >= read else None


def _plain(name: str, label: str, base: object, new: object, refuse: bool = False) -> Check:
    if base is None or new is None:
        lacking = "both runs" if base is None and new is None else "one run"
        return _check(name, "unknown", base, new, f"{label} is not known of {lacking}")
    if base == new:
        return _check(name, "same", base, new, f"{label} {base} on both")
    state = "refused" if refuse else "differs"
    return _check(name, state, base, new, f"{label} differs: {base} and {new}")


def _check(name: str, state: Any, base: object, new: object, message: str) -> Check:
    def words(value: object) -> str:
        return "unknown" if value is None else str(value)

    return Check(id=name, state=state, base=words(base), new=words(new), message=message)


def _parallelism(base: Result, new: Result) -> Check:
    def size(result: Result, key: str) -> Any:
        long = {
            "ep_size": "expert_model_parallel_size",
            "tp_size": "tensor_model_parallel_size",
            "pp_size": "pipeline_model_parallel_size",
            "cp_size": "context_parallel_size",
        }[key]
        given = result.run.config.get(long)
        return result.run.facts.get(key, given.value if given else None)

    differ, unknown = [], []
    shown: tuple[list[str], list[str]] = ([], [])
    for key, label in PARALLEL:
        a, b = size(base, key), size(new, key)
        shown[0].append(f"{label} {_whole(a)}")
        shown[1].append(f"{label} {_whole(b)}")
        if a is None or b is None:
            if (a is None) != (b is None):
                unknown.append(label)
        elif float(a) != float(b):
            differ.append(f"{label} {_whole(a)} and {_whole(b)}")
    sides = ", ".join(shown[0]), ", ".join(shown[1])
    if differ:
        message = f"parallelism differs: {', '.join(differ)}"
        return _check("parallelism", "refused", *sides, message)
    if unknown:
        message = f"{', '.join(unknown)} size is known of one run only"
        return _check("parallelism", "unknown", *sides, message)
    return _check("parallelism", "same", *sides, "the same group sizes")


def _whole(value: Any) -> str:
    return "unknown" if value is None else f"{float(value):g}"


def _model(base: Result, new: Result) -> Check:
    """Configured shape where both give it, else the time of work that follows the shape."""
    given = [
        f"{key} {base.run.config[key].value} and {new.run.config[key].value}"
        for key in MODEL_KEYS
        if key in base.run.config
        and key in new.run.config
        and base.run.config[key].value != new.run.config[key].value
    ]
    if given:
        return _check("model", "refused", "", "", f"the model differs: {', '.join(given)}")
    counts = _layers(base), _layers(new)
    if counts[0] and counts[1] and counts[0] != counts[1]:
        message = f"the model seems to differ: {counts[0]} and {counts[1]} layers"
        return _check("model", "refused", counts[0], counts[1], message)
    ratios: dict[str, float] = {}
    found = [f"{counts[0]} layers"] if counts[0] and counts[1] else []
    signals: tuple[tuple[str, Callable[[Result], float]], ...] = (
        ("optimizer", lambda one: _ms(one, "optimizer_ms")),
        ("dense GEMM", _dense_ms),
        ("expert GEMM", lambda one: _ms(one, "expert_gemm_ms")),
    )
    for label, measure in signals:
        a, b = measure(base), measure(new)
        if min(a, b) >= MIN_SIGNAL_MS:
            ratios[label] = max(a, b) / min(a, b)
            found.append(f"{label} {a:.1f} and {b:.1f} ms")
    if not found:
        return _check("model", "unknown", None, None, "no signal of the model's shape in both runs")
    words = ", ".join(found)
    weights = ratios.pop("optimizer", 1.0)
    if ratios.get("dense GEMM", 1.0) > WORK_RATIO or (
        weights > WEIGHT_RATIO and max(ratios.values(), default=1.0) > WEIGHT_RATIO
    ):
        message = f"the model or batch seems to differ: {words} per step"
        return _check("model", "refused", "", "", message)
    if weights > WEIGHT_RATIO:
        message = f"the optimizer's settings, or the model, seem to differ: {words} per step"
        return _check("model", "differs", "", "", message)
    return _check("model", "same", "", "", f"the same work by its signals: {words}")


def _layers(result: Result) -> int:
    """Layers that the trace shows; 0 where it does not, or where stages share them out."""
    if any("stage" in row for row in result.layers):
        return 0
    return len({row.get("layer") for row in result.layers})


def _ms(result: Result, name: str) -> float:
    metric = result.metrics.get(name)
    return (metric.value or 0.0) if metric else 0.0


def _dense_ms(result: Result) -> float:
    return _ms(result, "dense_gemm_ms") + _ms(result, "gemm_unattributed_ms")


def _link(base: Result, new: Result) -> Check:
    """The wire: a run inside a node and one over a slow link answer different questions.

    Which it was is judged by the rate reached. Two dispatchers reach different rates on one link.
    """
    a, b = (one.run.facts.get("a2a_slow_link") for one in (base, new))
    words = {True: "slow link", False: "NVLink", None: None}
    if a is not None and b is not None and a != b:
        same = base.run.dispatcher == new.run.dispatcher
        message = f"the all-to-all's rate is that of another link: {words[a]} and {words[b]}"
        return _check("link", "refused" if same else "differs", words[a], words[b], message)
    return _plain("link", "Link", words[a], words[b])


def common_ranks(base: Result, new: Result) -> set[int] | None:
    """The ranks that both runs read, where one read others too; None where there is no choice."""
    a, b = _read(base), _read(new)
    return None if a == b else (a & b or None)


def _read(result: Result) -> set[int]:
    return {rank for one in result.inputs for rank in one.ranks}


def _ranks(base: Result, new: Result) -> Check:
    sides = [sorted(_read(side)) for side in (base, new)]
    if sides[0] == sides[1]:
        return _check("ranks", "same", len(sides[0]), len(sides[1]), "the same ranks read")
    message = f"different ranks read: {_few(sides[0])} and {_few(sides[1])}"
    if common_ranks(base, new):
        message += "; metrics are compared on the ranks of both"
    return _check("ranks", "differs", _few(sides[0]), _few(sides[1]), message)


def _few(ranks: list[int]) -> str:
    some = ", ".join(map(str, ranks[:6]))
    return f"{some} and {len(ranks) - 6} more" if len(ranks) > 6 else some or "none"


def _steps(base: Result, new: Result) -> Check:
    sides = _both(base, new, lambda one: f"{one.steps.count} ({one.steps.source})")
    if not (base.steps.count and new.steps.count):
        return _check("steps", "refused", *sides, f"no step was measured: {' and '.join(sides)}")
    if base.steps.source != new.steps.source:
        message = f"steps were found in different ways: {' and '.join(sides)}"
        return _check("steps", "differs", *sides, message)
    if base.steps.source == "whole-trace":
        return _check("steps", "differs", *sides, "the whole traces count as one step each")
    return _check("steps", "same", *sides, f"steps {' and '.join(sides)}")


def _capture(base: Result, new: Result) -> Check:
    sides = _both(base, new, lambda one: "complete" if one.capture.complete else "incomplete")
    state = "same" if sides == ("complete", "complete") else "differs"
    return _check("capture", state, *sides, f"captures are {' and '.join(sides)}")


def _both(base: Result, new: Result, words: Callable[[Result], str]) -> tuple[str, str]:
    return words(base), words(new)
