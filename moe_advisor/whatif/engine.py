"""Turns changes into estimates: three cases, honest ranges, the wall that comes next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from moe_advisor.intervals import union
from moe_advisor.measure.summary import Summary
from moe_advisor.result import Estimate, Replay, WhatIf
from moe_advisor.roles.roles import COMMUNICATION, COMPUTE, Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.catalog import CHANGES, ChangeInfo
from moe_advisor.whatif.changes.contention import contended
from moe_advisor.whatif.changes.edit import Ask, Blocked, Case, Context, NotApplicableError
from moe_advisor.whatif.changes.overlap import overlap_mode
from moe_advisor.whatif.model import StepModel
from moe_advisor.whatif.replay import Timing, replay

NS_PER_MS = 1e6

NORMAL_90 = 1.2816
"""Standard deviations from the median to 90 % of a normal distribution."""

LEAST_TAIL = math.log(1.1)
"""No trace tells the host's speed better than that: within one process it varies by a tenth."""

FINE_SCALES = 400
"""Points of the host's speed: 0.5 % apart."""

CONTENTION_PASSES = 2
"""Overlap and slowdown depend on each other; after two passes the step moves by less than 0.5 %."""

METRICS_USED = (
    "memory_headroom_gib",
    "memory_peak_gib",
    "microbatches_per_step",
    "graph_kernel_share",
    "expert_token_imbalance",
    "compute_excess_ms",
)


@dataclass(frozen=True)
class _Wanted:
    info: ChangeInfo
    value: str | None


def parse(name: str) -> tuple[str, str | None]:
    """`cuda-graphs=attn` -> ("cuda-graphs", "attn"); KeyError for a change that does not exist."""
    change, _, value = name.partition("=")
    if change not in CHANGES:
        raise KeyError(change)
    return change, value or None


def estimate(
    model: StepModel,
    summary: Summary,
    names: Sequence[str],
    *,
    config: Mapping[str, Any] | None = None,
    unprofiled_step_ms: float | None = None,
) -> list[WhatIf]:
    """One estimate per name (`change` or `change=value`), in the order given.

    A change that does not apply, or that the trace can't tell, has status not_measured and a
    reason. `config` holds configuration values by name, `unprofiled_step_ms` a step time from a
    log: without it the trace tells how much of the host's time recording took, or host work counts
    as stretched by STRETCH (by STRETCH_OPERATORS where the profiler recorded operators). What may
    cost time and moves with the host's unknown speed alone beyond the widest range is withheld:
    not_measured as well.
    Gains are shares of the step without a profiler, in ms of the traced step.
    KeyError for an unknown change.
    """
    context = _context(summary, config)
    engine = _Engine(model, context, unprofiled_step_ms)
    found = []
    for name in names:
        change, value = parse(name)
        info = CHANGES[change]
        found.append(
            WhatIf(
                name=name,
                title=info.title,
                estimate=engine.estimate([_Wanted(info, value)]),
                assumptions=list(info.assumptions),
            )
        )
    return found


def combine(
    model: StepModel,
    names: tuple[str, ...],
    *,
    summary: Summary | None = None,
    config: Mapping[str, Any] | None = None,
    unprofiled_step_ms: float | None = None,
) -> Estimate:
    """The changes simulated together; one that does not apply makes the whole not_measured."""
    context = _context(summary, config)
    wanted = [_Wanted(CHANGES[parse(name)[0]], parse(name)[1]) for name in names]
    return _Engine(model, context, unprofiled_step_ms).estimate(wanted)


def replay_error(model: StepModel) -> float:
    """How far the unchanged replay is from the measured step, as a share of it (worst rank)."""
    timing = replay(model)
    return max(
        (
            abs(new - lane.step_ns) / lane.step_ns
            for new, lane in zip(timing.step_ns, model.lanes, strict=True)
        ),
        default=0.0,
    )


def unexplained_share(model: StepModel) -> float:
    """Fixed delays that no launch, dependency or usual latency explains, as a share of the step."""
    return max(
        (float(lane.items.residual_ns.sum()) / lane.step_ns for lane in model.lanes), default=0.0
    )


