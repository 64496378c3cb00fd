"""The proof that a peer takes, keeps and resumes uploads, before it is measured.

A server that drops bytes is fast. So each peer first has to take a few small uploads.
If it resumes uploads, it also has to take as many that are cut in the middle and
continued from the offset that it tells. The stored uploads are read back and compared
by digest.
"""

from __future__ import annotations

from functools import partial

import trio

from bench.server import Server
from trioresume.bench import (
    FaultKind,
    Faults,
    Protocol,
    Results,
    Settings,
    Sizes,
    Verify,
    run,
)
from trioresume.errors import TrioresumeError

__all__ = ["Disproved", "prove"]

UPLOADS = 3
SIZE = 12 * (1 << 20) + 17
"""Larger than the sockets' buffers and than one request, so that the cut hits the middle."""

SECONDS = 30.0

THINK = 0.5
"""Seconds between a cut and the next request. The proof does not test races; the comparison
with cuts does."""


class Disproved(Exception):
    """The peer failed its proof."""


def prove(server: Server, protocol: str | None = None) -> list[str]:
    """Check the running *server* with *protocol*, or with all protocols that it speaks.

    Returns the results as text for people. Raises :class:`Disproved`.
    """
    peer = server.peer
    facts = []
    for each in (protocol,) if protocol else peer.protocols:
        results = _load(server, Protocol(each), None)
        how = "kept" if peer.serves_back else "taken"
        facts.append(f"{each}: {len(results.done)} uploads of {SIZE} bytes {how}")
        if each != "plain":
            facts.append(_resumed(_load(server, Protocol(each), SIZE // 2)))
    return facts


def _load(server: Server, protocol: Protocol, cuts: int | None) -> Results:
    peer = server.peer
    plain = protocol is Protocol.PLAIN
    settings = Settings(
        url=server.url,
        protocol=protocol,
        method=peer.plain_method if plain else None,
        at_once=UPLOADS,
        total=UPLOADS,
        # With cuts, use other content and other names than without.
        seed=1 if cuts is None else 2,
        sizes=Sizes(minimum=SIZE, maximum=SIZE),
        faults=Faults(mean_bytes=cuts, kinds=(FaultKind.FIN,)),
        think=0.0 if cuts is None else THINK,
        duration=SECONDS,
        chunk=None if plain else peer.request_limit,
        interop_version=peer.interop_version,
        insecure=server.carrier.is_secure,
        http2=server.carrier.is_http2,
        verify=Verify.DIGEST if peer.serves_back else Verify.LENGTH,
    )
    try:
        results = trio.run(partial(run, settings))
    except TrioresumeError as exc:
        raise Disproved(f"{protocol.value}: {exc}") from exc
    details = [
        upload.check.detail if upload.check else upload.detail or upload.ending.value
        for upload in results.uploads
        if upload not in results.done or upload in results.wrong
    ]
    if details or len(results.uploads) < UPLOADS:
        raise Disproved(f"{protocol.value}: {details[0] if details else 'no uploads'}")
    return results


def _resumed(results: Results) -> str:
    """Check that cut uploads were resumed, and return the offsets as text.

    Raises :class:`Disproved` if all of them began again at 0.
    """
    points = [
        after.first
        for upload in results.uploads
        for before, after in zip(upload.attempts, upload.attempts[1:], strict=False)
        if before.fault is not None and before.last > 0
    ]
    if not points:
        raise Disproved("no upload was cut in its content")
    if not any(points):
        raise Disproved("cut uploads began again from their beginning")
    return f"resumed at {', '.join(map(str, sorted(points)))}"
