"""Runs a step model: who starts when, given durations, launches and dependencies."""

from dataclasses import dataclass

import numpy as np

from moe_advisor.whatif.model import NO_ITEM, Ints, Lane, StepModel


@dataclass(frozen=True)
class Timing:
    """When everything happened: per lane, start and end of every item, ns after its step began."""

    start_ns: tuple[Ints, ...]
    end_ns: tuple[Ints, ...]
    step_ns: tuple[int, ...]
    host_ns: tuple[int, ...]
    """Host time from the first launch of the step to the first of the next."""
    forced: int
    """Collectives that had to be released without a participant (order differs between ranks)."""

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
        self.columns = (
            items.stream.tolist(),
            items.duration_ns.tolist(),
            host.tolist(),
            items.latency_ns.tolist(),
            items.gap_ns.tolist(),
            items.residual_ns.tolist(),
            ([NO_ITEM] * self.count if alone else items.collective.tolist()),
        )
        if alone:
            duration = np.where(items.collective >= 0, items.transfer_ns, items.duration_ns)
            self.columns = (self.columns[0], duration.tolist(), *self.columns[2:])
        self.edges: dict[int, list[tuple[int, int]]] = {}
        for item, on, lag in zip(
            lane.edges.item.tolist(),
            lane.edges.on.tolist(),
            lane.edges.lag_ns.tolist(),
            strict=True,
        ):
            self.edges.setdefault(item, []).append((on, lag))
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
        self.host = lane.host_start_ns
        self.next = 0

    def advance(self) -> int:
        """Runs until a collective (its number is returned, its start recorded) or the end (-1)."""
        stream, duration, host_ns, latency, gap, residual, collective = self.columns
        start, end, free = self.start, self.end, self.free
        edges, waits = self.edges, self.waits
        host = self.host
        for item in range(self.next, self.count):
            if item in waits:
                for work, own, on, lag in waits[item]:
                    host += work
                    done = end[on] + lag if on >= 0 else host
                    host += own
                    host = max(host, done)
            host += host_ns[item]
            where = stream[item]
            begin = free[where] + gap[item]
            launched = host + latency[item]
            if launched > begin:
                begin = launched
            if item in edges:
                for on, lag in edges[item]:
                    if end[on] + lag > begin:
                        begin = end[on] + lag
            begin += residual[item]
            start[item] = begin
            if collective[item] >= 0:
                self.host, self.next = host, item
                return collective[item]
            finish = begin + duration[item]
            end[item] = finish
            free[where] = finish
        self.host, self.next = host, self.count
        return NO_ITEM

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
        tuple(np.asarray(runner.start, np.int64) for runner in runners),
        tuple(np.asarray(runner.end, np.int64) for runner in runners),
        steps,
        tuple(runner.host - runner.lane.host_start_ns for runner in runners),
        forced,
    )


def _release(runner: _Runner, latest_ns: int, transfer_ns: int) -> None:
    own = latest_ns - runner.lane.offset_ns + transfer_ns
    runner.release(max(own, runner.start[runner.next]))
