"""Results that exist already: one given in place of its trace, and those kept in the cache folder.

Nothing here needs the libraries that reading a trace needs, whose import takes half of the time of
a second analysis.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moe_advisor import cache
from moe_advisor.errors import InputError
from moe_advisor.ingest import sniff, sources
from moe_advisor.options import Options
from moe_advisor.output import json_output
from moe_advisor.privacy import display_name
from moe_advisor.remote import RemoteFile
from moe_advisor.result import Result


def earlier_result(inputs: Sequence[Path]) -> Result | None:
    """The result that the one input is, if it is one; an earlier result stands for its trace."""
    if len(inputs) != 1 or sniff.detect(inputs[0]) != "result":
        return None
    return json_output.decode(inputs[0].read_bytes(), inputs[0].name)


def kept_or(
    paths: Sequence[str | RemoteFile], options: Options, make: Callable[[], Result]
) -> Result:
    """The result kept for these inputs and options; else what `make` gives, which is kept."""
    if not options.cache:
        return make()
    store = cache.Cache(Path(options.cache))
    texts = [one for one in paths if isinstance(one, str)]
    # What stays elsewhere has no digest before a worker reads it: only its partials are kept.
    key = _key(texts, options) if len(texts) == len(paths) else None
    if key and (kept := store.get(key)) is not None:
        return json_output.decode(kept)
    result = make()
    if key and not any(issue.id == "input-unreadable" for issue in result.capture.issues):
        store.put(key, json_output.encode(result))
    store.trim()
    return result


def _key(paths: Sequence[str], options: Options) -> str:
    """What decides a result: names and bytes of all inputs and side files, and the options."""
    inputs = sources.find_inputs(paths)
    sides = [options.config, options.log, options.taxonomy, *options.rules]
    with ThreadPoolExecutor(options.jobs or os.cpu_count() or 1) as pool:
        found = list(pool.map(digest, [*inputs, *(Path(side) for side in sides if side)]))
    given = (options.steps, options.step_pattern, options.values, options.sample)
    names = (*map(display_name, inputs), *(str(side and Path(side).name) for side in sides))
    return cache.key_of("result", repr(given), *names, *found)


def digest(path: Path) -> str:
    """That of a file or folder. Raises InputError where it can't be read."""
    try:
        return cache.content_digest(path)
    except OSError as error:
        raise InputError(f"{display_name(path)}: can't be read: {error.strerror}") from None
