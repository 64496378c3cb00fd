"""What every end-to-end test has: services that do not outlive it, and a seed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.certificates import authority, write_server_files
from tests.e2e.chromium import Browser, running_browser
from tests.e2e.command import Service
from trioresume.ui.build import CannotBuild, build, is_built


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Makes services, each in a directory of its own; ends them and reads their logs."""
    services: list[Service] = []

    def make(
        *arguments: str,
        module: str = "trioresume",
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> Service:
        data_dir = tmp_path / f"data-{len(services)}"
        service = Service(
            data_dir,
            arguments if module != "trioresume" else ("serve", *arguments),
            module=module,
            environment=environment,
            fresh=fresh,
        )
        services.append(service)
        return service

    yield make
    for service in services:
        service.close()
    for service in services:
        service.check_log()


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """A running ``trioresume serve``."""
    service = make_service()
    service.start()
    return service


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running ``trioresume serve`` for all tests of a module that leave it running."""
    service = Service(tmp_path_factory.mktemp("shared") / "data")
    service.start()
    yield service
    service.stop()
    service.check_log()


@pytest.fixture
def new_name() -> str:
    """The path of a file that no other test has."""
    return f"/files/{secrets.token_hex(8)}"


@pytest.fixture
def seed() -> int:
    """A new one each time, shown when the test fails; TRIORESUME_E2E_SEED fixes it."""
    seed = int(os.environ.get("TRIORESUME_E2E_SEED") or int.from_bytes(os.urandom(4)))
    print(f"TRIORESUME_E2E_SEED={seed}")  # noqa: T201 - pytest shows it on failure
    return seed


@pytest.fixture
def full() -> bool:
    """Whether the long forms were asked for: TRIORESUME_E2E_FULL=1."""
    return os.environ.get("TRIORESUME_E2E_FULL") == "1"


@pytest.fixture
def secured(tmp_path: Path, make_service: Callable[..., Service]) -> Service:
    """A running service that speaks TLS, and so HTTP/2."""
    cert, key = write_server_files(tmp_path)
    service = make_service("--ssl-certfile", str(cert), "--ssl-keyfile", str(key))
    service.root = service.root.replace("http:", "https:")
    service.start()
    return service


@pytest.fixture
def cacert(tmp_path: Path) -> str:
    """The file with the authority of the tests."""
    path = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="module")
def page_files() -> None:
    """The page is built, by now."""
    if not is_built():
        try:
            build()
        except CannotBuild as exc:
            pytest.skip(f"the page is not built: {exc}")


@pytest.fixture(scope="module")
def one_browser(page_files: None) -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """A browser that has never been anywhere."""
    one_browser.start()
    return one_browser
