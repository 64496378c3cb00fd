"""The parts that the options of all commands share.

Every option can be given in three places. The first place in this list wins:

1. the command line: ``trioresume serve --data-dir data``;
2. the environment: ``TRIORESUME_SERVE_DATA_DIR=data``. The variable has the names of the
   command and of the option in capitals. An option that may be repeated takes a list
   separated by white space. The options of :func:`common_options` belong to all
   commands: ``TRIORESUME_CONFIG``, ``TRIORESUME_LOG_LEVEL``, ``TRIORESUME_LOG_FORMAT``;
3. the TOML file that ``--config`` names, with a table for each command::

       log-level = "info"

       [serve]
       bind = ["127.0.0.1:8080", "[::1]:8080"]
       data-dir = "data"

No option takes a secret itself. An option names the file that holds the secret, because
other processes can see a command line and an environment.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import click

from trioresume.cli import logs
from trioresume.cli.environment import (
    ENVIRONMENT_PREFIX,
    check_environment,
    command_path,
)
from trioresume.text import decode_text

__all__ = [
    "CONFIG",
    "CONFIG_FILE",
    "ENVIRONMENT_PREFIX",
    "MAX_SIZE",
    "Bind",
    "Duration",
    "ExitCode",
    "Mode",
    "Secret",
    "SecretFile",
    "Size",
    "common_options",
    "name_environment_twins",
    "switch",
]

MAX_SIZE = 10**15 - 1
"""The largest number of bytes on the wire: 15 digits (G6 in docs/supported-protocols.md)."""


class ExitCode(IntEnum):
    """The exit codes of the commands."""

    DONE = 0
    """Success. For ``serve``: it was shut down in order."""
    FAILED = 1
    """The command failed, and running it again will not help by itself."""
    USAGE = 2
    """An option, an argument or the configuration file is wrong; nothing was tried."""
    DAMAGED = 3
    """``verify`` found damage. The output names it, and the files and uploads that need it.

    ``doctor`` found a fault."""
    OVER_THRESHOLD = 4
    """``bench`` found that a comparison of ``--fail-if`` holds, or that its figure is missing."""
    WRONG_CONTENT = 65
    """``bench`` found content that differs from the content that was sent.

    EX_DATAERR of sysexits.h."""
    UNFINISHED = 75
    """Retries are used up, the server stopped, or the network answered in the server's
    place. The progress is kept: run the command again.

    EX_TEMPFAIL of sysexits.h; mail and batch systems retry after it."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C: 128 + SIGINT, as shells report it."""


_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{
        f"{letter}{tail}": 1000**power
        for power, letter in enumerate("kmgt", 1)
        for tail in ("", "b")
    },
    **{
        f"{letter}{tail}": 1024**power
        for power, letter in enumerate("kmgt", 1)
        for tail in ("i", "ib")
    },
}

_DURATION_UNITS = {
    "": Decimal(1),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}

_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?P<unit>[A-Za-z]{0,3})"
)


