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
    if len(texts) < len(paths):
        result = make()
        store.trim()
        return result
    files = _files(texts, options)
    before = state(files)
    key = _key(files, options, store)
    if (kept := store.get(key)) is not None:
        return json_output.decode(kept)
    result = make()
    unread = any(issue.id == "input-unreadable" for issue in result.capture.issues)
    if not unread and unchanged(files, before):
        store.put(key, json_output.encode(result))
    store.trim()
    return result


def _files(paths: Sequence[str], options: Options) -> list[Path]:
    """All inputs, with the logs of databases, and side files."""
    inputs = sources.find_inputs(paths)
    sides = [options.config, options.log, options.taxonomy, *options.rules]
    read = [part for path in inputs for part in with_log(path)]
    return [*read, *(Path(side) for side in sides if side)]


def with_log(path: Path) -> list[Path]:
    """An input and the log that SQLite may keep beside it, whose rows are read too."""
    log = path.with_name(path.name + "-wal")
    return [path, log] if log.is_file() else [path]


def _key(files: Sequence[Path], options: Options, store: cache.Cache) -> str:
    """What decides a result: names and bytes of all inputs and side files, and the options."""
    with ThreadPoolExecutor(options.jobs or os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda path: digest(path, store), files))
    sides = [options.config, options.log, options.taxonomy, *options.rules]
    given = (options.steps, options.step_pattern, options.values, options.sample)
    names = (*map(display_name, files), *(str(side and Path(side).name) for side in sides))
    return cache.key_of("result", repr(given), *names, *found)


def state(files: Sequence[Path]) -> list[str]:
    """What every write to one of `files` changes. Raises InputError where one can't be read."""
    return [_of(path, cache.state_of) for path in files]


def unchanged(files: Sequence[Path], before: list[str]) -> bool:
    """Whether `state` is still as it was: else the digest may not be that of what was read."""
    try:
        return state(files) == before
    except InputError:
        return False


def digest(path: Path, store: cache.Cache | None = None) -> str:
    """That of a file or folder. Raises InputError where it can't be read."""
    return _of(path, store.digest if store else cache.content_digest)


def _of(path: Path, ask: Callable[[Path], str]) -> str:
    try:
        return ask(path)
    except OSError as error:
        raise InputError(f"{display_name(path)}: can't be read: {error.strerror}") from None
