"""``trioresume config``: what is checked and shown is what ``serve`` would do."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.certificates import authority, write_server_files
from trioresume import Config, SigningKey, new_token
from trioresume.cli import main
from trioresume.cli.service.exposure import dangers, facts
from trioresume.cli.service.plan import Plan
from trioresume.cli.service.systemd import ServiceManager


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command configures logging for its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _config(*words: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["config", *words], env=env)


def test_check_says_one_line_for_each_finding(tmp_path: Path) -> None:
    """And exits with 0 if there is no error."""
    _, line = new_token("ann")
    (tmp_path / "tokens").write_text(line)
    data = tmp_path / "data"
    options = ["--bind", "127.0.0.1:0", "--data-dir", str(data)]
    done = _config("check", *options, "--tokens-file", str(tmp_path / "tokens"))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "ok       who may use it: 1 name with a token" in lines
    assert f"ok       the data directory {data} will be made" in lines
    assert {text.split()[0] for text in lines} <= {"ok", "note"}
    assert not data.exists()


def test_check_exits_with_1_for_an_error(tmp_path: Path) -> None:
    """As JSON, too."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "format").write_text("another\n")
    options = ["--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    done = _config("check", "--json", *options)
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.output.splitlines()]
    assert [r["text"] for r in rows if r["severity"] == "error"] == [
        f"{tmp_path / 'data'} is of a format that is not known"
    ]


@pytest.mark.parametrize("command", ["check", "show"])
@pytest.mark.parametrize(
    ("words", "variables", "complaint"),
    [
        (["--nonsense"], {}, "No such option '--nonsense'"),
        (["--grace-timeout", "soon"], {}, "is not a duration"),
        (["--tokens-file", "missing"], {}, "does not exist"),
        (["--upstream", "http://a.example", "--app", "a:b"], {}, "exclude each other"),
        ([], {"TRIORESUME_SERVE_BINT": "x"}, "did you mean TRIORESUME_SERVE_BIND"),
        ([], {"TRIORESUME_SERVE_BIND": ""}, "TRIORESUME_SERVE_BIND is empty"),
        ([], {"TRIORESUME_CONFIG_FILE": "x"}, "belongs to no option"),
    ],
    ids=str,
)
def test_mistake_is_the_same_as_for_serve(
    command: str, words: list[str], variables: dict[str, str], complaint: str
) -> None:
    """It is the code of serve that reads the options."""
    for group in (["config", command], ["serve"]):
        done = CliRunner().invoke(main, [*group, *words], env=variables)
        assert done.exit_code in (1, 2), done.output
        assert complaint in " ".join(done.output.split())


def test_check_opens_nothing() -> None:
    """No log file, no socket; sockets of systemd need not be there."""
    with tempfile.TemporaryDirectory(prefix="trioresume-") as name:
        _check_in(Path(name))


def _check_in(tmp_path: Path) -> None:
    options = ["--log-file", str(tmp_path / "log"), "--bind", "fd:public"]
    options += ["--bind", f"unix:{tmp_path}/sock", "--data-dir", str(tmp_path / "data")]
    options += ["--access-log", str(tmp_path / "access")]
    done = _config("check", *options)
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []


def _written(tmp_path: Path) -> tuple[Path, list[str], dict[str, str]]:
    certificate, key = write_server_files(tmp_path)
    (tmp_path / "password").write_text("correct-horse\n")
    file = tmp_path / "up.toml"
    file.write_text(
        'log-format = "json"\n[serve]\ndata-dir = "there"\ngrace-timeout = "90s"\n'
        f'ssl-certfile = ["{certificate}"]\nssl-keyfile = ["{key}"]\n'
        'bind = ["127.0.0.1:1", "127.0.0.1:2"]\nhttp2 = false\n'
        '[[rule]]\npath = "/files/a b/"\nmax-upload-size = "20MiB"\n'
    )
    options = ["--config", str(file), "--max-upload-size", "5GB", "--ui"]
    options += ["--ssl-keyfile-password-file", str(tmp_path / "password")]
    return file, options, {"TRIORESUME_SERVE_MAX_STREAMS": "7"}


def test_show_names_each_origin(tmp_path: Path) -> None:
    """Option, environment, file, default; and no secret."""
    _, options, variables = _written(tmp_path)
    done = _config("show", "--json", *options, env=variables)
    assert done.exit_code == 0, done.output
    assert "correct-horse" not in done.output
    shown: dict[str, Any] = json.loads(done.output)["serve"]

    def row(name: str) -> tuple[object, object]:
        return shown[name]["value"], shown[name]["origin"]

    assert row("max-upload-size") == ("5000000000", "option")
    assert row("ui") == (True, "option")
    assert row("max-streams") == (7, "environment")
    assert row("grace-timeout") == ("90s", "file")
    assert row("http2") == (False, "file")
    assert row("log-format") == ("json", "file")
    assert row("bind") == (["127.0.0.1:1", "127.0.0.1:2"], "file")
    assert row("durability") == ("disk", "default")
    assert row("tokens-file") == (None, "default")
    assert row("unix-socket-mode") == ("660", "default")
    assert row("ssl-keyfile-password-file") == (str(tmp_path / "password"), "option")
    text = _config("show", *options, env=variables).output
    assert f"{'max-streams':<32}  environment  7\n" in text
    assert "1 rules in" in text
    assert "correct-horse" not in text


