"""Every way of being known at once, with the real command and curl."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.e2e.command import Service
from tests.e2e.test_curl import curl
from tests.identity.tokens import jwks, signed
from tests.platforms import needs
from trioresume import SigningKey, new_token, sign_upload

pytestmark = needs("curl")

TOKEN, LINE = new_token("ann")


def _write(folder: Path, password: str, keys: str) -> None:
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    (folder / "users").write_text(f"bob:{hashed}\n")
    (folder / "jwks").write_text(keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    (folder / "tokens").write_text(LINE)
    (folder / "keys").write_text(SigningKey.new("k").line)
    _write(folder, "secret", jwks("p256"))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    words = ["serve", "--tokens-file", f"{folder}/tokens"]
    words += ["--htpasswd-file", f"{folder}/users", "--signing-keys", f"{folder}/keys"]
    words += ["--jwt-keys", f"{folder}/jwks", "--jwt-audience", "files"]
    service = Service(folder / "data", words)
    service.start()
    yield service
    service.stop()
    service.check_log()


def _status(folder: Path, service: Service, *options: str) -> int:
    return curl(folder, f"{service.root}/files/none", *options).final.status


def _bearer(token: str) -> tuple[str, str]:
    return ("-H", f"Authorization: Bearer {token}")


def _jwt(key: str) -> str:
    return signed(key, claims={"aud": "files", "sub": "cyd"})


def test_each_way_lets_its_senders_in(service: Service, folder: Path) -> None:
    """404: the file is not there, and who asks is known. Anything else is a 401."""
    for known in (_bearer(TOKEN), _bearer(_jwt("p256")), ("-u", "bob:secret")):
        assert _status(folder, service, *known) == 404
    for unknown in ((), _bearer("x"), _bearer(_jwt("p384")), ("-u", "bob:wrong")):
        assert _status(folder, service, *unknown) == 401
    (key,) = SigningKey.read(folder / "keys")
    url = sign_upload(f"{service.root}/files/", key)
    assert curl(folder, url, "-d", "x").final.status == 201


def test_refusal_has_a_challenge_of_each(service: Service, folder: Path) -> None:
    """So that a browser asks for a password, and a client knows that it may send a token."""
    assert curl(folder, f"{service.root}/files/none").final.status == 401
    lines = (folder / "heads").read_text().lower().splitlines()
    for scheme in ("signedaddress", "bearer", "basic"):
        challenge = f'www-authenticate: {scheme} realm="trioresume"'
        assert [line.startswith(challenge) for line in lines].count(True) == 1


def test_hangup_reads_everything_again(service: Service, folder: Path) -> None:
    """Another password, and another key."""
    _write(folder, "other", jwks("p384"))
    (folder / "keys").write_text(SigningKey.new("k").line)
    os.kill(service.pid, signal.SIGHUP)
    service.wait_for_log("SIGHUP: the keys of signed addresses were read again")
    for known in (_bearer(TOKEN), _bearer(_jwt("p384")), ("-u", "bob:other")):
        assert _status(folder, service, *known) == 404
    for unknown in (_bearer(_jwt("p256")), ("-u", "bob:secret")):
        assert _status(folder, service, *unknown) == 401
