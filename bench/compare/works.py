"""The cases and works of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.options import human
from bench.peers import Peer, find

__all__ = ["DISK", "Case", "Work", "cases_of"]

DISK = "disk-write"
"""The name of the disk's limit, which is no server: see :mod:`bench.disk`."""


@dataclass(frozen=True, slots=True)
class Case:
    """A server and the protocol of the client. With *peer* None it is the bare disk."""

    peer: Peer | None
    protocol: str

    @property
    def name(self) -> str:
        """The peer's name, with the protocol if it is not the peer's first one."""
        if self.peer is None:
            return DISK
        if self.protocol == self.peer.protocols[0]:
            return self.peer.name
        return f"{self.peer.name}:{self.protocol}"

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

    Raises :class:`LookupError` with the known names.
    """
    cases: dict[str, Case] = {}
    for name in names:
        if name == DISK:
            cases[DISK] = Case(None, "none")
            continue
        peer_name, _, protocol = name.partition(":")
        peer = find(peer_name)
        if protocol and protocol not in peer.protocols:
            raise LookupError(f"{peer.name} speaks {', '.join(peer.protocols)}")
        case = Case(peer, protocol or peer.protocols[0])
        cases[case.name] = case
    return list(cases.values())
