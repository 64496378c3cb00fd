"""``trioresume serve`` as a process, and what its options become."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

import trioresume
from trioresume import Config
from trioresume.cli import main
from trioresume.cli.serve_options import LIMITS, PROXIES_AND_BROWSERS
from trioresume.cli.service.plan import Plan

SOURCE = str(Path(trioresume.__file__).parent.parent)


@contextlib.contextmanager
def _running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, once it said where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trioresume", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("You can now upload files to: http://"), line
        yield process, line.split(": ")[1].strip()
    finally:
        process.kill()
        process.communicate()


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "trioresume", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": SOURCE},
        check=False,
    )


def _upload(url: str, body: bytes, **headers: str) -> str:
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request) as response:
        assert response.status == 201
        location: str = response.headers["Location"]
        return location


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order(number: int, tmp_path: Path) -> None:
    """It stores, says where it listens, and on a signal exits with 0 and a free directory."""
    directory = str(tmp_path / "data")
    arguments = ("--bind", "127.0.0.1:0", "--data-dir", directory)
    with _running(*arguments) as (process, url):
        location = _upload(url, b"hello")
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "Traceback" not in errors
    with _running(*arguments) as (process, url):
        root = url.removesuffix("/files/")
        with urllib.request.urlopen(root + location) as response:
            assert response.read() == b"hello"


def test_second_signal_stops_at_once(tmp_path: Path) -> None:
    """A request that hangs holds the first one up for the grace period, not the second."""
    arguments = ("--bind", "127.0.0.1:0", "--data-dir", str(tmp_path))
    with _running(*arguments, "--grace-timeout", "60s") as (process, url):
        host, port = url.removeprefix("http://").removesuffix("/files/").split(":")
        with socket.create_connection((host, int(port))) as hanging:
            hanging.sendall(
                b"POST /files/ HTTP/1.1\r\nHost: x\r\nPrefer: resume\r\n"
                b"Content-Length: 10\r\n\r\nabc"
            )
            assert hanging.recv(100).startswith(b"HTTP/1.1 100")
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while "again" not in process.stderr.readline():
                assert process.poll() is None
            time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "Traceback" not in errors


def test_directory_in_use_is_a_plain_message(tmp_path: Path) -> None:
    """StoreLocked: exit code 1, one line, no traceback."""
    arguments = ("--bind", "127.0.0.1:0", "--data-dir", str(tmp_path))
    with _running(*arguments):
        ended = _serve(*arguments)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("Error: ")
    assert "Traceback" not in ended.stderr


def test_address_in_use_is_a_plain_message(tmp_path: Path) -> None:
    """It names the reason; nothing was made in the directory."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = _serve(
            "--bind",
            f"127.0.0.1:{taken.getsockname()[1]}",
            "--data-dir",
            str(tmp_path / "data"),
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: ")
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "data").exists()


