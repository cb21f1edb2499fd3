"""What the causes rest on: rates, clocks, late ranks, shapes and balance, as metrics and tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import structs

from moe_advisor.measure.bandwidth import collective_rates, family_rate, link_gbps, span
from moe_advisor.measure.blocking import basis
from moe_advisor.measure.clock import clock_pairs
from moe_advisor.measure.gemms import rate_tflops
from moe_advisor.measure.health import slow_gpus
from moe_advisor.measure.imbalance import expert_loads, imbalance_metrics, layer_loads
from moe_advisor.measure.lateness import lateness
from moe_advisor.measure.pairs import Pairs
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.partly import partly_matched
from moe_advisor.measure.peers import Peers
from moe_advisor.measure.registry import METRICS
from moe_advisor.measure.stages import mean
from moe_advisor.model import NONE
from moe_advisor.result import (
    ClockPair,
    CollectiveRate,
    MetricValue,
    RankValue,
    RecomputePart,
    Why,
)
from moe_advisor.roles.roles import Family, Role

NS_PER_MS = 1e6

_RATES = {
    "dp_collective_bus_gbps": Family.DP,
    "tp_collective_bus_gbps": Family.TP,
    "cp_collective_bus_gbps": Family.CP,
}

NO_SHAPES = (
    "the trace holds no operator shapes: capture with torch.profiler(record_shapes=True); nsys "
    "records none"
)


def why(partials: Sequence[RankPartial], peers: Peers, hardware: Mapping[str, Any]) -> Why:
    """The tables behind the causes. `partials` are the ranks with steps, in rank order."""
    slow = slow_gpus(partials)
    unmatched = {one.rank: ~peers.by_rank[one.rank].matched for one in partials}
    rates = collective_rates(peers.tally.rates, partials, hardware, unmatched)
    return Why(
        rates=[*rates, *_pipeline_rate(peers.pairs, partials, hardware)],
        clocks=clock_pairs(partials),
        lateness=lateness(peers.tally.arrivals, partials, {one.rank: one.slowness for one in slow}),
        slow_gpus=slow,
        recompute=_recompute(partials),
        experts=expert_loads(partials, peers.tally.dispatches),
        layers=layer_loads(partials, peers.tally.dispatches),
    )


def extra_metrics(
    partials: Sequence[RankPartial],
    peers: Peers,
    hardware: Mapping[str, Any],
    found: Mapping[str, MetricValue],
    clocks: Sequence[ClockPair],
) -> dict[str, MetricValue]:
    """Metrics that need more than one rank's times; `found` are those measured so far."""
    result = imbalance_metrics(partials, peers.tally.dispatches, found)
    result["ep_a2a_blocking_ms"] = _blocking(partials, found["ep_a2a_blocking_ms"])
    for name, family in _RATES.items():
        result[name] = _family_rate(name, family, partials, peers)
    result |= _link_share(partials, peers, hardware, found)
    result |= _pipeline(peers.pairs, partials)
    result |= _held_sms(partials)
    result |= _gemms(partials, hardware)
    result |= _clocks(clocks)
    return result


def _absent(name: str, reason: str) -> MetricValue:
    return MetricValue(status="not_measured", value=None, unit=METRICS[name].unit, reason=reason)


def _values(
    name: str,
    partials: Sequence[RankPartial],
    values: Mapping[int, float],
    basis_: str | None = None,
) -> MetricValue:
    """A metric that is a mean over the ranks that have a value."""
    ranks = [one for one in partials if one.rank in values]
    return MetricValue(
        status="measured",
        value=_round(mean(ranks, [values[one.rank] for one in ranks])),
        unit=METRICS[name].unit,
        basis=basis_,
        per_rank=[RankValue(rank=rank, value=_round(values[rank])) for rank in sorted(values)],
    )


def _blocking(partials: Sequence[RankPartial], value: MetricValue) -> MetricValue:
    """The measured value with its evidence; an estimate where event records are missing."""
    ns: dict[str, int] = {}
    for one in partials:
        for name, held in one.facts["blocking"].items():
            ns[name] = ns.get(name, 0) + held
    if value.status != "measured" or not any(one.times_ns["ep_a2a"].any() for one in partials):
        return value
    unsure = ns.get("structure", 0)
    high = mean(partials, [one.times_ns["ep_a2a_issued"].mean() for one in partials]) / NS_PER_MS
    low = (value.value or 0.0) * (1 - unsure / max(sum(ns.values()), 1))
    return MetricValue(
        status="estimated" if unsure else "measured",
        value=value.value,
        unit=value.unit,
        spread=value.spread,
        low=_round(low) if unsure else None,
        high=_round(max(high, value.value or 0.0)) if unsure else None,
        basis=basis(ns),
        per_rank=value.per_rank,
    )


