"""What is counted is what happened."""

from __future__ import annotations

import threading

import pytest

from trioresume.server.watch.tally import Histogram, Longest, known_method


def test_value_is_counted_in_its_range() -> None:
    """A bound belongs to the range below it, as Prometheus's ``le`` says."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.note(value)
    assert histogram.read() == ([2, 2, 1], 8.0)


def test_no_value_is_lost_between_threads() -> None:
    """Worker threads note what they did at the same time."""
    histogram = Histogram((0.5,))

    def note() -> None:
        for _ in range(5000):
            histogram.note(1.0)

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.read() == ([0, 20_000], 20_000.0)


def test_longest_is_seen_by_each_reader_for_a_window() -> None:
    """It does not depend on who looked before, and it ends."""
    longest = Longest(window=10.0)
    longest.note(5.0, 100.0)
    longest.note(1.0, 101.0)
    assert (longest.read(101.0), longest.read(109.0)) == (5.0, 5.0)
    longest.note(2.0, 111.0)
    assert longest.read(112.0) == 5.0  # of the window before
    assert longest.read(121.5) == 2.0
    assert longest.read(200.0) == 0.0


@pytest.mark.parametrize(
    ("method", "label"), [("GET", "GET"), ("get", "OTHER"), ("X" * 900, "OTHER")]
)
def test_clients_make_no_labels(method: str, label: str) -> None:
    """A client that invents methods makes no new time series."""
    assert known_method(method) == label
