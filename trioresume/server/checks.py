"""What can be known of a configuration before a service is started with it.

Each check looks at the same things, by the same functions, as the start of the service. It
changes nothing: no directory is made, no name of a socket is removed, and nobody can connect.
What a check finds is one line for a person.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trioresume.errors import CallerError
from trioresume.server.api.addresses import (
    InheritedAddress,
    TCPAddress,
    UnixAddress,
    parse_address,
)
from trioresume.server.api.tls import TLSSettings
from trioresume.server.http.front import affordable
from trioresume.server.http.local_sockets import is_stale
from trioresume.server.http.tls.contexts import ServerContexts, ends_of_validity
from trioresume.store.file_system.data_dir import FORMAT, RESTORING, is_served
from trioresume.store.file_system.free_space import kept_free

if TYPE_CHECKING:
    from trioresume.server.api.config import Config

__all__ = ["Finding", "Severity", "check_config"]

Severity = Literal["ok", "note", "warning", "error"]

CERTIFICATE_DAYS = 14
"""A certificate that ends sooner should have been renewed: Let's Encrypt's have 30 days left."""
FIRST_YEAR = 2025
"""A clock that shows an earlier year was never set."""
MOST_NAME_BYTES = 107 if sys.platform == "linux" else 103
"""The longest name of a Unix socket."""
CLOCK_SLACK = 60.0
"""Seconds by which the last change of the data directory may be later than now."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that :func:`check_config` found."""

    severity: Severity
    """``error``: the service would not start, or not work. ``warning``: it would work now, and
    be dangerous or stop working soon. ``note``: worth knowing. ``ok``: it is right."""
    text: str
    """A sentence without a full stop."""


def check_config(config: Config) -> Iterator[Finding]:
    """Report what would stop a service with *config* from starting, or make it fail later.

    Yields a :class:`Finding` for each thing that was looked at. Changes nothing. Blocks.
    """
    data_dir = os.path.abspath(config.data_dir)
    exists = os.path.isdir(data_dir)
    served = exists and _is_served(data_dir)
    yield from _clock(data_dir)
    yield from _certificates(config)
    yield from _directory(data_dir, exists=exists, served=served)
    yield from _room(config, data_dir)
    yield from _descriptors(config)
    yield from _addresses(config, served=served)


def _is_served(data_dir: str) -> bool:
    return os.path.exists(os.path.join(data_dir, "lock")) and is_served(data_dir)


# The clock, and what depends on it.


def _clock(data_dir: str) -> Iterator[Finding]:
    now = time.time()
    if datetime.fromtimestamp(now, UTC).year < FIRST_YEAR:
        yield Finding("error", f"the clock was never set: it shows {_date(now)}")
        return
    try:
        changed = os.stat(os.path.join(data_dir, "catalog.sqlite3")).st_mtime
    except OSError:
        changed = 0.0
    if changed > now + CLOCK_SLACK:
        yield Finding(
            "warning",
            f"the clock is behind: it shows {_date(now)}, and the data directory was"
            f" changed at {_date(changed)}",
        )
    else:
        yield Finding("ok", f"the clock shows {_date(now)}")


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _certificates(config: Config) -> Iterator[Finding]:
    if config.ssl is None:
        return
    try:
        ServerContexts(config.ssl, ("http/1.1",))
    except CallerError as exc:
        yield Finding("error", str(exc))
        return
    if not isinstance(config.ssl, TLSSettings):
        return
    for certificate in config.ssl.certificates:
        ends = ends_of_validity(certificate)
        days = (ends - time.time()) / 86400
        name = os.fspath(certificate.certfile)
        if days < 0:
            yield Finding("error", f"the certificate in {name} ended at {_date(ends)}")
        elif days < CERTIFICATE_DAYS:
            yield Finding(
                "warning", f"the certificate in {name} ends soon, at {_date(ends)}"
            )
        else:
            yield Finding(
                "ok", f"the certificate in {name} is valid until {_date(ends)}"
            )
        key = os.fspath(certificate.keyfile or certificate.certfile)
        if os.name != "nt" and os.stat(key).st_mode & stat.S_IROTH:
            yield Finding("warning", f"everybody may read the private key in {key}")


# The data directory and its disk.


