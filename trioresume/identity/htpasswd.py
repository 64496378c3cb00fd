"""HTTP Basic (RFC 7617) with the users of an htpasswd file.

Only bcrypt hashes are accepted. The other kinds of htpasswd can be tried a million times a
second or faster, so a stolen file would reveal most passwords.

A check of a password is slow on purpose, some 50 to 300 ms of one core. Three things keep that
from being an attack or a burden:

- a password that was right is remembered for a minute, under a keyed hash. An upload of a
  thousand requests costs a few checks;
- checks run in worker threads, two at a time. Requests with the same password share one check;
- only so many checks wait, and only a few from each address. Others are refused: 429 and 503.

A check of an unknown name takes as long as that of a known one: it compares the password with
a hash that fits nothing and has the cost of some user's hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Protocol

import trio

from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields
from trioresume.server.api.config import Principal, Rejection
from trioresume.server.api.tokens import lines_in

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead

__all__ = ["PasswordFile"]

logger = logging.getLogger("trioresume.identity")

MOST_COST = 14
"""The highest cost of a bcrypt hash: a check takes about a second. Each step doubles it."""
MOST_REMEMBERED = 4096
"""Passwords that are remembered; those that were checked first are forgotten first."""
MOST_WAITING = 64
"""Checks that run or wait. Behind two at a time, the last one waits for some seconds."""
MOST_WAITING_OF_ADDRESS = 8
"""The same for each IPv4 address or IPv6 /64 network."""
WARN_INTERVAL = 3600.0
"""Seconds between two warnings about passwords in clear text."""

_LINE = re.compile(r"(?P<name>[^:]+):(?P<hash>\S+)")
# The 22 letters of the salt are 16 bytes, so the last one is one of four.
_BCRYPT = re.compile(
    r"\$2[aby]\$(?P<cost>[0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}"
)
_BASIC = re.compile(r"[Bb][Aa][Ss][Ii][Cc] +([A-Za-z0-9+/]{1,4096}={0,2})")
# The longest password of which bcrypt looks at every byte. Apache's tools cut it here, too.
_MOST_PASSWORD = 72
_KINDS = (
    ("$apr1$", "MD5"),
    ("$1$", "MD5"),
    ("{SHA}", "SHA-1"),
    ("$5$", "SHA-256"),
    ("$6$", "SHA-512"),
    ("$argon2", "Argon2"),
)
_CHALLENGE = Fields({"www-authenticate": 'Basic realm="trioresume", charset="UTF-8"'})
_NO_PASSWORD = Rejection(401, _CHALLENGE, "a name and a password are needed")
_WRONG = Rejection(401, _CHALLENGE, "the name or the password is wrong")
_TOO_MANY = Rejection(
    429,
    Fields({"retry-after": "2"}),
    "too many passwords of this address are being checked",
)
_BUSY = Rejection(
    503, Fields({"retry-after": "2"}), "too many passwords are being checked"
)


class _Bcrypt(Protocol):
    """What is used of the module ``bcrypt``."""

    def checkpw(self, password: bytes, hashed_password: bytes) -> bool: ...


class _Check:
    """A check of a password that is running. Requests with the same password wait for it."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.is_right: bool | None = None
        """None if it was cancelled, so that nobody knows."""


