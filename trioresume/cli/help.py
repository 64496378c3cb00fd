"""The help of the commands: options in sections, defaults as people write them, examples."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from trioresume.cli.options import Duration, Size

__all__ = [
    "WIDTH",
    "Command",
    "CommandGroup",
    "default_text",
    "sections_of",
    "spelling",
]

WIDTH = 100
"""Most columns of a help text, in a terminal that is as wide."""

_COMMON = "For every command"
_COMMON_OPTIONS = ("--config", "--log-level", "--log-format", "--help")
_REST = "Further options"
_ID = re.compile(r"-[A-Za-z0-9_-]{21}")
"""An upload's id that begins with a hyphen."""


class Command(click.Command):
    """A command whose help has *sections* of options, and *examples*.

    *sections* maps a title to the options below it, by their long names, in the order in
    which they are shown. *needs* names options that a user must not give without another one:
    see :data:`~trioresume.cli.sections.SERVE_NEEDS`.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[str]] | None = None,
        examples: Sequence[str] = (),
        needs: Sequence[tuple[Sequence[str], Sequence[str]]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("max_content_width", WIDTH)
        self.sections = sections or {}
        self.examples = examples
        self.needs = needs

    def invoke(self, ctx: click.Context) -> Any:
        """Refuse options of the command line that mean nothing. Then do as a command does.

        A variable or a configuration file may set them all the same: it may be shared.
        """
        given = {
            option
            for param in self.params
            if ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
            for option in param.opts
        }
        set_options = {
            option
            for param in self.params
            if ctx.params.get(param.name or "")
            for option in param.opts
        }
        for needed, dependent in self.needs:
            if set_options.isdisjoint(needed) and not given.isdisjoint(dependent):
                option = next(option for option in dependent if option in given)
                raise click.UsageError(f"{option} needs {' or '.join(needed)}", ctx)
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse *args*, of which an id may begin with a hyphen.

        New ids do not begin with one, but ids of earlier versions do.
        """
        arguments = [p for p in self.params if isinstance(p, click.Argument)]
        if not any("ID" in (argument.metavar or "") for argument in arguments):
            return super().parse_args(ctx, args)
        options = {name for param in self.params for name in param.opts}
        # No argument of a process has a NUL. With one in front, it is no option.
        rest = super().parse_args(
            ctx,
            [
                f"\0{arg}" if _ID.fullmatch(arg) and arg not in options else arg
                for arg in args
            ],
        )
        for name, value in ctx.params.items():
            if isinstance(value, str):
                ctx.params[name] = value.removeprefix("\0")
            elif isinstance(value, tuple):
                ctx.params[name] = tuple(str(v).removeprefix("\0") for v in value)
        return rest

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        for title, options in sections_of(self, ctx):
            with formatter.section(title):
                for option in options:
                    _write(option, ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}$ {example}\n")


class CommandGroup(click.Group):
    """A group of commands whose help shows an example of each."""

    @property
    def examples(self) -> Sequence[str]:
        """The example of the group: that of its first command."""
        first = next(iter(self.commands.values()))
        assert isinstance(first, Command)
        return first.examples

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write each command, what it does, and an example."""
        names = self.list_commands(ctx)
        width = max(map(len, names)) + 2
        with formatter.section("Commands"):
            for name in names:
                command = self.get_command(ctx, name)
                assert isinstance(command, Command | CommandGroup)
                text = command.get_short_help_str(formatter.width)
                formatter.write(f"  {name:<{width}}{text}\n")
                formatter.write(f"  {'':<{width}}$ {command.examples[0]}\n")


def sections_of(
    command: click.Command, ctx: click.Context
) -> Iterator[tuple[str, list[click.Option]]]:
    """Yield the titles of the sections with their options. What no section has comes last."""
    options = {
        max(option.opts, key=len): option
        for option in command.get_params(ctx)
        if isinstance(option, click.Option) and not option.hidden
    }
    sections = getattr(command, "sections", {})
    for title, names in sections.items():
        found = [options.pop(name) for name in names if name in options]
        if found:
            yield title, found
    common = [options.pop(name) for name in _COMMON_OPTIONS if name in options]
    if options:
        yield _REST if sections else "Options", list(options.values())
    if common:
        yield _COMMON, common


def _write(
    option: click.Option, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    """Write the spelling and the variable into one line, and the meaning below."""
    line = f"{'':{formatter.current_indent}}{spelling(option, ctx)}"
    if isinstance(option.envvar, str):
        variable = f"${option.envvar}"
        if len(line) + 2 + len(variable) > formatter.width:
            formatter.write(f"{line}\n")
            line = ""
        line += f"{variable:>{formatter.width - len(line)}}"
    formatter.write(f"{line}\n")
    text = option.help or ""
    default = default_text(option, ctx)
    if default and "[default:" not in text:
        text += f" [default: {default}]"
    with formatter.indentation(), formatter.indentation():
        formatter.write_text(text)


def spelling(option: click.Option, ctx: click.Context) -> str:
    """Return the option as it is written: ``-r, --recursive``, ``--bind HOST:PORT``."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    if option.is_flag or option.count:
        return names
    value = option.make_metavar(ctx)
    if value == "TEXT":  # as in --public-url: the last word tells more
        value = names.rpartition("-")[2].upper()
    elif value.startswith("INTEGER"):
        value = "N"
    return f"{names} {value}"


def default_text(option: click.Option, ctx: click.Context) -> str:
    """Return the default as a person would write it, such as ``24h``; "" if there is none."""
    default = option.get_default(ctx, call=False)
    if isinstance(default, bool):
        if option.secondary_opts:
            names = option.opts if default else option.secondary_opts
            return max(names, key=len)
        return "" if option.is_flag else str(default).lower()
    if isinstance(default, int | float) and isinstance(option.type, Duration | Size):
        return option.type.text(default)
    if isinstance(default, tuple | list):
        return " ".join(map(str, default))
    known = isinstance(default, str | int | float | os.PathLike) and default != ""
    return str(default) if known else ""
