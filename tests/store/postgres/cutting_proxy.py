"""A proxy in threads between a catalog and its database, which cuts and delays."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

__all__ = ["CuttingProxy"]


class CuttingProxy:
    """Passes bytes on. *url* leads through it to PostgreSQL on *port*."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.cut_when: Callable[[bytes, bool], bool] = lambda data, is_answer: False
        """Called with what is about to be passed on: True cuts that connection instead."""
        self.is_silent = False
        """Whether nothing is passed on, as by a network that drops everything."""
        self.delay = 0.0
        """Seconds that everything takes longer."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        port = self._listener.getsockname()[1]
        return f"postgresql://trioresume@127.0.0.1:{port}/postgres"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._pairs.append((client, server))
            for source, sink, is_answer in (
                (client, server, False),
                (server, client, True),
            ):
                threading.Thread(
                    target=self._pass_on, args=(source, sink, is_answer), daemon=True
                ).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, is_answer: bool
    ) -> None:
        try:
            while data := source.recv(65536):
                while self.is_silent:
                    time.sleep(0.005)
                if self.delay:
                    time.sleep(self.delay)
                if self.cut_when(data, is_answer):
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def cut_all(self) -> None:
        """Cut every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self) -> None:
        self.is_silent = False
        self._listener.close()
        self.cut_all()
