"""The recordings of terminals in the documentation, made anew by the same script."""

from __future__ import annotations

import pytest

from docs import recordings
from tests.platforms import needs

FACTS = {
    "two-hundred-files": [r"200 of 200 files"],
    "dead-server": [r"0 B/s\n  connection refused", r"16\.0 MiB of 16\.0 MiB"],
    "resumed-run": [r"run the same command again", r"16\.0 MiB of 16\.0 MiB"],
}
"""What each recording is for."""


def test_every_recording_is_on_file() -> None:
    files = {
        path.stem: path.read_text("utf-8") for path in recordings.DIRECTORY.iterdir()
    }
    assert set(files) == set(recordings.RECORDINGS) == set(FACTS)
    for name, text in files.items():
        for fact in FACTS[name]:
            assert recordings.shows(fact)(text), (name, fact)
        assert max(map(len, text.splitlines())) <= 150


@needs("tmux")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["dead-server", "resumed-run"])
def test_recording_can_be_made_again(name: str) -> None:
    """It has the same remarks, and shows the same facts."""
    text = recordings.record(name)
    on_file = recordings.DIRECTORY.joinpath(f"{name}.txt").read_text("utf-8")
    for fact in FACTS[name]:
        assert recordings.shows(fact)(text), text
    remarks = [line for line in text.splitlines() if line.startswith("── ")]
    assert remarks == [n for n in on_file.splitlines() if n.startswith("── ")]
    assert "Traceback" not in text
