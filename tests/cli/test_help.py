"""What ``--help`` shows, and what a shell completes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import trioresume.cli
from docs import man_pages
from tests.cli import golden_help
from trioresume.cli.environment import command_path
from trioresume.cli.help import Command, default_text, sections_of, spelling
from trioresume.cli.options import Duration, Size
from trioresume.cli.sections import BENCH, SERVE, SERVE_NEEDS, UPLOAD

_GROUP = trioresume.cli.main
_PARENT = click.Context(_GROUP, info_name="trioresume", **_GROUP.context_settings)


def _contexts(group: click.Group, parent: click.Context) -> Iterator[click.Context]:
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            yield from _contexts(command, context)
        else:
            yield context


_CONTEXTS = {
    " ".join(command_path(context)): context for context in _contexts(_GROUP, _PARENT)
}
_COMMANDS = list(_CONTEXTS)


def _command(name: str) -> Command:
    command = _CONTEXTS[name].command
    assert isinstance(command, Command)
    return command


def _help(*words: str, columns: int | None = None) -> str:
    result = CliRunner().invoke(
        _GROUP, [*words, "--help"], prog_name="trioresume", terminal_width=columns
    )
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_option_is_shown_once_with_its_variable(name: str) -> None:
    text = _help(*name.split())
    command = _command(name)
    context = _CONTEXTS[name]
    for option in command.get_params(context):
        if isinstance(option, click.Option) and option.envvar is not None:
            line = f"\n  {spelling(option, context)}"
            assert text.count(f"{line} ") + text.count(f"{line}\n") == 1
            assert text.count(f"${option.envvar}\n") == 1


@pytest.mark.parametrize(
    ("name", "sections"), [("serve", SERVE), ("upload", UPLOAD), ("bench", BENCH)]
)
def test_every_section_names_options_that_there_are(
    name: str, sections: dict[str, tuple[str, ...]]
) -> None:
    command = _command(name)
    context = _CONTEXTS[name]
    shown = {
        title: tuple(max(option.opts, key=len) for option in options)
        for title, options in sections_of(command, context)
    }
    assert {title: shown.get(title) for title in sections} == sections
    assert len({name for names in sections.values() for name in names}) == sum(
        map(len, sections.values())
    )


@pytest.mark.parametrize(
    "name", ["serve", "upload", "uploads resume", "download", "bench"]
)
def test_no_option_is_without_a_section(name: str) -> None:
    assert "Further options" not in _help(*name.split())


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_examples_of_itself(name: str) -> None:
    examples = _command(name).examples
    assert examples
    assert all(f"trioresume {name}" in example for example in examples)
    parent = _CONTEXTS[name].parent
    assert parent is not None
    groups = command_path(parent) if parent.parent is not None else []
    assert f"$ {examples[0]}" in _help(*groups)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_no_variable_is_broken_in_two(columns: int) -> None:
    lines = _help("serve", columns=columns).splitlines()
    variable = "$TRIORESUME_SERVE_MAX_STORED_BYTES_PER_PRINCIPAL"
    assert any(line.endswith(variable) for line in lines)
    texts = [line for line in lines if "$" not in line and "--" not in line]
    assert max(map(len, texts)) <= columns


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1000, "1000"),
        (1024, "1KiB"),
        (1536, "1536"),
        (16 * 2**20, "16MiB"),
        (2**40, "1TiB"),
        (1025 * 2**30, "1025GiB"),
    ],
)
def test_default_size_is_one_that_the_option_takes(value: int, text: str) -> None:
    assert Size().text(value) == text
    assert Size().convert(text, None, None) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0s"),
        (0.25, "0.25s"),
        (60.0, "60s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (86400.0, "24h"),
        (604800.0, "7d"),
    ],
)
def test_default_duration_is_one_that_the_option_takes(value: float, text: str) -> None:
    assert Duration().text(value) == text
    assert Duration().convert(text, None, None) == value


def test_default_of_a_pair_of_flags_is_one_of_them() -> None:
    command = click.Command(
        "x", params=[click.Option(["-y", "--yes/--no"], default=False)]
    )
    (option,) = command.params
    assert isinstance(option, click.Option)
    assert default_text(option, click.Context(command)) == "--no"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_for_a_shell_asks_the_command(shell: str) -> None:
    result = CliRunner().invoke(_GROUP, ["completion", shell], prog_name="trioresume")
    assert result.exit_code == 0
    assert "_TRIORESUME_COMPLETE" in result.output
    checker = shutil.which(shell)
    if checker is not None:
        subprocess.run([checker, "-n"], input=result.output, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ser"], {"serve"}),
        (["serve", "--ssl-k"], {"--ssl-keyfile", "--ssl-keyfile-password-file"}),
        (["upload", "--protocol", "s"], {"seed"}),
    ],
)
def test_bash_completes_commands_options_and_values(
    words: list[str], found: set[str]
) -> None:
    """The script is loaded by a real bash, and its function is called as bash does."""
    script = CliRunner().invoke(_GROUP, ["completion", "bash"]).output
    line = " ".join(f"'{word}'" for word in ["trioresume", *words])
    script += (
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
        '_trioresume_completion "$TRIORESUME"\n'
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    result = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": "/usr/bin:/bin", "TRIORESUME": f"{sys.prefix}/bin/trioresume"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(result.stdout.split()) == found


def test_help_of_every_command_is_the_one_on_file() -> None:
    """If this fails and the new text is right: ``python -m tests.cli.golden_help``."""
    texts = golden_help.texts()
    files = {path.name: path for path in golden_help.DIRECTORY.iterdir()}
    assert set(files) == set(texts)
    for name, text in texts.items():
        assert text.splitlines() == files[name].read_text("utf-8").splitlines(), name


def test_man_pages_say_what_help_says() -> None:
    """If this fails: ``python -m docs.man_pages`` writes them anew."""
    pages = man_pages.pages()
    assert {path.name for path in man_pages.DIRECTORY.iterdir()} == set(pages)
    for name, page in pages.items():
        written = (man_pages.DIRECTORY / name).read_text()
        assert written.splitlines() == page.splitlines()


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
@pytest.mark.parametrize("name", ["trioresume.1", "trioresume-serve.1"])
def test_man_page_is_read_without_a_warning(name: str) -> None:
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", str(man_pages.DIRECTORY / name)],
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""
    assert f"{name.removesuffix('.1')} - " in " ".join(shown.stdout.split())


_HYPHENED = "-" + "A" * 21


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("retry", [_HYPHENED]),
        ("retry", [_HYPHENED, "--json"]),
        ("rm", ["--dry-run", _HYPHENED, "-" + "B" * 21]),
        ("mv", [_HYPHENED, "new"]),
        ("show", [_HYPHENED]),
        ("uploads forget", [_HYPHENED]),
    ],
)
def test_an_id_that_begins_with_a_hyphen_is_no_option(
    command: str, args: list[str], tmp_path: Path
) -> None:
    words = command.split()
    if words[0] != "uploads":
        args = ["--data-dir", str(tmp_path), *args]
    ctx = _command(command).make_context(words[-1], args)
    values = str(list(ctx.params.values()))
    assert f"'{_HYPHENED}'" in values
    assert "\\x00" not in values


def test_an_unknown_option_is_still_refused() -> None:
    result = CliRunner().invoke(_GROUP, ["retry", "--no-such-option-of-ours"])
    assert "No such option" in result.output


@pytest.mark.parametrize(
    ("needed", "option"),
    [(needed, option) for needed, options in SERVE_NEEDS for option in options],
)
def test_an_option_that_means_nothing_alone_is_refused(
    needed: tuple[str, ...], option: str, tmp_path: Path
) -> None:
    param = next(p for p in _command("serve").params if option in p.opts)
    words = ["serve", "--data-dir", str(tmp_path), option]
    if isinstance(param.type, click.Choice):
        words.append(param.type.choices[0])
    elif isinstance(param.type, click.Path):
        words.append(__file__)
    elif option != "--upstream-idempotency-keys":  # a switch
        words.append("2")
    result = CliRunner().invoke(_GROUP, words)
    assert result.exit_code == 2
    assert f"{option} needs {' or '.join(needed)}" in result.output
    assert not any(tmp_path.iterdir())
