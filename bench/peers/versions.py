"""What is installed, exactly: the one place to change for newer peers.

What these bring along is left to each registry's client. Debian keeps one version
of nginx per release and replaces it with security updates, so that it cannot be
named here; a report tells the version that ran.
"""

from __future__ import annotations

__all__ = ["VERSIONS"]

VERSIONS: dict[str, str] = {
    "tusd": "2.9.1",
    "rustus": "0.5.10",
    "@tus/server": "2.4.5",
    "@tus/file-store": "2.1.1",
    "tuspyserver": "4.4.3",
    "uvicorn": "0.54.0",
    "hypercorn": "0.18.0",
    "trio": "0.35.0",
}
