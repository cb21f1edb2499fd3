"""Builds the model of one representative step from the measured ranks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import among, distinct
from moe_advisor.measure.rank import MeasuredRank
from moe_advisor.measure.steps import StepWindows
from moe_advisor.model import ActivityKind, CopyKind
from moe_advisor.roles.roles import COMMUNICATION, Role
from moe_advisor.roles.taxonomy import builtin
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import PAYLOAD
from moe_advisor.whatif.coarsen import coarsen
from moe_advisor.whatif.delays import TOUCHING_NS, joined, with_delays
from moe_advisor.whatif.model import (
    FAMILY_OF_ROLE,
    NEVER_LATE,
    NO_ITEM,
    Edges,
    Ints,
    Items,
    Lane,
    StepModel,
    Waits,
)
from moe_advisor.whatif.recording import recorded_share, recording_ns

MAX_ITEMS = 24_000
"""Items of all lanes together; a larger step is merged kernel by kernel until it fits. A replay
takes about 1 µs per item, and ten what-ifs replay some sixty times: 1.5 s."""

SECTION_ITEMS = 40_000
"""A step of more activities than this, over all ranks, is modelled by its first micro-batches that
have so many: micro-batches repeat, and building and editing cost time per activity."""

SECTION_COLLECTIVES = 8
"""A section holds at least so many dispatches and combines, two layers forward and backward."""

MAX_LANES = 16
"""So many ranks are replayed together; of more, the slowest and evenly spaced others."""

WAIT_LAG_NS = 100_000
"""A synchronising call returns within this time after the work that it waited for; 5 to 30 µs are
usual. If it takes longer, it did something else."""

PAUSE_NS = 1_000_000
"""A launching thread that makes no call for so long does something other than launching: Python's
garbage collector, data loading, file access. Launches of one operator are 5 to 100 µs apart."""

COUNT_WAIT_NS = 20_000
"""A thread that is silent for so long until a dispatch library's notify kernel ends polls for its
token counts."""

QUEUE_BLOCKED_NS = 100_000
"""A launch call this long stood before a full launch queue (1,024 launches) if at least
QUEUE_DEPTH launches were pending; a launch takes 3 to 10 µs otherwise."""

QUEUE_DEPTH = 256

MEGATRON_NAMES = (
    "megatron.core",
    "LinearWithGradAccumulationAndAsyncCommunication",
    "MoEAuxLossAutoScaler",
    "_ReduceFromModelParallelRegion",
)
"""Ranges and autograd Functions that only Megatron-Core opens."""

SCOPES = ("", "attention", "router", "preprocess", "experts", "optimizer", "loss", "data")
_SCOPE_OF_CONTEXT = {
    "attention": "attention",
    "core_attention": "attention",
    "router": "router",
    "permute": "preprocess",
    "dispatch": "preprocess",
    "counts": "preprocess",
    "experts": "experts",
    "optimizer": "optimizer",
    "grad_norm": "optimizer",
    "zero_grad": "optimizer",
    "loss": "loss",
    "embedding": "loss",
    "data": "data",
}


def build(measured: Sequence[MeasuredRank], hardware: Mapping[str, Any]) -> StepModel:
    """The model of a step that all ranks have, near the median and inside the capture.

    `hardware` is the table of `advise.hardware.lookup`. Without any step the model has no lanes.
    """
    ranks = sorted(
        (one for one in measured if len(one.windows) and len(one.trace.activities)),
        key=lambda one: one.partial.rank,
    )
    ranks = _chosen_ranks(ranks)
    step = _common_step(ranks)
    if step is None:
        empty = calibrate.defaults(hardware)
        return StepModel((), (), empty, dict(hardware), (), SCOPES, {})
    parts = [_Rank(one, one.windows.names.index(step), step) for one in ranks]
    whole_ns = float(np.mean([part.finish - part.begin for part in parts]))
    _cut(parts)
    participants = _match(parts)
    offsets = _offsets(parts)
    lanes = [part.lane(offset) for part, offset in zip(parts, offsets, strict=True)]
    lanes = _with_transfers(_agreed(lanes, len(participants)), participants)
    constants = calibrate.measure(ranks, lanes, hardware)
    lanes = [with_delays(lane, constants) for lane in lanes]
    facts = dict(ranks[0].partial.facts)
    if any(name.startswith(MEGATRON_NAMES) for name in ranks[0].trace.names):
        facts["framework"] = "megatron"
    host_ns = sum(int(lane.items.host_ns.sum() + lane.waits.before_ns.sum()) for lane in lanes)
    if share := recorded_share([part.recording_ns() for part in parts], host_ns):
        facts["recorded_share"] = share
    model = StepModel(
        tuple(lanes),
        participants,
        constants,
        dict(hardware),
        ranks[0].trace.names,
        SCOPES,
        facts,
        whole_ns=whole_ns,
    )
    return coarsen(model, MAX_ITEMS)


def _chosen_ranks(ranks: list[MeasuredRank]) -> list[MeasuredRank]:
    if len(ranks) <= MAX_LANES:
        return ranks
    slowest = max(ranks, key=lambda one: float(one.partial.step_ns.mean()))
    spread = [ranks[round(i * (len(ranks) - 1) / (MAX_LANES - 1))] for i in range(MAX_LANES)]
    if slowest not in spread:
        spread[-1] = slowest
    return sorted({one.partial.rank: one for one in spread}.values(), key=lambda m: m.partial.rank)


def _common_step(ranks: Sequence[MeasuredRank]) -> str | None:
    """The common step nearest to the median length; one that another step follows, if possible."""
    if not ranks:
        return None
    names = [
        name
        for name in ranks[0].windows.names
        if all(name in one.windows.names for one in ranks[1:])
    ]
    if not names:
        ranks[:] = ranks[:1]  # type: ignore[index]
        names = list(ranks[0].windows.names)
    mean = {
        name: float(np.mean([one.partial.step_ns[one.windows.names.index(name)] for one in ranks]))
        for name in names
    }
    inner = [name for name in names if all(_followed(one.windows, name) for one in ranks)]
    middle = float(np.median(list(mean.values())))
    return min(inner or names, key=lambda name: (abs(mean[name] - middle), names.index(name)))


def _followed(windows: StepWindows, name: str) -> bool:
    at = windows.names.index(name)
    return at + 1 < len(windows) and int(windows.start[at + 1]) == int(windows.end[at])


@dataclass(frozen=True)
class _HostWait:
    start_ns: int
    end_ns: int
    before: int  # the item that is launched next
    on: int
    own_ns: int
    lag_ns: int


class _Rank:
    """The rows of one rank's step, in launch order, and its host's calls."""

    def __init__(self, one: MeasuredRank, step: int, name: str) -> None:
        self.one, self.name = one, name
        windows, table = one.windows, one.trace.activities
        self.begin, self.finish = int(windows.start[step]), int(windows.end[step])
        start, call = table["start_ns"].to_numpy(), table["call"].to_numpy()
        rows = np.flatnonzero((start >= self.begin) & (start < self.finish))
        calls = one.trace.calls["start_ns"].to_numpy()
        self.call_start, self.call_end = calls, one.trace.calls["end_ns"].to_numpy()
        launch = np.where(
            call[rows] >= 0, calls[np.maximum(call[rows], 0)] if len(calls) else 0, start[rows]
        )
        order = np.lexsort((start[rows], launch))
        self.rows = rows[order]
        self.launch = launch[order]
        self.call = call[self.rows]
        self.start, self.end = start[self.rows], table["end_ns"].to_numpy()[self.rows]
        self.stream = table["stream"].to_numpy()[self.rows]
        self.next_row = self._next_row(start, windows, step)
        self.host_end = int(windows.host_end[step])
        following = step + 1 < len(windows) and int(windows.start[step + 1]) == self.finish
        self.next_host = int(windows.host_start[step + 1]) if following else self.host_end
        self.collective = np.full(len(self.rows), NO_ITEM, np.int64)
        self.tids = np.unique(one.trace.calls["tid"].to_numpy()[self.call[self.call >= 0]])

    def cut(self, at: int) -> None:
        """Ends the modelled time when item `at` starts; what is launched from there on goes."""
        self.finish = int(self.start[at])
        self.next_row = int(self.rows[at])
        self.next_host = int(self.launch[at])
        for name in ("rows", "launch", "call", "start", "end", "stream", "collective"):
            setattr(self, name, getattr(self, name)[:at])

    def recording_ns(self) -> float:
        """Events recorded on the launching threads, each as long as the start of an operator."""
        first = int(self.launch.min(initial=self.begin))
        return recording_ns(self.one.trace, self.tids, first, self.next_host)

    def _next_row(self, start: Ints, windows: StepWindows, step: int) -> int:
        """The activity whose start ends the step, or -1 where the host or an end does."""
        found = np.flatnonzero(start == self.finish)
        if not len(found) or step + 1 >= len(windows):
            return -1
        call = self.one.trace.activities["call"].to_numpy()[found]
        launched = np.where(call >= 0, self.call_start[np.maximum(call, 0)], -1)
        inside = (launched >= windows.host_start[step + 1]) & (launched < self.finish)
        return int(found[inside][0]) if inside.any() else -1

    # ------------------------------------------------------------------------ collectives

    def channels(self) -> dict[tuple[str, int], tuple[NDArray[np.int64], Ints]]:
        """(communicator or family, 0) -> items in launch order."""
        table = self.one.trace.collectives
        group = np.full(len(self.one.trace.activities), -1, np.int64)
        if len(table):
            group[table["activity"].to_numpy()] = table["group"].to_numpy()
        roles = self.one.roles.roles[self.rows]
        items = np.flatnonzero(np.isin(roles, COMMUNICATION) & (roles != Role.PP_P2P))
        names = self.one.trace.names
        found: dict[str, list[int]] = {}
        for item, number, role in zip(
            items.tolist(), group[self.rows[items]].tolist(), roles[items].tolist(), strict=True
        ):
            label = names[number] if number >= 0 else ""
            label = label or f"family:{FAMILY_OF_ROLE[role]}"
            found.setdefault(label, []).append(item)
        return {
            (label, 0): (np.asarray(rows, np.int64), roles[rows].astype(np.int64))
            for label, rows in found.items()
        }

    # ------------------------------------------------------------------------------- lane

    def lane(self, offset_ns: int) -> Lane:
        """The lane, without transfers and with every unexplained delay still in `residual_ns`."""
        one, rows = self.one, self.rows
        table = one.trace.activities
        count = len(rows) + 1
        stream, streams = self._streams()
        waits = self._waits()
        host, alloc, pause, clock = self._host(waits)
        contexts = one.roles.contexts
        names = np.asarray(
            [SCOPES.index(_SCOPE_OF_CONTEXT.get(name, "")) for name in contexts.names], np.int64
        )
        known = self.call >= 0
        scope, backward = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
        scope[known] = names[contexts.index[self.call[known]]]
        backward[known] = contexts.backward[self.call[known]]
        recompute = one.recompute[rows]
        roles = one.roles.roles[rows].astype(np.int64)
        scope = np.where((scope == 0) & (roles == Role.ATTENTION), 1, scope)
        scope = np.where((scope == 0) & (roles == Role.ROUTER), 2, scope)
        sent, own = self._bytes()
        launched = known.copy()
        graph = table["in_graph"].to_numpy()[rows]
        edges = self._edges(stream)
        by_item = self.next_row >= 0
        final_stream = streams.get(int(table["stream"][self.next_row]), -1) if by_item else -1

        def column(values: Iterable[Any], last: int | bool, kind: Any = np.int64) -> NDArray[Any]:
            return np.concatenate([np.asarray(values, kind), np.asarray([last], kind)])

        items = Items(
            stream=column(stream, final_stream if final_stream >= 0 else len(streams)),
            duration_ns=column(self.end - self.start, 0),
            host_ns=host,
            alloc_ns=alloc,
            pause_ns=pause,
            latency_ns=column(np.where(launched, 0, NEVER_LATE), 0),
            gap_ns=np.zeros(count, np.int64),
            residual_ns=np.zeros(count, np.int64),
            transfer_ns=np.zeros(count, np.int64),
            collective=column(self.collective, NO_ITEM),
            role=column(roles, int(Role.COMPUTE_OTHER)),
            name=column(table["name"].to_numpy()[rows], 0),
            blocks=column(table["blocks"].to_numpy()[rows], 0),
            bytes_sent=column(sent, -1),
            bytes_self=column(own, -1),
            kernels=column(np.ones(len(rows), np.int64), 0),
            scope=column(scope, 0),
            backward=column(backward, False, np.bool_),
            recompute=column(recompute, False, np.bool_),
            in_graph=column(graph, False, np.bool_),
            launch_ns=clock - self.begin,
            start_ns=column(self.start - self.begin, self.finish - self.begin),
        )
        if not by_item:
            ends = [int(np.flatnonzero(stream == number)[-1]) for number in range(len(streams))]
            edges = joined(edges, [len(rows)] * len(ends), ends)
        return Lane(
            rank=one.partial.rank,
            step=self.name,
            items=items,
            edges=edges,
            waits=_waits_table(waits, clock),
            host_start_ns=int(clock[0]) - self.begin,
            step_ns=self.finish - self.begin,
            offset_ns=offset_ns,
        )

    def _streams(self) -> tuple[Ints, dict[int, int]]:
        numbers, compact = np.unique(self.stream, return_inverse=True)
        return compact.astype(np.int64), {int(n): i for i, n in enumerate(numbers.tolist())}

    def _bytes(self) -> tuple[Ints, Ints]:
        sent = np.full(len(self.one.trace.activities), -1, np.int64)
        own = np.full(len(sent), -1, np.int64)
        table = self.one.trace.collectives
        if len(table):
            at = table["activity"].to_numpy()
            sent[at] = table["bytes_sent"].to_numpy()
            own[at] = table["bytes_self"].to_numpy()
        return sent[self.rows], own[self.rows]

    def _edges(self, stream: Ints) -> Edges:
        """Dependencies between streams, from wait calls and times.

        A wait call stands between two launches of one stream, and work launched before it on
        another stream had ended when this item started.
        """
        count = int(stream.max(initial=-1)) + 1
        if count < 2:
            return Edges(*(np.empty(0, np.int64) for _ in range(3)))
        waits = self._calls_named("StreamWaitEvent")
        found_item: list[NDArray[np.int64]] = []
        found_on: list[NDArray[np.int64]] = []
        places = [np.flatnonzero(stream == number) for number in range(count)]
        for mine in places:
            before = np.concatenate([[np.iinfo(np.int64).min], self.launch[mine][:-1]])
            last = np.searchsorted(waits, self.launch[mine], side="left") - 1
            waited = (
                (last >= 0) & (waits[np.maximum(last, 0)] > before)
                if len(waits)
                else np.zeros(len(mine), bool)
            )
            ends_before = np.concatenate([[self.begin], self.end[mine][:-1]])
            silent = (
                self.start[mine] - np.maximum(ends_before, self.launch[mine]) > WAIT_LAG_NS // 5
            )
            at = np.where(
                waited, waits[np.maximum(last, 0)] if len(waits) else 0, self.launch[mine]
            )
            for other in places:
                if other is mine or not len(other):
                    continue
                # A wait may be for an event of earlier work: the last that had ended will do.
                place = np.minimum(
                    np.searchsorted(self.launch[other], at, side="right"),
                    np.searchsorted(self.end[other], self.start[mine] + TOUCHING_NS, side="right"),
                )
                on = other[np.maximum(place - 1, 0)]
                # Without a wait call, only an end that explains the start is a dependency.
                close = self.start[mine] - self.end[on] < WAIT_LAG_NS // 10
                good = (place > 0) & (waited | (silent & close))
                found_item.append(mine[good])
                found_on.append(on[good])
        if not found_item:
            return Edges(*(np.empty(0, np.int64) for _ in range(3)))
        return joined(
            Edges(*(np.empty(0, np.int64) for _ in range(3))),
            np.concatenate(found_item),
            np.concatenate(found_on),
        )

    def _calls_named(self, part: str) -> Ints:
        names = self.one.trace.names
        wanted = [number for number, text in enumerate(names) if part in text]
        found: Ints = self.call_start[among(self.one.trace.calls["name"].to_numpy(), wanted)]
        return found

    # ------------------------------------------------------------------------------- host

    def _waits(self) -> list[_HostWait]:
        """Calls of the launching threads that stood until GPU work had ended."""
        trace = self.one.trace
        copies = trace.activities.filter(
            (pl.col("kind") == ActivityKind.MEMCPY)
            & pl.col("pageable")
            & (pl.col("copy_kind") == CopyKind.DEVICE_TO_HOST)
            & (pl.col("call") >= 0)
        )
        first = int(self.launch.min(initial=self.begin))
        last = max(self.next_host, int(self.launch.max(initial=self.begin)))
        inside = self._calls_between(first, last)
        begin, end = self.call_start[inside], self.call_end[inside]

        def here(calls: Ints) -> Ints:
            known = calls[(calls >= inside.start) & (calls < inside.stop)]
            return np.asarray(known - inside.start, np.int64)

        blocking = self._of_kind(inside, "sync", "blocking_copy")
        blocking[here(copies["call"].to_numpy())] = True
        long = np.zeros(len(begin), np.bool_)
        used = here(self.call)
        long[used] = (end - begin)[used] > QUEUE_BLOCKED_NS
        mine = np.isin(trace.calls["tid"].to_numpy()[inside], self.tids)
        rows = np.flatnonzero((blocking | long) & mine)
        launch_sorted = self.launch
        order = np.argsort(self.end, kind="stable")
        ends = self.end[order]
        intervals = [(int(begin[r]), int(end[r]), bool(blocking[r])) for r in rows.tolist()]
        intervals += [(a, b, True) for a, b in self._count_waits()]
        intervals.sort()
        found: list[_HostWait] = []
        reach = first
        for a, b, blocks in intervals:
            following = int(np.searchsorted(launch_sorted, a, side="right"))
            launched_before = following
            if following < len(launch_sorted) and launch_sorted[following] < b:
                continue  # another thread launched meanwhile: the host as a whole did not wait
            if a < reach or b > last:
                continue
            place = int(np.searchsorted(ends, b + TOUCHING_NS, side="right")) - 1
            on = NO_ITEM
            for back in range(place, max(place - 64, -1), -1):
                if order[back] < launched_before:
                    on = int(order[back])
                    break
            if not blocks:
                depth = launched_before - int(np.searchsorted(ends, a))
                if depth < QUEUE_DEPTH or on == NO_ITEM:
                    continue
            if on == NO_ITEM or self.end[on] <= a or b - self.end[on] > WAIT_LAG_NS:
                newest = launched_before - 1
                late = newest >= 0 and self.end[newest] <= b + TOUCHING_NS
                found.append(_HostWait(a, b, following, newest if late else NO_ITEM, b - a, 0))
            else:
                lag = max(0, b - int(self.end[on]))
                found.append(_HostWait(a, b, following, on, min(lag, b - a), lag))
            reach = b
        return found

    def _calls_between(self, first: int, last: int) -> slice:
        """The rows of the calls that begin in [first, last): calls come in order."""
        low, high = np.searchsorted(self.call_start, [first, last]).tolist()
        return slice(low, max(low, high))

    def _of_kind(self, rows: slice, *kinds: str) -> NDArray[np.bool_]:
        """Which of these calls are of one of `kinds` by their name."""
        taxonomy, trace = builtin(), self.one.trace
        names = trace.calls["name"].to_numpy()[rows]
        return among(
            names, [n for n in distinct(names) if taxonomy.call_kind(trace.names[n]) in kinds]
        )

    def _count_waits(self) -> list[tuple[int, int]]:
        """Silences of the launching threads that end with a dispatch library's notify kernel."""
        notify = np.flatnonzero(self.one.roles.roles[self.rows] == Role.EP_NOTIFY)
        table = self.one.trace.collectives
        known = (
            np.isin(self.rows[notify], table["activity"].to_numpy())
            if len(table)
            else np.zeros(len(notify), bool)
        )
        notify = notify[~known]
        if not len(notify):
            return []
        mine = np.isin(self.one.trace.calls["tid"].to_numpy(), self.tids)
        begin, end = self.call_start[mine], np.maximum.accumulate(self.call_end[mine])
        found = []
        for item in notify.tolist():
            at = int(np.searchsorted(begin, self.end[item], side="left"))
            if at == 0 or at >= len(begin):
                continue
            a, b = int(end[at - 1]), int(begin[at])
            if (
                b - a > COUNT_WAIT_NS
                and a >= self.launch[item]
                and b - self.end[item] < WAIT_LAG_NS
            ):
                found.append((a, b))
        return found

    def _host(self, waits: Sequence[_HostWait]) -> tuple[Ints, Ints, Ints, Ints]:
        """Host time before each launch without the waits; of it allocator time and pauses.

        Last come the launch times; the very last is when the host reaches the next step.
        """
        count = len(self.rows)
        # Items without a known launch, and replayed kernels after the first, cost the host nothing.
        clock = np.where(self.call >= 0, self.launch, np.iinfo(np.int64).min)
        clock = np.maximum.accumulate(clock)
        first = int(self.launch[self.call >= 0].min(initial=self.finish))
        clock = np.maximum(clock, first)
        by_item = self.next_row >= 0
        table = self.one.trace.activities
        final = self.next_host
        if by_item and int(table["call"][self.next_row]) >= 0:
            final = int(self.call_start[int(table["call"][self.next_row])])
        clock = np.concatenate([clock, [max(final, int(clock[-1]) if count else final)]])
        host = np.diff(clock, prepend=clock[0])
        previous_end: dict[int, int] = {}
        for wait in waits:
            previous_end[wait.before] = wait.end_ns
        for item, reached in previous_end.items():
            host[item] = clock[item] - reached
        alloc, pause = self._held(clock)
        return host.astype(np.int64), np.minimum(alloc, host), np.minimum(pause, host), clock

    def _held(self, clock: Ints) -> tuple[Ints, Ints]:
        tids = self.one.trace.calls["tid"].to_numpy()
        first, last = int(clock[0]), int(clock[-1])
        here = self._calls_between(first, last + 1)
        mine = np.isin(tids[here], self.tids)
        begin, end = self.call_start[here], self.call_end[here]
        rows = np.flatnonzero(self._of_kind(here, "alloc") & mine)
        alloc = np.zeros(len(clock), np.int64)
        at = np.searchsorted(clock, begin[rows], side="right")
        inside = at < len(clock)
        np.add.at(alloc, at[inside], (end - begin)[rows][inside])
        pause = np.zeros(len(clock), np.int64)
        # Calls that began before may still stand; where none does, what was before is no pause.
        earlier = np.flatnonzero(self.call_end[: here.start] >= first)
        earlier = earlier[np.isin(tids[earlier], self.tids)]
        stood = self.call_end[earlier].max(initial=first - 1)
        reach = np.maximum.accumulate(np.concatenate([[stood], end[mine]]))
        gap_from, gap_to = reach[:-1], begin[mine]
        long = (gap_to - gap_from > PAUSE_NS) & (gap_from >= clock[0]) & (gap_to <= clock[-1])
        at = np.searchsorted(clock, gap_to[long], side="left")
        at = np.minimum(at, len(clock) - 1)
        np.add.at(pause, at, (gap_to - gap_from)[long])
        return alloc, pause


