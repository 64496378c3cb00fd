"""Uploads to ordinary applications, cut at random places and resumed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import trioresume
from tests.server.harness import socket_service
from tests.targets.applications import frameworks
from trioresume import ASGITarget, WSGITarget
from trioresume.server.api.handler import AnyTarget
from trioresume.testing import ChaosProxy, random_faults

KIB = 1024

# Django keeps content in such a file and closes it, except when its task is cancelled while it
# reads. The server itself makes none.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"
)

TARGETS: dict[str, Callable[[], AnyTarget]] = {
    "starlette on trio": lambda: ASGITarget(frameworks.starlette_app, loop="trio"),
    "starlette on asyncio": lambda: ASGITarget(frameworks.starlette_app),
    "fastapi": lambda: ASGITarget(frameworks.fastapi_app),
    "django over ASGI": lambda: ASGITarget(frameworks.django_asgi_app),
    "django over WSGI": lambda: WSGITarget(frameworks.django_wsgi_app),
    "flask": lambda: WSGITarget(frameworks.flask_app, threads=2),
}

BOUNDARY = "----a-boundary"


def form(content: bytes) -> tuple[str, bytes]:
    """A form with one file, as browsers write it: its media type, and itself."""
    head = (
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="a.bin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    tail = f"\r\n--{BOUNDARY}--\r\n"
    return (
        f"multipart/form-data; boundary={BOUNDARY}",
        head.encode() + content + tail.encode(),
    )


@pytest.mark.parametrize("name", TARGETS)
async def test_each_upload_reaches_the_application_once_and_whole(
    name: str, tmp_path: Path
) -> None:
    """Cut at random places, resumed: one request, and what the application read is equal."""
    frameworks.LOG.clear()
    draw = random.Random(name)
    contents = [draw.randbytes(draw.randint(1, 400 * KIB)) for _ in range(6)]
    contents.append(b"")
    responses: dict[int, trioresume.ClientResponse] = {}

    async def upload(client: trioresume.Client, root: str, number: int) -> None:
        media_type, body = form(contents[number])
        responses[number] = await client.request(
            "POST", f"{root}/form", body=body, headers={"Content-Type": media_type}
        )

    retry = trioresume.RetryPolicy(first_delay=0.01, longest_delay=0.1)
    async with socket_service(TARGETS[name](), tmp_path) as service:
        faults = random_faults(7, mean_bytes=60 * KIB, limit=40)
        async with (
            ChaosProxy(service.address, faults) as proxy,
            trioresume.Client(retry=retry, proxies={}) as client,
            trio.open_nursery() as nursery,
        ):
            root = "http://{}:{}".format(*proxy.address)
            for number in range(len(contents)):
                nursery.start_soon(upload, client, root, number)
        async with trioresume.Client(proxies={}) as client:
            log = await client.request("GET", f"{service.server.urls[0]}/log")
    expected = [
        {"length": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for content in contents
    ]
    for number, response in responses.items():
        assert response.status == 200, response.body
        assert json.loads(response.body) == expected[number]
    assert sum(r.attempts for r in responses.values()) > len(contents), (
        "nothing was cut"
    )

    def key(entry: dict[str, object]) -> str:
        return str(entry["sha256"])

    assert sorted(json.loads(log.body), key=key) == sorted(expected, key=key)
