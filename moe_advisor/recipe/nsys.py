"""The recipe itself. Only nsys imports it, since only nsys brings `nsys_recipe`."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from nsys_recipe import nsys_constants
from nsys_recipe.lib import exceptions, nsys_path, recipe
from nsys_recipe.lib.args import Option
from nsys_recipe.log import logger

from moe_advisor import analysis
from moe_advisor.errors import InputError, MoeAdvisorError
from moe_advisor.execute import Failed, guarded
from moe_advisor.ingest.sqlite_file import is_sqlite
from moe_advisor.output import html, json_output, markdown
from moe_advisor.progress import Advance
from moe_advisor.recipe import FOLDER, NAME
from moe_advisor.result import Result

T = TypeVar("T")
R = TypeVar("R")

_SIDES = ("config", "log", "steps", "step_pattern")


class _ContextExecutor:
    """Our work on NVIDIA's context: none, concurrent processes or Dask futures."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def run(self, work: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | Failed]]:
        """See `execute.Executor.run`."""
        context = self._context
        try:
            outcomes = context.wait(context.map(guarded, [work] * len(tasks), list(tasks)))
        except ModuleNotFoundError as error:
            raise InputError(
                f"a worker lacks {error.name}: install moe-advisor in the Python of every worker"
            ) from None
        except (MemoryError, OSError, RuntimeError) as error:
            kind = type(error).__name__
            raise InputError(
                f"a worker was lost ({kind}): out of memory? Try fewer workers or --mode none"
            ) from None
        yield from enumerate(outcomes)


class MoeAdvisor(recipe.Recipe):  # type: ignore[misc] # comes with nsys
    """Map: one report to numbers. Reduce: the numbers of all ranks to one result."""

    recipe_name = NAME
    recipe_dir = str(FOLDER / NAME)

    def run(self, context: Any) -> None:
        """Called by the framework. Raises its ValueError for what a user can put right."""
        super().run(context)
        try:
            result = self._result(context)
        except MoeAdvisorError as error:
            raise exceptions.ValueError(str(error)) from None
        self._write(result)

    def _result(self, context: Any) -> Result:
        given = self._parsed_args
        reports = [Path(path).absolute() for path in given.input]
        options = analysis.Options(
            **{name: getattr(given, name) for name in _SIDES},
            values=tuple(given.set or ()),
            rules=tuple(given.rules or ()),
            nsys=_nsys(),
        )
        inputs = [str(_export_beside(path) or path) for path in reports]
        measured = analysis.measure(inputs, options, _say, _ContextExecutor(context))
        return analysis.result_of(measured, options)

    def _write(self, result: Result) -> None:
        outputs: dict[str, str | bytes] = {
            "report.html": html.render(result),
            "result.json": json_output.encode(result),
            "summary.md": markdown.render(result),
        }
        for name, content in outputs.items():
            data = content if isinstance(content, bytes) else content.encode()
            Path(self.add_output_file(name)).write_bytes(data)
        self.create_notebook("report.ipynb", dir_path=str(FOLDER / NAME))
        self._analysis_dict.update(
            {
                "EndTime": str(datetime.now()),
                "InputFiles": self._parsed_args.input,
                "Outputs": self._output_files,
            }
        )
        self.create_analysis_file()
        logger.info(result.walls.headline)

    @classmethod
    def get_argument_parser(cls) -> argparse.ArgumentParser:
        """The options of the recipe; those of the context are the framework's."""
        parser: Any = super().get_argument_parser()
        parser.add_recipe_argument(Option.INPUT, required=True)
        parser.add_recipe_argument(Option.OUTPUT)
        parser.add_recipe_argument(Option.FORCE_OVERWRITE)
        add = parser.add_recipe_argument
        add("--config", metavar="FILE", help="Run configuration, as for moe-advisor analyze")
        add("--log", metavar="FILE", help="Training log")
        add("--set", action="append", metavar="KEY=VALUE", help="One configuration value")
        add("--steps", metavar="A:B", help="Only these steps, counted from 0, B not included")
        add("--step-pattern", metavar="REGEX", help="Name of the ranges that are steps")
        add("--rules", action="append", metavar="DIR", help="Rules of your own")
        return parser  # type: ignore[no-any-return]


def _say(advance: Advance) -> None:
    logger.info(f"Read {advance.name} ({advance.done} of {advance.total})")


def _nsys() -> str | None:
    """The program of the installation that runs this recipe; None leaves it to $NSYS and PATH."""
    try:
        return str(nsys_path.find_installed_file(nsys_constants.NSYS_EXE_NAME))
    except exceptions.ValueError:
        return None


def _export_beside(report: Path) -> Path | None:
    """The SQLite export of a report that other recipes leave beside it, unless it is older."""
    export = report.with_suffix(".sqlite")
    try:
        if export.stat().st_mtime_ns < report.stat().st_mtime_ns:
            return None
    except OSError:
        return None
    return export if is_sqlite(export) else None
