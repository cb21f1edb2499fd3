"""Runs a step model: who starts when, given durations, launches and dependencies."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moe_advisor.whatif.model import NO_ITEM, Ints, Lane, StepModel


@dataclass(frozen=True)
class Timing:
    """When everything happened: per lane, start and end of every item, ns after its step began."""

    starts: tuple[list[int], ...]
    ends: tuple[list[int], ...]
    step_ns: tuple[int, ...]
    host_ns: tuple[int, ...]
    """Host time from the first launch of the step to the first of the next."""
    forced: int
    """Collectives that had to be released without a participant (order differs between ranks)."""

    @cached_property
    def start_ns(self) -> tuple[Ints, ...]:
        """`starts` as arrays: most replays are only asked for their length."""
        return tuple(np.asarray(one, np.int64) for one in self.starts)

    @cached_property
    def end_ns(self) -> tuple[Ints, ...]:
        """`ends` as arrays."""
        return tuple(np.asarray(one, np.int64) for one in self.ends)

    @property
    def mean_step_ns(self) -> float:
        """Mean step over the lanes."""
        return float(np.mean(self.step_ns)) if self.step_ns else 0.0


class _Runner:
    """One lane on its way through its items; stops at collectives until the others arrive."""

    def __init__(self, lane: Lane, host_scale: float, alone: bool) -> None:
        items = lane.items
        self.lane = lane
        self.count = len(items)
        host = items.host_ns if host_scale == 1.0 else (items.host_ns * host_scale).astype(np.int64)
        before, own = lane.waits.before_ns, lane.waits.own_ns
        if host_scale != 1.0:
            before = (before * host_scale).astype(np.int64)
        duration = items.duration_ns
        if alone:
            duration = np.where(items.collective >= 0, items.transfer_ns, duration)
        self.columns = (
            items.stream.tolist(),
            duration.tolist(),
            host.tolist(),
            items.latency_ns.tolist(),
            items.gap_ns.tolist(),
            items.residual_ns.tolist(),
            ([NO_ITEM] * self.count if alone else items.collective.tolist()),
        )
        self.edges = lane.edges.by_item
        self.waits: dict[int, list[tuple[int, int, int, int]]] = {}
        for item, *wait in zip(
            lane.waits.item.tolist(),
            before.tolist(),
            own.tolist(),
            lane.waits.on.tolist(),
            lane.waits.lag_ns.tolist(),
            strict=True,
        ):
            self.waits.setdefault(item, []).append((wait[0], wait[1], wait[2], wait[3]))
        self.start = [0] * self.count
        self.end = [0] * self.count
        self.free = [0] * (int(items.stream.max(initial=0)) + 1)
        # Most items wait for nothing but their launch and their stream.
        self.bound = bytearray(self.count)
        for item in (*self.edges, *self.waits):
            if 0 <= item < self.count:
                self.bound[item] = True
        self.host = lane.host_start_ns
        self.next = 0
        self._run = self._running()

    def advance(self) -> int:
        """Runs until a collective (its number is returned, its start recorded) or the end (-1)."""
        return next(self._run, NO_ITEM)

    def _running(self) -> Iterator[int]:
        start, end, free = self.start, self.end, self.free
        edges, waits = self.edges, self.waits
        host = self.host
        rows = zip(range(self.count), self.bound, *self.columns, strict=True)
        for item, bound, where, duration, host_ns, latency, gap, residual, collective in rows:
            if bound and item in waits:
                for work, own, on, lag in waits[item]:
                    host += work
                    done = end[on] + lag if on >= 0 else host
                    host += own
                    host = max(host, done)
            host += host_ns
            begin = free[where] + gap
            launched = host + latency
            if launched > begin:
                begin = launched
            if bound and item in edges:
                for on, lag in edges[item]:
                    if end[on] + lag > begin:
                        begin = end[on] + lag
            begin += residual
            start[item] = begin
            if collective >= 0:
                self.host, self.next = host, item
                yield collective  # `release` says when it has ended
                continue
            finish = begin + duration
            end[item] = finish
            free[where] = finish
        self.host, self.next = host, self.count

    def release(self, end_ns: int) -> None:
        """Ends the collective that the lane stands at."""
        item = self.next
        self.end[item] = end_ns
        self.free[self.columns[0][item]] = end_ns
        self.next = item + 1


def replay(model: StepModel, *, host_scale: float = 1.0, alone: bool = False) -> Timing:
    """The times of a step of `model`.

    `host_scale` scales all host work (not the waits): a profiler stretches it. `alone` replays
    every lane as if its peers were always there when it arrives.
    """
    runners = [_Runner(lane, host_scale, alone) for lane in model.lanes]
    transfers = [lane.items.transfer_ns for lane in model.lanes]
    arrived: dict[int, dict[int, int]] = {}
    blocked: dict[int, int] = {}
    ready = list(range(len(runners)))
    forced = 0
    while ready or blocked:
        while ready:
            lane = ready.pop()
            number = runners[lane].advance()
            if number == NO_ITEM:
                continue
            runner = runners[lane]
            blocked[lane] = number
            there = arrived.setdefault(number, {})
            there[lane] = runner.start[runner.next] + runner.lane.offset_ns
            if len(there) == len(model.participants[number]):
                latest = max(there.values())
                for member in there:
                    if blocked.get(member) == number:
                        _release(
                            runners[member], latest, int(transfers[member][runners[member].next])
                        )
                        del blocked[member]
                        ready.append(member)
        if blocked:  # the ranks wait for each other in different orders: let the earliest go
            lane = min(blocked, key=lambda one: arrived[blocked[one]][one])
            runner = runners[lane]
            latest = max(arrived[blocked[lane]].values())
            _release(runner, latest, int(transfers[lane][runner.next]))
            del blocked[lane]
            ready.append(lane)
            forced += 1
    steps = tuple(runner.start[-1] for runner in runners)
    return Timing(
        tuple(runner.start for runner in runners),
        tuple(runner.end for runner in runners),
        steps,
        tuple(runner.host - runner.lane.host_start_ns for runner in runners),
        forced,
    )


def _release(runner: _Runner, latest_ns: int, transfer_ns: int) -> None:
    own = latest_ns - runner.lane.offset_ns + transfer_ns
    runner.release(max(own, runner.start[runner.next]))
