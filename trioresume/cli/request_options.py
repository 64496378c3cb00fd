"""The options that add fields and credentials to each request of a client's command."""

from __future__ import annotations

import base64
import functools
import netrc
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

import click

from trioresume import Fields
from trioresume.cli.options import SecretFile
from trioresume.text import decode_text

__all__ = ["HeaderLines", "RequestFields", "request_options"]

_MOST_BYTES = 64 * 1024
"""Most bytes of a file with fields: servers refuse longer heads."""


Lines = tuple[tuple[str, str], ...]
"""Header fields: names in lower case, and values."""


@dataclass(frozen=True, slots=True)
class RequestFields:
    """What the options add to each request."""

    headers: Lines
    token: str | None
    user: str | None
    password: str | None
    netrc: Path | None

    @property
    def has_any(self) -> bool:
        """Whether there are fields or credentials that are meant for one server."""
        return bool(self.headers or self.token or self.user)

    @property
    def described(self) -> dict[str, str]:
        """The fields that describe the content, which only go where it is described."""
        return {name: value for name, value in self.headers if _describes(name)}

    def for_url(self, url: str) -> Fields:
        """Return the other fields for requests to *url*. Raises :class:`click.UsageError`."""
        credentials = self._credentials(url)
        fields = Fields(line for line in self.headers if not _describes(line[0]))
        if credentials is None:
            return fields
        if "authorization" in fields:
            raise click.UsageError(
                "--header has Authorization, and another option has credentials, too"
            )
        return fields.plus({"authorization": credentials})

    def _credentials(self, url: str) -> str | None:
        if self.token is not None:
            return f"Bearer {self.token}"
        if self.user is not None:
            return _basic(self.user, self.password or "")
        if self.netrc is None:
            return None
        try:
            found = netrc.netrc(self.netrc).authenticators(urlsplit(url).hostname or "")
        except OSError as exc:
            raise click.UsageError(
                f"{self.netrc} cannot be read: {exc.strerror}"
            ) from exc
        except netrc.NetrcParseError as exc:
            # Not the error's own text: it quotes the file, which has passwords.
            raise click.UsageError(
                f"{self.netrc} cannot be read: line {exc.lineno} is not in netrc's form"
            ) from exc
        except ValueError as exc:
            raise click.UsageError(f"{self.netrc} is not UTF-8") from exc
        return None if found is None else _basic(found[0], found[2] or "")


def _describes(name: str) -> bool:
    return name.startswith("content-")


def _basic(user: str, password: str) -> str:
    """Return credentials of RFC 7617 in UTF-8."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


class HeaderLines(click.ParamType[Lines]):
    """A field for every request, ``Name: value``, or ``@FILE`` with one in each line."""

    name = "header"
    # In an environment variable they are separated by line ends.
    envvar_list_splitter: ClassVar[str | None] = "\n"

    _LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Lines:
        if isinstance(value, tuple):
            return value
        text = str(value)
        if not text.startswith("@"):
            return (self._line(text, param, ctx),)
        try:
            with open(text[1:], "rb") as file:
                lines = decode_text(file.read(_MOST_BYTES)).splitlines()
        except OSError as exc:
            self.fail(f"{text[1:]!r} cannot be read: {exc.strerror}", param, ctx)
        except ValueError as exc:
            self.fail(f"{text[1:]!r} cannot be read: {exc}", param, ctx)
        return tuple(self._line(line, param, ctx) for line in lines if line.strip())

    def _line(
        self, text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        match = self._LINE.fullmatch(text.strip())
        if match is None:
            # Only the beginning is shown: the rest may be a secret.
            shown = text.partition(":")[0]
            self.fail(
                f"the line that begins with {shown[:40]!r} is not 'Name: value'",
                param,
                ctx,
            )
        return match[1].lower(), match[2]


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--header",
        "-H",
        "headers",
        type=HeaderLines(),
        multiple=True,
        help="A header field to add to every request, as 'Name: value'; may be repeated. With "
        "@FILE they are the lines of a file: use it for secrets.",
    ),
    click.option(
        "--token-file",
        type=SecretFile(),
        help="File whose first line is the bearer token.",
    ),
    click.option(
        "--user",
        "-u",
        metavar="NAME",
        help="User name (HTTP Basic). The password is asked for, or comes from "
        "--password-file.",
    ),
    click.option(
        "--password-file",
        type=SecretFile(takes_any_text=True),
        help="File whose first line is the password of --user.",
    ),
    click.option(
        "--netrc",
        is_flag=True,
        help="Take name and password for the server from ~/.netrc.",
    ),
    click.option(
        "--netrc-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Take them from this file instead.",
    ),
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def request_options(
    command: Callable[Concatenate[RequestFields, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options to *command*, which gets what they say as first argument."""

    @functools.wraps(command)
    def with_fields(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        names = (
            "headers",
            "token_file",
            "user",
            "password_file",
            "netrc",
            "netrc_file",
        )
        given: dict[str, Any] = {name: kwargs.pop(name) for name in names}
        return command(_fields(**given), *args, **kwargs)

    wrapped: Callable[..., Any] = with_fields
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)


def _fields(
    headers: tuple[Lines, ...],
    token_file: str | None,
    user: str | None,
    password_file: str | None,
    netrc: bool,
    netrc_file: Path | None,
) -> RequestFields:
    if netrc and netrc_file is None:
        try:
            netrc_file = Path("~/.netrc").expanduser()
        except RuntimeError as exc:
            raise click.UsageError(f"--netrc: {exc}") from exc
    kinds = (token_file, user, netrc_file)
    if sum(kind is not None for kind in kinds) > 1:
        raise click.UsageError("--token-file, --user and --netrc exclude each other")
    if password_file is not None and user is None:
        raise click.UsageError("--password-file needs --user")
    if user is not None:
        if ":" in user:
            raise click.UsageError(
                "--user takes only the name, because others can see a command line; put "
                "the password into a file, and name it with --password-file"
            )
        password_file = password_file or _ask_for_password(user)
    lines = tuple(line for each in headers for line in each)
    return RequestFields(lines, token_file, user, password_file, netrc_file)


def _ask_for_password(user: str) -> str:
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("--user needs --password-file, or a terminal to ask on")
    answer: str = click.prompt(f"Password of {user}", hide_input=True, err=True)
    return answer
