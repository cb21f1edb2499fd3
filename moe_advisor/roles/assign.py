"""Gives every GPU activity its role, by the best evidence there is."""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import among, compact, distinct
from moe_advisor.intervals import Intervals, union
from moe_advisor.model import NONE, ActivityKind, CollectiveKind, RankTrace
from moe_advisor.roles.context import UNKNOWN, LaunchContexts, launch_contexts
from moe_advisor.roles.roles import Role, Source
from moe_advisor.roles.segments import Kernels, Segments
from moe_advisor.roles.taxonomy import Taxonomy

COUNTS_BYTES = 16_384
"""An all-to-all of at most this size carries token counts, not tokens: 2,048 counters of 8 bytes
are more experts than any published model has, and one token's row is already 4 KiB."""

GATHERED_COUNTS_BYTES = 1 << 20
"""The same for an all-gather over all ranks' counters (1,024 ranks × 128 experts × 8 bytes)."""

NORM_BYTES = 4_096
"""A data-parallel all-reduce of at most this size carries norms and flags, not gradients."""

INTERLEAVED_SHARE = 0.05
"""Structure decides only where less than this share of EP communication runs beside compute: with
overlapped micro-batches the place between dispatch and combine says nothing."""

TP_PER_ATTENTION = 1.5
"""A group with more collectives per attention kernel than this works inside every layer: tensor
parallelism has two per layer and direction, gradient reduction at most one per bucket."""

CONSTANT_SIZE_SHARE = 0.4
"""A size seen this often, beside the most frequent one, is what every rank hands in: its own tokens
(or their probabilities, half as often) times top-k. What the router sends back differs from layer
to layer and comes only forth and back."""

ADJACENT_SHARE = 0.5
"""Collectives of which more than half have no GEMM between themselves and an attention kernel
serve attention: projections lie between attention and everything else in a layer."""

EXPERTS_BETWEEN_SHARE = 0.2
"""Point-to-point kernels with only expert GEMMs between two of them, in at least this share of the
gaps, are dispatch and combine: at best every third gap is (tokens, probabilities, tokens back)."""

PROJECTED_SHARE = 0.1
"""More of a group's reductions than this in forward projections make it tensor parallel: two of its
seven a layer stand there with sequence parallelism, none of gradients but by a stray range."""

GROUPED_PASSES = 2
"""Grouped GEMMs compute experts completely if backward launches at least twice as many as forward:
one for the gradient of the input, one for the weights'."""

_COMPUTE_BY_CONTEXT: dict[str, dict[str, Role]] = {
    "gemm": {
        "experts": Role.EXPERT_GEMM,
        "router": Role.ROUTER,
        "core_attention": Role.ATTENTION,
        **dict.fromkeys(
            ("shared_experts", "attention", "dense", "loss", "embedding", "norm", "optimizer"),
            Role.DENSE_GEMM,
        ),
    },
    "softmax": {
        "core_attention": Role.ATTENTION,
        "attention": Role.ATTENTION,
        "router": Role.ROUTER,
        "loss": Role.EMBEDDING_LOSS,
    },
    "index": {
        **dict.fromkeys(
            ("permute", "dispatch", "combine", "counts", "experts", "moe"), Role.PERMUTE
        ),
        "router": Role.ROUTER,
        "embedding": Role.EMBEDDING_LOSS,
        "loss": Role.EMBEDDING_LOSS,
        "optimizer": Role.OPTIMIZER,
        "core_attention": Role.ATTENTION,
    },
    "elementwise": {
        **dict.fromkeys(("permute", "dispatch", "combine", "counts"), Role.PERMUTE),
        "router": Role.ROUTER,
        "experts": Role.ACTIVATION,
        "core_attention": Role.ATTENTION,
        "norm": Role.NORM,
        "loss": Role.EMBEDDING_LOSS,
        "embedding": Role.EMBEDDING_LOSS,
        **dict.fromkeys(("optimizer", "grad_norm", "zero_grad"), Role.OPTIMIZER),
    },
}
_COMPUTE_BY_CONTEXT["unknown"] = _COMPUTE_BY_CONTEXT["elementwise"]
_COMPUTE_BY_CONTEXT["accumulate"] = _COMPUTE_BY_CONTEXT["elementwise"]

_WITHOUT_CONTEXT = {
    "gemm": Role.GEMM_UNATTRIBUTED,
    "softmax": Role.ELEMENTWISE,
    "index": Role.ELEMENTWISE,
    "accumulate": Role.ELEMENTWISE,
    "elementwise": Role.ELEMENTWISE,
    "unknown": Role.COMPUTE_OTHER,
    "collective": Role.COLLECTIVE_OTHER,
}

