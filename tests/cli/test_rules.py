"""``[[rule]]`` in the configuration file: read, refused with its place, read again."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner

from tests.cli.test_serve import _running
from trioresume import Rule, new_token
from trioresume.cli import main
from trioresume.cli.rules import rules_of


def test_rule_is_read_with_units() -> None:
    """Each key is a field; a text stands for a list of one."""
    document = {
        "rule": [
            {
                "path": ["/files/a/", "/files/*.b"],
                "principal": "team-*",
                "methods": ["PUT"],
                "access": "write-only",
                "media-types": "image/*",
                "max-upload-size": "5MiB",
                "max-stored-bytes-per-principal": 1000,
                "file-lifetime": "7d",
                "incomplete-lifetime": "2h",
            },
            {"principal": "alice", "public-download": True},
        ]
    }
    assert rules_of(document) == (
        Rule(
            path=("/files/a/", "/files/*.b"),
            principal=("team-*",),
            methods=("PUT",),
            access="write-only",
            media_types=("image/*",),
            max_upload_size=5 * 1024 * 1024,
            max_stored_bytes_per_principal=1000,
            file_lifetime=7 * 86400.0,
            incomplete_lifetime=7200.0,
        ),
        Rule(principal=("alice",), public_download=True),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule = 1", "'rule' must be tables, each with the heading [[rule]]"),
        ("[rule]\npath = '/'", "'rule' must be tables, each with"),
        ("[[rule]]\nsize = 1", "rule 1: there is no key 'size'"),
        ("[[rule]]\n[[rule]]\npath = 3", "rule 2: path: a string, or several"),
        ("[[rule]]\npath = []", "rule 1: path: a string, or several"),
        ("[[rule]]\npath = 'files'", "rule 1: path: 'files': a path begins with"),
        ("[[rule]]\nmax-upload-size = '5x'", "rule 1: max-upload-size: '5x' is not a"),
        ("[[rule]]\nmax-upload-size = true", "rule 1: max-upload-size: a number or a"),
        ("[[rule]]\nfile-lifetime = 0", "rule 1: file-lifetime: '0' is not within"),
        ("[[rule]]\naccess = 'read'", "rule 1: access: one of all, read-only"),
        ("[[rule]]\naccess = true", "rule 1: access: a string is needed"),
        ("[[rule]]\nmethods = 'get'", "rule 1: methods: 'get' is not a method in"),
        ("[[rule]]\nmedia-types = 'x'", "rule 1: media-types: 'x' is not like"),
        ("[[rule]]\npublic-download = 1", "rule 1: public-download: true or false"),
        (
            "[[rule]]\nprincipal = 'a'\npublic-download = true",
            "rule 1: public-download: without authentication",
        ),
        ("[[rule]]\nincomplete-lifetime = '9d'", "rule 1: incomplete-lifetime: no"),
    ],
)
def test_fault_names_the_file_the_rule_and_the_key(
    text: str, message: str, tmp_path: Path
) -> None:
    """Exit code 2, before anything is opened."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    data = tmp_path / "data"
    result = CliRunner().invoke(
        main, ["serve", "--config", str(path), "--data-dir", str(data)]
    )
    assert result.exit_code == 2
    shown = re.sub(r"[\s│]+", " ", result.output)
    assert f"{path}: {message}".replace("\n", " ") in shown
    assert not data.exists()


def test_check_of_the_configuration_knows_the_rules(tmp_path: Path) -> None:
    """What is open to everybody is said, and a directory that is missing is an error."""
    path = tmp_path / "config.toml"
    tokens = tmp_path / "tokens"
    tokens.write_text(new_token("alice")[1])
    missing = tmp_path / "missing"
    path.write_text(
        f"""
        [serve]
        data-dir = {str(tmp_path / "data")!r}
        tokens-file = {str(tokens)!r}
        bind = "127.0.0.1:0"

        [[rule]]
        path = ["/files/pub-*", "/files/open/"]
        principal = "alice"
        public-download = true

        [[rule]]
        on-success = "move:{missing}"
        """
    )
    result = CliRunner().invoke(main, ["config", "check", "--config", str(path)])
    lines = result.output.splitlines()
    public = "anybody may read the files of alice at /files/pub-*, /files/open/"
    assert f"note     {public}" in lines
    assert f"error    on-success: {missing} is not a directory" in lines
    assert result.exit_code == 1


def test_other_commands_ignore_the_rules(tmp_path: Path) -> None:
    """One file serves them all."""
    path = tmp_path / "config.toml"
    path.write_text("[[rule]]\npath = '/files/'\n")
    arguments = ["token", "--config", str(path), "alice"]
    assert CliRunner().invoke(main, arguments).exit_code == 0


def _put(url: str, media_type: str) -> int:
    fields = {"Content-Type": media_type}
    request = urllib.request.Request(url, b"x", fields, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as exc:
        return exc.code


def _until(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    while text not in stream.readline():
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no signals of this kind")
def test_sighup_reads_the_rules_again(tmp_path: Path) -> None:
    """A new file holds at once, and a faulty one changes nothing."""
    path = tmp_path / "config.toml"
    path.write_text("[[rule]]\nmedia-types = 'image/*'\n")
    arguments = ("--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"))
    with _running(*arguments, "--config", str(path)) as (process, url):
        assert _put(f"{url}a", "text/plain") == 415
        path.write_text("[[rule]]\nmedia-types = 'text/*'\n")
        os.kill(process.pid, signal.SIGHUP)
        _until(process.stderr, "the rules were read again")
        assert _put(f"{url}a", "text/plain") == 201
        assert _put(f"{url}b", "image/png") == 415
        path.write_text("[[rule]]\nmedia-types = 7\n")
        os.kill(process.pid, signal.SIGHUP)
        _until(process.stderr, "rule 1: media-types: a string")
        assert _put(f"{url}b", "image/png") == 415
