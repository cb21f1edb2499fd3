"""What kernels that no range explains are for, by the named kernels around them on their stream.

A matrix product ends one thing and begins the next. What runs between two of them with attention's
softmax is attention, with the loss's it is the loss; between two permutations it is permutation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.roles.roles import Role, Source

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Kernels:
    """The compute kernels of one rank, stream by stream in order of their starts.

    Columns of equal length. `row` is the row in `activities`; the rest says what the name proves:
    `gemm` any matrix product, `expert` one known as the experts', `named` any other kernel whose
    name alone tells a role. `again` marks names of backward kernels, `single` GEMMs of 32 bits.
    """

    row: Ints
    stream: Ints
    gemm: Bools
    softmax: Bools
    index: Bools
    router: Bools
    loss: Bools
    named: Bools
    generic: Bools
    again: Bools
    single: Bools


def attribute_routers(
    kernels: Kernels, roles: NDArray[np.int8], sources: NDArray[np.int8], ranged: Bools
) -> None:
    """Finds the router's softmax and products among those nothing explains.

    `roles` and `sources` are changed; `ranged` marks activities whose launch stood under a range
    that tells one kind of work.
    """
    if len(kernels.row):
        _Segments(kernels, roles, sources, ranged).router()


def attribute_segments(
    kernels: Kernels, roles: NDArray[np.int8], sources: NDArray[np.int8], ranged: Bools
) -> None:
    """Gives open kernels the role of what they stand in; arguments as for `attribute_routers`."""
    if len(kernels.row):
        found = _Segments(kernels, roles, sources, ranged)
        found.attention()
        found.loss()
        found.around_experts()
        found.between_permutes()


class _Segments:
    """The kernels of every stream, cut at matrix products."""

    def __init__(
        self,
        kernels: Kernels,
        roles: NDArray[np.int8],
        sources: NDArray[np.int8],
        ranged: Bools,
    ) -> None:
        self.k, self.roles, self.sources = kernels, roles, sources
        self.free = ~ranged[kernels.row]
        fresh = np.concatenate([[True], kernels.stream[1:] != kernels.stream[:-1]])
        self.segment = np.cumsum(fresh | kernels.gemm) - 1
        count = int(self.segment[-1]) + 1
        first = np.searchsorted(self.segment, np.arange(count))
        last = np.append(first[1:], len(kernels.row)) - 1
        # A segment begins with its matrix product; the next one's ends it, on the same stream.
        self.opens = kernels.gemm[first]
        after = np.append(first[1:], 0)
        same = np.append(kernels.stream[first[1:]] == kernels.stream[first[:-1]], False)
        self.closes = same & kernels.gemm[after]
        self.first, self.last, self.after = first, last, after

    def _any(self, rows: Bools) -> Bools:
        """Which segments hold one of these kernels."""
        found = np.zeros(len(self.first), np.bool_)
        found[self.segment[rows]] = True
        return found

    def _is(self, *roles: Role) -> Bools:
        return np.isin(self.roles[self.k.row], roles)

    def _open(self) -> Bools:
        """Generic kernels that nothing has explained yet."""
        named = self.sources[self.k.row] == Source.NAME
        undecided = self._is(Role.ELEMENTWISE, Role.COMPUTE_OTHER)
        return np.asarray(self.k.generic & self.free & named & undecided)

    def _guessed(self) -> Bools:
        """Matrix products whose role rests on their place alone."""
        guessed = self._is(Role.DENSE_GEMM) & (self.sources[self.k.row] == Source.STRUCTURE)
        return np.asarray(self.k.gemm & (guessed | self._is(Role.GEMM_UNATTRIBUTED)))

    def _set(self, mine: Bools | Ints, role: Role) -> None:
        rows = self.k.row[mine]
        self.roles[rows], self.sources[rows] = role, Source.STRUCTURE

    def router(self) -> None:
        """Softmax beside a top-k, or beside a matrix product of the router, is the router's.

        So are the products of 32 bits that no range explains where the router's are the only ones
        of 32 bits that a range does explain, and what follows them up to the next named kernel.
        """
        k = self.k
        explained = k.gemm & (self.sources[k.row] != Source.STRUCTURE) & k.single
        if (explained & self._is(Role.ROUTER)).any() and not (
            explained & ~self._is(Role.ROUTER, Role.GEMM_UNATTRIBUTED)
        ).any():
            mine = k.single & self._guessed()
            self._set(mine, Role.ROUTER)
            inside = self._any(mine)[self.segment] & self._open()
            blocked = np.cumsum(k.named | k.index | k.softmax)
            clear = blocked == blocked[self.first][self.segment]
            self._set(inside & clear, Role.ROUTER)
        near = self._any(k.router | k.index)
        near |= self._any(k.gemm & self._is(Role.ROUTER))
        near[:-1] |= self.closes[:-1] & self._is(Role.ROUTER)[self.after[:-1]]
        softmax = k.softmax & near[self.segment] & self.free
        self._set(softmax & self._is(Role.ELEMENTWISE), Role.ROUTER)

    def attention(self) -> None:
        """All between two matrix products around attention's softmax, and these products."""
        k = self.k
        softmax = k.softmax & self._is(Role.ATTENTION)
        held = self._any(softmax) & ~self._any(k.index | k.router | k.loss | (k.named & ~k.gemm))
        held &= self.opens & self.closes
        self._set(held[self.segment] & self._open(), Role.ATTENTION)
        backward = held & self._any(softmax & k.again)
        guessed = self._guessed()
        # Backward has two products on each side: of queries and keys, of scores and values.
        at = np.flatnonzero(held)
        edges = [self.first[at], self.after[at]]
        turn = np.flatnonzero(backward)
        before = turn[(turn > 0) & (self.first[turn] - 1 >= 0)]
        before = before[self.opens[before - 1] & self.closes[before - 1]]
        beyond = turn[turn + 1 < len(self.first)]
        beyond = beyond[self.closes[beyond + 1]]
        edges += [self.first[before - 1], self.after[beyond + 1]]
        rows = np.unique(np.concatenate(edges))
        self._set(rows[guessed[rows]], Role.ATTENTION)

    def loss(self) -> None:
        """What leads from a matrix product to the loss, and from its gradient to the next one."""
        k = self.k
        place = np.arange(len(k.row))
        none = len(place)
        last = np.full(len(self.first), -1)
        np.maximum.at(last, self.segment[k.loss], place[k.loss])
        turned = np.full(len(self.first), none)
        again = k.loss & k.again
        np.minimum.at(turned, self.segment[again], place[again])
        held = (last >= 0) & self.opens & ~self._any(k.softmax | k.index | (k.named & ~k.loss))
        inside = held[self.segment] & (
            (place < last[self.segment]) | (place > turned[self.segment])
        )
        self._set(inside & self._open(), Role.EMBEDDING_LOSS)

    def around_experts(self) -> None:
        """Sorts, gathers and scatters with an expert's product next to them are permutation."""
        expert = self.k.gemm & self._is(Role.EXPERT_GEMM)
        near = self.opens & expert[self.first]
        near[:-1] |= self.closes[:-1] & expert[self.after[:-1]]
        index = self.k.index & self.free & self._is(Role.ELEMENTWISE)
        self._set(index & near[self.segment], Role.PERMUTE)

    def between_permutes(self) -> None:
        """Generic kernels with a permutation before and after them and nothing named between."""
        k = self.k
        permutes = self._is(Role.PERMUTE) & ~k.generic
        events = np.flatnonzero(permutes | k.gemm | k.softmax | k.named)
        if not len(events):
            return
        place = np.arange(len(k.row))
        at = np.searchsorted(events, place)
        known = (at > 0) & (at < len(events))
        before, after = events[np.maximum(at - 1, 0)], events[np.minimum(at, len(events) - 1)]
        one_stream = (k.stream[before] == k.stream) & (k.stream[after] == k.stream)
        between = known & one_stream & permutes[before] & permutes[after]
        self._set(between & self._open(), Role.PERMUTE)
