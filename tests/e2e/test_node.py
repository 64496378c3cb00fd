"""The HTTP clients that run in Node, against the real command (R5).

undici, which is Node's fetch, takes a 100 for an error: it never sends ``Expect``. Without
node the tests are skipped; those with undici as a package need npm as well.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Service
from tests.e2e.npm import installed
from tests.platforms import needs

pytestmark = needs("node")

SCRIPT = Path(__file__).with_name("node_clients.mjs")
SIZE = 500_000
RESUME = {"Prefer": "resume"}


@pytest.fixture(scope="module")
def package() -> str:
    """The folder that undici is installed in."""
    return str(installed("undici@6.21.0"))


def run(
    client: str, url: str, headers: dict[str, str], size: int | None = SIZE, **more: str
) -> dict[str, Any]:
    """What the client says of a PUT."""
    task = {
        "client": client,
        "url": url,
        "method": "PUT",
        "headers": headers,
        "size": size,
        **more,
    }
    done = subprocess.run(
        ["node", str(SCRIPT), json.dumps(task)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check_offered(answer: dict[str, Any]) -> None:
    """The upload is stored, and the response has what the 100 would have had."""
    assert answer.get("status") == 201, answer
    assert answer["fields"]["response-message-location"].endswith("/message")


@pytest.mark.parametrize("size", [None, 0, 10, SIZE])
@pytest.mark.parametrize(
    "prefer",
    ["resume", "resume=ignore-incomplete", "resume, acknowledge", "resume, processing"],
)
def test_fetch_is_spared_a_100(
    prefer: str, size: int | None, shared_service: Service, new_name: str
) -> None:
    """R5: it shows by the marks of fetch that it cannot take one."""
    url = shared_service.root + new_name
    check_offered(run("fetch", url, {"Prefer": prefer}, size))


def test_fetch_in_rufh(shared_service: Service, new_name: str) -> None:
    """C2: it takes a 104, and shows it to nobody."""
    fields = {"Upload-Draft-Interop-Version": "10", "Upload-Complete": "?1", **RESUME}
    answer = run("fetch", shared_service.root + new_name, fields)
    check_offered(answer)
    assert answer["fields"]["upload-complete"] == "?1"


def test_http_gets_the_100(shared_service: Service, new_name: str) -> None:
    """R5: Node's older client takes it."""
    answer = run("http", shared_service.root + new_name, RESUME)
    check_offered(answer)
    assert answer["interims"] == [100]


def test_undici_says_what_it_is(
    package: str, shared_service: Service, new_name: str
) -> None:
    """R5: its other interfaces have no mark but the one that the program gives them."""
    fields = {**RESUME, "User-Agent": "undici"}
    url = shared_service.root + new_name
    answer = run("undici", url, fields, package=package)
    check_offered(answer)
    assert answer["interims"] == []


def test_undici_works_with_the_setting(
    package: str, make_service: Callable[..., Service], new_name: str
) -> None:
    """R5: without any mark, where the service was told; other interim responses go on."""
    service = make_service("--continue-without-expect", "false")
    service.start()
    fields = {"Prefer": "resume, processing"}
    answer = run("undici", service.root + new_name, fields, package=package)
    check_offered(answer)
    assert answer["interims"] == [102]


def test_undici_without_either_fails(
    package: str, shared_service: Service, new_name: str
) -> None:
    """Why all this is needed: if it succeeds one day, the marks can go."""
    url = shared_service.root + new_name
    answer = run("undici", url, RESUME, package=package)
    assert "bad response" in answer["error"]
