"""`mergeflow completion`: the script that teaches a shell to complete the command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mergeflow.cli import options

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_MERGEFLOW_COMPLETE"  # click's: the shell's script sets it when it asks


@click.command(no_args_is_help=True)
@click.argument("shell", type=click.Choice(SHELLS))
@options.debug_option
def command(shell: str) -> None:
    """Print a script for SHELL that completes commands, options, and the outputs, params and sources of a recipe.

    \b
    bash   echo 'source <(mergeflow completion bash)' >> ~/.bashrc
    zsh    echo 'source <(mergeflow completion zsh)' >> ~/.zshrc
    fish   mergeflow completion fish > ~/.config/fish/completions/mergeflow.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    script = found(root, {}, "mergeflow", VARIABLE)
    click.echo(script.source_template % script.source_vars())  # what source() would say, but without asking for bash
