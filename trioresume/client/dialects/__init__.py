"""The client's dialects: the requests and answers of each protocol.

A transfer (:mod:`trioresume.client.transfer`) has the same steps in each protocol:
begin, ask how much arrived, send the rest, get the answer. A :class:`Dialect` makes the
fields of these requests and reads the answers. It is sans-IO and holds no state::

    begin()  ───► fields of the request that begins      offer()  ◄─── an interim response
    query()  ───► fields of a HEAD on the upload         held()   ◄─── its answer
    append() ───► fields, and a prefix, of a PATCH       is_step()◄─── its answer
                                                         created()◄─── a creation's answer

The protocols also differ in a few facts, which are class attributes: whether an upload
is made before its content is sent, whether its end has to be said, and how to proceed
if the upload is complete but its answer got lost.

:mod:`trioresume.protocol.dialects` has the server's side of the same protocols, and
everything that both sides need (field names, versions, metadata, limits). The
benchmark's dialects use this package too.
"""

from __future__ import annotations

from trioresume.client.dialects.base import Dialect, Words
from trioresume.client.dialects.discovery import Discovery
from trioresume.client.dialects.rufh import NEWEST_RUFH, Rufh
from trioresume.client.dialects.seed import PLAIN, SEED, SEED_WITH_RANGES, Seed
from trioresume.client.dialects.tus import TUS, Tus
from trioresume.protocol.dialects.rufh_versions import VERSIONS

__all__ = [
    "NEWEST_RUFH",
    "PLAIN",
    "SEED",
    "SEED_WITH_RANGES",
    "TUS",
    "Dialect",
    "Discovery",
    "Rufh",
    "Seed",
    "Tus",
    "Words",
    "dialect_named",
]


def dialect_named(name: object) -> Dialect | None:
    """Return the dialect with that :attr:`~Dialect.name`, in which an upload can go on."""
    uploads: list[Dialect] = [SEED, TUS, *(Rufh(each) for each in VERSIONS.values())]
    return next((dialect for dialect in uploads if dialect.name == name), None)
