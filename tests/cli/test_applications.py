"""``trioresume serve --app``: which application it is, and what is said if there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trioresume import ASGITarget, WSGITarget
from trioresume.cli import main
from trioresume.cli.applications import AppOptions, application_target


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["serve", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--wsgi"], "--wsgi needs --app"),
        (["--app", "tests"], "does not look like MODULE:NAME"),
        (["--app", ":app"], "does not look like MODULE:NAME"),
        (["--app", "tests.nowhere:app"], "no module 'tests.nowhere'"),
        (["--app", "nowhere.at.all:app"], "no module 'nowhere'"),
        (["--app", "json:nothing"], "json has no 'nothing'"),
        (["--app", "json:__doc__"], "is no application"),
        (["--app", "json:dumps", "--ui"], "are for the file service"),
        (["--app", "json:dumps", "--file-lifetime", "1d"], "are for the file service"),
    ],
)
def test_a_wrong_application_is_a_usage_error(arguments: list[str], said: str) -> None:
    """Exit code 2 and one sentence; nothing was served."""
    result = _run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_an_error_in_the_application_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that the application cannot import is not called missing itself."""
    (tmp_path / "broken_app.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = _run("--app", "broken_app:app")
    assert isinstance(result.exception, ModuleNotFoundError)
    assert result.exception.name == "a_module_that_is_missing"


def test_the_options_choose_the_target() -> None:
    """ASGI by default, WSGI on demand; a dotted name is followed."""
    options = AppOptions(
        app="json:JSONEncoder.encode", wsgi=False, app_loop="trio", app_threads=2
    )
    assert isinstance(application_target(options), ASGITarget)
    assert isinstance(application_target({**options, "wsgi": True}), WSGITarget)
    assert application_target({**options, "app": None}) is None
