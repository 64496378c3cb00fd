"""Make signed addresses, and know the requests that are sent to them.

The form of an address is in :mod:`trioresume.protocol.signed_address`. The address is a
credential for one kind of request. An upload that such a request begins needs no credential
for its further requests: its own locations, which nobody can guess, are enough, even after the
address has expired (see docs/howto/authentication.md).
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields
from trioresume.protocol.signed_address import (
    METHODS,
    MOST_TEXT,
    PARAMETER,
    Claims,
    kid_of,
    mac_of,
    parse_claims,
    split_target,
)
from trioresume.protocol.urls import Url
from trioresume.server.api.config import Grant, Principal, Rejection
from trioresume.server.api.tokens import lines_in

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config

__all__ = ["SignedAddresses", "SigningKey", "sign_download", "sign_upload"]

LEAST_SECRET = 32
"""Characters of the shortest secret."""

_LINE = re.compile(r"(?P<id>[A-Za-z0-9._-]{1,64})\s+(?P<secret>[!-~]+)")
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/(?:\*|[a-z0-9!#$&^_.+-]+)")
_NOT_SIGNED = Rejection(
    401,
    Fields({"www-authenticate": 'SignedAddress realm="trioresume"'}),
    "a signed address is needed",
)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key for signed addresses: its name, and its secret."""

    id: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if _LINE.fullmatch(self.line) is None:
            raise CallerError(
                "the name of a key is of A-Z a-z 0-9 . _ -, and its secret has no white space"
            )
        if len(self.secret) < LEAST_SECRET:
            raise CallerError(
                f"the secret of a key has at least {LEAST_SECRET} characters"
            )

    @classmethod
    def new(cls, id: str) -> SigningKey:
        """Return a new random key with the name *id*."""
        return cls(id, secrets.token_urlsafe(32))

    @property
    def line(self) -> str:
        """The line of the key in a file: ``ID SECRET``."""
        return f"{self.id} {self.secret}"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> tuple[SigningKey, ...]:
        """Return the keys in the file *path*: the first one signs, and all of them verify.

        A line is ``ID SECRET``; empty lines and lines that begin with ``#`` are ignored.
        Raises :class:`~trioresume.CallerError` if the file has no key or a line in another
        form, :class:`OSError` if it cannot be read.
        """
        keys: dict[str, SigningKey] = {}
        for where, text in lines_in(path):
            match = _LINE.fullmatch(text)
            if match is None:
                raise CallerError(f"{where}: not 'ID SECRET'")
            if match["id"] in keys:
                raise CallerError(f"{where}: the key was named before")
            try:
                keys[match["id"]] = cls(match["id"], match["secret"])
            except CallerError as exc:
                raise CallerError(f"{where}: {exc}") from exc
        if not keys:
            raise CallerError(f"{os.fspath(path)} has no key")
        return tuple(keys.values())


def sign_upload(
    url: str,
    key: SigningKey,
    *,
    method: str = "POST",
    expires_in: float = 3600.0,
    prefix: bool = False,
    max_size: int | None = None,
    media_type: str | None = None,
    principal: str = "",
    now: float | None = None,
) -> str:
    """Return *url* with a signature, with which anybody may upload to it.

    *method* is ``POST`` or ``PUT``. The address can begin uploads for *expires_in* seconds;
    those that have begun may go on after that. With *prefix* every path that begins with that
    of *url*, which ends with ``/``, is allowed. An upload has at most *max_size* bytes, and
    the *media_type*, such as ``image/png`` or ``image/*``. It belongs to *principal*.

    Raises :class:`~trioresume.CallerError` for values that make no sense.
    """
    if method not in ("POST", "PUT"):
        raise CallerError("an upload is sent with POST or PUT")
    return sign(
        url,
        key,
        method=method,
        expires_in=expires_in,
        prefix=prefix,
        max_size=max_size,
        media_type=media_type,
        principal=principal,
        now=now,
    )


def sign_download(
    url: str,
    key: SigningKey,
    *,
    expires_in: float = 3600.0,
    prefix: bool = False,
    principal: str = "",
    now: float | None = None,
) -> str:
    """Return *url* with a signature, with which anybody may download it.

    *principal* is the owner of the file. The rest is as for :func:`sign_upload`.
    """
    return sign(
        url,
        key,
        method="GET",
        expires_in=expires_in,
        prefix=prefix,
        principal=principal,
        now=now,
    )


