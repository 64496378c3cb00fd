"""The yardstick: the least work that takes an upload, hashes it and writes it.

One thread, epoll, one shared scratch of 1 MiB: ``recv_into``, BLAKE3, ``write`` to
a file per upload, 201. No HTTP beyond finding the length, no durability, no
catalog, no checks. What a real server takes more than this, on the same machine
in the same run, is what its promises and its code cost.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path

from blake3 import blake3

__all__ = ["RawLoop"]

SCRATCH = 1 << 20


class _Connection:
    """One connection, and the upload it carries once its head was read."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.left = -1
        self.file = -1
        self.number = 0
        self.hasher = blake3()


class RawLoop:
    """Serves uploads into *directory* until the process is killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._scratch = memoryview(bytearray(SCRATCH))
        self._connections: dict[int, _Connection] = {}
        self._uploads = 0
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
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
        """Read a head; the generator sends it whole, and so it comes."""
        head, end, rest = data.partition(b"\r\n\r\n")
        method, path, *_ = head.split(b" ", 2)
        if not end or method not in (b"POST", b"GET"):
            self._close(connection)
        elif method == b"GET":
            self._serve(connection, path.decode())
        else:
            self._uploads += 1
            connection.number = self._uploads
            connection.left = _content_length(head)
            connection.hasher = blake3()
            connection.file = os.open(
                self._directory / str(connection.number),
                os.O_WRONLY | os.O_CREAT | os.O_EXCL,
            )
            if b"\r\nExpect: 100-continue" in head:
                connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._take(connection, memoryview(rest))

    def _take(self, connection: _Connection, data: memoryview) -> None:
        connection.hasher.update(data)
        connection.left -= len(data)
        while data:
            data = data[os.write(connection.file, data) :]
        if connection.left == 0:
            os.close(connection.file)
            connection.file = connection.left = -1
            connection.sock.send(
                b"HTTP/1.1 201 Created\r\nLocation: /files/%d\r\n"
                b'ETag: "%s"\r\nContent-Length: 0\r\n\r\n'
                % (connection.number, connection.hasher.hexdigest().encode()),
            )

    def _serve(self, connection: _Connection, path: str) -> None:
        """Send a file back, blocking: this is for the check after the measurement."""
        name = path.rpartition("/")[2]
        sock = connection.sock
        sock.setblocking(True)
        with (self._directory / str(int(name))).open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
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
    """Serve uploads into the directory that is the only argument."""
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    loop = RawLoop(directory)
    print(f"You can now upload files to: {loop.url}", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
