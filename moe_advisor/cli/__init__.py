"""The command line: parses, calls, and turns errors into exit codes."""

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from moe_advisor import __version__, interrupts
from moe_advisor.errors import MoeAdvisorError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SETTINGS_VARIABLE = "MOE_ADVISOR_SETTINGS"
DEBUG_VARIABLE = "MOE_ADVISOR_DEBUG"

CONTEXT = {"help_option_names": ["-h", "--help"]}

COMMANDS = {
    "analyze": (
        "moe_advisor.cli.analyze",
        "analyze",
        "Say where a profile's time goes and what to change.",
    ),
    "whatif": ("moe_advisor.cli.whatif", "whatif", "Predict what changes would bring, as ranges."),
    "render": ("moe_advisor.cli.render", "render", "Write any format again from a result.json."),
    "rules": ("moe_advisor.cli.rules", "rules", "List, show, validate and test the rules."),
    "check": ("moe_advisor.cli.check", "check", "Hold a run against its budgets, for CI."),
    "compare": ("moe_advisor.cli.compare", "compare", "Say what changed between two runs."),
    "history": ("moe_advisor.cli.history", "history", "Keep results over time, with trends."),
    "capture": (
        "moe_advisor.cli.capture",
        "capture",
        "Print the profiling command for a framework.",
    ),
    "scrub": ("moe_advisor.cli.scrub", "scrub", "Write a copy of a trace that is safe to share."),
    "demo": ("moe_advisor.cli.demo", "demo", "Run the main job on a bundled real trace."),
    "doctor": ("moe_advisor.cli.doctor", "doctor", "Say what is installed here, and what is not."),
    "completion": (
        "moe_advisor.cli.completion",
        "completion",
        "Print the completion script for a shell.",
    ),
}
"""Verb -> where its command lives: a verb's module is imported only when it runs."""


class _StoppedError(BaseException):
    """KeyboardInterrupt on its way past click, which would print an empty line for it."""


class _LazyGroup(click.Group):
    """Lists verbs without importing them, so that --help is fast."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*args, **more)
        except KeyboardInterrupt:
            raise _StoppedError from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _StoppedError from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        from importlib import import_module

        from moe_advisor.cli.options import adopt

        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return adopt(command, (cmd_name,))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=text)
            for name, (_, _, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in COMMANDS or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(args[0], COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else f": use {', '.join(COMMANDS)}"
        raise click.UsageError(f"there is no verb {args[0]!r}{hint}", ctx)


@click.group(
    cls=_LazyGroup,
    context_settings=CONTEXT,
    epilog="""\b
examples:
  moe-advisor demo
  moe-advisor analyze run.nsys-rep
  moe-advisor analyze 'traces/rank*.json.gz' --config run.yaml --log train.log
  moe-advisor COMMAND --help

\b
Options also come from the environment, such as $MOE_ADVISOR_ANALYZE_JOBS, and from
moe-advisor.toml or [tool.moe-advisor] in pyproject.toml, here or above.
""",
)
@click.version_option(__version__, prog_name="moe-advisor")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option(
    "--settings",
    metavar="FILE",
    envvar=SETTINGS_VARIABLE,
    help="Options file instead of the one found; none reads no file.",
)
@click.pass_context
def cli(ctx: click.Context, debug: bool, settings: str | None) -> None:
    """Read a profile of Mixture-of-Experts training and say what to change."""
    del debug  # read from the command line by main, for errors of every verb
    ctx.obj = {"settings": settings}
    # Help and doctor must work beside a file that is broken.
    if ctx.invoked_subcommand == "doctor" or {"-h", "--help"} & set(sys.argv[1:]):
        return
    from moe_advisor.cli import settings as files

    file = files.chosen(settings)
    if file is not None:
        ctx.default_map = files.defaults(file, cast("click.Group", cli), ctx.invoked_subcommand)


EXIT_CODES = {
    0: "Done.",
    1: "A gate, budget or check that was asked for is not met, or could not be measured.",
    2: "The command line, a setting, a configuration or an input can't be used.",
    3: "A bug in the program: please report it with the output of --debug.",
    interrupts.INTERRUPTED: "Interrupted by Ctrl-C or SIGTERM; no half-written output is left.",
}
"""What `main` exits with."""

MESSAGE_LIMIT = 1_000
"""Characters of an error message: what a user typed may be repeated in it, whatever its size."""


def _say(message: str) -> None:
    """One line on standard error, whatever characters file names and arguments put into it."""
    from moe_advisor.privacy import safe_text

    click.echo(f"moe-advisor: {safe_text(message, MESSAGE_LIMIT)}", err=True)


def _stopped() -> NoReturn:
    sys.stderr.write(interrupts.SAID)
    sys.stderr.flush()
    sys.exit(interrupts.INTERRUPTED)


def main(args: list[str] | None = None) -> None:
    """Runs the program and exits: 0 done, 1 gate failed, 2 usage or input, 3 bug, 130 interrupted."""
    with interrupts.handled():
        try:
            _main(args)
        except KeyboardInterrupt:  # while an error was being said
            _stopped()


def _call(arguments: list[str]) -> None:
    """Runs a verb. KeyboardInterrupt where a signal came, whatever became of it on its way."""
    try:
        cli.main(arguments, prog_name="moe-advisor", standalone_mode=False)
    except BaseException:
        interrupts.check()
        raise
    interrupts.check()


def _main(args: list[str] | None) -> None:
    arguments = sys.argv[1:] if args is None else args
    debug = "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0", "false")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _call(arguments)
    except MoeAdvisorError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        # Called with nothing, the program shows its help, which is not one line.
        if error.message.startswith("Usage:") or type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            from moe_advisor.cli.messages import usage

            _say(usage(error))
        sys.exit(2)
    except click.ClickException as error:
        _say(error.format_message())
        sys.exit(2)
    except MemoryError:
        if debug:
            raise
        _say("out of memory: give fewer ranks at a time, --jobs 1, or more memory")
        sys.exit(2)
    except (KeyboardInterrupt, _StoppedError):
        _stopped()
    except click.Abort as stop:
        # click calls an EOFError an abort too; here it can only be a bug.
        if debug:
            raise
        if not isinstance(stop.__context__, EOFError):
            _stopped()
        click.echo("moe-advisor: internal error: EOFError; run again with --debug", err=True)
        sys.exit(3)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except BaseException as error:
        # polars ends in a PanicException, no Exception, where its own code meets what it can't do.
        panicked = type(error).__name__ == "PanicException"
        if debug or not (panicked or isinstance(error, Exception)):
            raise
        if panicked:
            _say("the table library gave up on this input: it is damaged, or please report it")
            sys.exit(2)
        click.echo(
            f"moe-advisor: internal error: {type(error).__name__}; run again with --debug and "
            "report it with the traceback",
            err=True,
        )
        sys.exit(3)