def test_shown_file_means_the_same(tmp_path: Path) -> None:
    """What --toml prints, given as the file alone, has the same values."""
    _, options, variables = _written(tmp_path)
    before = json.loads(_config("show", "--json", *options, env=variables).output)
    printed = _config("show", "--toml", *options, env=variables).output
    assert tomllib.loads(printed)["rule"] == before["rule"]
    copy = tmp_path / "copy.toml"
    copy.write_text(printed)
    after = json.loads(_config("show", "--json", "--config", str(copy)).output)
    assert after["rule"] == before["rule"]
    for name, row in before["serve"].items():
        assert after["serve"][name]["value"] == row["value"], name


# What the log says at the start.


def _plan(senders: str | None = None, **settings: Any) -> Plan:
    async def run(**_: object) -> None: ...

    return Plan(
        config=Config(**settings),
        base_path="/files/",
        target=object(),  # type: ignore[arg-type]
        run=run,
        manager=ServiceManager({}, 1),
        senders=senders,
        keeps_files=True,
    )


@pytest.mark.parametrize(
    ("urls", "senders", "settings", "warned"),
    [
        (["http://127.0.0.1:80", "http://[::1]:80"], None, {}, None),
        (["http://unix:/run/up:"], None, {}, None),
        (["http://0.0.0.0:80"], None, {}, "anybody who reaches http://0.0.0.0:80"),
        (["http://[::]:80"], None, {}, "anybody who reaches http://[::]:80"),
        (["https://[::]:443"], "2 names", {}, None),
        (["http://0.0.0.0:80"], "2 names", {}, "without TLS"),
        (
            ["http://0.0.0.0:80"],
            "2 names",
            {"trusted_proxies": ["10.0.0.0/8"]},
            None,
        ),
        (["http://0.0.0.0:80"], "2", {"public_url": "https://up.example"}, None),
        (
            ["http://unix:/run/up:"],
            None,
            {"unix_socket_mode": 0o666},
            "every user of this machine",
        ),
    ],
    ids=str,
)
def test_warnings_are_of_what_is_dangerous(
    urls: list[str],
    senders: str | None,
    settings: dict[str, object],
    warned: str | None,
) -> None:
    """A healthy start has none."""
    found = list(dangers(_plan(senders, **settings), urls))
    if warned is None:
        assert found == []
    else:
        assert len(found) == 1
        assert warned in found[0]


def test_facts_say_where_who_how_durable_and_how_much() -> None:
    """One line each."""
    plan = _plan("3 names with a token", max_stored_bytes=10 * 1024**3)
    where, who, durable, room = facts(plan, ["http://127.0.0.1:80"])
    assert where == "listening at http://127.0.0.1:80, without TLS"
    assert who == "who may use it: 3 names with a token"
    assert durable.endswith("what is acknowledged survives a power loss")
    assert room.endswith(" free, at most 10.0 GiB in all")


def test_facts_tell_https_addresses_from_others() -> None:
    """The line names the versions of TLS for the https addresses only."""
    urls = ["https://[::]:443", "http://127.0.0.1:80"]
    where, *_ = facts(_plan(), urls)
    assert where == (
        "listening at https://[::]:443, http://127.0.0.1:80 (https: TLS, HTTP/1.1 and HTTP/2)"
    )


def test_facts_say_that_anybody_may_download() -> None:
    """An option that opens the files is said like a rule that does."""
    urls = ["http://127.0.0.1:80"]
    plan = _plan("1 name with a token")
    public = list(facts(dataclasses.replace(plan, downloads="public"), urls))
    (line,) = set(public) - set(facts(plan, urls))
    assert line.startswith("anybody who knows the name and the owner of a file")


def test_check_says_who_may_use_a_server_of_signed_addresses(tmp_path: Path) -> None:
    """It is closed without any other credential, so nothing warns that it is open."""
    keys = tmp_path / "keys"
    keys.write_text(SigningKey.new("k").line)
    bind = ["--bind", "0.0.0.0:0", "--ssl-certfile", str(tmp_path / "pem")]
    leaf = authority().issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    options = [*bind, "--signing-keys", str(keys), "--data-dir", str(tmp_path / "data")]
    done = _config("check", *options)
    assert done.exit_code == 0, done.output
    assert "ok       who may use it: holders of a signed address" in done.output
    assert "anybody" not in done.output