def _waits_table(waits: Sequence[_HostWait], clock: Ints) -> Waits:
    before, reach, last = [], int(clock[0]), -1
    for wait in waits:
        if wait.before != last:
            reach, last = int(clock[max(wait.before - 1, 0)]), wait.before
        before.append(max(0, wait.start_ns - reach))
        reach = wait.end_ns
    columns = zip(
        *(
            (w.before, work, w.own_ns, w.on, w.lag_ns)
            for w, work in zip(waits, before, strict=True)
        ),
        strict=True,
    )
    table = [np.asarray(column, np.int64) for column in columns] if waits else []
    return Waits(*(table or [np.empty(0, np.int64) for _ in range(5)]))


# ------------------------------------------------------------------------------ several ranks


def _cut(parts: Sequence[_Rank]) -> None:
    """Cuts a very long step behind the same collective on all ranks, between micro-batches."""
    if sum(len(part.rows) for part in parts) <= SECTION_ITEMS:
        return
    budget = SECTION_ITEMS // len(parts)
    places = []
    for part in parts:
        roles = part.one.roles.roles[part.rows]
        places.append(np.flatnonzero(np.isin(roles, (Role.EP_DISPATCH, Role.EP_COMBINE))))
    count = min(int(np.searchsorted(one, budget)) for one in places)
    if count < SECTION_COLLECTIVES or min(map(len, places)) <= count:
        return
    backward = parts[0].one.roles.contexts.backward[np.maximum(parts[0].call, 0)][places[0]]
    begins = np.flatnonzero(backward[:count] & ~backward[1 : count + 1]) + 1
    chosen = int(begins[-1]) if len(begins) else count - count % 2
    for part, place in zip(parts, places, strict=True):
        part.cut(int(place[chosen]))


