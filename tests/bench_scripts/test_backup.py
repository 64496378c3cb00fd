"""The measurement of a backup beside uploads."""

from __future__ import annotations

import pytest

from bench import backup


def test_each_case_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """One short round, with real commands beside a real server."""
    backup.main(["--rounds", "1", "--seconds", "0.2", "--size", "1", "--clients", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*backup.CASES] * 2