def test_malformed_tokens_file_is_a_plain_message(tmp_path: Path) -> None:
    """It names the line."""
    path = tmp_path / "tokens"
    path.write_text("not a token\n")
    ended = _serve("--tokens-file", str(path), "--data-dir", str(tmp_path / "data"))
    assert ended.returncode != 0
    assert "line 1" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--public-url", "foo"], "public_url must look like"),
        (["--base-path", "files"], "--base-path 'files': the base path must start"),
        (["--relative-locations", "tru"], "is not a valid boolean"),
        (["--relative-locations", "--public-url", "https://x"], "exclude each other"),
        (["--trusted-proxy", "10.0.0.1/8"], "trusted_proxies"),
        (["--trusted-proxy", "localhost"], "trusted_proxies"),
        (["--tokens-file", "{tmp}/utf-16"], "UTF-16"),
        (["--tokens-file", "{tmp}"], "is a directory"),
    ],
)
def test_setting_that_cannot_be_meant_is_wrong_usage(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    """Exit code 2 and a sentence; nothing is made, nobody listens."""
    (tmp_path / "utf-16").write_bytes("ann x".encode("utf-16-le"))
    words = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    data = tmp_path / "data"
    result = _invoke(*words, "--data-dir", str(data))
    assert result.exit_code == 2
    assert complaint in result.output
    assert not data.exists()


def test_tokens_file_of_windows_guards_the_service(tmp_path: Path) -> None:
    """As Notepad and PowerShell save it."""
    token, line = trioresume.new_token("ann")
    path = tmp_path / "tokens"
    path.write_bytes(f"{line}\r\n".encode("utf-16"))
    arguments = ["--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    with _running(*arguments, "--tokens-file", str(path)) as (_, url):
        with pytest.raises(urllib.request.HTTPError) as refused:
            _upload(url, b"x")
        refused.value.close()
        assert _upload(url, b"x", Authorization=f"Bearer {token}").startswith("/files/")


def test_tokens_file_guards_the_service(tmp_path: Path) -> None:
    """401 without a token; with one that 'trioresume token' made, 201."""
    token, line = trioresume.new_token("ann")
    path = tmp_path / "tokens"
    path.write_text(line + "\n")
    arguments = ["--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    with _running(*arguments, "--tokens-file", str(path)) as (_, url):
        with pytest.raises(urllib.request.HTTPError) as refused:
            _upload(url, b"x")
        refused.value.close()
        assert refused.value.code == 401
        assert _upload(url, b"x", Authorization=f"Bearer {token}").startswith("/files/")


def test_page_that_was_not_built_is_a_plain_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With how to build it; nothing was touched, and nobody listens."""
    monkeypatch.setattr("trioresume.ui.page.is_built", lambda folder: False)
    monkeypatch.setattr("trioresume.cli.service.running._calm_collector", lambda: None)
    data = tmp_path / "data"
    result = _invoke("--ui", "--bind", "127.0.0.1:0", "--data-dir", str(data))
    assert result.exit_code == 1
    assert result.output.startswith("Error: the page of --ui is not built")
    assert "python -m trioresume.ui build" in result.output
    assert not data.exists()


def test_data_directory_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which directory it was."""
    monkeypatch.setattr("trioresume.cli.service.running._calm_collector", lambda: None)
    (tmp_path / "file").touch()
    data = tmp_path / "file" / "data"
    result = _invoke("--bind", "127.0.0.1:0", "--data-dir", str(data))
    assert result.exit_code == 1
    assert f"opening the store in {data}: " in result.output


# What the options become.


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str]]:
    """The settings with which the service would have been run."""
    seen: list[tuple[Config, str]] = []

    def run(_: object, plan: Plan, **__: Any) -> None:
        seen.append((plan.config, plan.base_path))

    monkeypatch.setattr(trio, "run", run)
    return seen


def _invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["serve", *arguments], env=env)


TWINS: dict[str, tuple[str, str, object]] = {
    # option: what is given, the setting's name, the value it gets
    "data-dir": ("there", "data_dir", Path("there")),
    "durability": ("process", "durability", "process"),
    "public-url": ("https://x.example/a/", "public_url", "https://x.example/a"),
    "max-upload-size": ("5MiB", "max_upload_size", 5 * 1024 * 1024),
    "min-resumable-size": ("1KiB", "min_resumable_size", 1024),
    "max-append-size": ("100MB", "max_append_size", 100 * 1000 * 1000),
    "min-append-size": ("64k", "min_append_size", 64000),
    "check-interop-version": ("no", "check_interop_version", False),
    "incomplete-lifetime": ("2d", "incomplete_lifetime", 2 * 86400.0),
    "response-lifetime": ("90m", "response_lifetime", 5400.0),
    "file-lifetime": ("7d", "file_lifetime", 7 * 86400.0),
    "idle-timeout": ("500ms", "body_timeout", 0.5),
    "grace-timeout": ("0s", "grace_timeout", 0.0),
    "max-connections": ("77", "max_connections", 77),
    "max-connections-per-address": ("7", "max_connections_per_address", 7),
    "max-streams": ("5", "max_streams", 5),
    "http2": ("false", "http2", False),
    "header-timeout": ("3s", "header_timeout", 3.0),
    "keep-alive-timeout": ("4s", "keep_alive_timeout", 4.0),
    "max-stored-bytes": ("1GiB", "max_stored_bytes", 1 << 30),
    "max-stored-bytes-per-principal": ("5k", "max_stored_bytes_per_principal", 5000),
    "min-free-space": ("2GiB", "min_free_space", 2 << 30),
    "max-open-uploads-per-principal": ("9", "max_open_uploads_per_principal", 9),
    "max-upload-lifetime": ("3d", "max_upload_lifetime", 3 * 86400.0),
    "min-body-rate": ("1k", "min_body_rate", 1000),
    "digest-budget": ("64MiB", "digest_budget", 64 << 20),
    "receive-memory": ("3MiB", "receive_memory", 3 << 20),
    "operation-path": ("/requests/", "operation_path", "/requests/"),
    "root-path": ("/up", "root_path", "/up"),
    "continue-without-expect": ("no", "continue_without_expect", False),
    "interim-responses": ("locations", "interim_responses", "locations"),
    "trusted-proxy": ("10.0.0.0/8", "trusted_proxies", ("10.0.0.0/8",)),
    "forwarded-fields": ("forwarded", "forwarded_fields", "forwarded"),
    "cors-origin": ("https://a.example", "cors_origins", ("https://a.example",)),
    "cors-max-age": ("10m", "cors_max_age", 600.0),
    "cors-request-field": ("X-One", "cors_request_fields", ("X-One",)),
    "cors-response-field": ("X-Two", "cors_response_fields", ("X-Two",)),
}