class PasswordFile:
    """An ``authenticate`` for :class:`~trioresume.Config`: HTTP Basic with an htpasswd file.

    *path* has lines ``NAME:HASH`` as ``htpasswd -B`` writes them, with bcrypt hashes. A
    password that was right is remembered for *remember* seconds.

    Needs the extra ``identity``. Raises :class:`~trioresume.CallerError` if it is missing, or
    if the file has no user, a line in another form or a hash of another kind, and
    :class:`OSError` if the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, remember: float = 60.0) -> None:
        self._bcrypt = _load_bcrypt()
        self._path = path
        self._remember = remember
        self._key = secrets.token_bytes(32)
        self._users: dict[str, bytes] = {}
        self._decoys: list[bytes] = []
        self._right: OrderedDict[bytes, float] = OrderedDict()
        """When each password that was right is forgotten, by its keyed hash."""
        self._running: dict[bytes, _Check] = {}
        self._waiting: Counter[str] = Counter()
        self._limiter = trio.CapacityLimiter(2)
        self._warned_at = float("-inf")
        self.reload()

    def reload(self) -> None:
        """Read the file again. Raises as the constructor; then nothing has changed.

        A user who was removed, or whose password was changed, is refused from now on.
        """
        users = _read(self._path)
        self._decoys = [_decoy(hashed) for hashed in users.values()]
        self._users = users

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        offered = head.fields.get("authorization")
        if offered is None or offered[:6].lower() != "basic ":
            return _NO_PASSWORD
        if not _is_private(head):
            self._warn(head)
        credentials = _credentials(offered)
        if credentials is None:
            return _WRONG
        name, password = credentials
        hashed = self._users.get(name) or self._decoy_for(name)
        # The hash is part of the key: a changed password is forgotten with its old hash.
        key = self._digest(hashed + b":" + name.encode() + b":" + password)
        verdict = self._is_remembered(key) or await self._ask(
            key, hashed, password, _network_of(head.peer)
        )
        if isinstance(verdict, Rejection):
            return verdict
        # Not a decoy's, and not that of a user who was removed meanwhile.
        is_right = verdict and self._users.get(name) == hashed
        return Principal(name) if is_right else _WRONG

    def _digest(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, hashlib.sha256)

    def _decoy_for(self, name: str) -> bytes:
        """Return a hash that no password has; the same one each time for the same *name*."""
        number = int.from_bytes(self._digest(name.encode())[:8])
        return self._decoys[number % len(self._decoys)]

    def _is_remembered(self, key: bytes) -> bool:
        until = self._right.get(key)
        return until is not None and trio.current_time() < until

    async def _ask(
        self, key: bytes, hashed: bytes, password: bytes, network: str
    ) -> bool | Rejection:
        """Return whether the password is right, or a refusal to check it now."""
        while (check := self._running.get(key)) is not None:
            await check.ended.wait()
            if check.is_right is not None:
                return check.is_right
        if self._waiting[network] >= MOST_WAITING_OF_ADDRESS:
            return _TOO_MANY
        if len(self._running) >= MOST_WAITING:
            return _BUSY
        self._waiting[network] += 1
        check = self._running[key] = _Check()
        try:
            check.is_right = await trio.to_thread.run_sync(
                self._bcrypt.checkpw, password, hashed, limiter=self._limiter
            )
        finally:
            del self._running[key]
            check.ended.set()
            self._waiting[network] -= 1
            if not self._waiting[network]:
                del self._waiting[network]
        if check.is_right:
            self._right[key] = trio.current_time() + self._remember
            self._right.move_to_end(key)
            while len(self._right) > MOST_REMEMBERED:
                self._right.popitem(last=False)
        return check.is_right

    def _warn(self, head: RequestHead) -> None:
        now = trio.current_time()
        if now >= self._warned_at + WARN_INTERVAL:
            self._warned_at = now
            logger.warning(
                "%s sends a password without TLS: everybody on the way can read it",
                head.peer,
            )


def _load_bcrypt() -> _Bcrypt:
    try:
        import bcrypt
    except ImportError as exc:
        raise CallerError(
            "an htpasswd file needs the package bcrypt: install trioresume[identity]"
        ) from exc
    return bcrypt


def _credentials(field: str) -> tuple[str, bytes] | None:
    """Return the name and the password in an ``Authorization`` field; None if malformed."""
    match = _BASIC.fullmatch(field)
    if match is None:
        return None
    try:
        decoded = base64.b64decode(match[1], validate=True)
        name, colon, password = decoded.partition(b":")
        text = name.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    # bcrypt takes a NUL byte for the end: "a\0b" would be the password "a".
    if not colon or b"\0" in decoded:
        return None
    return text, password[:_MOST_PASSWORD]


def _is_private(head: RequestHead) -> bool:
    """Whether nobody else can read the request: it has TLS, or comes from this machine."""
    if head.tls is not None or head.origin.startswith("https://"):
        return True
    address = _address_of(head.peer)
    return address is None or address.is_loopback  # None: a Unix socket


def _address_of(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address of a peer, which may be followed by a port, if it has one."""
    for text in (peer, peer.rpartition(":")[0]):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        mapped = address.ipv4_mapped if address.version == 6 else None
        return address if mapped is None else mapped
    return None


def _network_of(peer: str) -> str:
    """Return what checks count for: an IPv4 address, or the /64 network of an IPv6 one."""
    address = _address_of(peer)
    if address is None or address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))


def _decoy(hashed: bytes) -> bytes:
    """Return a hash of the same cost that no password has: its last 31 letters are random."""
    return hashed[:-31] + secrets.token_hex(16).encode()[:31]


def _read(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Return the users in the file *path*, with their hashes."""
    users: dict[str, bytes] = {}
    for where, text in lines_in(path):
        match = _LINE.fullmatch(text)
        if match is None:
            raise CallerError(f"{where}: not 'NAME:HASH'")
        kind = _BCRYPT.fullmatch(match["hash"])
        if kind is None:
            raise CallerError(
                f"{where}: the hash is {_kind_of(match['hash'])}. Only bcrypt is accepted:"
                " make it with 'htpasswd -B'"
            )
        if not 4 <= int(kind["cost"]) <= MOST_COST:
            raise CallerError(
                f"{where}: the cost of the hash is {int(kind['cost'])}. It must be 4 to"
                f" {MOST_COST}; a check with a higher one takes seconds"
            )
        if match["name"] in users:
            raise CallerError(f"{where}: the user was named before")
        users[match["name"]] = match["hash"].encode()
    if not users:
        raise CallerError(f"{os.fspath(path)} has no user")
    return users


def _kind_of(hashed: str) -> str:
    for start, kind in _KINDS:
        if hashed.startswith(start):
            return kind
    return "neither bcrypt nor another known kind"
