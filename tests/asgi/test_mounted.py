"""The engine mounted under a path of a larger application, with and without a lifespan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.asgi.clients import HttpxClient
from tests.asgi.serving import served
from tests.asgi.test_servers import BODY, HALF, path_of

UVICORN = (
    *("-m", "uvicorn", "--port", "{port}"),
    *("--ssl-certfile", "{cert}", "--ssl-keyfile", "{key}"),
)
HYPERCORN = (
    *("-m", "hypercorn", "-k", "trio", "--bind", "127.0.0.1:{port}"),
    *("--certfile", "{cert}", "--keyfile", "{key}"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "name"),
    [
        (UVICORN, "in_starlette"),
        (UVICORN, "in_fastapi"),
        (UVICORN, "in_django"),
        (HYPERCORN, "in_fastapi"),
    ],
)
def test_an_upload_under_a_path_is_resumed(
    server: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    """Every location has the path in front, and the rest of the project is as it was."""
    with served((*server, f"tests.asgi.applications:{name}"), tmp_path) as port:
        client = HttpxClient(port, http2=False)
        version = {"Upload-Draft-Interop-Version": "8"}
        created = client.request(
            "POST", "/up/files/", {**version, "Upload-Complete": "?0"}
        )
        assert created.status == 201
        upload = path_of(created)
        assert upload.startswith("/up/operations/")
        append = {
            **version,
            "Content-Type": "application/partial-upload",
            "Upload-Complete": "?1",
        }
        client.cut("PATCH", upload, {**append, "Upload-Offset": "0"}, BODY, HALF)
        offset = int(client.request("HEAD", upload).fields["upload-offset"])
        rest = {**append, "Upload-Offset": str(offset)}
        done = client.request("PATCH", upload, rest, BODY[offset:])
        assert done.status == 201
        location = path_of(done)
        assert location.startswith("/up/files/")
        assert client.request("GET", location).body == BODY
        other = client.request("GET", "/log" if name == "in_django" else "/")
        assert other.status == 200