_VAGUE = (UNKNOWN, "moe", "attention", "forward", "backward", "checkpoint_backward")
"""Ranges that hold several kinds of work: what stands under them is open to structure."""

_FAMILY_BY_CONTEXT = {
    "dispatch": "ep",
    "combine": "ep",
    "counts": "ep",
    "grad_reduce": "dp",
    "param_gather": "dp",
    "grad_norm": "norm",
    "optimizer": "dp",
    "p2p": "pp",
    "core_attention": "cp",
}


@dataclass(frozen=True)
class RoleTable:
    """Per activity: its role, the evidence, and where its launch stood.

    `known` is False for compute kernels of no family and no context. `group_family` maps the group
    of a collective (its number in `names`) to the family decided for the whole communicator.
    """

    roles: NDArray[np.int8]
    sources: NDArray[np.int8]
    contexts: LaunchContexts
    known: NDArray[np.bool_]
    natures: NDArray[np.int8]
    group_family: dict[int, str]

    def has_nature(self, nature: str) -> NDArray[np.bool_]:
        """Which activities have this nature by their name alone."""
        return np.asarray(self.natures == _NATURE_INDEX[nature])

    def mask(self, *roles: Role) -> NDArray[np.bool_]:
        """Which activities have one of these roles."""
        return among(self.roles, roles)


@dataclass(frozen=True)
class _Rows:
    """The activity columns that deciding needs, as arrays."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    kind: NDArray[np.uint8]
    name: NDArray[np.uint32]
    stream: NDArray[np.int64]
    call: NDArray[np.int64]
    context: NDArray[np.int16]
    linked: NDArray[np.bool_]


def assign_roles(rank: RankTrace, taxonomy: Taxonomy) -> RoleTable:
    """Every activity's role, by the best evidence of it (docs/reference/roles.md)."""
    contexts = launch_contexts(rank, taxonomy)
    table = rank.activities
    calls = table["call"].to_numpy()
    rows = _Rows(
        start=table["start_ns"].to_numpy(),
        end=table["end_ns"].to_numpy(),
        kind=table["kind"].to_numpy(),
        name=table["name"].to_numpy(),
        stream=table["stream"].to_numpy(),
        call=calls,
        context=_of_call(contexts.index, calls, 0),
        linked=_of_call(contexts.linked, calls, False),
    )
    nature = _natures(rank, rows, taxonomy)
    roles, sources, known = _by_name_and_context(rows, nature, contexts)
    families = _communication(rank, rows, nature, contexts, taxonomy, roles, sources)
    _beside_grouped(rows, nature, contexts, roles, sources)
    _by_structure(rank, rows, nature, contexts, roles, sources)
    kernels = _kernels(rank, rows, nature, roles)
    told = ~among(rows.context, [contexts.of(name) for name in _VAGUE])
    segments = Segments(kernels, roles, sources, told)
    segments.router()
    _unfused_attention(nature, roles, sources)
    segments.attribute()
    return RoleTable(roles, sources, contexts, known, nature, families)


def _of_call(values: NDArray, calls: NDArray[np.int64], default: int | bool) -> NDArray:  # type: ignore[type-arg]
    """Per activity, the value of the call that launched it."""
    if not len(values):
        return np.full(len(calls), default, values.dtype)
    return np.where(calls >= 0, values[np.maximum(calls, 0)], default).astype(values.dtype)


_NATURES = (
    "unknown",
    "collective",
    "gemm",
    "softmax",
    "index",
    "accumulate",
    "elementwise",
    *(role.label for role in Role),
)
_NATURE_INDEX = {nature: index for index, nature in enumerate(_NATURES)}


def _natures(rank: RankTrace, rows: _Rows, taxonomy: Taxonomy) -> NDArray[np.int8]:
    """What each activity's kind or kernel name can prove, as an index into _NATURES."""
    per_name = np.zeros(len(rank.names) + 1, np.int8)
    kernels = rows.kind == ActivityKind.KERNEL
    for name in distinct(rows.name[kernels]):
        family = taxonomy.kernel(rank.names[name])
        per_name[name] = _NATURE_INDEX[family.nature] if family else 0
    nature = per_name[rows.name] if len(rows.name) else np.empty(0, np.int8)
    nature[rows.kind == ActivityKind.MEMCPY] = _NATURE_INDEX["memcpy"]
    nature[rows.kind == ActivityKind.MEMSET] = _NATURE_INDEX["memset"]
    nature[rows.kind == ActivityKind.GRAPH] = _NATURE_INDEX["graph_opaque"]
    return nature