def quality(model: StepModel) -> Replay | None:
    """How well the model repeats the measured step; None for a model without a step."""
    if not model.lanes:
        return None
    return Replay(
        step=model.lanes[0].step,
        ranks=len(model.lanes),
        step_ms=round(model.step_ns / NS_PER_MS, 3),
        error_share=round(replay_error(model), 5),
        unexplained_share=round(unexplained_share(model), 5),
        modelled_share=round(1.0 / model.repeats, 4),
    )


def _context(summary: Summary | None, config: Mapping[str, Any] | None) -> Context:
    metrics: dict[str, float] = {}
    if summary is not None:
        for name in METRICS_USED:
            one = summary.metrics.get(name)
            if one is not None and one.value is not None:
                metrics[name] = one.value
    return Context(dict(config or {}), metrics)


def narrowed(low: float, expected: float, high: float, limit: float) -> tuple[float, float]:
    """A range around `expected` at most `limit` wide: the longer side is cut first."""
    below, above = expected - low, high - expected
    if below + above <= limit:
        return low, high
    if below < above:
        below = min(below, limit / 2)
        above = limit - below
    else:
        above = min(above, limit / 2)
        below = limit - above
    return expected - below, expected + above


def mean_of_three(middle: float, one: float, other: float) -> float:
    """Mean of a quantity known at 50 % and at 10 and 90 % of what it depends on (Swanson's rule).

    A gain can rise and fall again with the speed of the host: the middle alone may be its peak.
    """
    return 0.4 * middle + 0.3 * (one + other)


def told_scales(
    stretch: tuple[float, float, float],
    scales: NDArray[np.float64],
    steps_ns: NDArray[np.float64],
    wanted_ns: float,
) -> tuple[float, float, float]:
    """How fast the host was, from what profilers do (`stretch`) and from a step without one.

    `stretch`: 10, 50 and 90 % of what a profiler stretches host work by. `steps_ns`: the replayed
    step at each of `scales` (ascending); `wanted_ns`: the measured one, known within LOGGED_STEP.
    Returns 90, 50 and 10 % of the host time's scale. Where the host sets the step,
    the measured one decides; where the GPU does, it says next to nothing and `stretch` stands.
    """
    fine = np.linspace(math.log(scales[0]), math.log(scales[-1]), FINE_SCALES)
    least, middle, most = (-math.log(one) for one in stretch)
    tail = np.where(fine > middle, least - middle, middle - most)
    usual = ((fine - middle) * NORMAL_90 / np.maximum(tail, LEAST_TAIL)) ** 2
    steps = np.interp(fine, np.log(scales), steps_ns)
    off = ((steps / wanted_ns - 1.0) / calibrate.LOGGED_STEP) ** 2
    weight = np.exp(-0.5 * (usual + off - (usual + off).min()))
    share = np.cumsum(weight) / weight.sum()
    low, median, high = (math.exp(np.interp(q, share, fine)) for q in (0.1, 0.5, 0.9))
    return high, median, low


@dataclass(frozen=True)
class _Outcome:
    """The changed step in one case: its gain in ns, with a pipeline every stage's, its replay."""

    gain_ns: float
    stages_ns: tuple[float, ...]
    timing: Timing
    model: StepModel


def _span(outcomes: Sequence[_Outcome]) -> float:
    """Ns between the least and the greatest gain."""
    gains = [one.gain_ns for one in outcomes]
    return max(gains) - min(gains) if gains else 0.0


def _signed_ms(gain_ns: float) -> str:
    """`a gain of 1.5 ms` or `a loss of 1.5 ms`."""
    return f"a {'gain' if gain_ns >= 0 else 'loss'} of {abs(gain_ns) / NS_PER_MS:.1f} ms"


