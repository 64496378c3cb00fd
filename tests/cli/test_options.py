"""The options' types, their three sources, and exit codes."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, strategies as st

import trioresume.cli
from trioresume.cli import logs
from trioresume.cli.options import (
    MAX_SIZE,
    Bind,
    Duration,
    ExitCode,
    SecretFile,
    Size,
    common_options,
    name_environment_twins,
    switch,
)
from trioresume.errors import TransferFailed


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Put the root logger back: ``configure`` is meant for a process of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("64k", 64_000),
        ("64K", 64_000),
        ("64KiB", 65_536),
        ("64 Ki", 65_536),
        ("5MiB", 5 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("1GB", 10**9),
        ("2t", 2 * 10**12),
        ("999999999999999", MAX_SIZE),
    ],
)
def test_size_units_with_an_i_are_binary_and_others_decimal(
    text: str, size: int
) -> None:
    """A size is a number of bytes in the unit it names."""
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "five",
        "-1",
        "+1",
        "1e3",
        "0.5",
        "1.5b",
        "1 PiB",
        "1_000",
        "٣",
        "1000000000000000",
    ],
)
def test_size_refuses_what_is_no_whole_number_of_bytes(text: str) -> None:
    """Signs, exponents, fractions of a byte and more than 15 digits are refused (G6)."""
    with pytest.raises(click.BadParameter):
        Size().convert(text, None, None)


def test_size_keeps_its_bounds() -> None:
    """A size outside the option's bounds is refused, the bounds themselves are not."""
    bounded = Size(minimum=64, maximum=1024)
    assert bounded.convert("64", None, None) == 64
    assert bounded.convert("1KiB", None, None) == 1024
    for text in ("63", "1025"):
        with pytest.raises(click.BadParameter, match="not within 64 to 1024"):
            bounded.convert(text, None, None)


@given(st.integers(min_value=0, max_value=MAX_SIZE))
def test_size_of_plain_bytes_is_itself(size: int) -> None:
    """Every size that fits the wire can be written without a unit."""
    assert Size().convert(str(size), None, None) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("60s", 60.0),
        ("60", 60.0),
        ("5m", 300.0),
        ("24h", 86_400.0),
        ("7d", 604_800.0),
        ("1.5h", 5_400.0),
    ],
)
def test_duration_is_in_seconds(text: str, seconds: float) -> None:
    """A duration comes out in seconds, whatever its unit."""
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1y", "1h30m", "inf", "nan"])
def test_duration_refuses_what_is_no_time_span(text: str) -> None:
    """Signs, unknown units and compounds are refused."""
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


def test_duration_keeps_its_bounds() -> None:
    """A duration outside the option's bounds is refused."""
    with pytest.raises(click.BadParameter, match="not within 1 to 60 seconds"):
        Duration(minimum=1, maximum=60).convert("61s", None, None)


def test_duration_bounds_are_taken_themselves() -> None:
    """A bound that is no binary fraction can be given in decimals."""
    assert Duration(minimum=0.1).convert("100ms", None, None) == 0.1


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:8080",
        "0.0.0.0:0",
        "localhost:80",
        "[::1]:0",
        "[fe80::1%eth0]:65535",
        "unix:/run/a b.sock",
        "unix:up.sock",
        "http://unix:/run/up.sock",
        "fd:3",
        "https://fd:3",
        "fd:public",
    ],
)
def test_bind_takes_a_host_and_a_port(text: str) -> None:
    """Names, IPv4 addresses and bracketed IPv6 addresses are taken as they are."""
    assert Bind().convert(text, None, None) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        ":8080",
        "::1:8080",
        "host",
        "host:",
        "host:70000",
        "a b:1",
        "[::1]",
        "unix:",
        "unix:/run/",
        "fd:",
        "fd:a b",
        "fd:1:2",
        "ftp://unix:/a",
    ],
)
def test_bind_refuses_what_names_no_host_and_port(text: str) -> None:
    """A missing host or port, or an IPv6 address without brackets, is refused."""
    with pytest.raises(click.BadParameter):
        Bind().convert(text, None, None)


def test_secret_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    """A secret is read from a file, without the line end an editor adds."""
    file = tmp_path / "token"
    file.write_text("s3cret\nnot this\n")
    assert SecretFile().convert(str(file), None, None) == "s3cret"


@pytest.mark.parametrize("content", [b"", b"\n", b"  \nx", b"\xff\xfe"])
def test_empty_or_unreadable_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    """No secret at all is an error, not an empty secret."""
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(click.BadParameter):
        SecretFile().convert(str(file), None, None)
    with pytest.raises(click.BadParameter):
        SecretFile().convert(str(tmp_path / "missing"), None, None)


# Where a value comes from.


@click.group()
def group() -> None:
    """A stand-in for the real group, with one small command."""


