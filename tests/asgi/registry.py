"""Which ASGI servers are tried, over which versions of HTTP, and what each is tried with.

``test_servers.py`` runs every cell, and the table in ``docs/howto/asgi-app.md`` is made of
this. A trial that a server cannot pass has its reason in :data:`LIMITS`; its test checks that
it still fails. This module imports no test tool, because the documentation is built without
them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "SERVERS", "TRIALS", "Server"]

TRIALS = {
    "seed_replay": "seed: response fetched again",
    "seed_careful": "seed, careful creation: cut, then resumed",
    "rufh": "rufh: cut, then resumed",
    "tus": "tus: cut, then resumed",
}
"""The trials, and the heads of their columns."""


@dataclass(frozen=True)
class Server:
    """An ASGI server: its name, the versions of HTTP to try, and the arguments to start it.

    ``{port}``, ``{cert}`` and ``{key}`` are filled in.
    """

    name: str
    versions: tuple[str, ...]
    arguments: tuple[str, ...]


_HYPERCORN = (
    *("-m", "hypercorn", "--bind", "127.0.0.1:{port}"),
    *("--quic-bind", "127.0.0.1:{port}"),
    *("--certfile", "{cert}", "--keyfile", "{key}"),
)

SERVERS = (
    Server(
        "hypercorn, trio worker",
        ("HTTP/1.1", "HTTP/2", "HTTP/3"),
        (*_HYPERCORN, "-k", "trio", "tests.asgi.applications:alone"),
    ),
    Server(
        "hypercorn, asyncio worker",
        ("HTTP/1.1", "HTTP/2", "HTTP/3"),
        (*_HYPERCORN, "-k", "asyncio", "tests.asgi.applications:alone"),
    ),
    Server(
        "uvicorn",
        ("HTTP/1.1",),
        (
            *("-m", "uvicorn", "--port", "{port}"),
            *("--ssl-certfile", "{cert}", "--ssl-keyfile", "{key}"),
            "tests.asgi.applications:alone",
        ),
    ),
    Server(
        "granian",
        ("HTTP/1.1", "HTTP/2"),
        (
            *("-m", "granian", "--interface", "asgi", "--port", "{port}"),
            *("--ssl-certificate", "{cert}", "--ssl-keyfile", "{key}"),
            "tests.asgi.applications:alone",
        ),
    ),
)

LIMITS: dict[tuple[str, str, str], str] = {}
"""(server, version, trial) and why it cannot pass."""
