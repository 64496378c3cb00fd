"""Bearer tokens (RFC 6750) from a file that contains only their hashes.

A line is ``NAME SHA256``, with the token's SHA-256 in hexadecimal. Empty lines and lines that
begin with ``#`` are ignored. The file is UTF-8, or UTF-16 with a byte order mark. A name may
have several tokens. A plain hash is enough because tokens are random (:func:`new_token`) and
not chosen by people: there is no dictionary to try.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import re
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields
from trioresume.server.api.config import Principal, Rejection
from trioresume.text import decode_text

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead

__all__ = ["BearerTokens", "bearer_tokens", "lines_in", "new_token"]

_NAME = re.compile(r"[^\s#]\S*")
_LINE = re.compile(rf"(?P<name>{_NAME.pattern})\s+(?P<hash>[0-9a-fA-F]{{64}})")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]{1,1024}=*)")
_CHALLENGE = 'Bearer realm="trioresume"'
_NO_TOKEN = Rejection(
    401, Fields({"www-authenticate": _CHALLENGE}), "a bearer token is needed"
)
_UNKNOWN_TOKEN = Rejection(
    401,
    Fields({"www-authenticate": f'{_CHALLENGE}, error="invalid_token"'}),
    "the bearer token is not known",
)


def new_token(name: str) -> tuple[str, str]:
    """Return a new random token for *name*, and the line for the file of tokens.

    Raises :class:`~trioresume.errors.CallerError` for a name that the file cannot hold: an
    empty one, one with white space, one that begins with ``#``.
    """
    if _NAME.fullmatch(name) is None:
        raise CallerError("a name has no white space and does not begin with '#'")
    token = secrets.token_urlsafe(32)
    return token, f"{name} {_hash(token)}"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer_tokens(path: str | os.PathLike[str]) -> BearerTokens:
    """Return an ``authenticate`` for :class:`~trioresume.Config` with the tokens in *path*.

    Raises :class:`~trioresume.errors.CallerError` if the file has no token or a line in
    another form, :class:`OSError` if it cannot be read.
    """
    return BearerTokens(path)


class BearerTokens:
    """The senders that have a token in a file, as :func:`bearer_tokens` returns them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._known = _read(path)

    @property
    def names(self) -> frozenset[str]:
        """The names that have a token."""
        return frozenset(name for name, _ in self._known)

    def reload(self) -> None:
        """Read the file again, for the requests that come from now on.

        Raises as :func:`bearer_tokens`; the tokens stay as they were then.
        """
        self._known = _read(self._path)

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        match = _BEARER.fullmatch(head.fields.get("authorization") or "")
        if match is None:
            return _NO_TOKEN
        offered = _hash(match[1])
        found = None
        # Compare every line, in constant time each: the duration reveals nothing.
        for name, hashed in self._known:
            if hmac.compare_digest(hashed, offered):
                found = name
        return _UNKNOWN_TOKEN if found is None else Principal(found)


def lines_in(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Yield the lines of the file *path*: where each is, for an error, and its text.

    Empty lines and lines that begin with ``#`` are left out. Raises
    :class:`~trioresume.errors.CallerError` if the file is not text, :class:`OSError` if it
    cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        lines = io.StringIO(decode_text(data), newline=None)
    except ValueError as exc:
        raise CallerError(f"{os.fspath(path)} cannot be read: {exc}") from exc
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"{os.fspath(path)}, line {number}", text


def _read(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the names and hashes in the file *path*."""
    known: list[tuple[str, str]] = []
    for where, text in lines_in(path):
        match = _LINE.fullmatch(text)
        if match is None:
            raise CallerError(f"{where}: not 'NAME SHA256'")
        known.append((match["name"], match["hash"].lower()))
    if not known:
        raise CallerError(f"{path} has no token")
    return known
