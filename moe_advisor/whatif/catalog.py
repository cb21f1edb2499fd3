"""The list of changes that can be simulated, with what each assumes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from moe_advisor.whatif import calibrate
from moe_advisor.whatif.changes.dispatch import blocked, dispatcher
from moe_advisor.whatif.changes.edit import Ask, Blocked, Context
from moe_advisor.whatif.changes.experts import (
    ROUTER,
    balanced_experts,
    grouped_gemm,
    permute_fusion,
)
from moe_advisor.whatif.changes.graphs import SCOPES, cuda_graphs
from moe_advisor.whatif.changes.host import RECOMPUTED, host_syncs, recompute, stragglers
from moe_advisor.whatif.changes.overlap import MODES, ep_overlap
from moe_advisor.whatif.changes.wire import is_link, link
from moe_advisor.whatif.model import StepModel

Apply = Callable[[StepModel, Ask], StepModel]
Values = Callable[[str], bool]


@dataclass(frozen=True)
class ChangeInfo:
    """One what-if change; `order` is the order in which combined changes are applied.

    `parameters` says which values it takes and `values` checks one; without them it takes none.
    `dominant` is the assumption that moves the range most, `contention` whether work that ran alone
    now runs beside communication, `error` the share of the gain that the model may be wrong by
    beyond its cases, `blocked` tells why the run can't count on the change yet.
    """

    name: str
    title: str
    description: str
    parameters: str
    assumptions: tuple[str, ...]
    dominant: str
    apply: Apply
    order: int
    values: Values | None = None
    contention: bool = False
    error: float = calibrate.MODEL_ERROR
    blocked: Callable[[StepModel, Context], Blocked | None] | None = None


def _each_of(value: str, known: Sequence[str]) -> bool:
    """Whether every part of a list with commas is known."""
    return set(value.split(",")) <= set(known)


_ALL = (
    ChangeInfo(
        name="recompute",
        title="Recompute less",
        description="Forward work that runs again inside backward is dropped.",
        parameters="none (default), selective (core_attn) or the modules still recomputed: "
        "core_attn,moe_act,layernorm,moe",
        assumptions=(
            "The activations fit: checked against the memory headroom where it is measured.",
            "Dropped work leaves with its launches and its collectives; nothing else changes.",
        ),
        dominant="that the activations fit without other changes",
        apply=recompute,
        order=0,
        values=lambda value: value == "none" or _each_of(value, ("selective", *RECOMPUTED)),
    ),
    ChangeInfo(
        name="balanced-experts",
        title="Balance the experts",
        description="Every rank receives the same number of tokens.",
        parameters="",
        assumptions=(
            "Expert time is proportional to tokens above the shortest kernel.",
            "The wire runs at the rate that its busiest rank reached.",
        ),
        dominant="how even the routing gets: the estimate is for perfectly even",
        apply=balanced_experts,
        order=1,
    ),
    ChangeInfo(
        name="dispatcher",
        title="Dispatch with a library",
        description="One copy per token and rank on the wire, and one permutation less.",
        parameters="deepep (default) or hybridep",
        assumptions=(
            "The library copies at its published rate, the link at the rate seen in this trace.",
            "A link slower than NVLink makes the gain a bound. Inside a host it means that"
            " peer-to-peer access is missing: the bound is the gain once NVLink is used. Between"
            " hosts the library reaches at most the rate seen now; no pair of ours has tested it.",
            "Tokens choose experts uniformly; 8 experts per token unless the configuration says.",
            "The cheaper of the two local permutations goes.",
        ),
        dominant="the rate that the library reaches on this machine",
        apply=dispatcher,
        order=3,
        values=calibrate.DISPATCH_GBPS.__contains__,
        blocked=blocked,
    ),
    ChangeInfo(
        name="link",
        title="Faster link",
        description="Every collective's wire as fast as NVLink, or faster by a factor.",
        parameters="nvlink (default) or a factor, 2 for twice as fast",
        assumptions=(
            "nvlink: the all-to-all reaches 54 to 72 % of NVLink's figure, 61 % expected, where a"
            " trace shows less than 25 %; other collectives come along where they are as slow and"
            " every group fits into one NVLink domain.",
            "The fixed cost of a collective stays; waiting follows from the replay.",
            "Sends and receives of a pipeline keep their time.",
        ),
        dominant="the rate that the collectives reach on the faster link",
        apply=link,
        order=2,
        values=is_link,
    ),
    ChangeInfo(
        name="grouped-gemm",
        title="Grouped expert GEMM",
        description="One launch for all local experts instead of one per expert.",
        parameters="",
        assumptions=(
            "Kernels that fill part of the GPU run side by side, limited by memory.",
            "The launches of the loop over experts go, with their host time.",
        ),
        dominant="how well the grouped kernel fills the GPU",
        apply=grouped_gemm,
        order=4,
    ),
    ChangeInfo(
        name="permute-fusion",
        title="Fuse the permutation",
        description="Token permutation and its inverse as one kernel each.",
        parameters="router: the router's top-k and auxiliary loss are fused as well",
        assumptions=(
            "A fused permutation takes 1.1 to 2.5 times the time of moving its bytes.",
            "Per layer it leaves 19 launches before the dispatch, 2 after the combine and one stop"
            " of the host, as Transformer Engine's; a fused router spares 10 more before it and 4"
            " in backward. The host's time falls as the launches do, at worst not at all.",
        ),
        dominant="how near the fused kernel gets to the memory's bandwidth, and how much of the"
        " host's time goes with the launches",
        apply=permute_fusion,
        order=5,
        values=lambda value: value == ROUTER,
        error=calibrate.HOST_ERROR,
    ),
    ChangeInfo(
        name="host-syncs",
        title="No host synchronisation",
        description="No synchronising and allocator calls, no long pauses of the launching thread.",
        parameters="",
        assumptions=(
            "The waits are not needed for correctness; at worst every second one stays.",
            "A pause above 1 ms without a call is not launching (garbage collector, data).",
        ),
        dominant="which of the synchronising calls can go",
        apply=host_syncs,
        order=6,
        error=calibrate.HOST_ERROR,
    ),
    ChangeInfo(
        name="cuda-graphs",
        title="CUDA graphs",
        description="Launches inside the scope become one graph launch per layer and direction.",
        parameters="attn,moe_router (default), moe_preprocess, full or several of them",
        assumptions=(
            "Kernels keep their durations; a replay costs the host 20 to 60 µs and a launch.",
            "Shapes are static and the graphs' buffers fit; full also drops all waits.",
        ),
        dominant="what the framework does around each graph replay",
        apply=cuda_graphs,
        order=7,
        values=lambda value: _each_of(value.replace("+", ","), SCOPES),
        error=calibrate.HOST_ERROR,
    ),
    ChangeInfo(
        name="ep-overlap",
        title="Overlap the expert all-to-all",
        description="Dispatch and combine beside compute that does not depend on them.",
        parameters="1f1b (Megatron's merged micro-batches) or chunked (halves of one layer)",
        assumptions=(
            "GEMMs whose tiles are dealt out beforehand (CUTLASS) lose most of a wave to"
            " communication that was there first, others the SMs that it holds; the wire is 8 to"
            " 14 % slower beside the other half's compute, 10 to 34 % beside two streams, and it"
            " starts in the tail of a kernel that fills the GPU.",
            "Chunked: small kernels don't get shorter; forward joins wait for the whole stream; in"
            " backward the halves' gradients are put together: ten launches, and one per weight.",
            "1f1b: layers are launched in Megatron-Core's order; the launching thread hands over"
            " to autograd's and back 9 times per layer and micro-batch, 0.12 to 0.25 ms each; the"
            " first forward and the last backward (with a pipeline: warm-up and cool-down) stay"
            " exposed; a second micro-batch is kept in memory. No pair with a pipeline has been"
            " measured.",
        ),
        dominant="how much independent work really runs beside the wire",
        apply=ep_overlap,
        order=8,
        values=MODES.__contains__,
        contention=True,
    ),
    ChangeInfo(
        name="stragglers",
        title="No waiting for slow ranks",
        description="Every rank finds its peers already there.",
        parameters="",
        assumptions=("The late ranks' delays go away; an upper bound for fixing them.",),
        dominant="that the delay of the late rank can be removed",
        apply=stragglers,
        order=9,
    ),
)

CHANGES: Mapping[str, ChangeInfo] = MappingProxyType({one.name: one for one in _ALL})
"""Change name -> what it does and assumes."""


def fault(names: Sequence[str]) -> str | None:
    """Why these changes (`change` or `change=value`) can't be simulated, in one line; or None."""
    seen: set[str] = set()
    for name in names:
        change, given, value = name.partition("=")
        info = CHANGES.get(change)
        if info is None:
            near = get_close_matches(change, CHANGES, 1)
            hint = f"did you mean {near[0]}?" if near else "--list shows them"
            return f"{name}: there is no such change; {hint}"
        if change in seen:
            return f"{name}: {change} is given twice; a change is made once"
        if given and info.values is None:
            return f"{name}: {change} takes no value"
        if given and info.values is not None and not info.values(value):
            return f"{name}: the value is {info.parameters}"
        seen.add(change)
    return None