def _directory(data_dir: str, *, exists: bool, served: bool) -> Iterator[Finding]:
    if not exists:
        parent = _nearest(data_dir)
        if os.path.lexists(data_dir):
            yield Finding("error", f"{data_dir} is no directory")
        elif not os.access(parent, os.W_OK | os.X_OK):
            yield Finding(
                "error",
                f"the data directory {data_dir} cannot be made: {parent} must not be"
                " changed",
            )
        else:
            yield Finding("ok", f"the data directory {data_dir} will be made")
        return
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("error", f"the data directory {data_dir} must not be changed")
        return
    if os.path.exists(os.path.join(data_dir, RESTORING)):
        yield Finding(
            "error", f"{data_dir} was not restored to the end: run restore again"
        )
        return
    try:
        found = Path(data_dir, "format").read_bytes()
    except FileNotFoundError:
        found = b""
    except OSError as exc:
        yield Finding("error", f"{data_dir}/format cannot be read: {exc.strerror}")
        return
    if found.strip(b"\0") and found != FORMAT:
        yield Finding("error", f"{data_dir} is of a format that is not known")
        return
    if not found and any(os.scandir(data_dir)):
        yield Finding(
            "warning", f"{data_dir} is no data directory yet, and has other files"
        )
    if os.name != "nt" and found and os.stat(data_dir).st_mode & 0o007:
        yield Finding("warning", f"everybody may look into {data_dir}")
    if served:
        yield Finding("note", f"a server is running on {data_dir}")
    else:
        yield Finding("ok", f"the data directory {data_dir} can be used")


def _nearest(path: str) -> str:
    """Return the nearest directory above *path* that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _room(config: Config, data_dir: str) -> Iterator[Finding]:
    usage = shutil.disk_usage(_nearest(data_dir))
    kept = kept_free(config.min_free_space, usage.total)
    text = (
        f"{_mib(usage.free)} are free for {data_dir}, of which {_mib(kept)} stay free"
    )
    if usage.free <= kept:
        yield Finding("error", f"the disk is full: {text}")
    elif usage.free <= 2 * kept:
        yield Finding("warning", f"the disk is nearly full: {text}")
    else:
        yield Finding("ok", text)


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:,.0f} MiB"


# What the process may open.


def _descriptors(config: Config) -> Iterator[Finding]:
    try:
        most = affordable(config.max_connections)
    except CallerError as exc:
        yield Finding("error", str(exc))
        return
    if most < config.max_connections:
        yield Finding(
            "note",
            f"the limit of open files allows for {most} connections, not for"
            f" {config.max_connections}",
        )


def _addresses(config: Config, *, served: bool) -> Iterator[Finding]:
    for bind in config.bind:
        address = parse_address(bind, secure=config.ssl is not None)
        if isinstance(address, InheritedAddress):
            yield Finding("note", "a socket comes from another program, not from here")
            continue
        try:
            if isinstance(address, TCPAddress):
                _try_tcp(address)
            else:
                _try_unix(address)
        except OSError as exc:
            in_use = exc.errno == errno.EADDRINUSE
            if in_use and served:
                yield Finding(
                    "note", f"{bind} is in use, as it is while the server runs"
                )
                continue
            reason = "it is in use" if in_use else exc.strerror or str(exc)
            yield Finding("error", f"{bind} cannot be listened on: {reason}")
        else:
            yield Finding("ok", f"{bind} can be listened on")


def _try_tcp(address: TCPAddress) -> None:
    """Bind the port for an instant, without listening. Raises :class:`OSError`."""
    found = socket.getaddrinfo(
        address.host or None,
        address.port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE,
    )
    for family, kind, protocol, _, name in found:
        with socket.socket(family, kind, protocol) as sock:
            if os.name != "nt":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(name)  # EADDRINUSE if somebody listens there


def _try_unix(address: UnixAddress) -> None:
    """Look whether the name is free, or stale. Raises :class:`OSError`."""
    directory = os.path.dirname(os.path.abspath(address.path))
    if not os.access(directory, os.W_OK | os.X_OK):
        code = errno.EACCES if os.path.isdir(directory) else errno.ENOENT
        raise OSError(code, os.strerror(code), directory)
    if len(os.fsencode(os.path.abspath(address.path))) > MOST_NAME_BYTES:
        code = errno.ENAMETOOLONG
        raise OSError(code, os.strerror(code), address.path)
    is_stale(address.path)