FLAGS = {
    # option: what has to be given with it, the setting's name, the value it gets
    "lenient-range-unit": ((), "lenient_range_unit", True),
    "h2c": ((), "h2c", True),
    "relative-locations": ((), "relative_locations", True),
    "strict-metadata": ((), "strict_metadata", True),
    "cors-credentials": (
        ("--cors-origin", "https://a.example"),
        "cors_credentials",
        True,
    ),
    "ui": (("--base-path", "/up/"), "ui", "/up/"),
}

UNLIMITED = (
    "max-connections-per-address",
    "max-stored-bytes",
    "max-stored-bytes-per-principal",
    "max-open-uploads-per-principal",
)
"""Options of which 0 means that there is no limit."""


def test_every_limit_has_its_twins() -> None:
    """None of the table's options is left out of the tests below."""
    tested = {*TWINS, *FLAGS}
    assert {
        option.removeprefix("--") for option, *_ in (*LIMITS, *PROXIES_AND_BROWSERS)
    } <= tested


@pytest.mark.parametrize("option", FLAGS)
@pytest.mark.parametrize("place", ["option", "environment", "file"])
def test_flag_and_its_twins_reach_the_settings(
    option: str,
    place: str,
    configured: list[tuple[Config, str]],
    tmp_path: Path,
) -> None:
    """A flag is a truth value in the environment and in a TOML file."""
    with_it, name, value = FLAGS[option]
    if place == "option":
        result = _invoke(f"--{option}", *with_it)
    elif place == "environment":
        variable = "TRIORESUME_SERVE_" + option.upper().replace("-", "_")
        result = _invoke(*with_it, env={variable: "true"})
    else:
        path = tmp_path / "config.toml"
        path.write_text(f"[serve]\n{option} = true\n")
        result = _invoke("--config", str(path), *with_it)
    assert result.exit_code == 0, result.output
    ((config, _),) = configured
    assert getattr(config, name) == value


@pytest.mark.parametrize("place", ["option", "environment", "file"])
def test_origins_and_proxies_are_lists(
    place: str, configured: list[tuple[Config, str]], tmp_path: Path
) -> None:
    """A list each: repeated, separated by white space, an array."""
    given = {
        "cors-origin": ["https://a.example", "http://localhost:5173"],
        "trusted-proxy": ["127.0.0.1", "fd00::/8"],
    }
    if place == "option":
        result = _invoke(*(f"--{o}={v}" for o, values in given.items() for v in values))
    elif place == "environment":
        prefix = "TRIORESUME_SERVE_"
        env = {
            prefix + option.upper().replace("-", "_"): " ".join(values)
            for option, values in given.items()
        }
        result = _invoke(env=env)
    else:
        path = tmp_path / "config.toml"
        lines = [f"{option} = {values!r}" for option, values in given.items()]
        path.write_text("\n".join(["[serve]", *lines, ""]))
        result = _invoke("--config", str(path))
    assert result.exit_code == 0, result.output
    ((config, _),) = configured
    assert list(config.cors_origins) == given["cors-origin"]
    assert list(config.trusted_proxies) == given["trusted-proxy"]