def _by_name_and_context(
    rows: _Rows, nature: NDArray[np.int8], contexts: LaunchContexts
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.bool_]]:
    """Roles from nature and context, one decision for each pair of the two."""
    pair = nature.astype(np.int32) * len(contexts.names) + rows.context
    values, inverse = compact(pair)
    role = np.empty(len(values), np.int8)
    by_context = np.zeros(len(values), np.bool_)
    known = np.ones(len(values), np.bool_)
    for index, value in enumerate(values.tolist()):
        what = _NATURES[value // len(contexts.names)]
        where = contexts.names[value % len(contexts.names)]
        decided = _COMPUTE_BY_CONTEXT.get(what, {}).get(where)
        by_context[index] = decided is not None
        if decided is None:
            decided = _WITHOUT_CONTEXT.get(what)
            known[index] = what != "unknown"
        role[index] = decided if decided is not None else Role[what.upper()]
    roles = role[inverse].astype(np.int8)
    sources = np.where(
        by_context[inverse],
        np.where(rows.linked, Source.FORWARD_LINK, Source.ANNOTATION),
        Source.NAME,
    ).astype(np.int8)
    sources[rows.kind != ActivityKind.KERNEL] = Source.METADATA
    return roles, sources, known[inverse]


# ------------------------------------------------------------------------------- communication


def _communication(
    rank: RankTrace,
    rows: _Rows,
    nature: NDArray[np.int8],
    contexts: LaunchContexts,
    taxonomy: Taxonomy,
    roles: NDArray[np.int8],
    sources: NDArray[np.int8],
) -> dict[int, str]:
    """Gives collectives their family, communicator by communicator; returns group -> family."""
    table = rank.collectives
    families: dict[int, str] = {}
    described = np.zeros(len(roles), np.bool_)
    library = bool((nature == _NATURE_INDEX["ep_dispatch"]).any())
    for (group, description), part in table.group_by(["group", "description"], maintain_order=True):
        family = taxonomy.group_family(rank.names[int(description)])
        source = Source.METADATA
        if family is None or family == "none":
            family, source = _family_of_group(rank, rows, nature, contexts, part)
        families[int(group)] = family
        at = part["activity"].to_numpy()
        counts = family == "ep" and (library or _feeds_all_to_all(rank, at))
        roles[at] = _roles_of_group(family, part, counts)
        sources[at] = source
        described[at] = True
    alone = np.flatnonzero((nature == _NATURE_INDEX["collective"]) & ~described)
    replayed = _exchanges_in_graphs(rank, rows, nature, alone)
    for row in alone.tolist():
        family = _FAMILY_BY_CONTEXT.get(contexts.names[rows.context[row]], "other")
        name = rank.names[rows.name[row]]
        kind = next((k for text, k in _KIND_BY_NAME if text in name), CollectiveKind.UNKNOWN)
        roles[row] = _role_of(family, kind, NONE)
        sources[row] = Source.ANNOTATION if family != "other" else Source.NAME
        if family == "other" and row in replayed:
            roles[row], sources[row] = Role.EP_DISPATCH, Source.STRUCTURE
    return families


def _exchanges_in_graphs(
    rank: RankTrace, rows: _Rows, nature: NDArray[np.int8], alone: NDArray[np.int64]
) -> set[int]:
    """Point-to-point kernels of CUDA graphs that the experts lie between.

    Nsight Systems gives kernels that a graph replays no communicator. Graphs hold layers, and no
    pipeline, so that what stands around their experts is dispatch and combine.
    """
    graphed = rank.activities["in_graph"].to_numpy()
    at = alone[graphed[alone]]
    names = rows.name[at]
    at = at[among(names, [one for one in distinct(names) if _is_send_recv(rank.names[one])])]
    if len(at) < 2 or _family_of_exchange(rows, nature, at, "other") != "ep":
        return set()
    return set(at.tolist())


_KIND_BY_NAME = (
    ("AllReduce", CollectiveKind.ALL_REDUCE),
    ("AllGather", CollectiveKind.ALL_GATHER),
    ("ReduceScatter", CollectiveKind.REDUCE_SCATTER),
    ("Broadcast", CollectiveKind.BROADCAST),
    ("SendRecv", CollectiveKind.UNKNOWN),
)


def _family_of_group(
    rank: RankTrace,
    rows: _Rows,
    nature: NDArray[np.int8],
    contexts: LaunchContexts,
    part: pl.DataFrame,
) -> tuple[str, Source]:
    """The family of a communicator that no description explains: contexts, then structure."""
    sends = part.filter(pl.col("kind") == CollectiveKind.SEND_RECV)
    if 2 * len(sends) > len(part):
        part = sends  # a pipeline's group also sums the gradient norm now and then
    at = part["activity"].to_numpy()
    kinds = set(part["kind"].unique().to_list())
    votes: dict[str, int] = {}
    for index, count in zip(*np.unique(rows.context[at], return_counts=True), strict=True):
        family = _FAMILY_BY_CONTEXT.get(contexts.names[int(index)])
        exchanged = kinds & {CollectiveKind.ALL_TO_ALL, CollectiveKind.SEND_RECV}
        if family == "cp" and not exchanged and not _beside_attention(rows, nature, at):
            family = None  # an all-gather with a projection in between is a tensor-parallel one
        if family:
            votes[family] = votes.get(family, 0) + int(count)
    if votes:
        return max(sorted(votes), key=lambda one: votes[one]), Source.ANNOTATION
    if CollectiveKind.ALL_TO_ALL in kinds:
        return _family_of_exchange(rows, nature, at, "ep"), Source.STRUCTURE
    if kinds <= {CollectiveKind.SEND_RECV, CollectiveKind.UNKNOWN}:
        exchanges = nature[at] == _NATURE_INDEX["collective"]
        names = rows.name[at]
        named = among(names, [one for one in distinct(names) if _is_send_recv(rank.names[one])])
        if kinds == {CollectiveKind.SEND_RECV} or (exchanges & named).all():
            told = kinds == {CollectiveKind.SEND_RECV}
            return _family_of_exchange(rows, nature, at, "pp" if told else None), Source.STRUCTURE
    sizes = part["bytes_sent"].to_numpy()
    under_moe = rows.context[at] == contexts.of("moe")
    if kinds == {CollectiveKind.ALL_GATHER} and under_moe.any() and _all_small(sizes):
        return "ep", Source.ANNOTATION
    routed = among(rows.context[at], [contexts.of("moe"), contexts.of("router")])
    if kinds == {CollectiveKind.ALL_REDUCE} and 2 * routed.sum() > len(at) and _all_small(sizes):
        return "other", Source.ANNOTATION  # the router's token counts for its auxiliary loss
    if kinds == {CollectiveKind.ALL_REDUCE} and _scales_follow(rank, rows, nature, at):
        return "other", Source.STRUCTURE
    if kinds & {
        CollectiveKind.ALL_REDUCE,
        CollectiveKind.ALL_GATHER,
        CollectiveKind.REDUCE_SCATTER,
    }:
        if kinds == {CollectiveKind.ALL_GATHER} and _feeds_all_to_all(rank, at):
            untold = (sizes == NONE).all()  # CUDA graphs replay it without its metadata
            if untold or _all_small(sizes):
                return "ep", Source.STRUCTURE
        if {CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER} <= kinds:
            alone = _experts_between(rows, nature, contexts, at)
            if len(alone) and float(alone.mean()) >= EXPERTS_BETWEEN_SHARE:
                return "ep", Source.STRUCTURE  # gathered for all experts, reduced behind them
        reduced = among(part["kind"].to_numpy(), [k for k in _REDUCING if k in kinds])
        forward = ~_of_call(contexts.backward, rows.call[at], True)
        projected = reduced & forward & (rows.context[at] == contexts.of("dense"))
        if projected.sum() > PROJECTED_SHARE * max(reduced.sum(), 1):
            return "tp", Source.ANNOTATION  # gradients are not reduced in a forward projection
        attention = int((nature == _NATURE_INDEX["attention"]).sum())
        if attention and len(at) > TP_PER_ATTENTION * attention:
            return "tp", Source.STRUCTURE
        return "dp", Source.STRUCTURE
    return "other", Source.NAME


_REDUCING = (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER)


def _scales_follow(
    rank: RankTrace, rows: _Rows, nature: NDArray[np.int8], at: NDArray[np.int64]
) -> bool:
    """Whether the next kernel behind most of these sums computes FP8 scales from largest values."""
    names = [one for one in distinct(rows.name) if _SCALE_NAME.search(rank.names[one])]
    if not names:
        return False
    compute = np.flatnonzero(
        (rows.kind == ActivityKind.KERNEL) & (nature != _NATURE_INDEX["collective"])
    )
    place = np.searchsorted(rows.start[compute], rows.end[at])
    place = place[place < len(compute)]
    follows = among(rows.name[compute[place]], names)
    return bool(len(place)) and float(follows.mean()) > ADJACENT_SHARE


def _is_send_recv(name: str) -> bool:
    return "SendRecv" in name


def _beside_attention(rows: _Rows, nature: NDArray[np.int8], at: NDArray[np.int64]) -> bool:
    """Whether most of these collectives have no GEMM between them and an attention kernel."""
    attention = nature == _NATURE_INDEX["attention"]
    gemm = (nature == _NATURE_INDEX["gemm"]) | (nature == _NATURE_INDEX["expert_gemm"])
    if not attention.any() or not gemm.any() or not len(at):
        return False
    near = np.zeros(len(at), np.bool_)
    starts, ends = rows.start[at], rows.end[at]
    attention_start, gemm_start = rows.start[attention], rows.start[gemm]
    after = np.searchsorted(attention_start, starts)
    has = after < len(attention_start)
    until = attention_start[np.minimum(after, len(attention_start) - 1)]
    between = np.searchsorted(gemm_start, until) - np.searchsorted(gemm_start, starts)
    near |= has & (between == 0)
    before = np.searchsorted(attention_start, ends) - 1
    since = attention_start[np.maximum(before, 0)]
    between = np.searchsorted(gemm_start, starts) - np.searchsorted(gemm_start, since)
    near |= (before >= 0) & (between == 0)
    return float(near.mean()) > ADJACENT_SHARE


def _experts_between(
    rows: _Rows, nature: NDArray[np.int8], contexts: LaunchContexts, at: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Per gap between two of these collectives: whether experts are the only GEMMs in it."""
    products = nature == _NATURE_INDEX["gemm"]
    inside = rows.context == contexts.of("experts")
    experts = (nature == _NATURE_INDEX["expert_gemm"]) | (products & inside)
    others = (products & ~inside) | (nature == _NATURE_INDEX["attention"])
    starts = np.sort(rows.start[at])
    found = [np.searchsorted(np.sort(rows.start[one]), starts) for one in (experts, others)]
    return np.asarray((np.diff(found[0]) > 0) & (np.diff(found[1]) == 0))


def _family_of_exchange(
    rows: _Rows, nature: NDArray[np.int8], at: NDArray[np.int64], default: str | None
) -> str:
    """Exchanges of which no metadata tells the purpose: what lies between them.

    With nothing but experts between two of them they are dispatch and combine; beside attention
    they are context parallelism's; else what this kind of exchange usually is.
    """
    starts = np.sort(rows.start[at])

    def counted(name: str) -> NDArray[np.int64]:
        found = rows.start[nature == _NATURE_INDEX[name]]
        return np.diff(np.searchsorted(found, starts))

    experts, attention, gemm = counted("expert_gemm"), counted("attention"), counted("gemm")
    alone = (experts > 0) & (attention == 0)
    if len(alone) and float((alone & (gemm == 0)).mean()) >= EXPERTS_BETWEEN_SHARE:
        return "ep"
    if _beside_attention(rows, nature, at):
        return "cp"
    if len(alone) and float(alone.mean()) >= EXPERTS_BETWEEN_SHARE and (attention > 0).any():
        return "ep"
    return default or ("pp" if (attention > 0).any() else "other")


def _all_small(sizes: NDArray[np.int64]) -> bool:
    return bool(((sizes >= 0) & (sizes <= GATHERED_COUNTS_BYTES)).all())


def _feeds_all_to_all(rank: RankTrace, at: NDArray[np.int64]) -> bool:
    """Whether most of these gathers are followed by an all-to-all as the next collective."""
    order = rank.collectives.sort("activity")
    rows = order["activity"].to_numpy()
    is_all_to_all = order["kind"].to_numpy() == CollectiveKind.ALL_TO_ALL
    place = np.searchsorted(rows, at)
    place = place[place + 1 < len(rows)]
    return bool(len(place)) and float(is_all_to_all[place + 1].mean()) > 0.5


def _roles_of_group(family: str, part: pl.DataFrame, counts: bool) -> NDArray[np.int8]:
    """Roles of a communicator's collectives; `counts` says what gathers of no known size carry."""
    rows = list(part.select("kind", "bytes_sent").iter_rows())
    roles = {row: _role_of(family, CollectiveKind(row[0]), row[1]) for row in set(rows)}
    if counts:
        roles[(int(CollectiveKind.ALL_GATHER), NONE)] = Role.EP_NOTIFY
    return np.asarray([roles[row] for row in rows], np.int8)


def _role_of(family: str, kind: CollectiveKind, bytes_sent: int) -> Role:
    """The role of one collective of a communicator whose family is known."""
    small = bytes_sent >= 0
    if family == "ep":
        if kind is CollectiveKind.ALL_TO_ALL or kind is CollectiveKind.UNKNOWN:
            return Role.EP_NOTIFY if small and bytes_sent <= COUNTS_BYTES else Role.EP_DISPATCH
        if kind is CollectiveKind.ALL_GATHER:
            counts = small and bytes_sent <= GATHERED_COUNTS_BYTES
            return Role.EP_NOTIFY if counts else Role.EP_DISPATCH
        if kind is CollectiveKind.REDUCE_SCATTER:
            return Role.EP_COMBINE
        return Role.EP_NOTIFY if kind is CollectiveKind.BARRIER else Role.COLLECTIVE_OTHER
    summed = kind is CollectiveKind.ALL_REDUCE and small and bytes_sent <= NORM_BYTES
    if family == "norm" or (family in ("dp", "pp") and summed):
        return Role.DP_NORM
    if family == "dp":
        gathers = kind in (CollectiveKind.ALL_GATHER, CollectiveKind.BROADCAST)
        return Role.DP_PARAM_GATHER if gathers else Role.DP_GRAD_REDUCE
    return {
        "tp": Role.TP_COLLECTIVE,
        "cp": Role.CP_COLLECTIVE,
        "pp": Role.PP_P2P,
    }.get(family, Role.COLLECTIVE_OTHER)


# ----------------------------------------------------------------------------------- structure


def _beside_grouped(
    rows: _Rows,
    nature: NDArray[np.int8],
    contexts: LaunchContexts,
    roles: NDArray[np.int8],
    sources: NDArray[np.int8],
) -> None:
    """Where GEMMs known as the experts' do all of their work, the other GEMMs are dense layers'.

    Known by name (grouped kernels) or by the range around them (Transformer Engine's grouped linear
    layer launches ordinary GEMMs, one per expert).
    """
    grouped = (nature == _NATURE_INDEX["expert_gemm"]) | (roles == Role.EXPERT_GEMM)
    backward = _of_call(contexts.backward, rows.call, False)
    forward, again = int((grouped & ~backward).sum()), int((grouped & backward).sum())
    if forward and again >= GROUPED_PASSES * forward:
        left = (roles == Role.GEMM_UNATTRIBUTED) & ~grouped
        roles[left] = Role.DENSE_GEMM
        sources[left] = Source.STRUCTURE


def _by_structure(
    rank: RankTrace,
    rows: _Rows,
    nature: NDArray[np.int8],
    contexts: LaunchContexts,
    roles: NDArray[np.int8],
    sources: NDArray[np.int8],
) -> None:
    """What the place between dispatch and combine tells, where nothing interleaves.

    The payload all-to-alls of a rank fall into bursts with GEMMs between them. A gap between two
    bursts belongs to the experts or to dense layers, never to both: gaps whose content is known
    (an expert GEMM by name or range; attention or a dense range) fix their neighbours' kind.
    """
    payload = np.flatnonzero(among(roles, (Role.EP_DISPATCH, Role.EP_COMBINE)))
    if not len(payload):
        return
    _index_kernels_in_moe(rows, nature, roles, payload)
    compute = _compute_intervals(rows, roles)
    ep = union(rows.start[payload], rows.end[payload])
    interleaved = (ep & compute).total > INTERLEAVED_SHARE * ep.total
    gemm = np.flatnonzero(among(roles, (Role.EXPERT_GEMM, Role.DENSE_GEMM, Role.GEMM_UNATTRIBUTED)))
    if not interleaved and len(gemm):
        burst_start, burst_of = _bursts(rows, payload, gemm)
        gap_kind = _gap_kinds(rows, roles, burst_start)
        _attribute_gemms(rows, roles, sources, burst_start, gap_kind)
        _attribute_around_experts(rows, nature, roles, sources, burst_start, gap_kind)
        named = among(nature[payload], (_NATURE_INDEX["ep_dispatch"], _NATURE_INDEX["ep_combine"]))
        into = np.where(gap_kind[burst_of] == 1, Role.EP_DISPATCH, Role.EP_COMBINE)
        undecided = (gap_kind[burst_of] == 0) | named
        roles[payload] = np.where(undecided, roles[payload], into)
    else:
        _direction_by_size(rank, roles, payload)
        _direction_by_context(rows, contexts, roles, payload)


def _index_kernels_in_moe(
    rows: _Rows, nature: NDArray[np.int8], roles: NDArray[np.int8], payload: NDArray[np.int64]
) -> None:
    """Sorts, scans and gathers that no range explains are permutation if EP brackets them."""
    index = (nature == _NATURE_INDEX["index"]) & (roles == Role.ELEMENTWISE)
    bracket = (rows.start >= rows.start[payload].min()) & (rows.end <= rows.end[payload].max())
    roles[index & bracket] = Role.PERMUTE


def _compute_intervals(rows: _Rows, roles: NDArray[np.int8]) -> Intervals:
    compute = (rows.kind == ActivityKind.KERNEL) & (roles < Role.EP_DISPATCH)
    return union(rows.start[compute], rows.end[compute])


def _bursts(
    rows: _Rows, payload: NDArray[np.int64], gemm: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start times of the bursts of payload collectives, and the burst that each belongs to."""
    starts = rows.start[payload]
    gemm_starts = np.sort(rows.start[gemm])
    between = np.searchsorted(gemm_starts, starts[1:]) > np.searchsorted(gemm_starts, starts[:-1])
    opens = np.concatenate([[True], between])
    return starts[opens], np.cumsum(opens) - 1


def _gap_kinds(
    rows: _Rows, roles: NDArray[np.int8], burst_start: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Per burst, what the gap after it holds: 1 experts, 2 dense layers, 0 not known."""
    kinds = np.zeros(len(burst_start), np.int8)

    def gaps_with(*wanted: Role) -> NDArray[np.int64]:
        at = np.searchsorted(burst_start, rows.start[among(roles, wanted)], side="right") - 1
        return np.unique(at[at >= 0])

    experts = gaps_with(Role.EXPERT_GEMM)
    dense = gaps_with(Role.ATTENTION, Role.DENSE_GEMM, Role.EMBEDDING_LOSS)
    kinds[experts] = 1
    kinds[dense] = 2
    kinds[np.intersect1d(experts, dense)] = 0
    known = np.flatnonzero(kinds)
    if not len(known):
        return kinds
    # Gaps alternate between known ones: an even distance keeps the kind, an odd one turns it. A
    # gap between two known ones that disagree about it stays unknown.
    positions = np.arange(len(kinds))
    before = known[np.maximum(np.searchsorted(known, positions, side="right") - 1, 0)]
    after = known[np.minimum(np.searchsorted(known, positions), len(known) - 1)]

    def implied(anchor: NDArray[np.int64]) -> NDArray[np.int8]:
        even = (positions - anchor) % 2 == 0
        return np.where(even, kinds[anchor], 3 - kinds[anchor]).astype(np.int8)

    one, other = implied(before), implied(after)
    return np.where(one == other, one, np.where(kinds > 0, kinds, 0)).astype(np.int8)


def _attribute_gemms(
    rows: _Rows,
    roles: NDArray[np.int8],
    sources: NDArray[np.int8],
    burst_start: NDArray[np.int64],
    gap_kind: NDArray[np.int8],
) -> None:
    open_gemms = np.flatnonzero(roles == Role.GEMM_UNATTRIBUTED)
    at = np.searchsorted(burst_start, rows.start[open_gemms], side="right") - 1
    kind = np.where(at >= 0, gap_kind[np.maximum(at, 0)], 2)  # before the first dispatch: dense
    roles[open_gemms[kind == 1]] = Role.EXPERT_GEMM
    roles[open_gemms[kind == 2]] = Role.DENSE_GEMM
    sources[open_gemms[kind > 0]] = Source.STRUCTURE


def _attribute_around_experts(
    rows: _Rows,
    nature: NDArray[np.int8],
    roles: NDArray[np.int8],
    sources: NDArray[np.int8],
    burst_start: NDArray[np.int64],
    gap_kind: NDArray[np.int8],
) -> None:
    """What unnamed pointwise and index kernels between dispatch and combine are for.

    Between the experts' first and last GEMM they are their activation, and from a kernel on that is
    named so, as an activation that runs again stands before its GEMM; before and after that they
    sort rows by expert and back.
    """
    generic = among(nature, (_NATURE_INDEX["elementwise"], _NATURE_INDEX["index"]))
    generic &= (sources == Source.NAME) & among(roles, (Role.ELEMENTWISE, Role.PERMUTE))
    found = np.flatnonzero(generic & (rows.start >= burst_start[0]))
    gap = np.searchsorted(burst_start, rows.start[found], side="right") - 1
    found, gap = found[gap_kind[gap] == 1], gap[gap_kind[gap] == 1]
    experts = np.flatnonzero(
        (roles == Role.EXPERT_GEMM) | ((roles == Role.ACTIVATION) & (sources == Source.NAME))
    )
    expert_gap = np.searchsorted(burst_start, rows.start[experts], side="right") - 1
    inside = expert_gap >= 0
    first = np.full(len(burst_start), np.iinfo(np.int64).max)
    last = np.full(len(burst_start), np.iinfo(np.int64).min)
    np.minimum.at(first, expert_gap[inside], rows.start[experts[inside]])
    np.maximum.at(last, expert_gap[inside], rows.start[experts[inside]])
    between = (rows.start[found] > first[gap]) & (rows.start[found] < last[gap])
    roles[found] = np.where(between, Role.ACTIVATION, Role.PERMUTE)
    sources[found] = Source.STRUCTURE


_SCALE_NAME = re.compile(r"delayed_scaling_recipe")
"""Transformer Engine's kernels that turn largest values into scales."""

_BACKWARD_NAME = re.compile(r"[Bb]ackward|_bwd")
_LOSS_NAME = re.compile(r"[Ss]oft_?[Mm]ax|nll_loss|cross_entropy")
_ABSOLUTE_NAME = re.compile(r"AbsFunctor|abs_kernel")
_FLOAT8_NAME = re.compile(r"float8_copy")
_SINGLE_NAME = re.compile(r"sgemm|f32f32_f32f32|^nvjet_sm\d+_sss")
"""Matrix products whose operands are all of 32 bits, as CUTLASS and cuBLAS name them."""


def _kernels(
    rank: RankTrace, rows: _Rows, nature: NDArray[np.int8], roles: NDArray[np.int8]
) -> Kernels:
    """The compute kernels stream by stream, and what their names tell.

    Gradients are accumulated by hooks in the midst of other work and say nothing about it.
    """
    compute = np.flatnonzero(
        (rows.kind == ActivityKind.KERNEL)
        & (roles < Role.EP_DISPATCH)
        & (nature != _NATURE_INDEX["accumulate"])
    )
    compute = compute[np.argsort(rows.stream[compute], kind="stable")]
    what, name = nature[compute], rows.name[compute]

    def of(*natures: str) -> NDArray[np.bool_]:
        return among(what, [_NATURE_INDEX[one] for one in natures])

    def called(pattern: re.Pattern[str], which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        texts = [one for one in distinct(name[which]) if pattern.search(rank.names[one])]
        return among(name, texts) & which

    gemm, softmax = of("gemm", "expert_gemm"), of("softmax")
    index, generic, router = of("index"), of("elementwise", "unknown"), of("router")
    loss = called(_LOSS_NAME, of("embedding_loss"))
    return Kernels(
        row=compute,
        stream=rows.stream[compute],
        gemm=gemm,
        softmax=softmax,
        index=index,
        router=router,
        loss=loss,
        named=~(gemm | softmax | index | generic | of("cast_quantize", "permute")),
        generic=generic,
        again=called(_BACKWARD_NAME, softmax | loss | router),
        single=called(_SINGLE_NAME, gemm),
        absolute=called(_ABSOLUTE_NAME, generic),
        to_float8=called(_FLOAT8_NAME, of("cast_quantize")),
    )


def _unfused_attention(
    nature: NDArray[np.int8], roles: NDArray[np.int8], sources: NDArray[np.int8]
) -> None:
    """Without any fused attention kernel, softmax outside router and loss is attention's own."""
    if (nature == _NATURE_INDEX["attention"]).any():
        return
    softmax = (nature == _NATURE_INDEX["softmax"]) & (roles == Role.ELEMENTWISE)
    roles[softmax] = Role.ATTENTION
    sources[softmax] = Source.STRUCTURE


def _direction_by_size(
    rank: RankTrace, roles: NDArray[np.int8], payload: NDArray[np.int64]
) -> None:
    """Dispatch or combine from sizes: a dispatch sends what every rank hands in, a combine gets it.

    The rank's own tokens times top-k are the same in every layer; what the router sends to its
    experts is not. Even routing tells nothing.
    """
    table = rank.collectives.filter(
        (pl.col("bytes_sent") >= 0)
        & (pl.col("bytes_received") >= 0)
        & pl.col("activity").is_in(payload.tolist())
    )
    if not len(table):
        return
    at = table["activity"].to_numpy()
    sent, received = table["bytes_sent"].to_numpy(), table["bytes_received"].to_numpy()
    sizes, counts = np.unique(np.concatenate([sent, received]), return_counts=True)
    constant = sizes[counts >= CONSTANT_SIZE_SHARE * counts.max()]
    gives, gets = np.isin(sent, constant), np.isin(received, constant)
    roles[at[gives & ~gets]] = Role.EP_DISPATCH
    roles[at[gets & ~gives]] = Role.EP_COMBINE


def _direction_by_context(
    rows: _Rows, contexts: LaunchContexts, roles: NDArray[np.int8], payload: NDArray[np.int64]
) -> None:
    """Dispatch or combine from ranges.

    The backward of a combine sends gradients to the experts: on the wire it is a dispatch, and
    the other way round, as DeepEP names its kernels.
    """
    context, linked = rows.context[payload], rows.linked[payload]
    combine = context == contexts.of("combine")
    dispatch = context == contexts.of("dispatch")
    returns = np.where(linked, dispatch, combine)
    goes = np.where(linked, combine, dispatch)
    roles[payload[returns]] = Role.EP_COMBINE
    roles[payload[goes]] = Role.EP_DISPATCH
