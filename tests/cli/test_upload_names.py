"""``trioresume upload``: names of local files, on the wire and on the terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from tests.cli.test_upload import SECONDS, Network, command, run
from trioresume import cli
from trioresume.protocol.filenames import parse_content_disposition_filename
from trioresume.store.disk_store import open_store

needs_any_bytes = pytest.mark.skipif(
    sys.platform != "linux",
    reason="the test needs a file name that is not UTF-8, which only Linux allows",
)


@pytest.fixture(scope="module")
def service() -> Iterator[Network]:
    with Network() as running:
        yield running


class Recorder(BaseHTTPRequestHandler):
    """A plain server that notes the target of each request."""

    protocol_version = "HTTP/1.1"
    targets: list[tuple[str, str, bytes]]

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.targets.append((self.command, self.path, content))
        self.send_response(200)
        self.send_header("ETag", '"like-an-object-store"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is said."""


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    targets: list[tuple[str, str, bytes]] = []
    handler = type("Handler", (Recorder,), {"targets": targets})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", targets
        server.shutdown()
        thread.join()


def file_called(directory: Path, name: bytes, content: bytes = b"content") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / os.fsdecode(name)
    path.write_bytes(content)
    return path


def offered(url: str) -> str | None:
    """The name under which a download of *url* is to be saved."""
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        return parse_content_disposition_filename(
            response.headers["Content-Disposition"]
        )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/bucket/?sig=a%2Fb&x=1", "/bucket/{name}?sig=a%2Fb&x=1"),
        ("/?sig=1/2", "/{name}?sig=1/2"),
        ("?sig=1", "/{name}?sig=1"),
        ("/bucket/", "/bucket/{name}"),
        ("/a%20b/c/?d=e?f", "/a%20b/c/{name}?d=e?f"),
    ],
)
def test_query_stays_behind_the_name(
    recorder: tuple[str, list[tuple[str, str, bytes]]],
    tmp_path: Path,
    path: str,
    expected: str,
) -> None:
    """A signed URL stays signed, whatever is in the name of the file."""
    url, targets = recorder
    file = file_called(tmp_path, b"a?b#c&sig=x %.txt")
    done = run(tmp_path, file, url + path, options=["--method", "PUT"])
    assert done.returncode == 0, done.stderr
    name = quote("a?b#c&sig=x %.txt", safe="")
    assert targets == [("PUT", expected.format(name=name), b"content")]


@needs_any_bytes
@pytest.mark.parametrize("protocol", ["auto", "rufh", "tus"])
def test_name_that_is_not_utf8_is_stored_with_the_others(
    service: Network, tmp_path: Path, protocol: str
) -> None:
    """What is no text in it is marked: RFC 8187 and tus have nothing else for it."""
    strange = file_called(tmp_path, b"photo \xe9\xff.png", b"strange")
    after = file_called(tmp_path, b"after.txt", b"after")
    options = ["--json", "--protocol", protocol]
    done = run(tmp_path, strange, after, service.url, options=options)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [service.fetch(each["location"]) for each in results] == [
        b"strange",
        b"after",
    ]
    names = [offered(each["location"]) for each in results]
    assert names == ["photo \ufffd\ufffd.png", "after.txt"]


@needs_any_bytes
def test_name_that_a_server_refuses_does_not_stop_the_others(
    service: Network, tmp_path: Path
) -> None:
    """The bytes are in the URL as they are; the refusal says why, on the terminal too."""
    strange = file_called(tmp_path, b"\xff.png")
    turned = file_called(tmp_path, "cod\u202egpj.exe".encode())
    after = file_called(tmp_path, b"after.png", b"after")
    files = (strange, turned, after)
    done = run(tmp_path, *files, service.url, options=["--method", "PUT"])
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert "\\udcff.png: " in first
    assert "%FF.png: the server answered 400" in first
    assert "not UTF-8" in first
    assert "cod\\u202egpj.exe: http" in second
    assert "gpj.exe: the server answered 400" in second
    assert "direction" in second
    assert service.fetch(service.url + "after.png") == b"after"


@needs_any_bytes
def test_terminal_shows_any_name(service: Network, tmp_path: Path) -> None:
    """A bar for it, then the result; nothing in it commands the terminal."""
    strange = file_called(tmp_path, b"a\xff\x1b[2Jb.png")
    words, environment = command(tmp_path, strange, service.url)
    environment |= {"TERM": "xterm", "COLUMNS": "100"}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0, shown
    assert b"a\\udcff\\x1b[2Jb.png" in shown
    assert b"\x1b[2J" not in shown


def test_reserved_names_are_sent_as_they_are(service: Network, tmp_path: Path) -> None:
    """What makes a name safe is the server's part; it does so in each protocol."""
    file = file_called(tmp_path, b"aux.c")
    for protocol in ("seed", "rufh", "tus"):
        options = ["--protocol", protocol]
        done = run(tmp_path, file, service.url, options=options)
        assert offered(done.stdout.strip()) == "_aux.c"
    done = run(tmp_path, file, service.url, options=["--method", "PUT"])
    assert done.stdout.strip() == service.url + "aux.c"


@pytest.mark.parametrize("query", ["", "?sig=1"])
def test_files_with_one_target_are_refused_before_the_first_byte(
    service: Network, tmp_path: Path, query: str
) -> None:
    """Exit code 2: one would overwrite the other. Both are named."""
    one = file_called(tmp_path / "one", b"same.txt", b"1")
    two = file_called(tmp_path / "two", b"same.txt", b"2")
    other = file_called(tmp_path, b"other.txt")
    before = service.proxy.totals.connections
    options = ["--method", "PUT"]
    done = run(tmp_path, other, one, two, service.url + query, options=options)
    assert done.returncode == 2
    assert f"{one} and {two} have the same name" in done.stderr.replace("\n", " ")
    assert service.proxy.totals.connections == before
    done = run(tmp_path, one, two, service.url)
    assert done.returncode == 0, "each POST makes a file of its own"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_one_file_under_two_paths_is_named_twice(tmp_path: Path, method: str) -> None:
    """Also by a symbolic link, where both would be called the same."""
    file = file_called(tmp_path / "one", b"same.txt")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    words = [str(file), str(tmp_path / "two" / "same.txt"), "http://host/"]
    result = CliRunner().invoke(cli.main, ["upload", *words, "--method", method])
    assert result.exit_code == 2
    assert "named twice" in result.output


@needs_any_bytes
def test_show_takes_any_bytes_for_a_name(tmp_path: Path) -> None:
    """There is no such file, and that is all there is to say."""
    data = tmp_path / "data"
    open_store(data).close()
    words = [sys.executable, "-m", "trioresume", "show", "--data-dir", str(data)]
    done = subprocess.run(
        [*words, b"\xff\x1b.png"], capture_output=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        b"Error: no upload and no file is called '\\udcff\\x1b.png'\n"
    )
