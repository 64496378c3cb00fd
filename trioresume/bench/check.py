"""Checks whether the server stored what was sent."""

from __future__ import annotations

from blake3 import blake3

from trioresume.bench.content import Region
from trioresume.bench.plan import Planned
from trioresume.bench.probe import Probe, Request, Response, Unhappy
from trioresume.bench.results import Check, CheckedBy, Ending
from trioresume.bench.settings import Verify
from trioresume.bench.upload_run import Link
from trioresume.protocol.urls import Url

__all__ = ["check"]

TRIES = 3
"""How often each request is tried: a connection may break for reasons that say nothing
about the content.
"""

_NOT_OFFERED = {400, 401, 403, 404, 405, 406, 410, 415, 501}
"""Statuses that say that the content cannot be read back here."""


async def check(link: Link, probe: Probe, planned: Planned, region: Region) -> Check:
    """Check one finished upload as the settings say.

    The check by digest reads the content back. If the server does not offer that, the
    check compares the length that the server states. If the server states none, nothing
    is checked, and the result says so.
    """
    wish = link.settings.verify
    if wish is Verify.NONE:
        return Check(CheckedBy.NONE, True, "not asked for")
    url = probe.result
    if url is None:
        unknown = "the server did not say where the content is"
        return Check(CheckedBy.NONE, wish is not Verify.DIGEST, unknown)
    if wish is not Verify.LENGTH:
        found = await _by_digest(link, probe, planned, region, url)
        if found is not None:
            return found
        if wish is Verify.DIGEST:
            return Check(CheckedBy.DIGEST, False, "the server lets nobody read it back")
    return await _by_length(link, probe, planned, url)


async def _by_digest(
    link: Link, probe: Probe, planned: Planned, region: Region, url: Url
) -> Check | None:
    """Read the content back and compare its digest. None if the server does not offer that."""
    identity = {"accept-encoding": "identity"}
    request = Request("GET", url, probe.read_fields().plus(identity))
    for left in reversed(range(TRIES)):
        received = _Received(planned.size)
        try:
            response = await _ask(link, request, received)
        except Unhappy as exc:
            if left and exc.retry:
                continue
            return Check(CheckedBy.DIGEST, False, f"reading back: {exc.detail}")
        if response.status in _NOT_OFFERED:
            return None
        if response.status != 200:
            return Check(
                CheckedBy.DIGEST, False, f"reading back answered {response.status}"
            )
        if received.count != planned.size:
            wrong = f"{received.count} bytes, not {planned.size}"
            return Check(CheckedBy.DIGEST, False, wrong)
        if received.hasher.digest() != region.digest(planned.position, planned.size):
            return Check(CheckedBy.DIGEST, False, "other bytes than were sent")
        return Check(CheckedBy.DIGEST, True)
    raise AssertionError("the last try returns")


class _Received:
    """Hashes the content that is read back, up to the expected length."""

    def __init__(self, size: int) -> None:
        self.hasher = blake3()
        self.count = 0
        self._size = size

    def __call__(self, data: bytes | bytearray) -> None:
        self.count += len(data)
        if self.count > self._size:
            detail = f"more than {self._size} bytes"
            raise Unhappy(Ending.NOT_UNDERSTOOD, detail)
        self.hasher.update(data)


async def _by_length(link: Link, probe: Probe, planned: Planned, url: Url) -> Check:
    request = Request("HEAD", url, probe.read_fields())
    for left in reversed(range(TRIES)):
        try:
            response = await _ask(link, request)
            length = probe.stored_length(response) if response.ok else None
        except Unhappy as exc:
            if left and exc.retry:
                continue
            return Check(CheckedBy.LENGTH, False, f"asking: {exc.detail}")
        if response.status in (404, 410):
            # A server that names a place for the content must have it there.
            return Check(CheckedBy.LENGTH, False, f"not there: {response.status}")
        if length is None:
            return Check(
                CheckedBy.NONE, True, f"HEAD answered {response.status}, no length"
            )
        if length != planned.size:
            wrong = f"{length} bytes, not {planned.size}"
            return Check(CheckedBy.LENGTH, False, wrong)
        return Check(CheckedBy.LENGTH, True)
    raise AssertionError("the last try returns")


async def _ask(
    link: Link, request: Request, on_body: _Received | None = None
) -> Response:
    """Send *request* on a connection of its own. Raises :class:`Unhappy`."""
    connection = await link.open()
    try:
        response = await connection.ask(request, link.settings.headers, on_body=on_body)
    finally:
        connection.close()
    if response.status in (408, 429, 502, 503, 504):
        raise Unhappy(Ending.REJECTED, f"answered {response.status}", retry=True)
    return response
