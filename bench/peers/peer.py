"""What all peers have in common: where they lie, how they are started."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Launch", "Peer", "ToolMissing"]


class ToolMissing(Exception):
    """A command that installing or running a peer needs is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command that serves on a port until it is told to stop (SIGTERM)."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/files/"
    """Where uploads go: the path of the collection, with its slash."""


@dataclass(frozen=True, kw_only=True)
class Peer(ABC):
    """A server to measure.

    ``protocols`` are what it speaks, the one it is measured with first: ``seed``,
    ``tus``, ``rufh`` (resumable) or ``plain`` (PUT, no resumption). ``hashes`` and
    ``syncs`` say what work it does for the safety of what it stores, ``settings``
    how it is run; a report repeats them. ``needs`` names commands that must be on
    the search path. ``request_limit``, where set, is the largest body the client
    may send in one request: the server holds each in memory.
    ``plain_method`` is how ``plain`` uploads: PUT of a name, or POST to the
    collection, which answers with a ``Location``. ``serves_back`` is false where
    nothing can be fetched again. ``interop_version`` is that of ``rufh``.
    """

    name: str
    protocols: tuple[str, ...]
    hashes: str
    syncs: str
    settings: str
    needs: tuple[str, ...] = ()
    request_limit: int | None = None
    plain_method: Literal["PUT", "POST"] = "PUT"
    serves_back: bool = True
    interop_version: int | None = 8

    @property
    def resumes(self) -> bool:
        """Whether an upload that was cut can go on."""
        return self.protocols[0] != "plain"

    @property
    @abstractmethod
    def version(self) -> str:
        """Its version; for what is not pinned, only known once it is installed."""

    @property
    def installs(self) -> bool:
        """Whether anything has to be installed at all."""
        return True

    def key(self) -> str:
        """The name of its directory in the cache; another version has another one."""
        return f"{self.name}-{self.version}"

    def missing_tools(self) -> list[str]:
        """Which of ``needs`` this machine does not have."""
        return [tool for tool in self.needs if shutil.which(tool) is None]

    def require_tools(self) -> None:
        """Raises :class:`ToolMissing` unless all of ``needs`` are there."""
        missing = self.missing_tools()
        if missing:
            raise ToolMissing(f"{self.name} needs {' and '.join(missing)}")

    @abstractmethod
    def install(self, at: Path, log: Path) -> None:
        """Install into the empty directory *at*, what is printed going to *log*.

        Raises :class:`~bench.peers.cache.InstallFailed`.
        """

    @abstractmethod
    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        """How to serve on *port* of the loopback interface into *data_dir*."""

    def resolved_version(self, at: Path) -> str:
        """The version of what is installed *at*."""
        return self.version
