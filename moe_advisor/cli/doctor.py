"""`moe-advisor doctor`: what is installed here, and what is missing for which job."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

State = Literal["ok", "absent", "wrong"]
MARKS = {"ok": "ok", "absent": "--", "wrong": "!!"}

NAME_END = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; `wrong` is in the way of the main job, `absent` only of an extra."""

    topic: str
    name: str
    state: State
    text: str


@click.command(
    epilog="""\b
examples:
  moe-advisor doctor
  moe-advisor doctor --format json > doctor.json
  moe-advisor doctor --nsys /opt/nsight-systems/bin/nsys
"""
)
@click.option("--nsys", metavar="PROGRAM", envvar="NSYS", help="nsys, to read .nsys-rep files.")
@click.option("--format", "kind", type=click.Choice(["text", "json"]), default="text")
@click.pass_context
def doctor(ctx: click.Context, nsys: str | None, kind: str) -> None:
    """Say what is installed here: versions, extras, nsys, settings; exit 1 if something is wrong.

    Shows no host, user, path or value of a variable: the text can go into an issue as it is.
    """
    from moe_advisor.errors import GateFailed

    checks = [
        one
        for part in (_program, _dependencies, _extras, lambda: _nsys(nsys), lambda: _settings(ctx))
        for one in part()
    ]
    if kind == "json":
        click.echo(json.dumps({"checks": [asdict(one) for one in checks]}, indent=1))
    else:
        _show(checks)
    wrong = [one.name for one in checks if one.state == "wrong"]
    if wrong:
        raise GateFailed(f"doctor: {', '.join(wrong)}: see the lines marked !!")


def _show(checks: list[Check]) -> None:
    width = max(len(one.name) for one in checks)
    topic = ""
    for one in checks:
        if one.topic != topic:
            topic = one.topic
            click.echo(f"{topic}:")
        click.echo(f"  {MARKS[one.state]}  {one.name:<{width}}  {one.text}")


