"""Unix sockets and sockets that were handed over: names that are stale, taken, or no sockets."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from tests.certificates import write_server_files
from tests.server.harness import Client
from trioresume import (
    CallerError,
    Certificate,
    Config,
    FileService,
    Principal,
    RequestHead,
    Server,
    TLSSettings,
    serve,
)
from trioresume.server.http.local_sockets import inherited_socket, listen_on_unix

if os.name != "nt":
    import fcntl


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the name of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="trioresume-") as name:
        yield Path(name)


def _get(client: socket.socket) -> bytes:
    """Ask for what is not there; return all that is answered."""
    client.settimeout(20)
    client.sendall(b"GET /files/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = b""
    while data := client.recv(65536):
        answer += data
    return answer


def _ask(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        return _get(client)


async def test_service_listens_on_it_and_removes_it(folder: Path) -> None:
    """The URL is in nginx's spelling. At a shutdown the name goes at once."""
    path = folder / "up.sock"
    config = Config(bind=[f"unix:{path}"], data_dir=folder / "data")
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve, FileService("/files/"), config)
        assert server.urls == [f"http://unix:{path}:"]
        answer = await trio.to_thread.run_sync(_ask, path)
        assert answer.startswith(b"HTTP/1.1 404 ")
        server.shutdown()
    assert not path.exists()


async def test_service_speaks_tls_over_it(folder: Path) -> None:
    """As at any address, when there is a certificate; with http:// it does not."""
    certificate, key = write_server_files(folder)
    secure, plain = folder / "secure", folder / "plain"
    config = Config(
        bind=[f"unix:{secure}", f"http://unix:{plain}"],
        ssl=TLSSettings(certificates=[Certificate(certificate, key)]),
        data_dir=folder / "data",
    )
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve, FileService("/files/"), config)
        assert server.urls == [f"https://unix:{secure}:", f"http://unix:{plain}:"]
        assert b" 400 " in (await trio.to_thread.run_sync(_ask, secure))[:20]
        assert b" 404 " in (await trio.to_thread.run_sync(_ask, plain))[:20]
        server.shutdown()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_only_those_with_rights_may_connect(mode: int, folder: Path) -> None:
    """The mode is exact, whatever the process's mask is."""
    before = os.umask(0o077)
    try:
        raw, name = listen_on_unix(str(folder / "up.sock"), mode, 1)
    finally:
        os.umask(before)
    with raw:
        assert stat.S_IMODE((folder / "up.sock").stat().st_mode) == mode
        name.remove()


def test_stale_name_is_replaced(folder: Path) -> None:
    """As a killed process leaves it."""
    path = str(folder / "up.sock")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
        killed.listen()
    raw, name = listen_on_unix(path, 0o600, 1)
    with raw, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        name.remove()
    assert not os.path.lexists(path)


@pytest.mark.parametrize("kind", ["file", "link", "directory", "pipe", "listening"])
def test_what_is_no_stale_socket_stays(kind: str, folder: Path) -> None:
    """Nothing is removed but a socket that nobody listens on. A full queue is somebody's."""
    path = folder / "up.sock"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as full:
        if kind == "file":
            path.write_bytes(b"mine")
        elif kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            other.bind(str(folder / "stale"))
            path.symlink_to(folder / "stale")
        else:
            other.bind(str(path))
            other.listen(0)
            full.connect(str(path))
        before = path.lstat()
        with pytest.raises(OSError) as raised:
            listen_on_unix(str(path), 0o600, 1)
    listens = kind == "listening"
    assert raised.value.errno == (errno.EADDRINUSE if listens else errno.EEXIST)
    assert str(path) in str(raised.value)
    assert path.lstat().st_ino == before.st_ino


def test_name_of_another_socket_is_not_removed(folder: Path) -> None:
    """Somebody removed ours by hand, and another server listens there now."""
    path = folder / "up.sock"
    first, first_name = listen_on_unix(str(path), 0o600, 1)
    path.unlink()
    second, second_name = listen_on_unix(str(path), 0o600, 1)
    with first, second:
        first_name.remove()
        assert path.exists()
        second_name.remove()
        assert not path.exists()


