"""``trioresume token``: makes lines that ``serve --tokens-file`` understands."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from trioresume import Fields, Principal, RequestHead, bearer_tokens
from trioresume.cli import main


def _make(*arguments: str) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(main, ["token", *arguments])
    return result.exit_code, result.stdout.splitlines(), result.stderr


async def test_second_line_lets_the_first_one_in(tmp_path: Path) -> None:
    """The token on the first line, its hash under the name on the second."""
    code, (token, line), _ = _make("ann")
    assert code == 0
    assert token not in line
    path = tmp_path / "tokens"
    path.write_text(line + "\n")
    head = RequestHead(
        method="GET",
        target="/",
        fields=Fields({"Authorization": f"Bearer {token}"}),
        http_version="1.1",
    )
    assert await bearer_tokens(path)(head) == Principal("ann")


def test_tokens_are_random() -> None:
    """R34: at least 128 bits, and never the same."""
    tokens = {_make("ann")[1][0] for _ in range(20)}
    assert len(tokens) == 20
    assert all(len(token) >= 22 for token in tokens)


@pytest.mark.parametrize("name", ["", " ", "two words", "#ann", "a\nb", "tab\t"])
def test_name_that_the_file_could_not_hold_is_refused(name: str) -> None:
    """Else the line would be a comment, or stop the service from starting."""
    code, lines, error = _make(name)
    assert code != 0
    assert lines == []
    assert error


def test_without_a_name_it_is_a_usage_error() -> None:
    """Exit code 2."""
    assert _make()[0] == 2
