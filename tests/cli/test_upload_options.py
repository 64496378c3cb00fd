"""What ``trioresume upload`` sends: fields, credentials, chosen files; and checksums."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath

import pytest
from click.testing import CliRunner, Result

from tests.cli.test_upload import Network
from trioresume import cli
from trioresume.cli.upload_files import Chosen, entries_of


class Recorder:
    """A plain server that notes the requests, and answers a PUT with 201 and a HEAD with
    the digest that it is told to report.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.reports: bytes | None = None
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                recorder.note(self)
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(201)
                self.send_header("Location", self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_HEAD(self) -> None:
                recorder.note(self)
                self.send_response(200)
                if recorder.reports is not None:
                    text = base64.b64encode(recorder.reports).decode()
                    self.send_header("Repr-Digest", f"sha-256=:{text}:")
                self.send_header("Content-Length", "3")
                self.end_headers()

            def do_OPTIONS(self) -> None:
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def note(self, handler: BaseHTTPRequestHandler) -> None:
        """Keep the request that *handler* has read."""
        fields = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((handler.command, handler.path, fields))

    def sent(self, method: str) -> dict[str, str]:
        """The fields of the only request with *method*."""
        (found,) = (fields for name, _, fields in self.requests if name == method)
        return found


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.txt"
    path.write_bytes(b"one")
    return path


def _upload(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["upload", *map(str, words)])


def _basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_header_goes_with_the_request(recorder: Recorder, file: Path) -> None:
    result = _upload(
        "-H", "X-Trace: a: b", "-H", "Content-Type: text/x-own", file, recorder.url + "x"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    sent = recorder.sent("PUT")
    assert sent["x-trace"] == "a: b"
    assert sent["content-type"] == "text/x-own"


def test_headers_come_from_a_file(
    recorder: Recorder, file: Path, tmp_path: Path
) -> None:
    secrets = tmp_path / "fields"
    secrets.write_text("X-Key: s3cret\n\nCookie: a=b; c=d\n")
    result = _upload("-H", f"@{secrets}", file, recorder.url + "x")
    assert result.exit_code == 0, result.output
    assert recorder.sent("PUT")["x-key"] == "s3cret"
    assert recorder.sent("PUT")["cookie"] == "a=b; c=d"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no colon s3cret", "not 'Name: value'"),
        ("X Y: s3cret", "not 'Name: value'"),
        ("X: s3cret\nY: 1", "not 'Name: value'"),
        ("@/nowhere/at/all", "No such file"),
        ("Content-Length: 3", "set by the client itself"),
    ],
)
def test_wrong_header_is_refused_and_no_secret_shown(
    value: str, reason: str, recorder: Recorder, file: Path
) -> None:
    result = _upload("-H", value, file, recorder.url + "x")
    assert result.exit_code in (1, 2)
    assert reason in " ".join(result.output.split())
    assert "X: s3cret" not in result.output
    assert recorder.requests == []