@group.command()
@common_options
@click.option("--bind", type=Bind(), multiple=True, default=["127.0.0.1:1"])
@click.option("--buffer-size", type=Size(), default="1KiB")
@click.option("--open/--closed", default=False)
def show(bind: tuple[str, ...], buffer_size: int, open: bool) -> None:
    """Print what arrived."""
    click.echo(json.dumps([*bind, buffer_size, open]))


name_environment_twins("show", show)


@group.command()
def other() -> None:
    """A second command, whose table must not disturb the first."""


def run(*args: str, **environment: str) -> Result:
    """Run ``show`` with *args* in an environment with *environment*."""
    return CliRunner().invoke(group, ["show", *args], env=environment)


def test_command_line_wins_over_environment_wins_over_file(tmp_path: Path) -> None:
    """Each source hides the next one, option by option."""
    config = tmp_path / "t.toml"
    config.write_text('[show]\nbind = ["[::1]:3"]\nbuffer-size = 3\nopen = true\n')
    from_default = run()
    from_file = run("--config", str(config))
    from_environment = run("--config", str(config), TRIORESUME_SHOW_BUFFER_SIZE="2k")
    from_command_line = run(
        "--config", str(config), "--buffer-size=1", TRIORESUME_SHOW_BUFFER_SIZE="2k"
    )
    assert json.loads(from_default.output) == ["127.0.0.1:1", 1024, False]
    assert json.loads(from_file.output) == ["[::1]:3", 3, True]
    assert json.loads(from_environment.output) == ["[::1]:3", 2000, True]
    assert json.loads(from_command_line.output) == ["[::1]:3", 1, True]


def test_environment_lists_are_separated_by_white_space() -> None:
    """An option that may be repeated takes several values from one variable."""
    result = run(TRIORESUME_SHOW_BIND="localhost:1 [::1]:2")
    assert json.loads(result.output)[:2] == ["localhost:1", "[::1]:2"]


