"""Signed addresses with the real commands, tus-js-client and curl; nobody has a token."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Service
from tests.e2e.npm import installed
from tests.e2e.test_curl import curl
from tests.e2e.test_tus_js import PACKAGE, SCRIPT
from tests.platforms import needs
from tests.processes import environment_of, run
from trioresume import SigningKey, new_token

CONTENT = os.urandom(2_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the keys are, and a file to upload."""
    folder = tmp_path_factory.mktemp("signed")
    (folder / "keys").write_text(SigningKey.new("k1").line)
    (folder / "tokens").write_text(new_token("ann")[1])
    (folder / "content.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """A service that logs everything, and in the end has logged and stored no signature."""
    arguments = ["serve", "--signing-keys", str(folder / "keys")]
    arguments += ["--tokens-file", str(folder / "tokens"), "--log-level", "debug"]
    service = Service(folder / "data", arguments)
    service.start()
    yield service
    service.stop()
    assert "signed=" not in service.log.read_text()
    assert "eyJraWQ" not in service.log.read_text()  # how encoded claims begin
    for path in service.data_dir.rglob("*"):
        if path.is_file():
            assert b"signed=" not in path.read_bytes(), path


def command(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command prints; what it logs has no signature."""
    done = run(
        ["trioresume", *arguments],
        environment=environment_of(folder / "state"),
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "signed=" not in done.stderr
    return done.stdout.strip()


def sign(folder: Path, url: str, *arguments: str) -> str:
    return command(folder, "sign", url, "--key-file", str(folder / "keys"), *arguments)


def test_tus_js_client_needs_no_credential(service: Service, folder: Path) -> None:
    """A browser's client: creation, pieces, and the end of the upload."""
    endpoint = sign(
        folder,
        f"{service.root}/files/",
        "--max-size=2MB",
        "--media-type=image/*",
        "--principal=ann",
    )
    task = {
        "endpoint": endpoint,
        "path": str(folder / "content.bin"),
        "options": {"chunkSize": 700_000, "metadata": {"filetype": "image/png"}},
    }
    done = subprocess.run(
        ["node", str(SCRIPT), str(installed(PACKAGE)), json.dumps(task)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "success"
    assert "signed" not in events[-1]["url"]


@needs("curl")
def test_curl_puts_and_gets(service: Service, folder: Path) -> None:
    """Each by its own address; one does not do the other's work."""
    url = f"{service.root}/files/curl.bin"
    upload = sign(folder, url, "--method=PUT", "--max-size=2MB", "--principal=ann")
    download = sign(folder, url, "--method=GET", "--principal=ann")
    path = str(folder / "content.bin")
    assert curl(folder, upload, "-T", path).final.status == 201
    got = curl(folder, download)
    assert (got.final.status, got.body) == (200, CONTENT)
    assert curl(folder, upload).final.status == 403
    assert curl(folder, download, "-T", path).final.status == 403
    assert curl(folder, url).final.status == 401


@pytest.mark.parametrize("protocol", ["auto", "tus", "rufh"])
def test_own_client_uploads(service: Service, folder: Path, protocol: str) -> None:
    """``trioresume upload``; what it prints can be shown to others."""
    url = sign(folder, f"{service.root}/files/", "--principal=ann")
    path = str(folder / "content.bin")
    location = command(folder, "upload", path, url, "--protocol", protocol, "--quiet")
    assert location.startswith(f"{service.root}/files/")
    assert "signed" not in location


def test_refusal_is_shown_without_the_signature(service: Service, folder: Path) -> None:
    """It goes to a log somewhere."""
    url = sign(folder, f"{service.root}/files/", "--max-size=1MB")
    path = str(folder / "content.bin")
    command(folder, "upload", path, url, "--log-level=debug", code=1)


def test_files_go_below_a_prefix(service: Service, folder: Path) -> None:
    """One address for a whole directory."""
    (folder / "many").mkdir()
    for name in ("a b.txt", "c.txt"):
        (folder / "many" / name).write_text(name)
    url = sign(folder, f"{service.root}/files/", "--method=PUT", "--prefix")
    many = sorted(str(path) for path in (folder / "many").iterdir())
    command(folder, "upload", *many, url, "--method", "PUT", "--quiet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=GET", "--max-size=1"], "for uploads"),
        (["--media-type=png"], "media type"),
        (["--prefix"], "ends with '/'"),
    ],
)
def test_address_that_makes_no_sense_is_a_usage_error(
    arguments: list[str], message: str, folder: Path
) -> None:
    """Exit code 2."""
    key_file = str(folder / "keys")
    done = run(
        ["trioresume", "sign", "http://h/x", "--key-file", key_file, *arguments],
        environment=environment_of(folder / "state"),
        timeout=60,
    )
    assert done.returncode == 2
    assert message in done.stderr


@needs("curl")
def test_upload_goes_on_after_a_crash(service: Service, folder: Path) -> None:
    """Its location is still all that it needs, and still not enough for more bytes."""
    url = sign(folder, f"{service.root}/files/", "--max-size=9")
    tus = ("-H", "Tus-Resumable: 1.0.0")
    begun = curl(folder, url, "-X", "POST", *tus, "-H", "Upload-Defer-Length: 1")
    place = begun.final.fields["location"]
    service.kill()
    service.start()
    assert curl(folder, place, "-I", *tus).final.fields["upload-offset"] == "0"
    appends = ["-X", "PATCH", *tus, "-H", "Upload-Offset: 0"]
    appends += ["-H", "Content-Type: application/offset+octet-stream"]
    assert curl(folder, place, *appends, "-d", "0123456789").final.status == 413
    assert curl(folder, place, *appends, "-d", "012345678").final.status == 204
