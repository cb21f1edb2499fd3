"""`moe-advisor completion`: the script that lets a shell complete verbs, options and names."""

import click

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_MOE_ADVISOR_COMPLETE"


@click.command(
    epilog="""\b
examples:
  moe-advisor completion bash > ~/.local/share/bash-completion/completions/moe-advisor
  moe-advisor completion zsh > "${fpath[1]}/_moe-advisor"
  moe-advisor completion fish > ~/.config/fish/completions/moe-advisor.fish
  source <(moe-advisor completion bash)
"""
)
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
def completion(shell: str) -> None:
    """Print the completion script for SHELL: bash, zsh or fish.

    It completes verbs, options, file names, rule ids, metrics and what-if changes.
    """
    from click.shell_completion import get_completion_class

    from moe_advisor.cli import cli

    kind = get_completion_class(shell)
    # bash asks its own version first, and warns where it is too old.
    if kind is not None:
        script = kind(cli, {}, "moe-advisor", VARIABLE).source()
        # click's script for fish cuts a description at its first comma.
        click.echo(script.replace('string split ","', 'string split --max 1 ","'))