@pytest.mark.parametrize("option", UNLIMITED)
def test_zero_is_no_limit(option: str, configured: list[tuple[Config, str]]) -> None:
    """Since a limit of nothing would be of no use."""
    assert _invoke(f"--{option}", "0").exit_code == 0
    ((config, _),) = configured
    assert getattr(config, TWINS[option][1]) is None


@pytest.mark.parametrize("option", TWINS)
@pytest.mark.parametrize("place", ["option", "environment", "file"])
def test_option_and_its_twins_reach_the_settings(
    option: str,
    place: str,
    configured: list[tuple[Config, str]],
    tmp_path: Path,
) -> None:
    """From the command line, the environment and a TOML file alike."""
    given, name, value = TWINS[option]
    if place == "option":
        result = _invoke(f"--{option}", given)
    elif place == "environment":
        variable = "TRIORESUME_SERVE_" + option.upper().replace("-", "_")
        result = _invoke(env={variable: given})
    else:
        path = tmp_path / "config.toml"
        path.write_text(f'[serve]\n{option} = "{given}"\n')
        result = _invoke("--config", str(path))
    assert result.exit_code == 0, result.output
    ((config, base_path),) = configured
    assert getattr(config, name) == value
    assert base_path == "/files/"


@pytest.mark.parametrize("place", ["option", "environment", "file"])
def test_repeated_addresses_and_the_base_path(
    place: str, configured: list[tuple[Config, str]], tmp_path: Path
) -> None:
    """A list each: repeated, separated by white space, an array."""
    binds = ["127.0.0.1:1", "[::1]:2"]
    if place == "option":
        result = _invoke("--bind", binds[0], "--bind", binds[1], "--base-path", "/up/")
    elif place == "environment":
        env = {"TRIORESUME_SERVE_BIND": " ".join(binds)}
        result = _invoke(env={**env, "TRIORESUME_SERVE_BASE_PATH": "/up/"})
    else:
        path = tmp_path / "config.toml"
        path.write_text(f'[serve]\nbind = {binds!r}\nbase-path = "/up/"\n')
        result = _invoke("--config", str(path))
    assert result.exit_code == 0, result.output
    ((config, base_path),) = configured
    assert list(config.bind) == binds
    assert base_path == "/up/"


def test_defaults_are_those_of_the_library(
    configured: list[tuple[Config, str]],
) -> None:
    """Whoever moves from the command to the library finds the same service."""
    result = _invoke()
    assert result.exit_code == 0, result.output
    ((config, _),) = configured
    defaults = Config()
    for name in Config.__dataclass_fields__:
        said, default = getattr(config, name), getattr(defaults, name)
        if name in ("bind", "data_dir"):
            said, default = str(said), str(default)
        assert said == default, name


@pytest.mark.parametrize(
    "arguments",
    [
        ("--bind", "8080"),
        ("--bind", "x:99999"),
        ("--durability", "none"),
        ("--max-upload-size", "0"),
        ("--incomplete-lifetime", "soon"),
        ("--idle-timeout", "0"),
        ("--max-connections", "0"),
        ("--header-timeout", "0"),
        ("--min-body-rate", "-1"),
        ("--tokens-file", "/nonexistent"),
        ("--root-path", "up"),
        ("--root-path", "/up", "--public-url", "https://x.example"),
        ("--relative-locations", "--public-url", "https://x.example"),
        ("--interim-responses", "some"),
        ("--trusted-proxy", "proxy.example"),
        ("--trusted-proxy", "10.0.0.1/8"),
        ("--cors-origin", "https://x.example/page"),
        ("--cors-origin", "x.example"),
        ("--cors-origin", "null"),
        ("--cors-origin", "*", "--cors-origin", "https://x.example"),
        ("--cors-origin", "*", "--cors-credentials"),
        ("--cors-origin", "*", "--cors-request-field", "a b"),
        ("--unknown",),
        ("argument",),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: tuple[str, ...], configured: list[tuple[Config, str]]
) -> None:
    """And nothing was started."""
    result = _invoke(*arguments)
    assert result.exit_code == 2
    assert configured == []


def test_base_path_without_slashes_is_refused(tmp_path: Path) -> None:
    """Plainly, before anything is made on the disk."""
    data = tmp_path / "data"
    arguments = ("--bind", "127.0.0.1:0", "--data-dir", str(data))
    ended = _serve("--base-path", "files", *arguments)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "slash" in ended.stderr or "'/'" in ended.stderr
