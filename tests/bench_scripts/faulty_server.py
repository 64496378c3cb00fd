"""A tus and PUT server in memory that can be told to be wrong in one way.

``drop`` loses a byte of what it stores, ``forget`` loses what came before a cut,
``refuse`` takes nothing; ``none`` does all right.
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULT, PORT = sys.argv[1], int(sys.argv[2])
LOCK = threading.Lock()
"""A query waits until whoever writes has noticed that it was cut."""
STORED: dict[str, bytearray] = {}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", **fields: str) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body_into(self, stored: bytearray) -> bool:
        """Take the body as it comes; whether all came."""
        left = int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read1(min(left, 65536))
            if not data:
                return False
            left -= len(data)
            stored += data[1:] if FAULT == "drop" and left == 0 else data
        return True

    def do_OPTIONS(self) -> None:
        self.answer(204)

    def do_POST(self) -> None:
        if FAULT == "refuse":
            self.answer(403)
            return
        path = f"/files/{len(STORED)}"
        STORED[path] = bytearray()
        self.answer(201, Location=path)

    def do_PUT(self) -> None:
        stored = STORED[self.path] = bytearray()
        if self.body_into(stored):
            self.answer(201)

    def do_PATCH(self) -> None:
        with LOCK:
            self.append()

    def append(self) -> None:
        stored = STORED[self.path]
        if int(self.headers["Upload-Offset"]) != len(stored):
            self.close_connection = True  # its content is not wanted
            self.answer(409, Upload_Offset=str(len(stored)))
        elif self.body_into(stored):
            end = int(self.headers["Upload-Offset"]) + int(
                self.headers["Content-Length"]
            )
            self.answer(204, Upload_Offset=str(end))
        elif FAULT == "forget":
            stored.clear()

    def do_HEAD(self) -> None:
        with LOCK:
            self.answer(200, Upload_Offset=str(len(STORED[self.path])))

    def do_GET(self) -> None:
        self.answer(200, bytes(STORED[self.path]))


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
