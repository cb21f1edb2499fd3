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
    absolute: Bools
    """Absolute values, with which a quantisation to a row's or block's largest one begins."""
    to_float8: Bools
    """Plain casts to 8 bits, with which it ends."""


class Segments:
    """The kernels of every stream, cut at matrix products.

    `router` and `attribute` give open kernels the role of what they stand in: `roles` and `sources`
    are changed. `ranged` marks activities whose launch stood under a range that tells one kind of
    work.
    """

    def __init__(
        self,
        kernels: Kernels,
        roles: NDArray[np.int8],
        sources: NDArray[np.int8],
        ranged: Bools,
    ) -> None:
        self.k, self.roles, self.sources = kernels, roles, sources
        self._read()
        if not len(kernels.row):
            return
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

    def _read(self) -> None:
        self.role, self.source = self.roles[self.k.row], self.sources[self.k.row]

    def attribute(self) -> None:
        """All but the router's, with the roles as they are now."""
        if not len(self.k.row):
            return
        self._read()
        self.attention()
        self.loss()
        self.around_experts()
        self.between_permutes()
        self.quantisation()

    def _any(self, rows: Bools) -> Bools:
        """Which segments hold one of these kernels."""
        found = np.zeros(len(self.first), np.bool_)
        found[self.segment[rows]] = True
        return found

    def _is(self, *roles: Role) -> Bools:
        found = self.role == roles[0]
        for role in roles[1:]:
            found |= self.role == role
        return np.asarray(found)

    def _open(self) -> Bools:
        """Generic kernels that nothing has explained yet."""
        named = self.source == Source.NAME
        undecided = self._is(Role.ELEMENTWISE, Role.COMPUTE_OTHER)
        return np.asarray(self.k.generic & self.free & named & undecided)

    def _guessed(self) -> Bools:
        """Matrix products whose role rests on their place alone."""
        guessed = self._is(Role.DENSE_GEMM) & (self.source == Source.STRUCTURE)
        return np.asarray(self.k.gemm & (guessed | self._is(Role.GEMM_UNATTRIBUTED)))

    def _set(self, mine: Bools | Ints, role: Role) -> None:
        self.role[mine], self.source[mine] = role, Source.STRUCTURE
        rows = self.k.row[mine]
        self.roles[rows], self.sources[rows] = role, Source.STRUCTURE

    def router(self) -> None:
        """The product before a top-k is the router's, and so is softmax beside either.

        So are the products of 32 bits whose place alone gave them a role, where the router's are of
        32 bits and no other known ones; and what follows them up to the next named kernel.
        """
        k = self.k
        if not len(k.row):
            return
        chosen = self.opens & self._any(k.router & ~k.again)
        first = self.first[chosen]
        self._set(first[self._guessed()[first]], Role.ROUTER)
        known = k.gemm & k.single & ~self._guessed()
        if (known & self._is(Role.ROUTER)).any() and not (known & ~self._is(Role.ROUTER)).any():
            mine = k.single & self._guessed()
            self._set(mine, Role.ROUTER)
            blocked = np.cumsum(k.named | k.index | k.softmax)
            clear = blocked == blocked[self.first][self.segment]
            self._set(self._any(mine)[self.segment] & self._open() & clear, Role.ROUTER)
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
        if not k.loss.any():
            return
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

    def _experts(self) -> tuple[Bools, Bools]:
        """Which segments an expert's product opens, and which one closes."""
        expert = self.k.gemm & self._is(Role.EXPERT_GEMM)
        closes = np.zeros(len(self.first), np.bool_)
        closes[:-1] = self.closes[:-1] & expert[self.after[:-1]]
        return self.opens & expert[self.first], closes

    def around_experts(self) -> None:
        """Sorts, gathers and scatters with an expert's product next to them are permutation.

        Generic kernels between two such products, with nothing else between, are activation.
        """
        k = self.k
        opens, closes = self._experts()
        index = k.index & self.free & self._is(Role.ELEMENTWISE)
        self._set(index & (opens | closes)[self.segment], Role.PERMUTE)
        activation = self._is(Role.ACTIVATION)
        other = ~(k.gemm | k.generic | activation | self._is(Role.CAST_QUANTIZE))
        other[self.last] &= ~self._is(Role.PERMUTE)[self.last]  # prepares the closing product
        inside = opens & closes & ~self._any(other)
        self._set(inside[self.segment] & self._open(), Role.ACTIVATION)

    def between_permutes(self) -> None:
        """Generic kernels between two permutations of the same experts, and nothing named between.

        The loss gathers and scatters too: only next to an expert's product is it permutation.
        """
        k = self.k
        opens, closes = self._experts()
        permutes = self._is(Role.PERMUTE) & ~k.generic
        events = np.flatnonzero(permutes | k.gemm | k.softmax | k.named)
        found = np.flatnonzero(self._open() & (opens | closes)[self.segment])
        if not len(events) or not len(found):
            return
        at = np.searchsorted(events, found)
        known = (at > 0) & (at < len(events))
        before, after = events[np.maximum(at - 1, 0)], events[np.minimum(at, len(events) - 1)]
        one_stream = (k.stream[before] == k.stream[found]) & (k.stream[after] == k.stream[found])
        self._set(found[known & one_stream & permutes[before] & permutes[after]], Role.PERMUTE)

    def quantisation(self) -> None:
        """Generic kernels from absolute values to the cast to 8 bits are one quantisation.

        Whatever range they stand in: an expert's quantisation is not its activation.
        """
        k = self.k
        if not (k.absolute.any() and k.to_float8.any()):
            return
        place = np.arange(len(k.row))
        edge = ~k.generic | np.concatenate([[True], k.stream[1:] != k.stream[:-1]])
        since = np.maximum.accumulate(np.where(edge, place, -1))
        begins = np.maximum.accumulate(np.where(k.absolute & k.generic, place, -1))
        ends = np.flatnonzero(k.to_float8 & (place > 0))
        last = ends - 1
        last = last[(begins[last] >= since[last]) & (k.stream[last] == k.stream[ends])]
        covered = np.zeros(len(k.row) + 1, np.int64)
        np.add.at(covered, begins[last], 1)
        np.add.at(covered, last + 1, -1)
        inside = (np.cumsum(covered)[:-1] > 0) & k.generic
        open_to = (Role.ELEMENTWISE, Role.ACTIVATION, Role.PERMUTE, Role.COMPUTE_OTHER)
        self._set(inside & self._is(*open_to), Role.CAST_QUANTIZE)
