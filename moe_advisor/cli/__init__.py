"""The command line: parses, calls, and turns errors into exit codes."""

import signal
import sys
import threading
from typing import NoReturn

import click

from moe_advisor import __version__
from moe_advisor.errors import MoeAdvisorError

CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MOE_ADVISOR"}

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
    "demo": ("moe_advisor.cli.demo", "demo", "Run the main job on a bundled real trace."),
}
"""Verb -> where its command lives: a verb's module is imported only when it runs."""


class _LazyGroup(click.Group):
    """Lists verbs without importing them, so that --help is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        from importlib import import_module

        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            if near:
                raise click.UsageError(
                    f"No such command '{args[0]}'. Did you mean {near[0]}?"
                ) from None
            raise error


@click.group(cls=_LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="moe-advisor")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    r"""Read a profile of Mixture-of-Experts training and say what to change.

    \b
    moe-advisor analyze run.nsys-rep
    moe-advisor analyze traces/rank*.json.gz --config run.yaml
    """
    del debug  # read from the command line by main, for errors of every verb


MESSAGE_LIMIT = 1_000
"""Characters of an error message: what a user typed may be repeated in it, whatever its size."""


def _say(message: str) -> None:
    """One line on standard error, whatever characters file names and arguments put into it."""
    from moe_advisor.privacy import safe_text

    click.echo(f"moe-advisor: {safe_text(message, MESSAGE_LIMIT)}", err=True)


def _terminated(*_: object) -> NoReturn:
    """Lets SIGTERM end the program as Ctrl-C does, so that temporary files are removed."""
    raise KeyboardInterrupt


def main(args: list[str] | None = None) -> None:
    """Runs the program and exits: 0 done, 1 gate failed, 2 usage or input, 3 bug, 130 interrupted."""
    arguments = sys.argv[1:] if args is None else args
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        cli.main(arguments, prog_name="moe-advisor", standalone_mode=False)
    except MoeAdvisorError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except MemoryError:
        if debug:
            raise
        _say("out of memory: give fewer ranks at a time, --jobs 1, or more memory")
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as stop:
        # click calls an EOFError an abort too; here it can only be a bug.
        if isinstance(stop.__context__, EOFError) and debug:
            raise
        if isinstance(stop.__context__, EOFError):
            click.echo("moe-advisor: internal error: EOFError; run again with --debug", err=True)
            sys.exit(3)
        click.echo("moe-advisor: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"moe-advisor: internal error: {type(error).__name__}; run again with --debug and "
            "report it with the traceback",
            err=True,
        )
        sys.exit(3)
