"""``trioresume download`` as a command."""

from __future__ import annotations

import hashlib
import json
import random
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.cli.test_upload import Network
from trioresume import cli
from trioresume.testing import ConnectionPlan, Direction, Fault, FaultKind, no_faults

MIB = 1 << 20
CONTENT = random.Random(2).randbytes(3 * MIB)


def _run(*words: object) -> Result:
    return CliRunner().invoke(cli.main, ["download", *map(str, words)])


def _stored(network: Network, *, tells_digest: bool = True) -> str:
    """Store a file, and return its URL."""
    url = f"{network.url}film.bin"
    fields = {"Want-Repr-Digest": "sha-256=10"} if tells_digest else {}
    request = urllib.request.Request(url, CONTENT, fields, method="PUT")
    urllib.request.urlopen(request).close()
    return url


def test_stopped_download_is_continued_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Network() as network:
        url = _stored(network)
        cut = ConnectionPlan((Fault(FaultKind.RST, Direction.DOWN, 2 * MIB),))
        network.proxy.schedule = lambda index: cut
        first = _run("--retry-for", "0s", url)
        assert first.exit_code == 75
        assert "bytes are kept" in first.stderr
        assert not (tmp_path / "film.bin").exists()
        # The rest passes, the whole would not.
        second = _run("--retry-for", "0s", "--checksum", url)
        assert second.exit_code == 0, second.output
        assert second.stdout == f"{hashlib.sha256(CONTENT).hexdigest()}  film.bin\n"
        assert (tmp_path / "film.bin").read_bytes() == CONTENT
        network.proxy.schedule = no_faults
        third = _run(url)
        assert third.exit_code == 2
        assert "film.bin exists; use --force" in " ".join(third.output.split())
        assert _run("--force", "--quiet", url).exit_code == 0
        elsewhere = tmp_path / "there"
        elsewhere.mkdir()
        told = json.loads(_run("--json", "-q", url, elsewhere).stdout)
        assert told["file"] == str(elsewhere / "film.bin")
        assert told["confirmed"]


def test_checksum_that_the_server_does_not_tell(tmp_path: Path) -> None:
    with Network() as network:
        url = _stored(network, tells_digest=False)
        result = _run("--checksum", url, tmp_path / "a")
    assert result.exit_code == 1
    assert hashlib.sha256(CONTENT).hexdigest() in result.stderr
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_refusal_says_why(tmp_path: Path) -> None:
    with Network() as network:
        result = _run(f"{network.url}none", tmp_path / "a")
    assert result.exit_code == 1
    assert "the server answered 404" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    with Network() as network:
        result = _run(_stored(network), tmp_path / "none" / "a")
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://h/a", "is not an http:// or https:// URL"),
        ("http://h:x/a", "is not a URL"),
        ("http://u:p@h/a", "contains a user name or a password"),
        ("http://h/", "the URL has no name for the file"),
        ("http://h/a/..", "the URL has no name for the file"),
        ("http://h/a%2Fb", "the URL has no name for the file"),
        ("http://h/a%00b", "the URL has no name for the file"),
    ],
)
def test_url_that_gives_no_name_is_a_usage_error(url: str, reason: str) -> None:
    result = _run(url)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
