"""Write the man pages from the commands' own help: ``python -m docs.man_pages``.

The pages are in docs/man, and the wheel installs them. A test compares them with the
commands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

import trioresume.cli
from trioresume.cli.help import default_text, sections_of, spelling

DIRECTORY = Path(__file__).parent / "man"


def pages() -> dict[str, str]:
    """The name and the text of each page."""
    group = trioresume.cli.main
    parent = click.Context(group, info_name="trioresume", **group.context_settings)
    found = {"trioresume.1": _overview(group, parent)}
    for name, command, context in _commands(group, parent):
        found[f"trioresume-{name.replace(' ', '-')}.1"] = _page(name, command, context)
    return found


def _commands(
    group: click.Group, parent: click.Context, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """The name, the command and its context of each command, in groups too."""
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            yield from _commands(command, context, (*path, name))
        else:
            yield " ".join((*path, name)), command, context


def _overview(group: click.Group, parent: click.Context) -> str:
    summary = inspect.cleandoc(group.help or "")
    lines = [
        *_head("trioresume", summary),
        ".SH SYNOPSIS",
        ".B trioresume",
        ".I command",
        "[options]",
        ".SH COMMANDS",
    ]
    for name, command, _ in _commands(group, parent):
        page = _text(f"trioresume-{name.replace(' ', '-')}")
        lines += [".TP", f".BR {page} (1)", _short(command)]
    return "\n".join(lines) + "\n"


def _page(name: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        *_head(f"trioresume-{name.replace(' ', '-')}", command.get_short_help_str(200)),
        ".SH SYNOPSIS",
        f".B trioresume {_text(name)}",
        _text(usage),
        ".SH DESCRIPTION",
    ]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines += [".PP", _text(paragraph)]
    for title, options in sections_of(command, context):
        lines.append(f".SH {_text(title.upper())}")
        for option in options:
            lines += _option(option, context)
    lines.append(".SH EXAMPLES")
    for example in getattr(command, "examples", ()):
        lines += [".PP", ".nf", _text(example), ".fi"]
    lines += [".SH SEE ALSO", ".BR trioresume (1)"]
    return "\n".join(lines) + "\n"


def _head(name: str, summary: str) -> list[str]:
    return [
        f'.TH "{_text(name).upper()}" "1" "" "trioresume" "User commands"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary.rstrip('.'))}",
    ]


def _option(option: click.Option, context: click.Context) -> list[str]:
    lines = [".TP", f".B {_text(spelling(option, context))}", _text(option.help or "")]
    default = default_text(option, context)
    if default and "[default:" not in (option.help or ""):
        lines.append(_text(f"[default: {default}]"))
    if isinstance(option.envvar, str):
        lines += [".br", f"Environment: {_text(option.envvar)}"]
    return lines


def _short(command: click.Command) -> str:
    return _text(command.get_short_help_str(200))


def _text(text: str) -> str:
    """*text* with what roff would interpret taken literally."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", escaped, flags=re.MULTILINE)


def main() -> None:
    """Write all pages, and remove those of commands that are gone."""
    DIRECTORY.mkdir(exist_ok=True)
    current = pages()
    for old in DIRECTORY.glob("*.1"):
        if old.name not in current:
            old.unlink()
    for name, text in current.items():
        DIRECTORY.joinpath(name).write_text(text)


if __name__ == "__main__":
    main()
