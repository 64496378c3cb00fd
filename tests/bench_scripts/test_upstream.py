"""The measurement in front of a backend: its backend counts, and its figures are the front's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers.nginx import NginxProxy
from bench.peers.own import trioresume
from bench.server import Server
from bench.upstream import Work, backend, measure
from tests.platforms import reads_memory


@reads_memory
@pytest.mark.slow
def test_front_is_measured_with_large_and_small_requests(tmp_path: Path) -> None:
    """Each answer says how many bytes reached the backend; a wrong one would raise."""
    with backend() as url:
        front = replace(trioresume("process", ("--upstream", url)), name="front")
        with Server(front, tmp_path / "data") as server:
            large = measure(server, Work(4, 300_000, 2))
            small = measure(server, Work(20, 1000, 2))
    assert (large.front, large.work) == ("front", "4 x 293 KiB, 2 at once")
    assert large.first_byte > 0
    assert small.cpu_per_request == pytest.approx(small.cpu / 20)


def test_proxy_has_its_own_location() -> None:
    """Instead of the folder of the other nginx."""
    proxy = NginxProxy(
        name="x",
        protocols=("plain",),
        hashes="none",
        syncs="none",
        settings="",
        backend="http://127.0.0.1:1",
    )
    text = proxy.configuration().format(root="/r", port=2, user="")
    assert "proxy_pass http://127.0.0.1:1;" in text
    assert "dav_methods" not in text
    assert text.count("{") == text.count("}")