def _quantity(
    text: str, units: Mapping[str, Decimal] | Mapping[str, int]
) -> Decimal | None:
    """Return *text* in the base unit, or None if it is not a number with one of *units*."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match["unit"].lower() not in units:
        return None
    return Decimal(match["number"]) * units[match["unit"].lower()]


class Size(click.ParamType[int]):
    """A number of bytes: ``4096``, ``64k``, ``1GB``, ``5MiB``.

    With an ``i`` the unit is a power of 1024, without an ``i`` a power of 1000. A
    fraction is accepted if the result is a whole number of bytes.
    """

    name = "size"

    def __init__(self, minimum: int = 0, maximum: int = MAX_SIZE) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        size = _quantity(str(value), _SIZE_UNITS)
        if size is None or size != int(size):
            self.fail(f"{value!r} is not a size such as 4096, 64k or 5MiB", param, ctx)
        if not self.minimum <= size <= self.maximum:
            self.fail(
                f"{value!r} is not within {self.minimum} to {self.maximum} bytes",
                param,
                ctx,
            )
        return int(size)

    def text(self, value: float) -> str:
        """Return *value* in the largest unit that makes it whole: ``16MiB``, ``100``."""
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            factor = _SIZE_UNITS[unit.lower()]
            if value and value % factor == 0:
                return f"{value // factor:.0f}{unit}"
        return f"{value:.0f}"


class Duration(click.ParamType[float]):
    """A time span in seconds: ``60s``, ``5m``, ``24h``, ``7d``, ``500ms``, ``60``."""

    name = "duration"

    def __init__(
        self, minimum: float = 0.0, maximum: float = 10 * 365 * 86400.0
    ) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = _quantity(str(value), _DURATION_UNITS)
        if seconds is None:
            self.fail(f"{value!r} is not a duration such as 60s, 5m or 7d", param, ctx)
        if not self.minimum <= float(seconds) <= self.maximum:
            self.fail(
                f"{value!r} is not within {self.minimum:g} to {self.maximum:g} seconds",
                param,
                ctx,
            )
        return float(seconds)

    def text(self, value: float) -> str:
        """Return *value* in the largest unit that makes it whole: ``24h``, ``7d``, ``0s``."""
        for unit in ("d", "h", "m"):
            factor = float(_DURATION_UNITS[unit])
            if value > factor and value % factor == 0:
                return f"{value / factor:g}{unit}"
        return f"{value:g}s"


class Bind(click.ParamType[str]):
    """An address to listen on: ``127.0.0.1:8080``, ``localhost:0``, ``https://[::1]:8443``.

    With port 0 the system chooses a free port. There is no default host: to listen on
    every interface, write ``0.0.0.0`` or ``[::]``. ``unix:PATH`` is a Unix socket.
    ``fd:NUMBER`` is a descriptor of a socket that listens already, and ``fd:NAME`` the
    socket to which systemd gave this name.
    """

    name = "address"

    _LOCAL = re.compile(
        r"(?:https?://)?(?:unix:[^\0]*[^\0/]|fd:(?:[0-9]{1,9}|[A-Za-z_][^\s:/]{0,254}))"
    )

    _ADDRESS = re.compile(
        r"(?:https?://)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})"
    )

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        local = self._LOCAL.fullmatch(str(value))
        if local is not None:
            return local[0]
        match = self._ADDRESS.fullmatch(str(value).strip())
        if match is None or match["host"] in ("fd", "unix"):
            self.fail(
                f"{value!r} is not HOST:PORT, [IPv6]:PORT, unix:PATH or fd:NUMBER",
                param,
                ctx,
            )
        if int(match["port"]) > 65535:
            self.fail(f"{value!r} has a port above 65535", param, ctx)
        return match[0]


class Mode(click.ParamType[int]):
    """The rights of a file, in octal as for ``chmod``: ``660``."""

    name = "mode"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value  # a default
        text = str(value)
        if re.fullmatch(r"0?[0-7]{3}", text) is None:
            self.fail(f"{value!r} is not a mode such as 660", param, ctx)
        return int(text, 8)


_TOKEN = re.compile(r"[!-~]+")


class Secret(str):
    """A secret that was in a file."""

    __slots__ = ("path",)
    path: str

    def __new__(cls, secret: str, path: str) -> Self:
        self = super().__new__(cls, secret)
        self.path = path
        return self


class SecretFile(click.ParamType[str]):
    """A file whose first line is a secret; the value is that line.

    The file is UTF-8, or UTF-16 with a byte order mark. The secret is a token, which has
    no blanks, unless *takes_any_text* is true.
    """

    name = "file"

    def __init__(self, *, takes_any_text: bool = False) -> None:
        self.takes_any_text = takes_any_text

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        try:
            lines = decode_text(Path(str(value)).read_bytes()).splitlines()
        except OSError as exc:
            self.fail(f"{value!r} cannot be read: {exc.strerror}", param, ctx)
        except ValueError as exc:
            self.fail(f"{value!r} cannot be read: {exc}", param, ctx)
        secret = lines[0].strip() if lines else ""
        if not secret:
            self.fail(f"the first line of {value!r} is empty", param, ctx)
        if not self.takes_any_text and not _TOKEN.fullmatch(secret):
            self.fail(
                f"the first line of {value!r} is not a token: it contains a space, or"
                " characters that are not ASCII",
                param,
                ctx,
            )
        return Secret(secret, str(value))


# The configuration file.

CONFIG_FILE = "trioresume.config_file"
"""The key of the configuration file's path in the ``meta`` of a command's context."""
ARGUMENTS = "trioresume.arguments"
"""The key of the words of the command line."""
CONFIG = "trioresume.config"
"""The key of what this file says, as TOML has it."""

_COMMON_OPTIONS = {"log-level", "log-format"}


def _read_config(
    ctx: click.Context, param: click.Parameter, value: Path | None
) -> Path | None:
    """Make the file's options for this command defaults, which the environment overrides."""
    if value is None:
        return None
    try:
        document = tomllib.loads(decode_text(value.read_bytes()))
    except (OSError, ValueError) as exc:  # TOMLDecodeError, UnicodeDecodeError
        raise click.BadParameter(f"{value} cannot be read: {exc}", ctx, param) from exc
    try:
        ctx.default_map = _defaults(ctx, document)
    except ValueError as exc:
        raise click.BadParameter(f"{value}: {exc}", ctx, param) from exc
    ctx.meta[CONFIG_FILE], ctx.meta[CONFIG] = value, document
    return value


