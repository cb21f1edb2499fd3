"""Inputs that lie elsewhere (s3://, gs://, https:// ...), copied here through fsspec."""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moe_advisor.errors import ConfigError, InputError
from moe_advisor.privacy import display_name

COPIES_AT_ONCE = 8
"""One copy waits for the network most of the time."""

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")  # two letters or more: C:// is a drive


def is_remote(text: str) -> bool:
    """Whether `text` names an input elsewhere."""
    return bool(_URL.match(text))


@contextlib.contextmanager
def local_copies(paths: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """`paths` with every remote one replaced by a copy, which goes when the context ends.

    A remote path is a file, or a glob where the store can list. Raises ConfigError without fsspec,
    InputError where a path can't be read; messages never hold an address, which may hold a secret.
    """
    if not any(map(is_remote, paths)):
        yield tuple(paths)
        return
    try:
        import fsspec
    except ImportError:
        raise ConfigError("remote inputs need fsspec; install moe-advisor[remote]") from None
    with tempfile.TemporaryDirectory(prefix="moe-advisor-") as scratch:
        result: list[str] = []
        for number, path in enumerate(paths):
            if not is_remote(path):
                result.append(path)
                continue
            folder = Path(scratch) / str(number)
            folder.mkdir()
            shown = _shown(path)
            try:
                system, inside = fsspec.core.url_to_fs(path)
                found = system.glob(inside) if re.search(r"[*?\[]", inside) else [inside]
                targets = [folder / one.rstrip("/").rsplit("/", 1)[-1] for one in found]
                if len(set(targets)) < len(targets):
                    raise InputError(f"{shown}: matches files of the same name; name one folder")
                with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
                    list(pool.map(system.get_file, found, map(str, targets)))
            except ImportError as error:
                raise ConfigError(
                    f"{shown}: this kind of address needs a further package ({error.name})"
                ) from None
            except InputError:
                raise
            except Exception as error:  # every store has its own exceptions
                raise InputError(f"{shown}: can't be copied ({type(error).__name__})") from None
            if not targets:
                raise InputError(f"{shown}: matches nothing")
            result.extend(map(str, targets))
        yield tuple(result)


def _shown(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://…/{display_name(rest.split('?')[0])}"
