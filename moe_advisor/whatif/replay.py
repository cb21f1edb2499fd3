"""Runs a step model: who starts when, given durations, launches and dependencies."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moe_advisor.whatif.model import NO_ITEM, Ints, Lane, StepModel
from moe_advisor.whatif.order import put_off
from moe_advisor.whatif.stretches import Stretches


@dataclass(frozen=True)
class Timing:
    """When everything happened: per lane, start and end of every item, ns after its step began."""

    lanes: tuple["_Runner", ...]
    step_ns: tuple[int, ...]
    host_ns: tuple[int, ...]
    """Host time from the first launch of the step to the first of the next."""
    forced: int
    """Collectives that had to be released without a participant (order differs between ranks)."""

    @property
    def start_ns(self) -> tuple[Ints, ...]:
        """Starts of the items of each lane: most replays are only asked for their length."""
        return tuple(start for start, _ in self._times)

    @property
    def end_ns(self) -> tuple[Ints, ...]:
        """Ends of the items of each lane."""
        return tuple(end for _, end in self._times)

    @cached_property
    def _times(self) -> tuple[tuple[Ints, Ints], ...]:
        return tuple(lane.times() for lane in self.lanes)

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
        self.put_off = put_off(lane)
        self.then: dict[int, list[int]] = {}
        for item, last in sorted(self.put_off.items()):
            self.then.setdefault(last, []).append(item)
        self.late: dict[int, tuple[int, int, int, int, int, int]] = {}
        """Items put off: stream, duration, arrival of the launch, gap, residual, collective."""
        for item in (*self.edges, *self.waits, *self.put_off, *self.then):
            if 0 <= item < self.count:
                self.bound[item] = True
        matched: Ints = np.full(self.count, NO_ITEM) if alone else items.collective
        apart = (np.frombuffer(self.bound, np.uint8) > 0) | (matched != NO_ITEM)
        # What others wait for ends a stretch; the last item's start is the length of the step.
        for awaited in (lane.edges.on, lane.waits.on):
            apart[awaited[(awaited >= 0) & (awaited < self.count)]] = True
        apart[-1:] = True
        self.stretches = Stretches.of(items, host, duration, apart)
        ends = self.stretches.last
        self.rows = (
            ends.tolist(),
            np.frombuffer(self.bound, np.uint8)[ends].tolist(),
            *(column.tolist() for column in self.stretches.columns()),
            matched[ends].tolist(),
        )
        self.came: list[tuple[int, int]] = []
        """When the host and the stream came to each stretch."""
        self.host = lane.host_start_ns
        self.next = self.where = 0
        self._run = self._running()

    def advance(self) -> int:
        """Runs until a collective (its number is returned, its start recorded) or the end (-1)."""
        return next(self._run, NO_ITEM)

    def _running(self) -> Iterator[int]:
        start, end, free = self.start, self.end, self.free
        edges, waits, off, then = self.edges, self.waits, self.put_off, self.then
        host = self.host
        came = self.came
        rows = zip(*self.rows, strict=True)
        for item, bound, where, duration, host_ns, latency, gap, residual, collective in rows:
            came.append((host, free[where]))
            if bound and item in waits:
                for work, own, on, lag in waits[item]:
                    host += work
                    done = end[on] + lag if on >= 0 else host
                    host += own
                    host = max(host, done)
            host += host_ns
            if bound and item in off:
                self.late[item] = (where, duration, host + latency, gap, residual, collective)
                continue
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
                self.host, self.next, self.where = host, item, where
                yield collective  # `release` says when it has ended
            else:
                finish = begin + duration
                end[item] = finish
                free[where] = finish
            if bound and item in then:
                for late in then[item]:
                    self.host, self.next = host, late
                    if (number := self._start(late)) >= 0:
                        yield number
                    else:
                        self.release(start[late] + self.late[late][1])
        self.host, self.next = host, self.count

    def _start(self, item: int) -> int:
        """Starts an item that was put off; returns its collective or NO_ITEM."""
        self.where, _, launched, gap, residual, collective = self.late[item]
        begin = max(self.free[self.where] + gap, launched)
        for on, lag in self.edges.get(item, ()):
            begin = max(begin, self.end[on] + lag)
        self.start[item] = begin + residual
        return collective

    def release(self, end_ns: int) -> None:
        """Ends the collective that the lane stands at."""
        self.end[self.next] = end_ns
        self.free[self.where] = end_ns
        self.next += 1

    def times(self) -> tuple[Ints, Ints]:
        """Start and end of every item, once all have run."""
        host, free = zip(*self.came, strict=True)
        return self.stretches.times(host, free, self.start, self.end)


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
        tuple(runners),
        steps,
        tuple(runner.host - runner.lane.host_start_ns for runner in runners),
        forced,
    )


def _release(runner: _Runner, latest_ns: int, transfer_ns: int) -> None:
    own = latest_ns - runner.lane.offset_ns + transfer_ns
    runner.release(max(own, runner.start[runner.next]))