def _defaults(ctx: click.Context, document: Mapping[str, object]) -> dict[str, object]:
    """Return this command's defaults. Raise ValueError for unknown keys and wrong kinds."""
    options = {
        name.removeprefix("--"): option
        for option in ctx.command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--") and name not in ("--config", "--help")
    }
    *groups, own = command_path(ctx)
    root = ctx.find_root()
    commands = (
        set(root.command.list_commands(root))
        if isinstance(root.command, click.Group)
        else {own}
    )
    defaults: dict[str, object] = {}
    for key, value in document.items():
        if key in commands:
            if not isinstance(value, dict):
                raise ValueError(f"{key!r} must be a table")
        elif key == "rule":
            continue  # trioresume.cli.rules reads these tables, for the command serve
        elif key in _COMMON_OPTIONS:
            defaults[options[key].name or ""] = _checked(key, value, options[key])
        else:
            raise ValueError(
                f"{key!r} is neither a command nor an option of all commands"
            )
    table: object = document
    for name in (*groups, own):
        table = table.get(name, {}) if isinstance(table, dict) else {}
    for key, value in table.items() if isinstance(table, dict) else ():
        if key not in options:
            raise ValueError(
                f"the command {' '.join((*groups, own))!r} has no option {key!r}"
            )
        defaults[options[key].name or ""] = _checked(key, value, options[key])
    return defaults


def _checked(key: str, value: object, option: click.Option) -> object:
    """Return *value* in the form that click converts. Raise ValueError for a wrong kind.

    Without this, click would turn a boolean into "True", and a string into a list of
    its letters.
    """
    if option.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"{key!r} must be true or false")
        return value
    if option.type is click.BOOL and isinstance(value, bool):
        return value
    if option.multiple:
        items = value if isinstance(value, list) else [value]
        return [_scalar(key, item) for item in items]
    return _scalar(key, value)


def _scalar(key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key!r} must be a string or a number")
    return str(value)


def switch(
    *spellings: str, default: bool, help: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: add an option that is on by its name alone, or takes ``true`` or ``false``.

    Use it only for commands without arguments: click would take an argument after the
    option for its value.
    """
    return click.option(
        *spellings,
        type=click.BOOL,
        is_flag=False,
        flag_value="true",
        default=default,
        metavar="[true|false]",
        help=help,
    )


def name_environment_twins(name: str, command: click.Command) -> None:
    """Give every option of *command* a variable that is named after the long option.

    click would name it after the Python parameter, which sometimes has another name. The
    variables of a group's commands have the names of both.
    """
    if isinstance(command, click.Group):
        for each, subcommand in command.commands.items():
            name_environment_twins(f"{name}_{each}", subcommand)
        return
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None:
            longest = max(option.opts, key=len).removeprefix("--")
            twin = f"{ENVIRONMENT_PREFIX}_{name}_{longest}"
            option.envvar = re.sub(r"[- ]", "_", twin).upper()


_P = ParamSpec("_P")
_R = TypeVar("_R")


def common_options(
    command: Callable[_P, _R],
) -> Callable[Concatenate[str, str, _P], _R]:
    """Decorator: add the options that every command has, and configure logging from them.

    Place it below ``@click.command`` and above the command's own options. The decorated
    function does not get the values.
    """

    @click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar=f"{ENVIRONMENT_PREFIX}_CONFIG",
        is_eager=True,  # the file gives the defaults of the other options, so read it first
        expose_value=False,
        callback=_read_config,
        help="Read options from this TOML file.",
    )
    @click.option(
        "--log-level",
        type=click.Choice(logs.LEVELS),
        envvar=f"{ENVIRONMENT_PREFIX}_LOG_LEVEL",
        default="info",
        show_default=True,
        help="Show log messages of this level and above.",
    )
    @click.option(
        "--log-format",
        type=click.Choice(logs.FORMATS),
        envvar=f"{ENVIRONMENT_PREFIX}_LOG_FORMAT",
        default="text",
        show_default=True,
        help="Log lines for people, or one JSON object per line.",
    )
    @functools.wraps(command)
    def with_logging(
        log_level: str, log_format: str, *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        check_environment(click.get_current_context(), os.environ)
        logs.configure(log_level, log_format)
        return command(*args, **kwargs)

    # mypy infers a narrower type from the names of the two added arguments.
    return cast("Callable[Concatenate[str, str, _P], _R]", with_logging)
