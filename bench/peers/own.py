"""trioresume itself, and the programs that show the machine's limits, as peers."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

from bench.peers.peer import Carrier, Certificate, Launch, Peer

__all__ = ["OWN", "Trioresume", "trioresume"]

_REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Own(Peer):
    """A module of this checkout, run by the Python that runs the benchmark."""

    @property
    def version(self) -> str:
        return version("trioresume")

    @property
    def installs(self) -> bool:
        return False

    def install(self, at: Path, log: Path) -> None:
        """Do nothing: there is nothing to install."""

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        return Launch(
            command=(sys.executable, "-m", *self.arguments(data_dir, port)),
            environment={"PYTHONPATH": str(_REPOSITORY)},
        )

    @abstractmethod
    def arguments(self, data_dir: Path, port: int) -> tuple[str, ...]:
        """Return the module to run and its arguments."""


@dataclass(frozen=True, kw_only=True)
class Trioresume(Own):
    """``trioresume serve``."""

    durability: str
    options: tuple[str, ...] = ()

    def arguments(self, data_dir: Path, port: int) -> tuple[str, ...]:
        return (
            *("trioresume", "serve", "--bind", f"127.0.0.1:{port}"),
            *("--data-dir", str(data_dir), "--durability", self.durability),
            *self.options,
        )

    def secure(self, launch: Launch, certificate: Certificate) -> Launch:
        options = (
            *("--ssl-certfile", str(certificate.certfile)),
            *("--ssl-keyfile", str(certificate.keyfile)),
        )
        return replace(launch, command=(*launch.command, *options))


@dataclass(frozen=True, kw_only=True)
class Hooked(Trioresume):
    """``trioresume serve`` with an outbox whose events cost nothing to deliver.

    The directory of hooks is the one of the data: it has no executable.
    """

    def arguments(self, data_dir: Path, port: int) -> tuple[str, ...]:
        return (
            *super().arguments(data_dir, port),
            *("--hooks-dir", str(data_dir)),
            *("--hooks-enabled-events", "post-create,post-finish,post-terminate"),
        )


@dataclass(frozen=True, kw_only=True)
class Raw(Own):
    """:mod:`bench.rawloop`, up to one of its steps."""

    work: str

    def arguments(self, data_dir: Path, port: int) -> tuple[str, ...]:
        return ("bench.rawloop", "--port", str(port), str(data_dir), self.work)


_SYNCS = {
    "disk": "every chunk and the catalog, before the answer",
    "process": "none; uploads survive the end of the process, not a power loss",
}


def trioresume(durability: str = "disk", options: Sequence[str] = ()) -> Trioresume:
    """Return ``trioresume serve`` with this durability and further *options*."""
    return Trioresume(
        name="trioresume" if durability == "disk" else f"trioresume-{durability}",
        durability=durability,
        options=tuple(options),
        protocols=("seed", "rufh", "plain"),
        plain_method="POST",
        carriers=tuple(Carrier),
        h2c_options=("--h2c", "true"),
        hashes="BLAKE3 of every chunk",
        syncs=_SYNCS[durability],
        settings=" ".join(
            ("the command's defaults,", "durability", durability, *options)
        ),
    )


def _raw(work: str, does: str) -> Raw:
    return Raw(
        name=f"raw-{work}",
        work=work,
        protocols=("plain",),
        hashes="none" if work == "receive" else "BLAKE3",
        syncs="none",
        settings=f"a limit, not a server: {does}; one thread, epoll, one buffer of "
        "1 MiB, hardly any parsing",
        serves_back=work == "write",
    )


_BASE = trioresume()
_HOOKED = Hooked(
    **{each.name: getattr(_BASE, each.name) for each in fields(_BASE)}
    | {"name": "trioresume-hooks", "settings": "the command's defaults, with an outbox"}
)
"""The server with hooks, to be compared with the one without."""

_BY_HYPERCORN = replace(
    trioresume("process", ("--front", "hypercorn")),
    name="trioresume-hypercorn",
    protocols=("rufh", "plain"),
)
"""The engine as an ASGI application, to be compared with ``hypercorn-trio``."""

OWN: tuple[Own, ...] = (
    trioresume("disk"),
    trioresume("process"),
    _HOOKED,
    _BY_HYPERCORN,
    _raw("receive", "receives and drops the bytes"),
    _raw("hash", "receives and hashes"),
    _raw("write", "receives, hashes and writes a file"),
)
