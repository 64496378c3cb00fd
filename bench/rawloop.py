"""The yardstick: a loop that takes uploads, hashes and writes them with the least work.

It has one thread, epoll and one shared buffer of 1 MiB. For each upload it does
``recv_into``, BLAKE3, ``write`` to a file, and answers 201. It parses only the length of
a request, and has no durability, no catalog and no checks. The additional cost of a real
server, on the same machine in the same run, is the cost of its promises and its code. To
measure the steps separately, the later ones can be left out: ``receive``, ``hash``,
``write``.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
from pathlib import Path

from blake3 import blake3

__all__ = ["RawLoop"]

SCRATCH = 1 << 20
WORK = ("receive", "hash", "write")
"""The steps for the received bytes; each includes those before it."""

_EMPTY = b"Content-Length: 0\r\n\r\n"


class _Connection:
    """One connection, and its upload once the head was read."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.left = -1
        self.file = -1
        self.name = ""
        self.hasher = blake3()


class RawLoop:
    """Serves uploads into *directory* until the process is killed.

    With ``receive`` and ``hash`` an upload cannot be fetched; a ``HEAD`` tells its length.
    """

    def __init__(self, directory: Path, work: str = "write", port: int = 0) -> None:
        self._directory = directory
        self._hashes = work != "receive"
        self._writes = work == "write"
        self._lengths: dict[str, int] = {}
        self._scratch = memoryview(bytearray(SCRATCH))
        self._connections: dict[int, _Connection] = {}
        self._uploads = 0
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/files/"

    def run(self) -> None:
        listener = self._listener.fileno()
        while True:
            for fd, _ in self._epoll.poll():
                if fd == listener:
                    self._accept()
                else:
                    self._receive(self._connections[fd])

    def _accept(self) -> None:
        try:
            while True:
                sock, _ = self._listener.accept()
                self._connections[sock.fileno()] = _Connection(sock)
                self._epoll.register(sock.fileno(), select.EPOLLIN)
        except BlockingIOError:
            pass

    def _receive(self, connection: _Connection) -> None:
        try:
            count = connection.sock.recv_into(self._scratch)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._close(connection)
        elif connection.left < 0:
            self._begin(connection, bytes(self._scratch[:count]))
        else:
            self._take(connection, self._scratch[:count])

    def _begin(self, connection: _Connection, data: bytes) -> None:
        """Read a head. The load generator sends it in one piece, so it arrives whole."""
        head, end, rest = data.partition(b"\r\n\r\n")
        method, path, *_ = head.split(b" ", 2)
        name = path.rpartition(b"/")[2].decode()
        if not end:
            self._close(connection)
        elif method in (b"GET", b"HEAD"):
            self._serve(connection, method, name)
        elif method in (b"POST", b"PUT"):
            self._uploads += 1
            connection.name = name if method == b"PUT" else str(self._uploads)
            connection.left = self._lengths[connection.name] = _content_length(head)
            connection.hasher = blake3()
            if self._writes:
                connection.file = os.open(
                    self._directory / connection.name,
                    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                )
            if b"\r\nExpect: 100-continue" in head:
                connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._take(connection, memoryview(rest))
        else:
            connection.sock.send(b"HTTP/1.1 405 Method Not Allowed\r\n" + _EMPTY)

    def _take(self, connection: _Connection, data: memoryview) -> None:
        connection.left -= len(data)
        if self._hashes:
            connection.hasher.update(data)
        while self._writes and data:
            data = data[os.write(connection.file, data) :]
        if connection.left == 0:
            if self._writes:
                os.close(connection.file)
            connection.file = connection.left = -1
            connection.sock.send(
                b'HTTP/1.1 201 Created\r\nLocation: /files/%s\r\nETag: "%s"\r\n%s'
                % (
                    connection.name.encode(),
                    connection.hasher.hexdigest().encode(),
                    _EMPTY,
                )
            )

    def _serve(self, connection: _Connection, method: bytes, name: str) -> None:
        """Send a file back, blocking the loop: this is for the check after the measurement."""
        sock = connection.sock
        if name not in self._lengths or (method == b"GET" and not self._writes):
            sock.send(b"HTTP/1.1 404 Not Found\r\n" + _EMPTY)
            return
        sock.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self._lengths[name]
        )
        if method == b"GET":
            sock.setblocking(True)
            with (self._directory / name).open("rb") as file:
                sock.sendfile(file)
            sock.setblocking(False)

    def _close(self, connection: _Connection) -> None:
        fd = connection.sock.fileno()
        self._epoll.unregister(fd)
        del self._connections[fd]
        connection.sock.close()
        if connection.file >= 0:
            os.close(connection.file)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def main() -> None:
    """Serve uploads into a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("work", choices=WORK, nargs="?", default="write")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    arguments.directory.mkdir(exist_ok=True)
    loop = RawLoop(arguments.directory, arguments.work, arguments.port)
    print(f"You can now upload files to: {loop.url}", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
