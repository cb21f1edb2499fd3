"""What the collectives of a Kineto trace move, and between whom.

torch copies the arguments of a collective to its kernel, but not where several calls are launched
together (pipeline send and receive, coalesced reductions) and not in CUDA graphs. There the host
range around the launch tells, or else the other kernels of the stream.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from moe_advisor.ingest.kineto_columns import CommsCall
from moe_advisor.ingest.kineto_events import FullArgs, integer, integers, text_of
from moe_advisor.model import NONE, CollectiveKind

_KINDS = (
    ("alltoall", CollectiveKind.ALL_TO_ALL),
    ("reducescatter", CollectiveKind.REDUCE_SCATTER),
    ("allgather", CollectiveKind.ALL_GATHER),
    ("allreduce", CollectiveKind.ALL_REDUCE),
    ("sendrecv", CollectiveKind.SEND_RECV),
    ("send", CollectiveKind.SEND_RECV),
    ("recv", CollectiveKind.SEND_RECV),
    ("broadcast", CollectiveKind.BROADCAST),
    ("barrier", CollectiveKind.BARRIER),
    ("reduce", CollectiveKind.REDUCE),
    ("gather", CollectiveKind.GATHER),
    ("scatter", CollectiveKind.SCATTER),
)
"""First match wins, in names with everything but letters removed."""

_ELEMENT_BYTES = {
    "byte": 1, "char": 1, "bool": 1, "uint8": 1, "int8": 1, "quint8": 1, "qint8": 1,
    "short": 2, "half": 2, "bfloat16": 2, "int16": 2, "uint16": 2, "float16": 2,
    "int": 4, "float": 4, "int32": 4, "uint32": 4, "float32": 4, "qint32": 4, "complexhalf": 4,
    "long": 8, "double": 8, "int64": 8, "uint64": 8, "float64": 8, "complexfloat": 8,
    "complexdouble": 16,
}  # fmt: skip
"""By the name that c10 or Python gives an element type, in lower case without `torch.`."""

WAIT = "wait"  # a Work.wait() call: it moves nothing
MAX_GROUP = 1 << 16  # ranks of a group worked out from start and stride; more is damage
COALESCED = ("nccl:coalesced", "nccl:allreduce_coalesced")
_UNNAMED = frozenset({"", "undefined", "none"})


def collective_kind(name: str) -> CollectiveKind:
    """The kind of the collective that torch or NCCL calls `name`."""
    letters = re.sub(r"[^a-z]", "", name.lower())
    return next((kind for word, kind in _KINDS if word in letters), CollectiveKind.UNKNOWN)


def nccl_kernel_kind(name: str) -> CollectiveKind:
    """The kind a NCCL kernel's name tells; SendRecv may be an all-to-all, so it tells nothing."""
    kind = collective_kind(name.split("(", 1)[0].split("<", 1)[0])
    return CollectiveKind.UNKNOWN if kind == CollectiveKind.SEND_RECV else kind


def is_nccl_kernel(name: str) -> bool:
    """Whether a kernel belongs to NCCL's collectives.

    Kernels of its expert-parallel library are no collectives of a process group: their names tell
    what they do.
    """
    lower = name.lower()
    return "nccl" in lower and "nccl_ep" not in lower


def element_bytes(dtype: str) -> int:
    """Size of one element of a c10 type; NONE where unknown."""
    name = dtype.lower().removeprefix("c10::").removeprefix("torch.")
    if name.startswith("float8"):
        return 1
    return _ELEMENT_BYTES.get(name, NONE)


@dataclass(frozen=True, slots=True)
class Collective:
    """One row of the table of collectives, with texts in place of numbers."""

    kind: CollectiveKind
    group: str = ""
    description: str = ""
    group_size: int = NONE
    bytes_sent: int = NONE
    bytes_received: int = NONE
    bytes_self: int = NONE
    in_splits: tuple[int, ...] = ()
    out_splits: tuple[int, ...] = ()
    sequence: int = NONE
    place: int = NONE
    sends_to: tuple[int, ...] = ()
    receives_from: tuple[int, ...] = ()


@dataclass(slots=True)
class GroupRanks:
    """The members of each group that the trace's metadata lists in full, by name."""

    members: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rank: int | None = None  # the global rank this trace is of


def _ranks_text(args: FullArgs) -> str:
    value = args.group_ranks
    if isinstance(value, list):
        return str([integer(item) for item in value])
    return text_of(value).strip()


