"""Asking for offsets: against the real service, and one that answers wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.offsets import Answers, WrongAnswer, ask, begin_uploads, measure
from bench.peers import find
from bench.server import Server
from tests.platforms import linux_only

pytestmark = linux_only("/proc")


def test_percentiles_are_of_the_ordered_latencies() -> None:
    """The order in which answers came does not matter."""
    answers = Answers(2.0, [0.4, 0.1, 0.3, 0.2])
    assert answers.rate == 2.0
    assert answers.latency.p50 == 0.2
    assert answers.latency.p99 == 0.4


def test_no_answer_in_time_is_an_error() -> None:
    """There is no figure that could be shown."""
    with pytest.raises(WrongAnswer, match="no offset"):
        _ = Answers(2.0, []).latency


def test_offsets_are_asked_for_alone_and_beside_uploads(tmp_path: Path) -> None:
    """The figures belong together, and every answer was right."""
    with Server(find("trioresume-process"), tmp_path / "data") as server:
        measured = measure(server, uploads=3, connections=2, streams=2, seconds=0.4)
    assert measured.rate > 0
    assert 0 < measured.alone_p50 <= measured.alone_p99
    assert 0 < measured.loaded_p50 <= measured.loaded_p99 <= measured.loaded_max
    assert measured.loaded_count > 0


def test_an_upload_that_is_gone_is_noticed(tmp_path: Path) -> None:
    """An answer without the right offset ends the measurement."""
    with Server(find("trioresume-process"), tmp_path / "data") as server:
        (path,) = begin_uploads(server, 1)
        with pytest.raises(WrongAnswer):
            ask(server, [path + "x"], connections=1, seconds=5)
