"""Peers: installing them, starting them, and finding out one that is wrong."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.peers import PEERS, PROXIES, VERSIONS, Peer, find
from bench.peers.cache import Cache, InstallFailed, run_logged
from bench.peers.peer import Carrier, ToolMissing
from bench.peers.prove import Disproved, prove
from bench.server import Server
from tests.bench_scripts.fakes import Fake, faulty
from tests.platforms import linux_only

pytestmark = linux_only("/proc")


@dataclass(frozen=True, kw_only=True)
class Installable(Fake):
    """Writes a file where it is installed; fails if told so by a file beside it."""

    @property
    def installs(self) -> bool:
        return True

    def install(self, at: Path, log: Path) -> None:
        (at / "half").touch()
        command = "import pathlib; print('at work'); pathlib.Path('fail').rmdir()"
        if (at.parent / "fail").exists():
            command += "; raise SystemExit('no luck today')"
        (at / "fail").mkdir()
        run_logged([sys.executable, "-c", command], log, cwd=at)
        (at / "whole").touch()


def test_a_peer_is_installed_once(tmp_path: Path) -> None:
    """The second time it is there already."""
    cache, peer = Cache(tmp_path / "cache"), Installable()
    assert not cache.installed(peer)
    at = cache.get(peer)
    assert (at / "whole").exists()
    (at / "whole").unlink()
    assert cache.get(peer) == at
    assert not (at / "whole").exists()
    assert cache.installed(peer)


def test_a_failed_installation_is_told_and_made_again(tmp_path: Path) -> None:
    """The error has the installer's last words; its leftovers do not count."""
    cache, peer = Cache(tmp_path), Installable()
    (tmp_path / "fail").touch()
    with pytest.raises(InstallFailed, match="no luck today"):
        cache.get(peer)
    assert not cache.installed(peer)
    (tmp_path / "fail").unlink()
    assert (cache.get(peer) / "whole").exists()


def test_a_missing_tool_is_named_before_anything_is_done(tmp_path: Path) -> None:
    """Not a failure somewhere in an installer."""
    cache = Cache(tmp_path / "cache")
    with pytest.raises(ToolMissing, match="needs no-such-tool"):
        cache.get(Installable(needs=("no-such-tool", "true")))
    assert not (tmp_path / "cache").exists()


def test_the_cache_can_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the environment, so that a continuous build can keep it."""
    monkeypatch.setenv("TRIORESUME_BENCH_CACHE", str(tmp_path))
    assert Cache().root == tmp_path


def test_every_peer_says_what_a_report_needs() -> None:
    """Which work it does for safety and how it runs; every pinned version is used."""
    for peer in (*PEERS.values(), *PROXIES.values()):
        assert set(peer.protocols) <= {"seed", "tus", "rufh", "plain"}
        assert peer.hashes
        assert peer.syncs
        assert peer.settings
        assert peer.resumes == (peer.protocols != ("plain",))
    assert {peer.version for peer in PEERS.values()} <= {
        *VERSIONS.values(),
        "debian",
        find("trioresume").version,
    }


def test_an_unknown_peer_is_answered_with_the_known_ones() -> None:
    """A typing error is not a traceback."""
    with pytest.raises(LookupError, match=r"'tuds' is not one of trioresume, .*tusd"):
        find("tuds")


def test_a_correct_server_is_proved(tmp_path: Path) -> None:
    """Without this the faults below would prove nothing."""
    with Server(faulty("none"), tmp_path / "data") as server:
        facts = prove(server, "tus")
    assert facts[0].startswith("tus: 3 uploads of")
    assert facts[1].startswith("resumed at")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("drop", "12582928 bytes, not 12582929|other bytes"),
        ("forget", "began again from their beginning"),
        ("refuse", "403"),
    ],
)
def test_a_wrong_server_is_disproved(fault: str, words: str, tmp_path: Path) -> None:
    """Each in its own way would look fast."""
    with Server(faulty(fault), tmp_path / "data") as server:
        with pytest.raises(Disproved, match=words):
            prove(server, "tus")


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("trioresume", "seed"), ("raw-write", "plain"), ("trioresume-upstream", "plain")],
)
def test_what_is_our_own_is_proved(name: str, protocol: str, tmp_path: Path) -> None:
    """The yardsticks are held to the same."""
    with Server(find(name), tmp_path / "data") as server:
        assert prove(server, protocol)


@pytest.mark.parametrize(
    "peer",
    [peer for peer in PEERS.values() if peer.installs],
    ids=lambda peer: peer.name,
)
def test_an_installed_peer_is_proved(peer: Peer, tmp_path: Path) -> None:
    """Whatever this machine has; ``python -m bench.peers install`` gets the rest."""
    if peer.missing_tools() or not Cache().installed(peer):
        pytest.skip(f"python -m bench.peers install {peer.name}")
    with Server(peer, tmp_path / "data") as server:
        facts = prove(server)
    assert any("resumed at" in fact for fact in facts) == peer.resumes


def test_front_of_nginx_is_proved(tmp_path: Path) -> None:
    """The backend is the same, and answers with the length of the content."""
    peer = find("nginx-buffering")
    if not Cache().installed(find("nginx")):
        pytest.skip("python -m bench.peers install nginx")
    with Server(peer, tmp_path / "data") as server:
        assert prove(server, "plain")


def test_peer_is_proved_over_http2(tmp_path: Path) -> None:
    """The same proof, over TLS and HTTP/2."""
    peer = find("trioresume-process")
    with Server(peer, tmp_path / "data", carrier=Carrier.HTTP2) as server:
        assert server.url.startswith("https://")
        assert prove(server, "plain")


@pytest.mark.parametrize(
    ("name", "carrier"),
    [
        ("nginx", Carrier.HTTP2),
        ("tusd", Carrier.TLS),
        ("tusd", Carrier.H2C),
    ],
)
def test_peer_answers_over_other_carriers(
    name: str, carrier: Carrier, tmp_path: Path
) -> None:
    """A server is not up before it answers over TLS, if that is what is asked for."""
    peer = find(name)
    if not Cache().installed(peer):
        pytest.skip(f"python -m bench.peers install {name}")
    with Server(peer, tmp_path / "data", carrier=carrier) as server:
        assert server.url.startswith("https://") == carrier.is_secure


def test_command_serves_until_its_input_ends(tmp_path: Path) -> None:
    """What it prints first is where to upload to."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "bench.peers", "serve", "trioresume"),
            *("--data-dir", str(tmp_path / "data")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        request = urllib.request.Request(url, b"abc", method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 201
        process.stdin.close()
        assert process.wait(30) == 0
    assert process.returncode == 0