def members(args: FullArgs, groups: GroupRanks) -> tuple[int, ...]:
    """Global ranks of the group, in group order; empty where the trace shortens the list."""
    listed = integers(args.group_ranks)
    if listed:
        return listed
    known = groups.members.get(text_of(args.group), ())
    size = integer(args.group_size)
    if known and size in (NONE, len(known)):
        return known
    first, stride = integer(args.first_rank), integer(args.rank_stride)
    # torch writes a stride of -1 or 0 where the ranks are not evenly spaced
    if first >= 0 and stride > 0 and 0 < size <= MAX_GROUP:
        return tuple(range(first, first + stride * size, stride))
    return ()


def group_key(args: FullArgs, groups: GroupRanks) -> str:
    """A name for the communicator that is the same on all its ranks."""
    name, ranks = text_of(args.group), _ranks_text(args)
    if ranks in ("", "[]"):
        listed = members(args, groups)
        ranks = str(list(listed)) if listed else f"size {integer(args.group_size)}"
    return f"{name}|{ranks}"


def _bytes(elements: object, older: object, size: int) -> int:
    count = integer(elements if elements is not None else older)
    return count * size if count >= 0 and size > 0 and count < 2**58 else NONE


def from_args(args: FullArgs, groups: GroupRanks) -> Collective:
    """The collective that `args` of a kernel or of `record_param_comms` describes."""
    name = text_of(args.collective)
    kind = collective_kind(name)
    width = element_bytes(text_of(args.dtype))
    sent = _bytes(args.sent_elements, args.sent_size, width)
    received = _bytes(args.received_elements, args.received_size, width)
    in_splits, out_splits = integers(args.sent_splits), integers(args.received_splits)
    size = integer(args.group_size)
    sends_to: tuple[int, ...] = ()
    receives_from: tuple[int, ...] = ()
    place = NONE
    if kind == CollectiveKind.SEND_RECV:
        moved = max(sent, received)
        sent, received = (moved, 0) if "send" in name.lower() else (0, moved)
        sends_to, receives_from = _peer(args.sends_to), _peer(args.receives_from)
        place = own_place(args, groups)
    description = text_of(args.group_description)
    return Collective(
        kind=kind,
        group=group_key(args, groups),
        description="" if description.lower() in _UNNAMED else description,
        group_size=size,
        bytes_sent=sent,
        bytes_received=received,
        bytes_self=_own_share(args, kind, sent, received, in_splits, groups),
        in_splits=in_splits,
        out_splits=out_splits,
        sequence=integer(args.collective_sequence),
        place=place,
        sends_to=sends_to,
        receives_from=receives_from,
    )


def is_p2p(args: FullArgs) -> bool:
    """Whether the call is a send or receive: its `Rank` is then the peer's, not its own."""
    return collective_kind(text_of(args.collective)) == CollectiveKind.SEND_RECV


def _peer(value: object) -> tuple[int, ...]:
    place = integer(value)
    return (place,) if place >= 0 else ()


def own_place(args: FullArgs, groups: GroupRanks) -> int:
    """The rank of this trace within the group; NONE where the trace does not say."""
    ranks = members(args, groups)
    return ranks.index(groups.rank) if groups.rank is not None and groups.rank in ranks else NONE


def _own_share(
    args: FullArgs,
    kind: CollectiveKind,
    sent: int,
    received: int,
    in_splits: tuple[int, ...],
    groups: GroupRanks,
) -> int:
    """Bytes that a rank sends to itself; NONE where the trace does not say."""
    size = integer(args.group_size)
    if kind == CollectiveKind.ALL_GATHER:
        return sent
    if kind == CollectiveKind.REDUCE_SCATTER:
        return received
    if kind == CollectiveKind.SEND_RECV:
        return 0
    if kind != CollectiveKind.ALL_TO_ALL or sent < 0 or size <= 0:
        return NONE
    if in_splits:
        position = integer(args.group_rank)
        if position < 0:
            ranks = members(args, groups)
            if groups.rank is None or groups.rank not in ranks:
                return NONE
            position = ranks.index(groups.rank)
        rows = sum(in_splits)
        if position >= len(in_splits):
            return NONE
        return in_splits[position] * sent // rows if rows else 0
    # an empty list means equal shares for all_to_all_single; a shortened one tells nothing
    if text_of(args.collective) == "all_to_allv" and text_of(args.sent_splits).strip() == "[]":
        return sent // size
    return NONE