def test_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """``TRIORESUME_CONFIG`` is ``--config``, and the file may set the log's level."""
    config = tmp_path / "t.toml"
    config.write_text('log-level = "error"\n[other]\n[show]\nbind = "localhost:7"\n')
    result = run(TRIORESUME_CONFIG=str(config))
    assert json.loads(result.output)[0] == "localhost:7"
    assert logging.getLogger().level == logging.ERROR


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_file_is_read_as_editors_save_it(tmp_path: Path, encoding: str) -> None:
    """With a byte order mark, and in what that says."""
    config = tmp_path / "t.toml"
    config.write_bytes("[show]\nbind = 'localhost:7'\n".encode(encoding))
    result = run("--config", str(config))
    assert json.loads(result.output)[0] == "localhost:7"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_secret_is_read_as_editors_save_it(tmp_path: Path, encoding: str) -> None:
    """The mark is no part of it."""
    path = tmp_path / "token"
    path.write_bytes("secret\r\nmore\r\n".encode(encoding))
    assert SecretFile().convert(str(path), None, None) == "secret"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xef\xbb\xbf\r\n", "is empty"),
        ("secret".encode("utf-16-le"), "UTF-16"),
        (b"m\xfcller", "line 1 is not UTF-8"),
        ("gehe\u00edm".encode(), "is not a token"),
        (b"name " + b"0" * 64, "is not a token"),
        (None, "No such file"),
    ],
)
def test_secret_that_cannot_be_sent_is_refused(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    """Before a request is made with half of it."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(click.BadParameter, match=complaint):
        SecretFile().convert(str(path), None, None)


# The environment.


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
@pytest.mark.parametrize(
    "name",
    [
        "TRIORESUME_SHOW_BIND",
        "TRIORESUME_SHOW_BUFFER_SIZE",
        "TRIORESUME_SHOW_OPEN",
        "TRIORESUME_CONFIG",
        "TRIORESUME_LOG_LEVEL",
    ],
)
def test_empty_variable_is_refused(name: str, value: str) -> None:
    """It is not taken for none: whoever wrote it wanted something."""
    result = run(**{name: value})
    assert result.exit_code == ExitCode.USAGE
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if value == "":
        assert f"the variable {name} is empty" in result.output


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TRIORESUME_SHOW_BNID", "TRIORESUME_SHOW_BIND"),
        ("TRIORESUME_SHOW_BUFFERSIZE", "TRIORESUME_SHOW_BUFFER_SIZE"),
        ("TRIORESUME_SHWO_BIND", "TRIORESUME_SHOW_BIND"),
        ("TRIORESUME_BIND", "TRIORESUME_SHOW_BIND"),
        ("trioresume_show_bind", "TRIORESUME_SHOW_BIND"),
        ("TRIORESUME_LOGLEVEL", "TRIORESUME_LOG_LEVEL"),
        ("TRIORESUME_NONSENSE", None),
        ("TRIORESUME_SHOW_PORT", None),
        ("TRIORESUME_SHOW_", None),
    ],
)
def test_variable_of_no_option_is_refused(name: str, meant: str | None) -> None:
    """As a key of the file is, with what it is close to."""
    result = run(**{name: "8080"})
    assert result.exit_code == ExitCode.USAGE
    assert f"the variable {name} belongs to no option" in result.output
    if meant is not None:
        assert f"did you mean {meant}?" in result.output


def test_variables_of_others_are_left_alone() -> None:
    """Those of another command, of Kubernetes, of the project's own build."""
    result = run(
        TRIORESUME_OTHER_BIND="",
        TRIORESUME_SERVICE_HOST="10.0.0.1",
        TRIORESUME_SERVICE_PORT="8080",
        TRIORESUME_SERVICE_PORT_HTTP="8080",
        TRIORESUME_PORT="tcp://10.0.0.1:8080",
        TRIORESUME_PORT_8080_TCP="tcp://10.0.0.1:8080",
        TRIORESUME_PORT_8080_TCP_PROTO="tcp",
        TRIORESUME_PORT_8080_TCP_PORT="8080",
        TRIORESUME_PORT_8080_TCP_ADDR="10.0.0.1",
        TRIORESUME_SHOW_SERVICE_HOST="10.0.0.1",
        TRIORESUME_SHOW_PORT="tcp://10.0.0.1:8080",
        TRIORESUME_BUILD_UI="0",
        TRIORESUMEX="1",
    )
    assert result.exit_code == 0, result.output


# Switches.


def switched(*args: str, config: Path | None = None, **environment: str) -> Result:
    """A command that prints what its switch is."""

    @group.command("switched")
    @common_options
    @switch("--light", default=False, help="Whether it is on.")
    @click.option("--bind", type=Bind())
    def switched(light: bool, bind: str | None) -> None:
        click.echo(json.dumps([light, bind]))

    name_environment_twins("switched", switched)
    words = ["switched", *(["--config", str(config)] if config else []), *args]
    return CliRunner().invoke(group, words, env=environment)


@pytest.mark.parametrize(
    ("args", "on"),
    [
        ((), False),
        (("--light",), True),
        (("--light", "true"), True),
        (("--light=true",), True),
        (("--light", "false"), False),
        (("--light", "no"), False),
        (("--light", "1"), True),
        (("--light", "--bind", "localhost:1"), True),
    ],
)
def test_switch_is_on_by_its_name_or_by_its_value(
    args: tuple[str, ...], on: bool
) -> None:
    """As a page may recommend it either way."""
    result = switched(*args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)[0] is on


def test_switch_in_the_file_and_in_the_environment(tmp_path: Path) -> None:
    """TOML's own truth values, and the same words as on the command line."""
    config = tmp_path / "t.toml"
    config.write_text("[switched]\nlight = true\n")
    assert json.loads(switched(config=config).output)[0] is True
    assert json.loads(switched("--light", "false", config=config).output)[0] is False
    assert json.loads(switched(TRIORESUME_SWITCHED_LIGHT="yes").output)[0] is True


@pytest.mark.parametrize("value", ["tru", "maybe", "2"])
def test_switch_refuses_other_words(value: str) -> None:
    """None of them is guessed."""
    result = switched("--light", value)
    assert result.exit_code == ExitCode.USAGE
    assert "is not a valid boolean" in result.output


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[show]\nbnid = 'localhost:1'\n", "no option 'bnid'"),
        ("[shwo]\n", "'shwo' is neither a command nor an option of all commands"),
        ("show = 1\n", "must be a table"),
        ("[show]\nopen = 'yes'\n", "must be true or false"),
        ("[show]\nbuffer-size = [1]\n", "must be a string or a number"),
        ("[show]\nbind = [true]\n", "must be a string or a number"),
        ("[show]\nbuffer-size = 'big'\n", "is not a size"),
        ("[show]\nconfig = 'x'\n", "no option 'config'"),
        ("[show\n", "cannot be read"),
    ],
)
def test_file_with_a_mistake_is_a_usage_error(
    tmp_path: Path, text: str, complaint: str
) -> None:
    """A key that is not known or has the wrong kind stops the command: exit code 2."""
    config = tmp_path / "t.toml"
    config.write_text(text)
    result = run("--config", str(config))
    assert result.exit_code == ExitCode.USAGE
    assert complaint in result.output


# Logs.


def emit(format: str) -> str:
    """What the library's logger writes in *format*, with a traceback."""
    stream = io.StringIO()
    logs.configure("info", format, stream)
    logger = logging.getLogger("trioresume.test")
    logger.debug("too quiet")
    try:
        raise ValueError("the cause")
    except ValueError:
        logger.exception("it %s", "failed", extra={"operation": "abc"})
    return stream.getvalue()


