"""Real applications as backends, each unchanged: ``python -m tests.e2e.backends NAME PORT FOLDER``.

They keep what they store in FOLDER. The server around them notes in ``FOLDER/log`` each
request with content: its method, its path, how much content it announced, how much of it the
application read, and its SHA-256. A line is written when the application has answered.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["NAMES"]


def _httpbin(folder: Path) -> Any:
    return import_module("httpbin").app


def _wsgidav(folder: Path) -> Any:
    files = folder / "files"
    files.mkdir(exist_ok=True)
    return import_module("wsgidav.wsgidav_app").WsgiDAVApp(
        {
            "provider_mapping": {"/": str(files)},
            "simple_dc": {"user_mapping": {"*": True}},
            "lock_storage": True,
            "property_manager": True,
            "verbose": 1,
            "logging": {"enable": False},
        }
    )


def _pypiserver(folder: Path) -> Any:
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    return import_module("pypiserver").app(
        roots=[packages], password_file=".", authenticate=[], disable_fallback=True
    )


def _django(folder: Path) -> Any:
    return import_module("tests.targets.applications.frameworks").django_wsgi_app


NAMES: dict[str, Callable[[Path], Any]] = {
    "django": _django,
    "httpbin": _httpbin,
    "pypiserver": _pypiserver,
    "wsgidav": _wsgidav,
}


class _Noting:
    """The content of a request, hashed as the application reads it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()
        self.length = 0

    def _note(self, data: bytes) -> bytes:
        self.hash.update(data)
        self.length += len(data)
        return data

    def read(self, *size: int) -> bytes:
        return self._note(self._stream.read(*size))

    def readline(self, *size: int) -> bytes:
        return self._note(self._stream.readline(*size))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


def _logged(app: Any, log: Path) -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        noting = environ["wsgi.input"] = _Noting(environ["wsgi.input"])
        announced = int(environ.get("CONTENT_LENGTH") or 0)
        response = app(environ, start_response)
        try:
            yield from response
        finally:
            if hasattr(response, "close"):
                response.close()
            if announced:
                entry = {
                    "method": environ["REQUEST_METHOD"],
                    "path": environ["PATH_INFO"],
                    "announced": announced,
                    "read": noting.length,
                    "sha256": noting.hash.hexdigest(),
                    "key": environ.get("HTTP_IDEMPOTENCY_KEY"),
                }
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")

    return application


def main(name: str, port: str, folder: str) -> None:
    """Serve until the end of the process."""
    path = Path(folder)
    path.mkdir(exist_ok=True)
    app = _logged(NAMES[name](path), path / "log")
    server = import_module("cheroot.wsgi").Server(("127.0.0.1", int(port)), app)
    server.prepare()
    os.write(1, b"it listens\n")
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
