"""Items that wait for one that was launched after them: a replay in launch order puts them off."""

import numpy as np

from moe_advisor.whatif.model import NO_ITEM, Lane

REACH = 200
"""Most items between the two; in all captures of the lab it is 96, in the median 2 to 4."""


def put_off(lane: Lane) -> dict[int, int]:
    """Item -> the later item after which it can be timed.

    With an item that depends on a later one goes all between the two that comes after it on a
    stream or through a dependency. A dependency that this can't serve is left out: the later item
    itself waits for the earlier, the host does meanwhile, or collectives would change places.
    """
    edges = lane.edges
    ahead = np.flatnonzero((edges.on > edges.item) & (edges.on - edges.item <= REACH))
    if not len(ahead):
        return {}
    wanted: dict[int, int] = {}
    for item, on in zip(edges.item[ahead].tolist(), edges.on[ahead].tolist(), strict=True):
        wanted[item] = max(on, wanted.get(item, on))
    groups = {item: group for item, on in wanted.items() if (group := _group(lane, item, on))}
    while True:
        found: dict[int, int] = {}
        for item, group in groups.items():
            for one in group:
                found[one] = max(wanted[item], found.get(one, NO_ITEM))
        served = {item: group for item, group in groups.items() if wanted[item] not in found}
        if len(served) == len(groups):
            return found
        groups = served


def _group(lane: Lane, item: int, on: int) -> set[int]:
    """`item` and what follows from it up to `on`; empty where `on` or the host does."""
    stream, collective = lane.items.stream, lane.items.collective
    by_item = lane.edges.by_item
    found, streams = {item}, {int(stream[item])}
    window = range(item + 1, on + 1)
    for number, where in zip(window, stream[item + 1 : on + 1].tolist(), strict=True):
        after = any(one in found for one, _ in by_item.get(number, ()) if one < number)
        if where in streams or after:
            found.add(number)
            streams.add(where)
    if on in found:
        return set()
    waits = lane.waits
    inside = (waits.item > item) & (waits.item <= on)
    if found & set(waits.on[inside].tolist()):
        return set()
    matched = {one for one in range(item, on + 1) if collective[one] != NO_ITEM}
    if matched & found and matched - found:
        return set()
    return found