def sign(
    url: str,
    key: SigningKey,
    *,
    method: str,
    expires_in: float,
    prefix: bool = False,
    max_size: int | None = None,
    media_type: str | None = None,
    principal: str = "",
    now: float | None = None,
) -> str:
    """Return *url* with a signature for requests with *method*."""
    parsed = Url.parse(url)
    path, _, query = parsed.target.partition("?")
    if split_target(parsed.target)[1]:
        raise CallerError("the URL is signed already")
    if method not in METHODS:
        raise CallerError(f"the method is one of {', '.join(METHODS)}")
    if prefix and not path.endswith("/"):
        raise CallerError("a prefix of paths ends with '/'")
    if expires_in <= 0:
        raise CallerError("the address would have expired")
    if max_size is not None and max_size < 0:
        raise CallerError("max_size is a number of bytes")
    if media_type is not None:
        media_type = media_type.lower()
        if _MEDIA_TYPE.fullmatch(media_type) is None:
            raise CallerError("a media type looks like image/png or image/*")
    if not principal.isprintable():
        raise CallerError("the name of a principal can be printed")
    claims = Claims(
        kid=key.id,
        expires_at=int((time.time() if now is None else now) + expires_in),
        method=method,
        path=path,
        is_prefix=prefix,
        query=query,
        max_size=max_size,
        media_type=media_type,
        principal=principal,
    ).encode()
    signed = f"{claims}.{mac_of(key.secret.encode(), claims)}"
    if len(signed) > MOST_TEXT:
        raise CallerError("the signed address would be too long")
    return f"{parsed}{'&' if query else '?'}{PARAMETER}={signed}"


class SignedAddresses:
    """An ``authenticate`` for :class:`~trioresume.Config`: the request's address is signed.

    *path* is the file of the keys (see :meth:`SigningKey.read`). A request to an address that
    is signed, but not for this request, or not any more, is refused with 403, whatever other
    credentials it has. Ask this authenticator first.

    Raises :class:`~trioresume.CallerError` for a file that cannot be used, :class:`OSError`
    if it cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._clock = clock
        self._keys: dict[str, bytes] = {}
        self._root = ""
        self._operation_path: str | None = None
        self.reload()

    def reload(self) -> None:
        """Read the keys again. Raises as the constructor; then they stay as they were."""
        keys = SigningKey.read(self._path)
        self._keys = {key.id: key.secret.encode() for key in keys}

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Learn from *config* what precedes the paths in the addresses that clients know."""
        public = "" if config.public_url is None else urlsplit(config.public_url).path
        self._root = (public or config.root_path).rstrip("/")
        self._operation_path = config.operation_path
        yield

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        target, values = split_target(head.target)
        if not values:
            return _NOT_SIGNED
        claims = self._claims(values)
        if claims is None:
            return Rejection(403, detail="the signature of the address is wrong")
        fault = self._fault(claims, head, target)
        if fault is not None:
            return Rejection(403, detail=f"the address is {fault}")
        grant = Grant(target, claims.max_size, claims.media_type)
        return Principal(claims.principal, is_asked_again=False, grant=grant)

    def _claims(self, values: Sequence[str]) -> Claims | None:
        """Return what the signature says, if it is right."""
        if len(values) != 1 or len(values[0]) > MOST_TEXT:
            return None
        encoded, _, mac = values[0].partition(".")
        secret = self._keys.get(kid_of(encoded) or "")
        if secret is None or not mac.isascii():
            return None
        if not hmac.compare_digest(mac_of(secret, encoded), mac):
            return None
        try:
            return parse_claims(encoded)
        except ValueError:
            return None

    def _fault(self, claims: Claims, head: RequestHead, target: str) -> str | None:
        """Return why the address is not for this request; None if it is."""
        path, _, query = target.partition("?")
        if self._clock() >= claims.expires_at:
            return "not valid any more"
        if not all(map(claims.allows_method, (head.method, *head.methods_meant))):
            return "signed for another method"
        if not claims.allows_path(self._root + path) or query != claims.query:
            return "signed for another path or query"
        if self._operation_path and path.startswith(self._operation_path):
            return "that of an upload, which needs no signature"
        return None
