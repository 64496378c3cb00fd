"""Hooks over HTTP: a POST of the JSON, signed as Standard Webhooks prescribe.

``webhook-id`` is the same each time that an event is sent, ``webhook-timestamp`` is the time
of this attempt, and ``webhook-signature`` proves that both and the content are from somebody
who knows the secret (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import ssl
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trioresume.errors import CallerError, PeerError, TargetUnavailable
from trioresume.hooks.answers import HookFailed
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url
from trioresume.targets.upstream.connections import Pool
from trioresume.targets.upstream.endpoints import Endpoint, parse_endpoint
from trioresume.targets.upstream.round_trip import (
    AnswerBody,
    Outgoing,
    RoundTrips,
    send_in_time,
)

if TYPE_CHECKING:
    from trioresume.hooks.events import HookEvent
    from trioresume.targets.upstream.connections import Connection

__all__ = ["HTTPHooks", "read_secrets"]

logger = logging.getLogger("trioresume.hooks")

LEAST_SECRET = 16
"""Bytes of a secret. Standard Webhooks recommend 24 to 64."""
_PREFIX = "whsec_"
_OWN = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "transfer-encoding",
        "user-agent",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    }
)
"""Fields that cannot be forwarded, because the request has its own."""


def read_secrets(path: str | os.PathLike[str]) -> tuple[bytes, ...]:
    """Return the secrets in the file *path*, one a line, each ``whsec_`` and Base64.

    All of them sign, so that a receiver can change from one to the next. Raises
    :class:`~trioresume.CallerError`.
    """
    try:
        lines = Path(path).read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as exc:
        raise CallerError(f"{os.fspath(path)} cannot be read: {exc}") from exc
    secrets: list[bytes] = []
    for line in lines:
        try:
            secret = base64.b64decode(line.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise CallerError(f"{os.fspath(path)}: a secret is not Base64") from None
        if len(secret) < LEAST_SECRET:
            raise CallerError(
                f"{os.fspath(path)}: a secret has less than {LEAST_SECRET} bytes"
            )
        secrets.append(secret)
    if not secrets:
        raise CallerError(f"{os.fspath(path)} has no secret")
    return tuple(secrets)


class HTTPHooks:
    """Sends each event to *url*, ``http://``, ``https://`` or ``unix:PATH``.

    The fields of the client's request that *forward_headers* names are sent as well. An answer
    with more than *size_limit* bytes is a failure. *timeout* is in seconds: nothing may take
    longer without progress.

    Raises :class:`~trioresume.CallerError` for a URL, a field or a secret that cannot be.
    """

    def __init__(
        self,
        url: str,
        *,
        secret_file: str | os.PathLike[str] | None = None,
        forward_headers: Iterable[str] = (),
        size_limit: int = 5 * 1024,
        timeout: float = 15.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if url.startswith("unix:"):
            self._endpoint, self._target = parse_endpoint(url), "/"
        else:
            whole = Url.parse(url)
            self._endpoint, self._target = Endpoint(whole.origin), whole.target
        self.forwarded_fields: Collection[str] = tuple(
            name.strip().lower() for name in forward_headers if name.strip()
        )
        wrong = _OWN.intersection(self.forwarded_fields)
        if wrong:
            raise CallerError(f"{min(wrong)} cannot be forwarded")
        if timeout <= 0 or size_limit < 0:
            raise CallerError("timeout is in seconds, and size_limit in bytes")
        self._size_limit = size_limit
        self._secret_file = secret_file
        self._secrets = () if secret_file is None else read_secrets(secret_file)
        self._pool = Pool(tls, timeout)
        self._trips = RoundTrips(self._pool, timeout)

    def reload(self) -> None:
        """Read the secrets again. Raises :class:`CallerError`, and keeps the old ones."""
        if self._secret_file is not None:
            self._secrets = read_secrets(self._secret_file)

    async def call(self, event: HookEvent, date: float) -> bytes:
        body = event.body
        fields = Fields(
            {
                "host": self._endpoint.origin.authority,
                "user-agent": "trioresume",
                "content-type": "application/json",
                "content-length": str(len(body)),
                **self._signed(event, int(date)),
            }
        ).plus(self._forwarded(event))
        outgoing = Outgoing(
            method="POST",
            target=self._target,
            fields=fields,
            may_repeat=True,
            send=partial(_send, body),
        )
        try:
            answer = await self._trips.run(outgoing, [self._endpoint])
            if answer.switched is not None:
                answer.switched.close()
                raise HookFailed("the receiver switches to another protocol")
            content = await self._read(answer.body)
        except TargetUnavailable as exc:
            raise HookFailed("the receiver cannot be reached", may_pass=True) from exc
        except PeerError as exc:
            raise HookFailed(exc.detail or str(exc), may_pass=True) from exc
        if not 200 <= answer.status <= 299:
            raise HookFailed(
                f"the receiver answers {answer.status}", may_pass=answer.status >= 500
            )
        return content

    async def _read(self, body: bytes | AnswerBody) -> bytes:
        gathered = bytearray()
        if isinstance(body, bytes):
            gathered += body
        else:
            try:
                async for block in body:
                    gathered += block
                    if len(gathered) > self._size_limit:
                        break
            finally:
                await body.aclose()
        if len(gathered) > self._size_limit:
            raise HookFailed(
                f"the receiver's answer is longer than {self._size_limit} bytes"
            )
        return bytes(gathered)

    def _signed(self, event: HookEvent, timestamp: int) -> dict[str, str]:
        fields = {"webhook-id": event.id, "webhook-timestamp": str(timestamp)}
        if self._secrets:
            signed = f"{event.id}.{timestamp}.".encode() + event.body
            fields["webhook-signature"] = " ".join(
                "v1," + base64.b64encode(_mac(secret, signed)).decode()
                for secret in self._secrets
            )
        return fields

    def _forwarded(self, event: HookEvent) -> Fields:
        if not self.forwarded_fields:
            return Fields()
        known = {name.lower(): lines for name, lines in event.request_fields.items()}
        return Fields(
            (name, line)
            for name in self.forwarded_fields
            for line in known.get(name, ())
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep connections while the service runs."""
        with self._pool.open():
            yield


def _mac(secret: bytes, signed: bytes) -> bytes:
    return hmac.new(secret, signed, hashlib.sha256).digest()


async def _send(body: bytes, connection: Connection, head: bytes) -> None:
    """Send the request. A receiver that stops reading may still answer."""
    await send_in_time(connection.transport, head + body, SEND_SECONDS)


SEND_SECONDS = 30.0