def test_user_and_password_from_a_file(
    recorder: Recorder, file: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pass w\u00f6rd: 1\n")
    result = _upload(
        "--user", "anna", "--password-file", secret, file, recorder.url + "x"
    )
    assert result.exit_code == 0, result.output
    assert recorder.sent("PUT")["authorization"] == _basic("anna:pass w\u00f6rd: 1")


@pytest.mark.parametrize("option", ["--netrc", "--netrc-file"])
def test_credentials_of_the_host_in_netrc(
    option: str, recorder: Recorder, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "home" / ".netrc"
    path.write_text(
        "machine example.org login other password no\n"
        "machine 127.0.0.1 login anna password s3cret\n"
    )
    path.chmod(0o600)
    words = [option] if option == "--netrc" else [option, str(path)]
    result = _upload(*words, file, recorder.url + "x")
    assert result.exit_code == 0, result.output
    assert recorder.sent("PUT")["authorization"] == _basic("anna:s3cret")


def test_no_credentials_for_a_host_that_netrc_does_not_have(
    recorder: Recorder, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine example.org login other password no\n")
    result = _upload("--netrc-file", path, file, recorder.url + "x")
    assert result.exit_code == 0, result.output
    assert "authorization" not in recorder.sent("PUT")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--user", "anna:s3cret"], "others can see a command line"),
        (["--user", "anna"], "needs --password-file"),
        (["--password-file", "{secret}"], "needs --user"),
        (["--user", "a", "--netrc"], "exclude each other"),
        (["--token-file", "{secret}", "--netrc"], "exclude each other"),
        (["--token-file", "{secret}", "-H", "Authorization: x"], "--header has"),
        (["--netrc-file", "/nowhere/at/all"], "No such file"),
        (["--netrc-file", "{secret}"], "cannot be read"),
        (["--include", "*.txt"], "need --recursive"),
        (["--name", "a/b"], "not the name of a file"),
        (["--name", ".."], "not the name of a file"),
    ],
)
def test_contradiction_is_a_usage_error(
    words: list[str], reason: str, recorder: Recorder, file: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    filled = [word.format(secret=secret) for word in words]
    result = _upload(*filled, file, recorder.url + "x")
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
    assert "s3cret" not in result.output.replace(str(secret), "")
    assert recorder.requests == []


def test_name_replaces_that_of_the_file(recorder: Recorder, file: Path) -> None:
    result = _upload("--name", "two.pdf", "--method", "PUT", file, recorder.url)
    assert result.exit_code == 0, result.output
    ((_, path, fields),) = [each for each in recorder.requests if each[0] == "PUT"]
    assert path == "/two.pdf"
    assert fields["content-disposition"] == "attachment; filename*=UTF-8''two.pdf"
    assert fields["content-type"] == "application/pdf"


@pytest.mark.parametrize(
    ("include", "exclude", "found"),
    [
        ([], [], {"a.txt", "b.bin", "sub/c.txt", ".git/x", "sub/deep/d.txt"}),
        (["*.txt"], [], {"a.txt", "sub/c.txt", "sub/deep/d.txt"}),
        ([], [".git"], {"a.txt", "b.bin", "sub/c.txt", "sub/deep/d.txt"}),
        (["*.txt"], ["sub"], {"a.txt"}),
        (["sub/*"], [], {"sub/c.txt", "sub/deep/d.txt"}),
        ([], ["sub/deep", "*.bin"], {"a.txt", "sub/c.txt", ".git/x"}),
        (["*.none"], [], set()),
    ],
)
def test_files_of_a_directory_are_chosen(
    include: list[str], exclude: list[str], found: set[str], tmp_path: Path
) -> None:
    for name in ("a.txt", "b.bin", "sub/c.txt", ".git/x", "sub/deep/d.txt"):
        path = tmp_path / "top" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    entries = entries_of(
        [str(tmp_path / "top")], recursive=True, chosen=Chosen(include, exclude)
    )
    assert {entry.name for entry in entries} == {
        PurePath("top", name) for name in found
    }


def test_dry_run_shows_each_request_and_sends_none(
    recorder: Recorder, file: Path
) -> None:
    result = _upload("--dry-run", "--method", "PUT", file, recorder.url)
    assert result.exit_code == 0
    assert f"PUT {recorder.url}one.txt  {file}  3 B" in result.output
    as_json = _upload("-n", "--json", "--method", "PUT", file, recorder.url)
    assert json.loads(as_json.stdout) == {
        "file": str(file), "method": "PUT", "url": f"{recorder.url}one.txt", "bytes": 3
    }  # fmt: skip
    assert recorder.requests == []


_DIGEST = hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("protocol", ["seed", "rufh", "tus"])
def test_checksum_is_printed_and_confirmed(
    protocol: str, file: Path, tmp_path: Path
) -> None:
    with Network() as network:
        result = _upload("--protocol", protocol, "--checksum", file, network.url)
        assert result.exit_code == 0, result.output
        digest, location = result.stdout.split()
        assert digest == _DIGEST
        assert network.fetch(location) == b"one"


def test_checksum_that_a_plain_server_tells_later(
    recorder: Recorder, file: Path
) -> None:
    recorder.reports = hashlib.sha256(b"one").digest()
    result = _upload("--checksum", "--json", file, recorder.url + "x")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["sha256"], told["confirmed"]) == (_DIGEST, True)


@pytest.mark.parametrize(
    "reports", [None, hashlib.sha256(b"two").digest()], ids=["none", "another"]
)
def test_checksum_that_is_not_confirmed_is_a_failure(
    reports: bytes | None, recorder: Recorder, file: Path
) -> None:
    recorder.reports = reports
    result = _upload("--checksum", file, recorder.url + "x")
    assert result.exit_code in (1, 75)
    if reports is None:
        assert result.exit_code == 1
        assert _DIGEST in result.stderr
    else:
        assert reports.hex() in result.stderr
    assert result.stdout == ""
