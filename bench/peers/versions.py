"""The exact versions of the peers: change them only here.

Each registry's client chooses the versions of their dependencies. nginx has no version
here, because Debian keeps one version per release and replaces it with security updates.
A report tells the version that ran.
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
