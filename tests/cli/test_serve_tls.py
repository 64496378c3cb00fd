"""The options of TLS: contradictions are told before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.certificates import write_server_files
from trioresume.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ssl-keyfile", "KEY"], "need --ssl-certfile"),
        (["--ssl-client-auth", "required"], "needs --ssl-certfile"),
        (["--bind", "https://127.0.0.1:0"], "needs a certificate"),
        (["--ssl-certfile", "CERT", "--ssl-client-auth", "required"], "--ssl-ca-certs"),
        (["--ssl-certfile", "CERT", "--ssl-principal", "san"], "--ssl-client-auth"),
        (
            ["--ssl-certfile", "CERT", "--ssl-keyfile", "KEY", "--ssl-keyfile", "KEY"],
            "one --ssl-keyfile for each --ssl-certfile",
        ),
    ],
)
def test_contradiction_is_a_usage_error(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    """The message names the option that is missing."""
    certfile, keyfile = write_server_files(tmp_path)
    files = {"CERT": str(certfile), "KEY": str(keyfile)}
    given = [files.get(argument, argument) for argument in arguments]
    done = CliRunner().invoke(
        main, ["serve", "--data-dir", str(tmp_path / "d"), *given]
    )
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.output.split())
