"""The cases and works of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.options import human
from bench.peers import Peer, find
from bench.peers.peer import Carrier

__all__ = ["DISK", "Case", "Work", "cases_of"]

DISK = "disk-write"
"""The name of the disk's limit, which is no server: see :mod:`bench.disk`."""


@dataclass(frozen=True, slots=True)
class Case:
    """A server, and the protocol and the carrier of the client.

    With *peer* None it is the bare disk.
    """

    peer: Peer | None
    protocol: str
    carrier: Carrier = Carrier.PLAIN

    @property
    def name(self) -> str:
        """The peer's name, with the protocol if it is not the peer's first one.

        The carrier follows, if there is TLS.
        """
        if self.peer is None:
            return DISK
        name = self.peer.name
        if self.protocol != self.peer.protocols[0]:
            name += f":{self.protocol}"
        return name if self.carrier is Carrier.PLAIN else f"{name}+{self.carrier.value}"

    @property
    def spoken(self) -> str:
        """The protocol and its carrier, for people."""
        if self.carrier is Carrier.PLAIN:
            return self.protocol
        http = "HTTP/2" if self.carrier.is_http2 else "HTTP/1.1"
        below = " over TLS" if self.carrier.is_secure else ""
        return f"{self.protocol}, {http}{below}"

    @property
    def resumes(self) -> bool:
        return self.peer is not None and self.protocol != "plain"


@dataclass(frozen=True, slots=True)
class Work:
    """*uploads* at once, with *total* bytes together, cut every *cuts* bytes on average.

    *files* is the number of all uploads, by default as many as at once.
    """

    uploads: int
    total: int
    cuts: int | None = None
    files: int | None = None

    @property
    def count(self) -> int:
        """The number of all uploads."""
        return self.uploads if self.files is None else self.files

    @property
    def size(self) -> int:
        """The size of each upload, in bytes."""
        return self.total // self.count

    def share(self, part: int) -> Work:
        """Return a work of 1/*part* of the bytes: fewer files, or smaller ones."""
        if self.files is None:
            return Work(self.uploads, self.total // part, self.cuts)
        files = max(1, self.files // part)
        return Work(self.uploads, files * self.size, self.cuts, files)

    @property
    def name(self) -> str:
        """The name of the work, for people."""
        text = f"{self.count} x {human(self.size)}"
        if self.files is not None:
            text += f", {self.uploads} at once"
        return text if self.cuts is None else f"{text}, a cut per {human(self.cuts)}"

    def suits(self, case: Case) -> bool:
        """Return whether *case* can do it: with cuts, it must be able to resume."""
        return self.cuts is None or case.resumes


def cases_of(names: Sequence[str]) -> list[Case]:
    """Return the cases called *names*: ``tusd``, or ``tusd:rufh`` for another protocol.

    ``tusd+tls`` is over TLS, ``nginx+h2`` is HTTP/2 over TLS, and ``tusd+h2c`` is HTTP/2
    without TLS.

    Raises :class:`LookupError` with the known names.
    """
    cases: dict[str, Case] = {}
    for name in names:
        if name == DISK:
            cases[DISK] = Case(None, "none")
            continue
        rest, _, carrier_name = name.partition("+")
        peer_name, _, protocol = rest.partition(":")
        peer = find(peer_name)
        if protocol and protocol not in peer.protocols:
            raise LookupError(f"{peer.name} speaks {', '.join(peer.protocols)}")
        carriers = {each.value: each for each in peer.carriers}
        carrier = carriers.get(carrier_name or Carrier.PLAIN.value)
        if carrier is None:
            raise LookupError(f"{peer.name} is carried by {', '.join(carriers)}")
        case = Case(peer, protocol or peer.protocols[0], carrier)
        cases[case.name] = case
    return list(cases.values())