def test_of_many_that_start_at_once_one_gets_the_name(folder: Path) -> None:
    """All of them find the same stale name; without the lock several would replace it."""
    path = str(folder / "up.sock")
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        with ThreadPoolExecutor(8) as threads:
            tried = list(threads.map(_try_to_listen, [path] * 8))
        (winner,) = [each for each in tried if not isinstance(each, int)]
        assert tried.count(errno.EADDRINUSE) == 7
        with winner, socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(path)
        os.unlink(path)


def _try_to_listen(path: str) -> socket.socket | int:
    """The socket, or the number of the error."""
    try:
        return listen_on_unix(path, 0o600, 16)[0]
    except OSError as exc:
        return exc.errno or 0


def test_lock_that_somebody_keeps_does_not_prevent_the_start(folder: Path) -> None:
    """Whoever may read the directory can lock it, as in /tmp."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        raw, name = listen_on_unix(str(folder / "up.sock"), 0o600, 1)
        with raw:
            name.remove()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("path", "code"),
    [("missing/up.sock", errno.ENOENT), ("x" * 200, errno.ENAMETOOLONG)],
)
def test_name_that_cannot_be_made_is_in_the_error(
    path: str, code: int, folder: Path
) -> None:
    """A directory that is not there; a name longer than sockets have."""
    with pytest.raises(OSError) as raised:
        listen_on_unix(str(folder / path), 0o600, 1)
    assert raised.value.errno == code
    assert str(folder) in str(raised.value)


async def test_peer_cannot_choose_its_name(folder: Path) -> None:
    """It has bound its own end to what looks like the address of a trusted proxy."""
    seen: list[str] = []

    async def note(head: RequestHead) -> Principal:
        seen.append(head.peer)
        return Principal("anybody")

    path = folder / "up.sock"
    forged = b"X-Forwarded-For: 203.0.113.7\r\n"

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.bind("\x00127.0.0.1:1")
            client.connect(str(path))
            client.settimeout(20)
            client.sendall(
                b"GET /files/x HTTP/1.1\r\nHost: x\r\n"
                + forged
                + b"Connection: close\r\n\r\n"
            )
            return client.recv(65536)

    for trusted in ("127.0.0.1", "unix"):
        config = Config(
            bind=[f"unix:{path}"],
            data_dir=folder / trusted,
            authenticate=note,
            trusted_proxies=[trusted],
        )
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve, FileService("/files/"), config)
            await trio.to_thread.run_sync(ask)
            server.shutdown()
    assert seen == ["unix:", "203.0.113.7"]


async def test_socket_that_was_handed_over_is_served(folder: Path) -> None:
    """Of TCP and of Unix; a name in the file system that is not ours stays."""
    path = folder / "theirs.sock"
    tcp = socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(path))
    local.listen()
    address = tcp.getsockname()
    handed = [tcp.detach(), local.detach()]
    config = Config(
        bind=[f"fd:{number}" for number in handed], data_dir=folder / "data"
    )
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve, FileService("/files/"), config)
        assert server.urls == [f"http://127.0.0.1:{address[1]}", f"http://unix:{path}:"]
        assert not os.get_inheritable(handed[0])
        stream = await trio.open_tcp_stream(*address)
        client = Client(stream)
        await client.send(b"GET /files/x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.reply()).status == 404
        await stream.aclose()
        assert b" 404 " in (await trio.to_thread.run_sync(_ask, path))[:20]
        server.shutdown()
    assert path.exists()


def test_descriptor_that_is_no_listening_socket_is_refused(folder: Path) -> None:
    """It stays open: it is somebody else's."""
    with (
        open(folder / "file", "wb") as file,
        socket.socket() as deaf,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        for number in (file.fileno(), deaf.fileno(), datagrams.fileno()):
            with pytest.raises(CallerError, match=f"fd:{number} is n"):
                inherited_socket(number)
            os.fstat(number)
    with pytest.raises(CallerError, match="is no socket"):
        inherited_socket(987_654)


@pytest.mark.parametrize(
    "bind",
    [
        ["unix:"],
        ["unix:/run/"],
        ["unix:a\0b"],
        ["fd:"],
        ["fd:-1"],
        ["fd:x"],
        ["https://unix:/run/a"],
        ["ftp://fd:3"],
        ["fd:3", "fd:3"],
    ],
    ids=str,
)
def test_address_that_says_nothing_is_refused(bind: list[str]) -> None:
    """Before anything is opened."""
    with pytest.raises(CallerError):
        Config(bind=bind)
