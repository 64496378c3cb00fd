"""Digests of content and of representations (RFC 9530), computed only on request.

``Content-Digest`` covers the content of one request. ``Repr-Digest`` covers the whole
upload, over however many requests. This module knows the two registered algorithms that
resist an attacker. A field that names only others has no effect.

Statement numbers such as C15 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Protocol

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.structured import (
    byte_sequences,
    format_dictionary,
    integer_members,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trioresume.protocol.heads import Fields

__all__ = [
    "ContentCheck",
    "ContentDigest",
    "Hashes",
    "ReprDigest",
    "repr_digest",
]

_ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}
"""The algorithms of status "Active" (RFC 9530, section 7.2), and hashlib's names."""


class ContentCheck(Protocol):
    """A check of one request's content that must succeed before the content counts."""

    @property
    def keeps_prefix(self) -> bool:
        """Whether the content of a request that was cut is kept, though unverified."""
        ...

    def update(self, data: memoryview) -> None:
        """Take the next bytes of the content."""
        ...

    def verify(self, trailers: Fields) -> None:
        """Judge the whole content. Raises :class:`PeerError` if it is not as announced."""
        ...


class Hashes:
    """Several hashes of one sequence of bytes, by their names in RFC 9530."""

    def __init__(self, names: set[str]) -> None:
        # In the table's order, so that equal content has equal fields.
        self._hashes = {
            name: hashlib.new(algorithm)
            for name, algorithm in _ALGORITHMS.items()
            if name in names
        }

    def update(self, data: bytes | memoryview) -> None:
        for hash_ in self._hashes.values():
            hash_.update(data)

    def digests(self) -> dict[str, bytes]:
        return {name: hash_.digest() for name, hash_ in self._hashes.items()}


class ContentDigest:
    """The check of a request that carries ``Content-Digest`` (C15).

    The digest is compared once the request is complete. If a request is cut, the draft
    wants the server to keep what arrived. ``Repr-Digest`` protects the whole upload
    then.
    """

    keeps_prefix = True

    def __init__(self, expected: Mapping[str, bytes]) -> None:
        self._expected = expected
        self._hashes = Hashes(set(expected))

    @classmethod
    def of(cls, fields: Fields) -> ContentDigest | None:
        """Return the check that *fields* ask for; None if they ask for none."""
        expected = _known(byte_sequences(fields, "content-digest"))
        return cls(expected) if expected else None

    def update(self, data: memoryview) -> None:
        self._hashes.update(data)

    def verify(self, trailers: Fields) -> None:
        """Raises :class:`PeerError` DIGEST_MISMATCH."""
        _compare(self._expected, self._hashes.digests(), "Content-Digest")


class ReprDigest:
    """The digests of the whole that an upload's first request claims and wants."""

    def __init__(self, fields: Fields) -> None:
        self._expected: dict[str, bytes] = {}
        self.expected: set[str] = set()
        """The algorithms of the claimed digests, which have to be checked."""
        self.wanted: set[str] = set()
        """The algorithms of the digests that the client wants to be told."""
        if "repr-digest" in fields:
            self._expected = _known(byte_sequences(fields, "repr-digest"))
            self.expected = set(self._expected)
        if "want-repr-digest" in fields:
            wanted = integer_members(fields, "want-repr-digest")
            # RFC 9530, section 4: 0 means "not acceptable", 1 to 10 a preference.
            self.wanted = {n for n in _ALGORITHMS if 1 <= wanted.get(n, 0) <= 10}

    def verify(self, digests: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Return the wanted ones of *digests*. Raises :class:`PeerError` DIGEST_MISMATCH."""
        _compare(self._expected, digests, "Repr-Digest")
        return {n: digests[n] for n in _ALGORITHMS if n in self.wanted and n in digests}


def repr_digest(digests: Mapping[str, bytes]) -> str:
    """Return the value of ``Repr-Digest``."""
    return format_dictionary(dict(digests))


def _known(digests: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: digest for name, digest in digests.items() if name in _ALGORITHMS}


def _compare(
    expected: Mapping[str, bytes], found: Mapping[str, bytes], field: str
) -> None:
    for name, digest in expected.items():
        if not hmac.compare_digest(digest, found[name]):
            raise PeerError(
                ProblemCode.DIGEST_MISMATCH,
                f"{field} states another {name} than the content has",
                members={"digest-field": field.lower(), "algorithm": name},
            )
