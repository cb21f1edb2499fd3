"""Training logs of Megatron-LM and Megatron-Bridge: step times, throughput, memory.

The two frameworks print memory in different units under the same letters: Megatron-LM's "MB" are
MiB, Bridge's "GB" are decimal gigabytes. Everything here is GiB.
"""

import gzip
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO

from moe_advisor import bounded
from moe_advisor.errors import ConfigError
from moe_advisor.ingest import run_config
from moe_advisor.result import ConfigValue

MAX_LINE = 16_384
MAX_LINES = 20_000_000

WARM_UP_ITERATIONS = 5
"""The first steps hold compilation, graph capture and autotuning (24 minutes were seen)."""

_MIB_PER_GIB = 1024.0
_GB_PER_GIB = 2**30 / 1e9

LARGEST_FIGURE = 1e15
"""No time in ms, rate or size in a log comes near it."""

_NUMBER = r"([0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,3})?)(?![0-9.])"
_ITERATION = re.compile(r"iteration\s+(\d{1,18})/\s*(\d{1,18})")
_ELAPSED = re.compile(r"elapsed time per iteration \(ms\):\s*" + _NUMBER)
_THROUGHPUT = re.compile(r"throughput per GPU \(TFLOP/s/GPU\):\s*" + _NUMBER)
_BATCH = re.compile(r"global batch size:\s*(\d{1,18})")
_BRIDGE_STEP = re.compile(
    r"Step Time : " + _NUMBER + r"s GPU utilization: " + _NUMBER + r"MODEL_TFLOP/s/GPU"
)
_MEMORY_LM = re.compile(r"\[Rank (\d{1,18})\] \(after (\d{1,18}) iterations\) memory \(MB\)(.*)")
_MEMORY_BRIDGE = re.compile(
    r"\[Rank (\d{1,18})\] \(after (\d{1,18}) iterations\) memory \(GB\)(.*)"
)
_WORLD = re.compile(r"using world size: (\d{1,18}), data-parallel size: (\d{1,18})")
_SEQUENCE = re.compile(r"(?:^|\s)seq_length:? \.*\s*(\d{1,18})\s*(?:\(Mcore default|$)")
_SKIPPED = re.compile(r"number of skipped iterations:\s*(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Iteration:
    """One progress line: the mean over the logging interval that ends at `number`."""

    number: int
    ms: float
    tflops_per_gpu: float | None
    global_batch_size: int | None


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory line, in GiB."""

    rank: int
    iteration: int
    max_allocated_gib: float | None
    max_reserved_gib: float | None
    alloc_retries: int | None = None


@dataclass(frozen=True)
class TrainingLog:
    """What a training log says of the run without a profiler."""

    framework: str
    iterations: tuple[Iteration, ...] = ()
    memory: tuple[Memory, ...] = ()
    world_size: int | None = None
    data_parallel_size: int | None = None
    seq_length: int | None = None
    total_iterations: int | None = None
    config: dict[str, ConfigValue] = field(default_factory=dict)
    """The argument dump or configuration summary in the log, with source `log`."""

    def steady(self, skip: Iterable[int] = ()) -> tuple[Iteration, ...]:
        """Iterations past the warm-up and not in `skip` (profiled ones), in order.

        Of a log too short for that, its later half.
        """
        skipped = set(skip)
        first = self.iterations[0].number if self.iterations else 0
        kept = [
            item
            for item in self.iterations
            if item.number >= first + WARM_UP_ITERATIONS and item.number not in skipped
        ]
        if not kept:
            rest = [item for item in self.iterations if item.number not in skipped]
            kept = rest[len(rest) // 2 :]
        return tuple(kept)

    def step_ms(self, skip: Iterable[int] = ()) -> float | None:
        """Median step time of the steady iterations in ms; None without progress lines."""
        steady = self.steady(skip)
        return median(item.ms for item in steady) if steady else None

    def tflops_per_gpu(self, skip: Iterable[int] = ()) -> float | None:
        """Median model TFLOP/s per GPU of the steady iterations; None where it is not logged."""
        found = [x.tflops_per_gpu for x in self.steady(skip) if x.tflops_per_gpu is not None]
        return median(found) if found else None

    def global_batch_size(self) -> int | None:
        """Sequences per step, of the last progress line that tells it."""
        found = [x.global_batch_size for x in self.iterations if x.global_batch_size is not None]
        return found[-1] if found else None

    def memory_peak_gib(self) -> float | None:
        """Highest allocated memory of any rank in GiB, else reserved; None where not logged."""
        allocated = [x.max_allocated_gib for x in self.memory if x.max_allocated_gib is not None]
        reserved = [x.max_reserved_gib for x in self.memory if x.max_reserved_gib is not None]
        return max(allocated or reserved, default=None)

    def tokens_per_s_per_gpu(self, skip: Iterable[int] = ()) -> float | None:
        """Tokens per second and GPU of the steady iterations; None where a part is missing."""
        step_ms, batch = self.step_ms(skip), self.global_batch_size()
        if not (step_ms and batch and self.seq_length and self.world_size):
            return None
        return batch * self.seq_length / (step_ms / 1e3) / self.world_size


def load(path: Path | str) -> TrainingLog:
    """Read a training log (plain or gzip). Raises ConfigError if it has no progress lines."""
    path = Path(path)
    try:
        with _open(path) as lines:
            bounded.refuse_device(path)
            log = parse(bounded.lines(lines, path))
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "damaged"
        raise ConfigError(f"{path}: can't be read: {reason}") from None
    if not log.iterations and not log.memory and not log.config:
        raise ConfigError(
            f"{path}: no progress lines of Megatron-LM or Megatron-Bridge "
            "('elapsed time per iteration (ms)' or 'Step Time :')"
        )
    return log


def parse(lines: Iterable[str]) -> TrainingLog:
    """Read the lines of a log, whatever scheduler prefix they carry."""
    iterations: dict[int, Iteration] = {}
    bridge_steps: list[tuple[float, float]] = []
    memory: list[Memory] = []
    config_lines: list[str] = []
    world = parallel = sequence = total = None
    bridge = False
    for count, long_line in enumerate(lines):
        if count >= MAX_LINES:
            break
        line = long_line[:MAX_LINE].rstrip()
        if _is_config(line, config_lines):
            config_lines.append(line)
        if "elapsed time per iteration" in line:
            number = _ITERATION.search(line)
            elapsed = _ELAPSED.search(line)
            length = _figure(elapsed)
            if number and length is not None:
                total = int(number[2])
                iterations[int(number[1])] = Iteration(
                    number=int(number[1]),
                    ms=length,
                    tflops_per_gpu=_figure(_THROUGHPUT.search(line)),
                    global_batch_size=_int(_BATCH.search(line)),
                )
        elif "Step Time :" in line:
            step = _BRIDGE_STEP.search(line)
            length, rate = _figure(step), _figure(step, 2)
            if length is not None and rate is not None:
                bridge = True
                bridge_steps.append((length * 1e3, rate))
        elif "memory (" in line:
            found = _memory(line)
            if found:
                bridge |= "memory (GB)" in line
                memory.append(found)
        elif "using world size" in line:
            match = _WORLD.search(line)
            if match:
                world, parallel = int(match[1]), int(match[2])
        elif "seq_length" in line:
            match = _SEQUENCE.search(line)
            sequence = int(match[1]) if match else sequence
    config = _config(config_lines)
    bridge |= any("Configuration Summary" in line for line in config_lines)
    return TrainingLog(
        framework="megatron-bridge" if bridge else "megatron-lm",
        iterations=_merge(iterations, bridge_steps),
        memory=tuple(memory),
        world_size=world or _config_int(config, "world_size"),
        data_parallel_size=parallel,
        seq_length=sequence or _config_int(config, "seq_length"),
        total_iterations=total,
        config=config,
    )


def _merge(
    iterations: dict[int, Iteration], steps: list[tuple[float, float]]
) -> tuple[Iteration, ...]:
    """Progress lines in order, with Bridge's rank-0 throughput where the counts fit.

    Rank 0 and the last rank print one line each per interval; a log of rank 0 alone has only the
    summaries, numbered here from 1.
    """
    found = [iterations[number] for number in sorted(iterations)]
    if not found:
        return tuple(
            Iteration(number=number, ms=ms, tflops_per_gpu=tflops, global_batch_size=None)
            for number, (ms, tflops) in enumerate(steps, start=1)
        )
    if len(steps) == len(found):
        return tuple(
            Iteration(item.number, item.ms, item.tflops_per_gpu or tflops, item.global_batch_size)
            for item, (_, tflops) in zip(found, steps, strict=True)
        )
    return tuple(found)


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def _memory(line: str) -> Memory | None:
    for pattern, per_gib, allocated, reserved in (
        (_MEMORY_LM, _MIB_PER_GIB, "max allocated", "max reserved"),
        (
            _MEMORY_BRIDGE,
            _GB_PER_GIB,
            "mem-max-allocated-gigabytes",
            "mem-max-reserved-gigabytes",
        ),
    ):
        match = pattern.search(line)
        if not match:
            continue
        parts = {
            key.strip(): value.strip()
            for key, separator, value in (part.partition(":") for part in match[3].split("|"))
            if separator
        }
        retries = re.match(r"\d{1,18}", parts.get("mem-alloc-retires", ""))
        return Memory(
            rank=int(match[1]),
            iteration=int(match[2]),
            max_allocated_gib=_scaled(parts.get(allocated), per_gib),
            max_reserved_gib=_scaled(parts.get(reserved), per_gib),
            alloc_retries=None if retries is None else int(retries[0]),
        )
    return None


def _scaled(text: str | None, per_gib: float) -> float | None:
    found = _figure(re.match(_NUMBER, text or ""))
    return None if found is None else found / per_gib


def _is_config(line: str, taken: list[str]) -> bool:
    """Whether a line belongs to the argument dump or to Bridge's configuration summary."""
    if "---- arguments ----" in line or "Configuration Summary (Non-Default" in line:
        taken.clear()  # a restart prints it again; the last one holds
        return True
    if not taken or len(taken) > 5000:
        return False
    if "end of arguments" in taken[-1]:
        return False
    return not (taken[0].find("Configuration Summary") >= 0 and "elapsed time" in line)


def _config(lines: list[str]) -> dict[str, ConfigValue]:
    if not lines:
        return {}
    try:
        found = run_config.load("\n".join([*lines, ""]))
    except ConfigError:
        return {}
    return {
        key: ConfigValue(value=item.value, source="log" if item.source == "config" else item.source)
        for key, item in found.items()
    }


def _config_int(config: dict[str, ConfigValue], key: str) -> int | None:
    value = config[key].value if key in config else None
    return int(value) if isinstance(value, int | float) else None


def _figure(match: re.Match[str] | None, group: int = 1) -> float | None:
    """A time, rate or size; None for 0 and infinity, which no run has."""
    found = float(match[group]) if match is not None else 0.0
    return found if 0.0 < found < LARGEST_FIGURE else None


def _int(match: re.Match[str] | None) -> int | None:
    return None if match is None else int(match[1])
