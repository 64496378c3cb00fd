"""Which clients are tried with which trials, and where one cannot pass.

``test_clients.py`` runs every cell of this table, and ``docs/compatibility.md`` is made
of it. So the page says nothing that no test has seen. A trial that a client cannot pass has
a reason in :data:`LIMITS`; its test checks that the client still fails, so that the reason
cannot outlive its cause.

The drivers are in ``drivers/``: one program for each client, which does the trials it is
told to and prints a line of JSON for each. This module imports no test tool, because the
documentation is built without them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLIENTS", "HTTP_TRIALS", "LIMITS", "TUS_TRIALS", "Client"]

HTTP_TRIALS = {
    "put": "`PUT` of a file",
    "stream": "`POST` of unknown length",
    "prefer": "`Prefer: resume`",
    "expect": "… and `Expect`",
    "interim": "one request that `104` announces",
    "resume": "cut, then resumed",
    "refused": "reads an early 413",
    "range": "`GET` with `Range`",
    "delete": "`DELETE`",
}
"""The trials of plain HTTP clients, and the heads of their columns."""

TUS_TRIALS = {
    "tus-whole": "in one piece",
    "tus-pieces": "in pieces",
    "tus-resume": "resumed",
    "tus-override": "method override",
    "tus-creation": "creation with upload",
    "tus-deferred": "length deferred",
    "tus-checksum": "checksum",
    "tus-parallel": "joined from parts",
}
"""The same of libraries for tus."""


@dataclass(frozen=True)
class Client:
    """One client.

    *key* names it in tests, *version* is what ``.ci/run`` tries: ``newest`` is the newest
    release there is when the tests are installed. *driver* is the program in ``drivers/``.
    *carrier* is what it speaks; a driver is told by its key.
    """

    key: str
    name: str
    version: str
    driver: str
    trials: tuple[str, ...]
    carrier: str = "HTTP/1.1"

    @property
    def is_secure(self) -> bool:
        """Whether the service it is tried with speaks TLS."""
        return self.carrier.endswith("TLS")


_TLS = "HTTP/1.1, TLS"
_HTTP2 = "HTTP/2, TLS"
_ALL_HTTP = tuple(HTTP_TRIALS)
_NODE = "Node.js 18 or newer"

CLIENTS = (
    Client("pycurl", "libcurl, by pycurl", "newest", "python", _ALL_HTTP),
    Client("wget", "GNU Wget", "Debian's", "python", _ALL_HTTP),
    Client("urllib3", "urllib3", "newest", "python", _ALL_HTTP),
    Client("requests", "Requests", "newest", "python", _ALL_HTTP),
    Client("httpx", "HTTPX", "newest", "python", _ALL_HTTP),
    Client("aiohttp", "aiohttp", "newest", "python", _ALL_HTTP),
    Client("fetch", "Node.js fetch (undici)", _NODE, "node", _ALL_HTTP),
    Client("http", "Node.js http", _NODE, "node", _ALL_HTTP),
    Client("jdk", "JDK java.net.http", "JDK 17 or newer", "jdk", _ALL_HTTP),
    Client("go", "Go net/http", "Go 1.21 or newer", "gohttp", _ALL_HTTP),
    Client("pycurl-tls", "libcurl, by pycurl", "newest", "python", _ALL_HTTP, _TLS),
    Client("fetch-tls", "Node.js fetch (undici)", _NODE, "node", _ALL_HTTP, _TLS),
    Client("pycurl-h2", "libcurl, by pycurl", "newest", "python", _ALL_HTTP, _HTTP2),
    Client("httpx-h2", "HTTPX", "newest", "python", _ALL_HTTP, _HTTP2),
    Client("http2", "Node.js http2", _NODE, "node", _ALL_HTTP, _HTTP2),
    Client("go-h2", "Go net/http", "Go 1.21 or newer", "gohttp", _ALL_HTTP, _HTTP2),
    Client(
        "go-tus",
        "go-tus",
        "v0.0.0-20220610120217-05d0564bb571",
        "gotus",
        ("tus-whole", "tus-pieces", "tus-resume", "tus-override"),
    ),
    Client(
        "tusgo",
        "tusgo",
        "v0.1.0",
        "tusgo",
        (
            "tus-whole",
            "tus-pieces",
            "tus-resume",
            "tus-creation",
            "tus-deferred",
            "tus-checksum",
            "tus-parallel",
        ),
    ),
    Client(
        "tus-java-client",
        "tus-java-client",
        "0.5.1",
        "tusjava",
        ("tus-whole", "tus-pieces", "tus-resume"),
    ),
)

_TAKES_104 = "takes the `104` that it asked for to be the final response"
_NO_EXPECT = "`fetch` refuses to send `Expect`"

LIMITS = {
    ("urllib3", "interim"): _TAKES_104,
    ("requests", "interim"): _TAKES_104,
    ("httpx-h2", "refused"): "waits for credit for content that was refused",
    ("fetch", "expect"): _NO_EXPECT,
    ("fetch-tls", "expect"): _NO_EXPECT,
}
"""What a client cannot do, by client and trial, with the reason that the page gives."""