class _Engine:
    """Replays of one model; the unchanged ones are kept."""

    def __init__(
        self, model: StepModel, context: Context, unprofiled_step_ms: float | None
    ) -> None:
        self.model, self.context = model, context
        self.base: dict[float, Timing] = {}
        self.stretched = not unprofiled_step_ms or unprofiled_step_ms <= 0
        self.pipeline = any(lane.items.has_role(Role.PP_P2P).any() for lane in model.lanes)
        self.scales = self._scales(unprofiled_step_ms)

    def _scales(self, unprofiled_step_ms: float | None) -> tuple[float, float, float]:
        """Host time of the real run over that of the traced one: most, expected and least."""
        least, middle, most = self._stretch()
        if not self.model.lanes or not unprofiled_step_ms or unprofiled_step_ms <= 0:
            return 1.0 / least, 1.0 / middle, 1.0 / most
        wanted_ns = unprofiled_step_ms * NS_PER_MS / self.model.repeats
        scales = np.geomspace(1.0 / (calibrate.STRETCH_MARGIN * most), calibrate.SLOWER_HOST, 12)
        steps = [self.before(float(scale)).mean_step_ns for scale in scales]
        return told_scales((least, middle, most), scales, np.asarray(steps), wanted_ns)

    def _stretch(self) -> tuple[float, float, float]:
        """How much the profiler stretched host work: least, expected and most."""
        share = float(self.model.facts.get("recorded_share") or 0.0)
        if share > 0:
            least, middle, most = (
                round(1.0 / (1.0 - min(cost * share, calibrate.RECORDING_MOST)), 2)
                for cost in calibrate.RECORDING_COST
            )
            return least, middle, most
        recorded = self.model.facts.get("operators")
        return calibrate.STRETCH_OPERATORS if recorded else calibrate.STRETCH

    def before(self, scale: float) -> Timing:
        """The unchanged step with host work scaled."""
        if scale not in self.base:
            self.base[scale] = replay(self.model, host_scale=scale)
        return self.base[scale]

    def estimate(self, wanted: Sequence[_Wanted]) -> Estimate:
        """The gain of all of `wanted` together."""
        if not self.model.lanes:
            return Estimate(status="not_measured", reason="no training step in the trace")
        wanted = sorted(wanted, key=lambda one: one.info.order)
        for number, one in enumerate(wanted):
            if block := self._block(one, wanted[:number]):
                return self._blocked(one, block, [other for other in wanted if other is not one])
        try:
            middle = self._outcome(wanted, Case.EXPECTED, self.scales[1])
            by_case = [
                self._outcome(wanted, case, self.scales[1]) for case in (Case.LOW, Case.HIGH)
            ]
            by_host = [
                self._outcome(wanted, Case.EXPECTED, scale)
                for scale in (self.scales[0], self.scales[2])
                if scale != self.scales[1]
            ]
        except NotApplicableError as reason:
            return Estimate(status="not_measured", reason=str(reason))
        speeds = [middle.gain_ns, *(one.gain_ns for one in by_host)]
        expected = mean_of_three(*speeds) if len(speeds) == 3 else middle.gain_ns
        if undecided := self._undecided(speeds):
            return Estimate(status="not_measured", reason=undecided)
        # What overlap hides and what it costs are each larger than the difference of the two.
        overlapped = any(one.info.contention for one in wanted)
        apart = calibrate.REPEATABILITY_OVERLAPPED * self.model.step_ns if overlapped else 0.0
        noise = calibrate.REPEATABILITY * self.model.step_ns
        margin = max(noise, max(one.info.error for one in wanted) * abs(expected))
        # The change's own assumption, the host's speed, the model and the run are independent.
        parts = (
            [0.0, *(one.gain_ns - middle.gain_ns for one in by_case)],
            [0.0, *(one - expected for one in speeds)],
        )
        below = math.hypot(*(min(part) for part in parts), apart, margin)
        above = math.hypot(*(max(part) for part in parts), apart, margin)
        stages = [gain for one in (middle, *by_case, *by_host) for gain in one.stages_ns]
        low = min(expected - below, *stages, expected)
        high = min(max(expected + above, *stages, expected), self.model.step_ns)
        low, high = self._bounded(low, expected, high)
        return Estimate(
            status="estimated",
            low_ms=round(low / NS_PER_MS, 3),
            expected_ms=round(expected / NS_PER_MS, 3),
            high_ms=round(high / NS_PER_MS, 3),
            basis=self._basis(wanted, low, expected),
            dominant_assumption=self._dominant(wanted, by_case, by_host),
            next_wall=self._next_wall(middle.model, middle.timing),
        )

    def _block(self, one: _Wanted, before: Sequence[_Wanted]) -> Blocked | None:
        """Why `one` counts for nothing, even with the changes before it; or None."""
        if one.info.blocked is None:
            return None
        try:
            return one.info.blocked(self._changed(before, Case.EXPECTED), self.context)
        except NotApplicableError:
            return None  # the replay says which change does not apply

    def _blocked(self, one: _Wanted, block: Blocked, others: Sequence[_Wanted]) -> Estimate:
        """The others' gain without the blocked change; of it alone, the most that it can bring."""
        if others:
            found = self.estimate(others)
            text = f"{one.info.name} counts for nothing here: {block.reason}."
            if found.status == "not_measured":
                return found
            return structs.replace(found, basis=f"{found.basis} {text}")
        engine = self
        if block.first:
            ask = Ask(None, Case.EXPECTED, self.context)
            try:
                model = CHANGES[block.first].apply(self.model, ask)
            except NotApplicableError:
                return Estimate(status="not_measured", reason=block.reason)
            engine = _Engine(model, self.context, None)
            engine.scales, engine.stretched = self.scales, self.stretched
        free = _Wanted(replace(one.info, blocked=None), one.value)
        most = engine.estimate([free])
        if most.high_ms is None:
            return most
        high_ms = max(most.high_ms, 0.0)
        when = f" after {block.first}, nothing before" if block.first else ""
        return Estimate(
            status="estimated",
            low_ms=0.0,
            high_ms=high_ms,
            basis=f"At most {high_ms:.1f} ms{when}: {block.reason}.",
            dominant_assumption=most.dominant_assumption,
        )

    def _outcome(self, wanted: Sequence[_Wanted], case: Case, scale: float) -> _Outcome:
        """What the changes bring in one case at one speed of the host."""
        new = self._changed(wanted, case, scale)
        timing, final = self._replayed(new, scale, wanted, case)
        return _Outcome(
            self._gain(timing, scale), tuple(self._stage_gains(timing, scale)), timing, final
        )

    def _undecided(self, speeds: Sequence[float]) -> str | None:
        """Why there is no estimate where the host's unknown speed alone moves it beyond a range.

        A range that is cut to a width that helps to decide would then leave out what may well be.
        What gains at every speed is worth having all the same; a loss may be hidden by the cut.
        `speeds`: the gain at the median speed of the host, then at others.
        """
        least, most = min(speeds), max(speeds)
        if least >= 0 or most - least <= self._widest(speeds[0]):
            return None
        step_ms = self.model.step_ns / NS_PER_MS
        worst, best = (_signed_ms(one) for one in (least, most))
        unknown = "how fast the host is without the profiler decides"
        ask = "give --log for the unprofiled step, or measure it"
        if not self.stretched:
            ask = "the log leaves it open: measure it"
        return f"{unknown}: {worst} to {best} of {step_ms:.1f} ms per step: {ask}"

    def _changed(self, wanted: Sequence[_Wanted], case: Case, scale: float = 1.0) -> StepModel:
        model = self.model
        for one in wanted:
            model = one.info.apply(model, Ask(one.value, case, self.context, scale))
        return model

    def _replayed(
        self, model: StepModel, scale: float, wanted: Sequence[_Wanted], case: Case
    ) -> tuple[Timing, StepModel]:
        timing = replay(model, host_scale=scale)
        final = model
        if any(one.info.contention for one in wanted):
            for _ in range(CONTENTION_PASSES):
                added = [
                    new.items.residual_ns - old.items.residual_ns
                    for new, old in zip(final.lanes, model.lanes, strict=True)
                ]
                final = contended(self.model, model, timing.start_ns, timing.end_ns, case, added)
                timing = replay(final, host_scale=scale)
        return timing, final

    def _gain(self, timing: Timing, scale: float) -> float:
        """Ns per step, mean over the ranks."""
        return float(np.mean(self._by_rank(timing, scale)))

    def _by_rank(self, timing: Timing, scale: float) -> list[float]:
        """Ns of the traced step, per rank; no step gets shorter than its host takes to launch it.

        The share of the step is that of the step without a profiler, whose host work is `scale` of
        the traced one's.
        """
        before = self.before(scale)
        traced = self.before(1.0).mean_step_ns * self.model.repeats / max(before.mean_step_ns, 1.0)
        return [
            (old - max(new, min(host, old))) * traced
            for old, new, host in zip(before.step_ns, timing.step_ns, timing.host_ns, strict=True)
        ]

    def _stage_gains(self, timing: Timing, scale: float) -> list[float]:
        """With a pipeline the gains of the ranks: the slowest stage may set the step, or none."""
        return self._by_rank(timing, scale) if self.pipeline else []

    def _bounded(self, low: float, expected: float, high: float) -> tuple[float, float]:
        """A range wider than the limit says nothing; its longer side is cut first."""
        step = self.model.step_ns
        limit = self._widest(expected)
        # Where less than that may be gained, it is a range too wide to decide by.
        if low <= calibrate.RANGE_STEP * step:
            limit = min(limit, calibrate.RANGE_STEP * step)
        return narrowed(low, expected, high, limit)

    def _widest(self, expected: float) -> float:
        """Ns that a range around `expected` may span."""
        return max(
            calibrate.RANGE_POINTS * self.model.step_ns, calibrate.RANGE_GAINS * abs(expected)
        )

    def _basis(self, wanted: Sequence[_Wanted], low: float, expected: float) -> str:
        step = self.model.step_ns
        lane = self.model.lanes[0]
        ranks = f"{len(self.model.lanes)} rank{'s' if len(self.model.lanes) > 1 else ''}"
        names = " and ".join(self._named(one) for one in wanted)
        name = lane.step if lane.step.startswith("step") else f"step {lane.step}"
        text = (
            f"Replay of {name} on {ranks} with {names}: "
            f"{step / NS_PER_MS:.1f} ms becomes {(step - expected) / NS_PER_MS:.1f} ms"
        )
        if self.model.repeats > 1.0 + calibrate.SECTION_TOLERANCE:
            text += f" (modelled on its first {100 / self.model.repeats:.0f} %)"
        if self.stretched:
            least, _, most = self._stretch()
            text += f"; host work counted as stretched {least} to {most} times by the profiler"
        if self.pipeline:
            text += (
                "; stages are replayed alone, their receives keep their time: the range spans them"
            )
        if low < 0:
            text += f"; the range includes a loss of up to {-low / NS_PER_MS:.1f} ms"
        return text + "."

    def _named(self, one: _Wanted) -> str:
        """The change as the basis names it: overlap says which of its two kinds was simulated."""
        if one.info.name != "ep-overlap":
            return one.info.name
        mode = one.value or overlap_mode(self.model, self.context)
        kind = "merged micro-batches" if mode == "1f1b" else "chunks of each layer"
        return f"ep-overlap ({kind})"

    def _dominant(
        self, wanted: Sequence[_Wanted], by_case: Sequence[_Outcome], by_host: Sequence[_Outcome]
    ) -> str:
        """What moves the range most: the profiler's stretch or the change's own assumption."""
        if _span(by_host) > _span(by_case):
            if self.stretched:
                return (
                    "how much the profiler stretched host work: give --log for the unprofiled step"
                )
            return "how fast the host is, which the step from the log leaves open"
        return wanted[-1].info.dominant

    def _next_wall(self, model: StepModel, timing: Timing) -> str | None:
        """The wall whose recoverable time is largest in the changed step.

        Communication is exposed wire time; waiting, idle time and compute above its floor count as
        compute_host, forward work run again as memory.
        """
        communication = host = memory = permuted = 0.0
        for lane, start, end in zip(model.lanes, timing.start_ns, timing.end_ns, strict=True):
            items = lane.items
            work, wire = items.has_role(*COMPUTE), items.has_role(*COMMUNICATION)
            exposed = (union(start[wire], end[wire]) - union(start[work], end[work])).total
            waited = int(np.maximum((end - start - items.transfer_ns)[wire], 0).sum())
            communication += max(0, exposed - waited)
            host += max(0, int(start[-1]) - union(start, end).total) + min(waited, exposed)
            memory += union(start[items.recompute], end[items.recompute]).total
            permuted += float(items.duration_ns[items.has_role(Role.PERMUTE)].sum())
        host += self._excess_ns() / self.model.repeats * permuted / max(self._permuted_ns(), 1.0)
        walls = {"communication": communication, "compute_host": host, "memory": memory}
        best = max(walls, key=lambda wall: walls[wall])
        total = float(sum(timing.step_ns))
        return best if walls[best] > calibrate.WALL_SHARE * total else "compute_host"

    def _excess_ns(self) -> float:
        """Compute above its floor in the traced step, all lanes."""
        excess = self.context.metrics.get("compute_excess_ms", 0.0)
        return excess * NS_PER_MS * len(self.model.lanes)

    def _permuted_ns(self) -> float:
        lanes = self.model.lanes
        return float(
            sum(lane.items.duration_ns[lane.items.has_role(Role.PERMUTE)].sum() for lane in lanes)
        )
