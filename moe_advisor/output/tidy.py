"""Makes every string of a result harmless before any output sees it."""

from typing import Any

import msgspec

from moe_advisor.output.formatting import clean
from moe_advisor.result import Result

_LONGEST = 1500
"""Longest text shown; a finding with its numbers is below 600 characters."""

_NUMBERS = (int, float)


def tidy(result: Result) -> Result:
    """The same result without control or direction characters and without endless names.

    `result.json` itself keeps what was found; only what people read goes through here.
    """
    # The slices and the ranks' values are numbers only, and most of the size: they pass as they
    # are.
    timeline = result.timeline
    bare = msgspec.structs.replace(
        result,
        timeline=None,
        metrics={
            name: msgspec.structs.replace(one, per_rank=[]) for name, one in result.metrics.items()
        },
    )
    tidied = msgspec.convert(_walk(msgspec.to_builtins(bare)), Result)
    names = {clean(name, 200): one.per_rank for name, one in result.metrics.items()}
    metrics = {
        name: msgspec.structs.replace(one, per_rank=names[name])
        for name, one in tidied.metrics.items()
    }
    if timeline is None:
        return msgspec.structs.replace(tidied, metrics=metrics)
    return msgspec.structs.replace(
        tidied,
        metrics=metrics,
        timeline=msgspec.structs.replace(
            timeline,
            step=clean(timeline.step, 200),
            lanes=[clean(lane, 80) for lane in timeline.lanes],
            names=[clean(name, 200) for name in timeline.names],
            roles=[clean(role, 80) for role in timeline.roles],
            host=_walk(timeline.host),
            gaps=_walk(timeline.gaps),
        ),
    )


def _walk(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value, _LONGEST)
    if isinstance(value, dict):
        return {clean(str(key), 200): _walk(item) for key, item in value.items()}
    if isinstance(value, list):
        # Most are rows of numbers, which need no call each.
        return [item if type(item) in _NUMBERS else _walk(item) for item in value]
    return value