def combine(parts: Sequence[Collective]) -> Collective:
    """One row for collectives that share a kernel: bytes add up, kind and group if they agree."""
    kinds = {part.kind for part in parts}
    keys = {(part.group, part.description, part.group_size) for part in parts}
    group, description, size = keys.pop() if len(keys) == 1 else ("", "", NONE)
    if len(parts) == 1:
        return parts[0]

    def total(values: list[int]) -> int:
        whole = sum(values)
        return NONE if any(value < 0 for value in values) or whole >= 2**62 else whole

    return Collective(
        kind=kinds.pop() if len(kinds) == 1 else CollectiveKind.UNKNOWN,
        group=group,
        description=description,
        group_size=size,
        bytes_sent=total([part.bytes_sent for part in parts]),
        bytes_received=total([part.bytes_received for part in parts]),
        bytes_self=total([part.bytes_self for part in parts]),
        place=parts[0].place if group else NONE,
        sends_to=tuple(sorted({one for part in parts for one in part.sends_to})),
        receives_from=tuple(sorted({one for part in parts for one in part.receives_from})),
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """A communication kernel without metadata, and the call that launched it."""

    activity: int
    kernel: str
    stream: int
    tid: int | None  # None where no launch is known
    start_ns: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """A host range that stands for several collectives launched together."""

    start_ns: int
    end_ns: int
    tid: int


def recover(
    launches: Sequence[Launch],
    spans: Sequence[Span],
    comms: Sequence[CommsCall],
    by_stream: dict[int, list[tuple[str, Collective]]],
    groups: GroupRanks,
) -> dict[int, Collective]:
    """Activity -> collective, for kernels that carry no metadata.

    `by_stream` holds, for each stream of collectives alone, kernel name and metadata of the others.
    """
    found: dict[int, Collective] = {}
    spans_of: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns):
        spans_of.setdefault(span.tid, []).append(span)
    calls_of: dict[int, list[CommsCall]] = {}
    for call in sorted(comms, key=lambda call: call.start_ns):
        calls_of.setdefault(call.tid, []).append(call)
    children: dict[Span, Collective | None] = {}
    sharing: dict[Span, int] = {}
    under: dict[int, Span] = {}
    since: dict[Span, int] = {}
    for own in spans_of.values():
        since |= {after: before.end_ns for before, after in pairwise(own)}
    for launch in launches:
        if launch.tid is None:
            continue
        candidates = spans_of.get(launch.tid, [])
        last = bisect_right(candidates, launch.start_ns, key=lambda span: span.start_ns)
        inside = [s for s in candidates[max(0, last - 4) : last] if s.end_ns >= launch.start_ns]
        if inside:
            under[launch.activity] = inside[-1]
            sharing[inside[-1]] = sharing.get(inside[-1], 0) + 1
    for launch in launches:
        around = under.get(launch.activity)
        row: Collective | None = None
        if around is not None:
            if around not in children:
                children[around] = _children(
                    around, since.get(around, 0), calls_of.get(around.tid, []), groups
                )
            row = children[around]
            if row is not None and sharing[around] > 1:  # several kernels: whose bytes is open
                row = replace(row, bytes_sent=NONE, bytes_received=NONE, bytes_self=NONE)
        if row is None:
            row = _from_stream(launch, by_stream.get(launch.stream, []))
        told = nccl_kernel_kind(launch.kernel)
        if told != CollectiveKind.UNKNOWN and row.kind == CollectiveKind.UNKNOWN:
            row = replace(row, kind=told)
        found[launch.activity] = row
    return found


def _children(
    span: Span, since_ns: int, calls: Sequence[CommsCall], groups: GroupRanks
) -> Collective | None:
    first = bisect_left(calls, span.start_ns, key=lambda call: call.start_ns)
    last = bisect_right(calls, span.end_ns, key=lambda call: call.start_ns)
    inside = [
        from_args(call.args, groups)
        for call in calls[first:last]
        if call.end_ns <= span.end_ns and text_of(call.args.collective).lower() != WAIT
    ]
    inside = inside or _batched_before(calls, first, since_ns, groups)
    return combine(inside) if inside else None


def _batched_before(
    calls: Sequence[CommsCall], first: int, since_ns: int, groups: GroupRanks
) -> list[Collective]:
    """The sends and receives that a batch collected before the range that launches them.

    They are the thread's last calls before `first` and after `since_ns`, the end of the batch
    before: any other collective, or waiting for one, ends the row.
    """
    found: list[Collective] = []
    for at in range(first - 1, -1, -1):
        if calls[at].start_ns < since_ns or not is_p2p(calls[at].args):
            break
        found.append(from_args(calls[at].args, groups))
    return found[::-1]


def _from_stream(launch: Launch, others: Sequence[tuple[str, Collective]]) -> Collective:
    """What the other collectives of the stream agree on: its group, and the kind by kernel."""
    groups = {(row.group, row.description, row.group_size) for _, row in others}
    group, description, size = groups.pop() if len(groups) == 1 else ("", "", NONE)
    kinds = {row.kind for kernel, row in others if kernel == launch.kernel}
    kind = kinds.pop() if len(kinds) == 1 and group else CollectiveKind.UNKNOWN
    return Collective(kind=kind, group=group, description=description, group_size=size)
