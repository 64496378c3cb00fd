"""Dialects, from the asking side: how each protocol says what is wanted of a server.

A transfer (:mod:`trioresume.client.transfer`) is the same whatever protocol it is made
in: begin, ask how much arrived, send the rest, get the answer. A :class:`Dialect` has the
words for that, and reads what comes back. It is sans-IO and holds no state::

    begin()  ───► fields of the request that begins      offer()  ◄─── an interim response
    query()  ───► fields of a HEAD on the upload         held()   ◄─── its answer
    append() ───► fields, and a prefix, of a PATCH       is_step()◄─── its answer
                                                         created()◄─── a creation's answer

What differs beyond words are a few facts, class attributes here: whether an upload is
made before its content is sent, whether its end has to be said, what to do about an
upload that is complete while its answer got lost.

The server's side of the same protocols is in :mod:`trioresume.protocol.dialects`; what
both sides need (field names, versions, metadata, limits) is there, and only there. The
benchmark's dialects speak with these words as well.
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
    """The dialect with that :attr:`~Dialect.name`, in which an upload can go on."""
    uploads: list[Dialect] = [SEED, TUS, *(Rufh(each) for each in VERSIONS.values())]
    return next((dialect for dialect in uploads if dialect.name == name), None)