def _match(parts: Sequence[_Rank]) -> tuple[tuple[int, ...], ...]:
    """Numbers the collectives that several ranks took part in; ranks match in launch order."""
    by_channel: dict[Any, list[tuple[int, NDArray[np.int64]]]] = {}
    for lane, part in enumerate(parts):
        for label, (items, _) in part.channels().items():
            by_channel.setdefault(label, []).append((lane, items))
    participants: list[tuple[int, ...]] = []
    for label in sorted(by_channel):
        members = by_channel[label]
        if len(members) < 2 or len({len(items) for _, items in members}) > 1:
            continue
        lanes = tuple(lane for lane, _ in members)
        first = len(participants)
        for lane, items in members:
            parts[lane].collective[items] = first + np.arange(len(items))
        participants.extend([lanes] * len(members[0][1]))
    return tuple(participants)


def _agreed(lanes: Sequence[Lane], collectives: int) -> list[Lane]:
    """The lanes with one role per collective: a payload of next to nothing looks like counts."""
    role = np.full(collectives, NO_ITEM, np.int64)
    for lane in lanes:
        rows = np.flatnonzero(lane.items.has_role(*PAYLOAD) & (lane.items.collective >= 0))
        role[lane.items.collective[rows]] = lane.items.role[rows]
    found = []
    for lane in lanes:
        roles = lane.items.role.copy()
        rows = np.flatnonzero(lane.items.has_role(Role.EP_NOTIFY) & (lane.items.collective >= 0))
        paid = role[lane.items.collective[rows]]
        roles[rows] = np.where(paid == NO_ITEM, roles[rows], paid)
        found.append(lane.with_items(role=roles))
    return found