def _family_rate(
    name: str, family: Family, partials: Sequence[RankPartial], peers: Peers
) -> MetricValue:
    if not any(
        role.label in one.roles for one in partials for role in Role if role.family is family
    ):
        return _absent(name, "no such communication in the trace")
    rate = family_rate(peers.tally.rates, family)
    if rate is None:
        reason = "needs the sizes of collectives of 1 MiB and more and all ranks of their groups"
        return _absent(name, reason)
    return MetricValue(
        status="measured", value=_round(rate[0]), unit=METRICS[name].unit, basis=rate[1]
    )


def _link_share(
    partials: Sequence[RankPartial],
    peers: Peers,
    hardware: Mapping[str, Any],
    found: Mapping[str, MetricValue],
) -> dict[str, MetricValue]:
    name = "ep_a2a_link_share"
    rate = found["ep_a2a_bus_gbps"]
    if rate.value is None:
        return {name: _absent(name, rate.reason or "the rate is not known")}
    by_rank = {one.rank: one for one in partials}
    groups = peers.groups(Family.EP)
    domain = hardware.get("nvlink_domain_size")
    spans = {span([by_rank[rank] for rank in ranks], domain) for ranks in groups}
    links = {link_gbps(where, hardware) for where in spans}
    link = next(iter(links)) if len(links) == 1 else None
    if link is None:
        reason = "the link's figure is not known for this GPU, or groups go over different links"
        return {name: _absent(name, reason)}
    return {
        name: MetricValue(
            status="measured",
            value=_round(rate.value / link),
            unit="share",
            basis=f"of {link:g} GB/s in one direction, {', '.join(sorted(spans))}",
            per_rank=[
                RankValue(rank=one.rank, value=_round((one.value or 0.0) / link))
                for one in rate.per_rank
            ],
        )
    }


def _pipeline(pairs: Pairs, partials: Sequence[RankPartial]) -> dict[str, MetricValue]:
    names = ("pp_p2p_wait_ms", "pp_p2p_transfer_ms")
    bus = "pp_p2p_bus_gbps"
    if not any(Role.PP_P2P.label in one.roles for one in partials):
        none = "no such communication in the trace"
        zero = {one.rank: 0.0 for one in partials}
        return {
            **{name: _values(name, partials, zero, none) for name in names},
            bus: _absent(bus, none),
        }
    if not any(one.any() for one in pairs.transfer.values()):
        reason = pairs.reason or "no pair of stages was read"
        return {name: _absent(name, reason) for name in (*names, bus)}
    if pairs.lost:
        told = f"{pairs.lost} sends and receives found no partner ({pairs.reason})"
        found = partly_matched(
            "pp_p2p", partials, pairs.wait, pairs.transfer, pairs.unmatched, told
        )
        result = found or {name: _absent(name, told) for name in names}
    else:
        result = {
            name: _values(
                name, partials, {rank: float(ns.mean()) / NS_PER_MS for rank, ns in one.items()}
            )
            for name, one in zip(names, (pairs.wait, pairs.transfer), strict=True)
        }
    if "schedule" in pairs.evidence:
        result = _by_schedule(result)
    if pairs.sent_ns and pairs.sent_bytes:
        result[bus] = MetricValue(
            status="measured",
            value=_round(pairs.sent_bytes / pairs.sent_ns),
            unit="GB/s",
            basis=f"{pairs.count} matched kernels",
        )
    else:
        result[bus] = _absent(bus, "the trace does not tell what the sends carried")
    return result


def _by_schedule(found: Mapping[str, MetricValue]) -> dict[str, MetricValue]:
    """Bounds for neighbours that only the order of a 1F1B schedule tells.

    The shortest of all kernels in an exchange is what the transfer took at most.
    """
    told = "whom a kernel talks to is not in the trace: by the order of a 1F1B schedule"
    total = sum(one.value or 0.0 for one in found.values())
    return {
        name: structs.replace(
            one,
            status="estimated",
            low=one.low or one.value if name.endswith("_wait_ms") else 0.0,
            high=_round(total) if name.endswith("_wait_ms") else one.high or one.value,
            basis=f"{told}; {one.basis}" if one.basis else told,
        )
        if one.value is not None
        else one
        for name, one in found.items()
    }


def _pipeline_rate(
    pairs: Pairs, partials: Sequence[RankPartial], hardware: Mapping[str, Any]
) -> list[CollectiveRate]:
    if not pairs.count or not pairs.sent_ns or not pairs.sent_bytes:
        return []
    members = [one for one in partials if Role.PP_P2P.label in one.roles]
    where = span(members, hardware.get("nvlink_domain_size"))
    link = link_gbps(where, hardware)
    rate = pairs.sent_bytes / pairs.sent_ns
    steps = max(len(one.step_names) for one in partials)
    return [
        CollectiveRate(
            family=str(Family.PP),
            kind="send_recv",
            ranks=2,
            span=where,
            status="measured",
            count=_round(pairs.count / steps),
            gb_per_step=_round(pairs.sent_bytes / steps / 1e9),
            transfer_ms=_round(pairs.sent_ns / steps / NS_PER_MS),
            alg_gbps=_round(rate),
            bus_gbps=_round(rate),
            link_gbps=link,
            link_share=_round(rate / link) if link else None,
            remark="one direction of kernels that send and receive at once",
        )
    ]


