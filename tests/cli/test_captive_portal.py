"""``trioresume upload`` in networks that answer in the server's place (promise 13, C20).

Nothing that a portal says may count as "stored", end an upload for good, or cost what the
server has already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.portals import PORTALS, Gateway
from tests.cli.test_upload import Network, file_of, journal_of, run

PROTOCOLS = ["auto", "seed", "rufh", "tus"]
SIZE = 3_000_000


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as running:
        yield running


@pytest.fixture
def service(network: Network) -> tuple[str, int]:
    parts = urlsplit(network.url)
    return str(parts.hostname), int(parts.port or 0)


def upload(
    directory: Path, path: Path, url: str, protocol: str, *options: str
) -> tuple[int, dict[str, object]]:
    words = ["--json", "--quiet", "--protocol", protocol, *options]
    done = run(directory, path, url, options=words)
    assert "Traceback" not in done.stderr, done.stderr
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return done.returncode, result


LATER = ["page", "page without a type", "nothing", "found"]
"""Enough for the runs that take longer; the others differ only in their first answer."""

EARLY = [(portal, False) for portal in ("page", "nothing", "moved")]


@pytest.mark.parametrize(
    ("portal", "waits"), [*((portal, True) for portal in PORTALS), *EARLY]
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_portal_is_no_success(
    tmp_path: Path, portal: str, protocol: str, waits: bool
) -> None:
    """C20: exit code 75 and a reason, whatever the portal says, however late it is."""
    path, _ = file_of(tmp_path, 200_000)
    with Gateway(None, PORTALS[portal], waits=waits) as gateway:
        code, result = upload(
            tmp_path, path, gateway.url, protocol, "--retry-for", "400ms"
        )
    assert code == 75, result
    assert "location" not in result
    assert result["error"]


@pytest.mark.parametrize("size", [0, 200_000])
@pytest.mark.parametrize("portal", PORTALS)
def test_portal_is_no_success_of_a_put(tmp_path: Path, portal: str, size: int) -> None:
    """A plain server's 2xx is checked with HEAD, which a portal answers as it answers all."""
    path, _ = file_of(tmp_path, size)
    with Gateway(None, PORTALS[portal], waits=True) as gateway:
        code, result = upload(
            tmp_path, path, gateway.url + "name", "auto", "--retry-for", "400ms"
        )
    assert code == 75, result
    assert "location" not in result


@pytest.mark.parametrize("portal", ["page", "empty", "json", "nothing"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_portal_that_gives_back_fields_is_no_success(
    tmp_path: Path, portal: str, protocol: str
) -> None:
    """``Upload-Complete: ?1`` is no mark if it is the request's own."""
    path, _ = file_of(tmp_path, 200_000)
    with Gateway(None, PORTALS[portal], waits=True, reflects=True) as gateway:
        code, result = upload(
            tmp_path, path, gateway.url, protocol, "--retry-for", "400ms"
        )
    assert code == 75, result
    assert "location" not in result


@pytest.mark.parametrize("protocol", ["seed", "rufh", "tus"])
def test_portal_that_gives_back_fields_ends_no_upload(
    service: tuple[str, int], network: Network, tmp_path: Path, protocol: str
) -> None:
    """It answers the appends with their own words; the server has the last one."""
    path, data = file_of(tmp_path, SIZE)
    with Gateway(service, PORTALS["empty"], waits=True, reflects=True) as gateway:
        gateway.cut_after = SIZE // 2
        # The first connection begins the upload, another one tells the offset.
        gateway.diverts = lambda number: number >= 1 and number % 2 == 0
        code, result = upload(tmp_path, path, gateway.url, protocol)
    assert code == 0, result
    assert network.fetch(past(service, result)) == data


def past(service: tuple[str, int], result: dict[str, object]) -> str:
    """The location in *result* without the gateway."""
    place = f"//{service[0]}:{service[1]}/"
    return re.sub(r"//[^/]+/", place, str(result["location"]))


@pytest.mark.parametrize("protocol", ["seed", "rufh", "tus"])
@pytest.mark.parametrize("portal", LATER)
def test_portal_in_a_later_run_costs_nothing(
    service: tuple[str, int],
    network: Network,
    tmp_path: Path,
    portal: str,
    protocol: str,
) -> None:
    """Exit code 75, the journal is kept, and the run after it sends the rest only."""
    path, data = file_of(tmp_path, SIZE)
    options = ["--retry-for", "300ms"]
    with Gateway(service, PORTALS[portal]) as gateway:
        # The first connection brings half of it, then the network is gone.
        gateway.diverts = lambda number: number >= 1
        gateway.cut_after = SIZE // 2
        code, result = upload(tmp_path, path, gateway.url, protocol, *options)
        assert (code, "location" in result) == (75, False), result
        assert len(journal_of(tmp_path)) == 1
        asked = len(gateway.asked)
        gateway.diverts = lambda _: True
        code, result = upload(tmp_path, path, gateway.url, protocol, *options)
        assert (code, "location" in result) == (75, False), result
        # An offset as the seed has it has no mark: it is tried, and is found to be none.
        tried = {"PATCH"} if protocol == "seed" else set()
        assert set(gateway.asked[asked:]) <= {"HEAD", "GET"} | tried
        assert len(journal_of(tmp_path)) == 1
        gateway.diverts, gateway.cut_after = (lambda _: False), None
        code, result = upload(tmp_path, path, gateway.url, protocol)
    assert code == 0, result
    assert result["protocol"] == protocol
    assert network.fetch(past(service, result)) == data
    assert journal_of(tmp_path) == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("portal", LATER)
def test_portal_that_goes_away_again_is_waited_for(
    service: tuple[str, int],
    network: Network,
    tmp_path: Path,
    portal: str,
    protocol: str,
) -> None:
    """In the middle of an upload: it goes on within the same run, and nothing is wrong."""
    path, data = file_of(tmp_path, SIZE)
    with Gateway(service, PORTALS[portal]) as gateway:
        gateway.diverts = lambda number: 1 <= number < 4
        gateway.cut_after = SIZE - 1
        code, result = upload(tmp_path, path, gateway.url, protocol)
    assert code == 0, result
    assert len(gateway.asked) == 3
    assert network.fetch(past(service, result)) == data


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("portal", LATER)
def test_portal_at_the_beginning_is_waited_for(
    service: tuple[str, int],
    network: Network,
    tmp_path: Path,
    portal: str,
    protocol: str,
) -> None:
    """The client forgets what the portal claimed, and can still resume the upload."""
    path, data = file_of(tmp_path, 200_000)
    with Gateway(service, PORTALS[portal]) as gateway:
        gateway.diverts = lambda number: number < 2
        code, result = upload(tmp_path, path, gateway.url, protocol)
    assert code == 0, result
    assert result["protocol"] == ("seed" if protocol == "auto" else protocol)
    assert network.fetch(past(service, result)) == data