def _offsets(parts: Sequence[_Rank]) -> list[int]:
    """Start of each rank's step on one clock: collectives end together on all participants."""
    offsets: dict[int, int] = {0: 0}
    waiting = list(range(1, len(parts)))
    while waiting:
        best = max(
            ((len(_shared(parts[a], parts[b])[0]), -b, a) for b in waiting for a in offsets),
        )
        _, negative, known = best
        lane = -negative
        mine, theirs = _shared(parts[lane], parts[known])
        if len(mine):
            here = parts[lane].end[mine] - parts[lane].begin
            there = parts[known].end[theirs] - parts[known].begin + offsets[known]
            offsets[lane] = int(np.median(there - here))
        else:
            offsets[lane] = 0
        waiting.remove(lane)
    return [offsets[lane] for lane in range(len(parts))]


def _shared(first: _Rank, second: _Rank) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items of both ranks that are the same collective."""
    _, mine, theirs = np.intersect1d(
        np.where(first.collective >= 0, first.collective, -1 - np.arange(len(first.collective))),
        second.collective[second.collective >= 0],
        return_indices=True,
    )
    return mine, np.flatnonzero(second.collective >= 0)[theirs]


def _with_transfers(lanes: Sequence[Lane], participants: Sequence[tuple[int, ...]]) -> list[Lane]:
    """The lanes with, per matched collective, the time after the last participant's arrival."""
    latest = np.full(len(participants), np.iinfo(np.int64).min)
    for lane in lanes:
        rows = np.flatnonzero(lane.items.collective >= 0)
        np.maximum.at(
            latest, lane.items.collective[rows], lane.items.start_ns[rows] + lane.offset_ns
        )
    found = []
    for lane in lanes:
        items = lane.items
        rows = np.flatnonzero(items.collective >= 0)
        transfer = items.duration_ns.copy()
        ends = items.start_ns[rows] + items.duration_ns[rows] + lane.offset_ns
        after = ends - latest[items.collective[rows]]
        transfer[rows] = np.clip(
            after, np.minimum(1_000, items.duration_ns[rows]), items.duration_ns[rows]
        )
        found.append(lane.with_items(transfer_ns=transfer))
    return found
