"""systemd's two small protocols: telling it how the service is, and taking sockets from it.

The first is ``sd_notify``: datagrams with lines ``NAME=value`` to the Unix socket that
``NOTIFY_SOCKET`` names. The second is socket activation: the descriptors from 3 on are
listening sockets, and ``LISTEN_FDS`` says how many. The variables are removed, so that no
program that the service starts takes them for its own.

Both are a few lines over documented interfaces (sd_notify(3), sd_listen_fds(3)). There is no
library for them that is maintained, needs no C compiler and works without blocking the event
loop, so this is our own.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click
import trio

__all__ = [
    "HandedSocket",
    "ServiceManager",
    "chosen_sockets",
    "expected_sockets",
    "forget",
    "handed_sockets",
]

logger = logging.getLogger("trioresume.cli")

# Telling how the service is.

SEND_SECONDS = 1.0
"""How long a message may wait for room in the manager's queue."""
EXTEND_SECONDS = 10.0
"""Seconds between two requests for more time while the service starts."""
EXTENSION = 3 * EXTEND_SECONDS
"""Seconds for which each of them asks."""
LONGEST_START = 3600.0
"""Seconds after which a start does not ask for more: it hangs."""
LAST_SECONDS = 5.0
"""Seconds for which a shutdown asks beyond the grace period."""


class ServiceManager:
    """The manager that wants to know how the service is; it may be nobody.

    No method raises an error, and none waits longer than ``SEND_SECONDS``: the service does
    not depend on its manager.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = ""
        if address.startswith("@"):
            self._address = "\0" + address[1:]  # a name that is not in the file system
        elif address.startswith("/"):
            self._address = address
        elif address:
            logger.warning("NOTIFY_SOCKET names no socket that is known: %s", address)
        self.watchdog_seconds = _watchdog_seconds(environ, pid)
        """How often the manager wants to hear from the event loop, at least; None: never."""

    async def tell(self, **values: object) -> None:
        """Send lines such as ``READY=1``, if there is a manager."""
        if not self._address:
            return
        lines = (
            f"{name}={' '.join(str(value).split())}" for name, value in values.items()
        )
        message = "\n".join(lines).encode()
        with trio.move_on_after(SEND_SECONDS):
            try:
                with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    await sock.sendto(message, self._address)
            except OSError as exc:
                logger.debug("the service manager cannot be told anything: %s", exc)

    @asynccontextmanager
    async def extended_start(self) -> AsyncIterator[None]:
        """Ask for more time while the block runs: a large catalog may take long to open."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._extend_start)
            yield
            nursery.cancel_scope.cancel()

    async def _extend_start(self) -> None:
        with trio.move_on_after(LONGEST_START):
            while True:
                await self.tell(
                    STATUS="Opening the data directory",
                    EXTEND_TIMEOUT_USEC=_microseconds(EXTENSION),
                )
                await trio.sleep(EXTEND_SECONDS)

    async def tell_ready(self, status: str) -> None:
        await self.tell(READY=1, STATUS=status)

    async def tell_reloading(self) -> None:
        """Say that files are read again. The moment tells systemd which reload this is."""
        now = time.monotonic_ns() // 1000
        await self.tell(RELOADING=1, MONOTONIC_USEC=now, STATUS="Reading files again")

    async def tell_stopping(self, grace_seconds: float) -> None:
        await self.tell(
            STOPPING=1,
            STATUS="Shutting down",
            EXTEND_TIMEOUT_USEC=_microseconds(grace_seconds + LAST_SECONDS),
        )

    async def feed_watchdog(self) -> None:
        """Tell again and again that the event loop runs, if the manager wants to know.

        This is a task like any other: in a loop that is stuck it does not run, and the manager
        starts the service anew.
        """
        while self.watchdog_seconds is not None:
            await self.tell(WATCHDOG=1)
            await trio.sleep(self.watchdog_seconds / 3)


def _watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    interval = environ.get("WATCHDOG_USEC", "")
    if not (interval.isascii() and interval.isdigit() and 0 < int(interval) < 2**63):
        return None
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None  # meant for another process
    return int(interval) / 1e6


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)


# Taking sockets.

FIRST_DESCRIPTOR = 3
MOST_SOCKETS = 256
"""A larger number is not believed."""


@dataclass(frozen=True, slots=True)
class HandedSocket:
    """A socket that systemd opened, and listens on until this process accepts."""

    descriptor: int
    name: str
    """Its ``FileDescriptorName=``, or else the name of its unit."""


def handed_sockets(
    environ: MutableMapping[str, str], pid: int
) -> tuple[HandedSocket, ...]:
    """Return the sockets that were handed to the process *pid*."""
    if environ.get("LISTEN_PID") != str(pid):
        return ()  # there are none, or they are another process's
    given = environ.get("LISTEN_FDS", "")
    if not (given.isascii() and given.isdigit() and int(given) <= MOST_SOCKETS):
        raise click.UsageError(f"LISTEN_FDS is no number of sockets: {given!r}")
    count = int(given)
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * (count - len(names))
    return tuple(
        HandedSocket(FIRST_DESCRIPTOR + index, names[index]) for index in range(count)
    )


def expected_sockets(bind: Sequence[str]) -> tuple[HandedSocket, ...]:
    """Return sockets with the names in *bind*, for a look at what would be served."""
    names = {a.rpartition("fd:")[2] for a in bind if "fd:" in a}
    return tuple(
        HandedSocket(MOST_SOCKETS + index, name)
        for index, name in enumerate(sorted(names), FIRST_DESCRIPTOR)
        if not name.isdigit()
    )


def forget(environ: MutableMapping[str, str]) -> None:
    """Remove the variables of both protocols."""
    for name in (
        *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
        *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    ):
        environ.pop(name, None)


def chosen_sockets(
    bind: Sequence[str], handed: Sequence[HandedSocket], *, is_given: bool
) -> tuple[str, ...]:
    """Return the addresses *bind* with numbers in the place of names of *handed* sockets.

    *is_given* says that somebody chose *bind*. If nobody did, all handed sockets take its
    place. If somebody did, each of them has to be in it: a socket that nobody accepts from
    would let its clients wait for ever.

    Raises :class:`click.UsageError` for a socket that was not handed over, or is not used.
    """
    if not is_given:
        return tuple(f"fd:{each.descriptor}" for each in handed) or tuple(bind)
    chosen: list[str] = []
    used: set[int] = set()
    for address in bind:
        before, is_descriptor, name = address.rpartition("fd:")
        if not is_descriptor or before not in ("", "http://", "https://"):
            chosen.append(address)
            continue
        numbers = [each.descriptor for each in handed if each.name == name]
        if name.isdigit():
            numbers = [int(name)]
        if not numbers:
            known = ", ".join(each.name for each in handed) or "none"
            raise click.UsageError(
                f"no socket {name!r} was handed over by systemd; there are: {known}"
            )
        chosen += [f"{before}fd:{number}" for number in numbers]
        used.update(numbers)
    for each in handed:
        if each.descriptor not in used:
            raise click.UsageError(
                f"systemd handed over the socket {each.name!r} (fd:{each.descriptor}),"
                " and no --bind names it"
            )
    return tuple(chosen)