def _program() -> Iterator[Check]:
    import platform
    import sys

    from moe_advisor import __version__, resources
    from moe_advisor.result import SCHEMA_VERSION

    yield Check(
        "program", "moe-advisor", "ok", f"{__version__}, writes result.json {SCHEMA_VERSION}"
    )
    yield Check(
        "program",
        "python",
        "ok" if sys.version_info >= (3, 11) else "wrong",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Check("program", "machine", "ok", f"{cores} cores, {pages / 2**30:.0f} GiB of memory")
    rules = sum(1 for _ in resources.rules_dir().glob("*/*.yaml"))
    yield _present("rules", rules > 0, f"{rules} files")
    yield _present("report template", any(resources.templates_dir().glob("*")), "found")
    yield _present("demo trace", bool(resources.demo_traces()), "found")
    yield _temporary()


def _present(name: str, there: bool, text: str) -> Check:
    if there:
        return Check("program", name, "ok", text)
    return Check("program", name, "wrong", "not in this installation: install it again")


def _temporary() -> Check:
    import shutil
    import tempfile

    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        free = shutil.disk_usage(tempfile.gettempdir()).free
    except OSError as error:
        text = f"can't be written: {error.strerror}; set $TMPDIR"
        return Check("program", "temporary folder", "wrong", text)
    return Check("program", "temporary folder", "ok", f"{free / 2**30:.0f} GiB free")


def _requirements() -> Iterator[tuple[str, str | None]]:
    """Name of each package we need, and the extra that asks for it (None: always)."""
    from importlib import metadata

    for line in metadata.requires("moe-advisor") or ():
        need, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", marker)
        yield NAME_END.split(need.strip(), maxsplit=1)[0], extra[1] if extra else None


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dependencies() -> Iterator[Check]:
    from importlib import metadata

    try:
        needed = [name for name, extra in _requirements() if extra is None]
    except metadata.PackageNotFoundError:
        yield Check("packages", "all", "wrong", "moe-advisor runs uninstalled: use pip install")
        return
    for name in needed:
        version = _version(name)
        yield Check(
            "packages",
            name,
            "ok" if version else "wrong",
            version or "not installed: install moe-advisor again",
        )


PURPOSES = {
    "dask": "--executor dask",
    "remote": "https:// inputs",
    "s3": "s3:// inputs",
    "gs": "gs:// inputs",
    "test": "the project's own tests",
    "docs": "the documentation site",
    "recipe": "the nsys recipe",
    "notebook": "the worked notebook",
}


def _extras() -> Iterator[Check]:
    from importlib import metadata

    extras: dict[str, list[str]] = {}
    try:
        for name, extra in _requirements():
            if extra:
                extras.setdefault(extra, []).append(name)
    except metadata.PackageNotFoundError:
        return
    for extra, names in sorted(extras.items()):
        missing = [name for name in names if _version(name) is None]
        purpose = PURPOSES.get(extra, "see pyproject.toml")
        if not missing:
            found = ", ".join(f"{name} {_version(name)}" for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield Check("extras", extra, "ok", f"{purpose}: {found}{more}")
        else:
            text = (
                f"{purpose}: pip install 'moe-advisor[{extra}]' ({', '.join(missing[:3])} absent)"
            )
            yield Check("extras", extra, "absent", text)


def _nsys(explicit: str | None) -> Iterator[Check]:
    import subprocess

    from moe_advisor.errors import InputError
    from moe_advisor.ingest import nsys_report

    try:
        program = nsys_report.find_nsys(Path(explicit) if explicit else None)
    except InputError as error:
        text = "needed only for .nsys-rep files: put it on PATH, give --nsys or set $NSYS"
        if explicit:
            text = str(error)
        yield Check("tools", "nsys", "wrong" if explicit else "absent", text)
        return
    try:
        done = subprocess.run(  # noqa: S603 (the nsys that the user chose)
            [program, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=nsys_report.VERSION_TIMEOUT_S,
            check=False,
        )
        version = re.search(r"\b\d{4}\.\d{1,3}\.\d{1,3}", done.stdout)
    except (OSError, subprocess.SubprocessError):
        version = None
    if version:
        yield Check("tools", "nsys", "ok", f"{version[0]}: reads reports of this version and older")
    else:
        yield Check("tools", "nsys", "wrong", "does not answer to --version: is it Nsight Systems?")


def _settings(ctx: click.Context) -> Iterator[Check]:
    from moe_advisor.cli import cli, settings
    from moe_advisor.errors import ConfigError

    file = settings.chosen((ctx.obj or {}).get("settings"))
    if file is None:
        yield Check("settings", "file", "absent", "no moe-advisor.toml or [tool.moe-advisor] here")
    else:
        try:
            tables = settings.defaults(file, cli)
            text = f"{file.name} sets {', '.join(sorted(tables)) or 'no options'}"
            yield Check("settings", "file", "ok", text)
        except ConfigError as error:
            yield Check("settings", "file", "wrong", str(error))
    yield from _variables(lambda: known_variables(cli))


def known_variables(group: click.Group) -> set[str]:
    """All variables that set an option."""
    from moe_advisor.cli.options import every, long_name, variable

    return {
        variable(path, name)
        for path, command in every(group)
        for param in command.params
        if (name := long_name(param)) and (path or name in ("debug", "settings"))
    }


def _variables(known: Callable[[], set[str]]) -> Iterator[Check]:
    """Names, never values, of the MOE_ADVISOR_ variables that are set; a slip is pointed out."""
    from difflib import get_close_matches

    from moe_advisor.privacy import safe_text

    own = sorted(name for name in os.environ if name.startswith("MOE_ADVISOR_"))
    if not own:
        return
    names = known()
    for name in own:
        if name in names:
            yield Check("settings", f"${name}", "ok", "set")
            continue
        near = get_close_matches(name, names, 1)
        hint = f"; did you mean ${near[0]}?" if near else ""
        yield Check("settings", f"${safe_text(name, 80)}", "absent", f"sets no option{hint}")