def test_json_log_is_one_object_a_line() -> None:
    """A record of the library has its fields and traceback in one line of JSON."""
    (line,) = emit("json").splitlines()
    record = json.loads(line)
    assert record["event"] == "it failed"
    assert record["logger"] == "trioresume.test"
    assert record["level"] == "error"
    assert record["operation"] == "abc"
    assert record["timestamp"].endswith("Z")
    assert "ValueError: the cause" in record["exception"]


def test_text_log_is_plain_where_there_is_no_terminal() -> None:
    """No escape codes reach a file, and the traceback is there."""
    text = emit("text")
    assert "it failed" in text
    assert "operation=abc" in text
    assert "ValueError: the cause" in text
    assert "\x1b" not in text
    assert "too quiet" not in text


# Exit codes.


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (None, ExitCode.DONE, ""),
        (TransferFailed("the server is away"), ExitCode.FAILED, "the server is away"),
        (click.UsageError("no such thing"), ExitCode.USAGE, "no such thing"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, ""),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), ExitCode.INTERRUPTED, ""),
    ],
)
def test_how_a_command_ends_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException | None,
    code: ExitCode,
    shown: str,
) -> None:
    """Errors of the package are a line and 1, not a traceback."""

    @click.command()
    def probe() -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(trioresume.cli.main, "get_command", lambda *_: probe)
    result = CliRunner().invoke(trioresume.cli.main, ["probe"])
    assert result.exit_code == code
    assert shown in result.output


def test_returned_exit_code_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command says that an upload is unfinished by returning the code."""

    @click.command()
    def probe() -> ExitCode:
        return ExitCode.UNFINISHED

    monkeypatch.setattr(trioresume.cli.main, "get_command", lambda *_: probe)
    result = CliRunner().invoke(trioresume.cli.main, ["probe"])
    assert result.exit_code == 75


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no error of the package is a bug and is not dressed up as one."""

    @click.command()
    def probe() -> None:
        raise BaseExceptionGroup("", [KeyboardInterrupt(), ZeroDivisionError()])

    monkeypatch.setattr(trioresume.cli.main, "get_command", lambda *_: probe)
    with pytest.raises(BaseExceptionGroup):
        trioresume.cli.main(["probe"])


def test_unknown_command_is_a_usage_error() -> None:
    """A misspelt command exits with 2, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "trioresume", "sevre"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.USAGE
    assert "No such command" in done.stderr


def test_environment_and_file_use_the_options_own_names() -> None:
    """Every option of every command has a twin, called as the option is."""
    group = trioresume.cli.main
    context = click.Context(group)
    common = {"config", "log-level", "log-format"}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option):
                longest = max(option.opts, key=len).removeprefix("--")
                parts = (
                    ["TRIORESUME", longest]
                    if longest in common
                    else ["TRIORESUME", name, longest]
                )
                assert option.envvar == re.sub("[- ]", "_", "_".join(parts)).upper()


# Groups of commands.


def _group_runner() -> click.Group:
    """A program whose command ``pair one`` prints its only option."""

    @click.group()
    def program() -> None: ...

    @program.group()
    def pair() -> None: ...

    @pair.command()
    @common_options
    @click.option("--size", type=Size(), default=1)
    def one(size: int) -> None:
        click.echo(size)

    @pair.command()
    @common_options
    @click.option("--size", type=Size(), default=1)
    def two(size: int) -> None:
        click.echo(size)

    for name, command in program.commands.items():
        name_environment_twins(name, command)
    return program


@pytest.mark.parametrize(
    ("words", "environ", "document", "printed"),
    [
        ("one", {}, "", "1"),
        ("one", {}, "[pair.one]\nsize = 2", "2"),
        ("one", {"TRIORESUME_PAIR_ONE_SIZE": "3"}, "[pair.one]\nsize = 2", "3"),
        ("one --size 4", {"TRIORESUME_PAIR_ONE_SIZE": "3"}, "", "4"),
        ("one", {"TRIORESUME_PAIR_TWO_SIZE": "3"}, "[pair.two]\nsize = 2", "1"),
        ("one", {"TRIORESUME_PAIR_ONE_SIZES": "3"}, "", "belongs to no option"),
        ("one", {"TRIORESUME_PAIR_ONE_SIZE": ""}, "", "is empty"),
        ("one", {}, "[pair.one]\nsizes = 2", "'pair one' has no option 'sizes'"),
        ("one", {}, "[pear.one]\nsize = 2", "'pear' is neither a command nor"),
    ],
)
def test_command_of_a_group_has_a_table_and_variables_of_its_own(
    words: str, environ: dict[str, str], document: str, printed: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(document)
    result = CliRunner().invoke(
        _group_runner(),
        ["pair", *words.split(), "--config", str(config)],
        env=environ,
    )
    assert printed in " ".join(result.output.split())
