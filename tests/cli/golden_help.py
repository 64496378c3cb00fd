"""Write the ``--help`` of every command into tests/cli/help: ``python -m tests.cli.golden_help``.

test_help.py compares the files with the commands, so that a change of a help text is seen in
the diff of the commit that makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

import trioresume.cli
from trioresume.cli.help import WIDTH

DIRECTORY = Path(__file__).parent / "help"


def texts() -> dict[str, str]:
    """The name of the file and the help text of each command and each group."""
    group = trioresume.cli.main
    context = click.Context(group, info_name="trioresume", **group.context_settings)
    return {
        f"{'-'.join(words)}.txt": _help(words[1:])
        for words in _commands(group, context, ("trioresume",))
    }


def _commands(
    command: click.Command, context: click.Context, words: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            below = click.Context(found, info_name=name, parent=context)
            yield from _commands(found, below, (*words, *name.split()))


def _help(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(
        trioresume.cli.main,
        [*words, "--help"],
        prog_name="trioresume",
        terminal_width=WIDTH,
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    return result.output


def main() -> None:
    """Write all files, and remove those of commands that are gone."""
    DIRECTORY.mkdir(exist_ok=True)
    current = texts()
    for old in DIRECTORY.glob("*.txt"):
        if old.name not in current:
            old.unlink()
    for name, text in current.items():
        DIRECTORY.joinpath(name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