def _held_sms(partials: Sequence[RankPartial]) -> dict[str, MetricValue]:
    name = "comm_sms_held"
    values: dict[int, float] = {}
    families: dict[str, list[float]] = {}
    for one in partials:
        sums = one.facts["held_sms"]
        busy = sum(ns for _, ns in sums.values())
        if busy:
            values[one.rank] = sum(blocks for blocks, _ in sums.values()) / busy
            for family, (blocks, ns) in sums.items():
                families.setdefault(family, []).append(blocks / ns)
    if not values:
        return {name: _absent(name, "no communication kernels, or their grids are not recorded")}
    sms = {one.device.sm_count for one in partials}
    total = f"of {next(iter(sms))}; " if len(sms) == 1 and None not in sms else ""
    each = ", ".join(f"{family} {np.mean(families[family]):.0f}" for family in sorted(families))
    return {name: _values(name, partials, values, f"{total}{each}")}


def _gemms(partials: Sequence[RankPartial], hardware: Mapping[str, Any]) -> dict[str, MetricValue]:
    result: dict[str, MetricValue] = {}
    for name, role in (
        ("expert_gemm_tflops", Role.EXPERT_GEMM),
        ("dense_gemm_tflops", Role.DENSE_GEMM),
    ):
        rates = {one.rank: rate_tflops(one.facts["gemms"], role) for one in partials}
        known = {rank: rate for rank, rate in rates.items() if rate is not None}
        result[name] = (
            _values(name, partials, known) if known else _absent(name, _no_shapes(partials, role))
        )
    fp8 = any(one.facts.get("fp8_kernels") for one in partials)
    peak = hardware.get("dense_fp8_tflops" if fp8 else "dense_bf16_tflops")
    rate, share = result["expert_gemm_tflops"], "expert_gemm_peak_share"
    if rate.value is None or not peak:
        result[share] = _absent(share, rate.reason or "the GPU's peak is not known")
    else:
        of = f"of {peak:g} TFLOP/s, dense {'FP8' if fp8 else 'BF16'}"
        values = {one.rank: (one.value or 0.0) / float(peak) for one in rate.per_rank}
        result[share] = _values(share, partials, values, of)
    rows = "rows_per_local_expert"
    means = {}
    for one in partials:
        each = [n / groups for _, n, groups in one.facts["gemms"].get("rows", []) if groups != NONE]
        if each:
            means[one.rank] = float(np.mean(each))
    result[rows] = _values(rows, partials, means) if means else _absent(rows, NO_SHAPES)
    return result


def _no_shapes(partials: Sequence[RankPartial], role: Role) -> str:
    if not any(role.label in one.roles for one in partials):
        return "no such GEMM found in the trace"
    if any(one.facts["gemms"] for one in partials):
        return "less than half of these GEMMs' time is under operators with recorded shapes"
    return NO_SHAPES


def _clocks(pairs: Sequence[ClockPair]) -> dict[str, MetricValue]:
    name = "clock_residual_us"
    if not pairs:
        return {name: _absent(name, "needs two ranks")}
    lost = [pair for pair in pairs if pair.status != "measured"]
    if lost:
        return {name: _absent(name, f"{lost[0].reason}; {len(lost)} of {len(pairs)} ranks so")}
    worst = max(pairs, key=lambda pair: (pair.residual_us or 0.0, -pair.rank))
    return {
        name: MetricValue(
            status="measured",
            value=worst.residual_us,
            unit="µs",
            basis=f"rank {worst.rank} against {worst.reference}: {worst.matches} ends of "
            f"{worst.anchors}",
            per_rank=[RankValue(rank=pair.rank, value=pair.residual_us) for pair in pairs],
        )
    }


def _recompute(partials: Sequence[RankPartial]) -> list[RecomputePart]:
    modules = sorted({name for one in partials for name in one.facts["recompute_modules"]})

    def ms(of: Callable[[RankPartial], float]) -> float:
        each = [of(one) / max(len(one.step_names), 1) for one in partials]
        return _round(mean(partials, each) / NS_PER_MS)

    rows = [
        RecomputePart(
            module=name,
            ms=ms(lambda one, name=name: one.facts["recompute_modules"].get(name, 0)),  # type: ignore[misc]
        )
        for name in modules
    ]
    return sorted(rows, key=lambda row: (-row.ms, row.module))


def _round(value: float) -> float:
    return round(float(value), 6)
