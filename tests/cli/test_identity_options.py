"""The options of ``serve`` about who may use it: what they refuse before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import bcrypt
import pytest
from click.testing import CliRunner

from tests.identity.tokens import public
from trioresume import SigningKey, new_token
from trioresume.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that can be used, and files that cannot."""
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    for name, text in {
        "tokens": new_token("ann")[1],
        "users": f"bob:{hashed}",
        "md5": "bob:$apr1$abc$def",
        "keys": SigningKey.new("k").line,
        "short": "k secret",
        "jwk": json.dumps(public("p256")),
        "empty": "{}",
    }.items():
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--htpasswd-file", "{}/md5"], "line 1: the hash is MD5"),
        (["--htpasswd-file", "{}/none"], "does not exist"),
        (["--signing-keys", "{}/short"], "at least 32 characters"),
        (["--jwt-keys", "{}/empty"], "no key for signatures"),
        (["--jwt-keys", "{}/none"], "cannot be read"),
        (["--jwt-keys", "{}"], "cannot be read"),
        (["--jwt-keys", "https://a:b@c/"], "credentials"),
        (["--jwt-keys", "{}/jwk", "--jwt-algorithm", "none"], "'none' is none of"),
        (["--jwt-keys", "{}/jwk", "--jwt-max-lifetime", "0s"], "not within"),
        (["--jwt-audience", "files"], "needs --jwt-keys"),
        (["--jwt-issuer", "x"], "needs --jwt-keys"),
        (["--jwt-algorithm", "ES256"], "needs --jwt-keys"),
        (["--jwt-cacert", "{}/jwk"], "needs --jwt-keys"),
        (["--downloads", "nobody"], "is not one of"),
        (["--downloads", "public"], "without authentication everybody"),
        (["--downloads", "signed"], "needs --signing-keys"),
        (["--downloads", "signed", "--tokens-file", "{}/tokens"], "--signing-keys"),
        (
            [
                *("--downloads", "public", "--tokens-file", "{}/tokens"),
                *("--upstream", "http://127.0.0.1:9"),
            ],
            "for the file service",
        ),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(
    arguments: list[str], complaint: str, folder: Path
) -> None:
    """Exit code 2 and a sentence; nothing is made, nobody listens."""
    words = [word.replace("{}", str(folder)) for word in arguments]
    data = folder / "data"
    result = CliRunner().invoke(main, ["serve", *words, "--data-dir", str(data)])
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())
    assert not data.exists()


def test_key_is_made_for_the_file(tmp_path: Path) -> None:
    """``signing-key`` prints a line, a new one each time; a name has no white space."""
    runner = CliRunner()
    lines = {runner.invoke(main, ["signing-key", "k"]).stdout for _ in range(3)}
    assert len(lines) == 3
    for line in lines:
        (tmp_path / "keys").write_text(line)
        (key,) = SigningKey.read(tmp_path / "keys")
        assert key.id == "k"
    refused = runner.invoke(main, ["signing-key", "two words"])
    assert refused.exit_code != 0
    assert "Error: " in refused.output
