"""``trioresume completion``: scripts with which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from trioresume.cli.help import Command
from trioresume.cli.options import common_options

__all__ = ["completion"]


@click.command(
    cls=Command,
    examples=(
        "trioresume completion bash > ~/.local/share/bash-completion/completions/trioresume",
        "trioresume completion zsh > ~/.zfunc/_trioresume",
        "trioresume completion fish > ~/.config/fish/completions/trioresume.fish",
    ),
)
@common_options
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script with which SHELL completes commands, options and their values.

    Put it where the shell looks for completions, as in the examples, and open a new shell.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    group = click.get_current_context().find_root().command
    made = kind(group, {}, "trioresume", "_TRIORESUME_COMPLETE")
    # Without click's check of bash's version, which would start bash.
    click.echo(made.source_template % made.source_vars())
