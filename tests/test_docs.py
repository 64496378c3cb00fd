"""Every example of README.md and docs/ is run, page by page, as a reader would.

A page is one scenario in an empty directory:

* a ``python`` or ``toml`` block whose first line is a comment with a file name is
  saved under that name; a ``python`` block without one is run there and then;
* in a ``console`` block, what follows ``$ `` is typed into one bash for the whole
  page, so that jobs and variables last. It must succeed, and what follows it is
  its output, in which ``...`` stands for anything. A job put in the background
  has to show the lines below it, sooner or later;
* ``sh`` holds the commands that fetch packages; ``.ci/run`` runs those;
* ``nginx``, ``caddy`` and ``haproxy`` are configurations, which ``tests/e2e/proxies.py`` runs;
* ``text`` is no example.

Port 8080, which is the default, becomes a free one everywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest

import trioresume
import trioresume.asgi
import trioresume.bench
import trioresume.bench.report
import trioresume.testing
from docs import generate
from tests.e2e import proxies
from trioresume import Config
from trioresume.cli.options import Duration
from trioresume.cli.serve_options import LIMITS
from trioresume.protocol.operation import OperationState, rows

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

STEP_SECONDS = 20.0
# What bash says of a background job that a signal ended, before or after any output.
JOB_ENDED = re.compile(
    r"^bash: line \d+: +\d+ (?:Killed|Terminated) .*\n", re.MULTILINE
)
FENCE = re.compile(
    r"^(?P<ticks>```+)(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=ticks)$",
    re.MULTILINE | re.DOTALL,
)
FILE_NAME = re.compile(r"# (?P<name>[a-z-]+\.(?:py|toml))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str


@dataclass(frozen=True)
class Step:
    """One command of a console block and the output it is shown with."""

    command: str
    output: list[str]


def blocks_of(page: Path) -> list[Block]:
    return [
        Block(match["language"], textwrap.dedent(match["text"]))
        for match in FENCE.finditer(page.read_text("utf-8"))
    ]


def steps_of(console: str) -> list[Step]:
    """The commands of a console block; a backslash continues one on the next line."""
    steps: list[Step] = []
    for line in console.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line.removeprefix("$ "), []))
        elif steps and steps[-1].command.endswith("\\"):
            last = steps.pop()
            steps.append(Step(last.command[:-1] + line.strip(), []))
        else:
            steps[-1].output.append(line)
    return steps


def shows(output: list[str], expected: list[str]) -> bool:
    """Whether *output* is what is *expected*; ``...`` stands for anything."""
    pattern = ".*".join(map(re.escape, "\n".join(expected).split("...")))
    return re.fullmatch(pattern, "\n".join(output), re.DOTALL) is not None


class Shell:
    """One bash in *directory*, with ``trioresume`` and ``python`` on its path."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        commands = directory.parent / "commands"
        commands.mkdir()
        for name, arguments in (("python", ""), ("trioresume", " -m trioresume")):
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
            script.chmod(0o755)
        self.output = directory.parent / "output"
        self._output = self.output.open("wb")
        self.jobs = 0
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TRIORESUME_")},
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "TRIORESUME_SERVE_BIND": f"127.0.0.1:{port}",
            "XDG_STATE_HOME": str(directory.parent / "state"),
            "COLUMNS": "80",
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
            text=True,
            start_new_session=True,
        )

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def run(self, step: Step) -> None:
        """Type *step*, wait for its end and compare the output."""
        start = self.output.stat().st_size
        self.type(f'{{ {step.command}; }} < /dev/null; echo "[exit $?]"')
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            text = JOB_ENDED.sub("", self.output.read_bytes()[start:].decode())
            if done := re.search(r"\[exit (\d+)\]\n\Z", text):
                break
            assert time.monotonic() < deadline, f"{step.command} still runs: {text}"
            assert self.process.poll() is None
            time.sleep(0.02)
        assert done[1] == "0", f"{step.command}: {text}"
        lines = text[: done.start()].replace("\r\n", "\n").splitlines()
        if step.output:
            assert shows(lines, step.output), f"{step.command}: {text}"

    def start(self, step: Step) -> None:
        """Type *step*, a background job, and wait until it shows its output."""
        self.jobs += 1
        log = self.directory.parent / f"job-{self.jobs}"
        self.type(f"{step.command.removesuffix('&')} > {log} 2>&1 < /dev/null &")
        deadline = time.monotonic() + STEP_SECONDS
        while not (
            log.exists()
            and shows(
                ["", *log.read_text().splitlines(), ""], ["...", *step.output, "..."]
            )
        ):
            assert time.monotonic() < deadline, f"{step.command}: {log.read_text()}"
            time.sleep(0.02)

    def close(self) -> None:
        """End bash and the jobs it still has: all of them are in its session."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self._output.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    directory = tmp_path / "page"
    directory.mkdir()
    shell = Shell(directory, free_port())
    yield shell
    shell.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def examples(page: Path) -> list[Block]:
    return [b for b in blocks_of(page) if b.language in ("python", "console", "toml")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if examples(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_examples_do_what_the_page_says(page: Path, shell: Shell) -> None:
    """The commands and programs of a page run, and show what the page shows."""
    port = f":{shell.port}"
    blocks = examples(page)
    if shutil.which("curl") is None and any("curl" in b.text for b in blocks):
        pytest.skip("the page uses curl, which this machine lacks")
    for block in blocks:
        text = block.text.replace(":8080", port)
        if block.language == "console":
            for step in steps_of(text):
                (shell.start if step.command.endswith("&") else shell.run)(step)
        else:
            name = FILE_NAME.match(text)
            file = shell.directory / (name["name"] if name else "block.py")
            file.write_text(text)
            if name is None:
                shell.run(Step("python block.py", []))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_example_escapes(page: Path) -> None:
    """Every fenced block is of a kind that is run, or says that it is no example."""
    for block in blocks_of(page):
        directive = block.language.startswith("{")
        assert directive or block.language in (
            "python",
            "console",
            "toml",
            "sh",
            "text",
            *proxies.NAMES,
        )
        if block.language == "toml":
            assert FILE_NAME.match(block.text), "a file needs its name"
        if block.language == "sh":
            assert block.text.startswith("python3 -m venv "), "only .ci/run runs these"
        if block.language in proxies.NAMES:
            assert page == proxies.PAGE, "the tests with proxies run those there"
            title = block.text.partition("\n")[0].removeprefix("# ")
            known = proxies.CONFIGURATIONS + proxies.SECURED
            assert [block.language, title] in known


def test_output_is_compared_with_gaps() -> None:
    """``...`` stands for any text, and nothing else is forgiven."""
    assert shows(["HTTP/1.1 201 Created", "etag: x", ""], ["HTTP/1.1 201 ..."])
    assert shows(["a", "b", "c"], ["a", "...", "c"])
    assert not shows(["a", "b"], ["a"])
    assert not shows(["a"], ["a", "b"])


def test_console_block_is_split_into_commands_and_output() -> None:
    """A command may go on after a backslash; the rest is its output."""
    steps = steps_of("$ one \\\n    two\nout\n$ three\n")
    assert steps == [Step("one two", ["out"]), Step("three", [])]


# Pages that make claims about the code.

SUPPORTED = ROOT / "docs/supported-protocols.md"
STATEMENTS = {
    *(f"R{number}" for number in range(1, 37)),
    *(f"B{number}" for number in range(1, 14)),
    *(f"C{number}" for number in range(1, 21)),
    *(f"D{number}" for number in range(1, 9)),
    *(f"E{number}" for number in range(1, 11)),
    *(f"G{number}" for number in range(1, 17)),
}


def supported() -> dict[str, str]:
    """Each statement of the page and the answer in its last column."""
    rows = re.findall(
        r"^\| (?P<no>[RBCDEG]\d+) \|.*\| (?P<kept>[^|]+) \|$",
        SUPPORTED.read_text("utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == len(dict(rows)), "a statement is listed twice"
    return dict(rows)


def test_every_statement_is_accounted_for() -> None:
    """Each statement has a row that says whether it is kept, and if not, why."""
    assert set(supported()) == STATEMENTS
    for number, answer in supported().items():
        kept, _, reason = answer.partition(", ")
        assert kept == "yes" or (kept == "no" and reason), number


def test_what_is_kept_is_proven() -> None:
    """No statement is called kept unless a test cites it."""
    kept = {
        number for number, answer in supported().items() if answer.startswith("yes")
    }
    assert sorted(kept - set(generate.evidence()), key=generate.statement_order) == []


def test_citations_are_found_in_ranges_too() -> None:
    """``R34 to R36`` cites three statements; a word that contains R1 cites none."""
    assert set(generate.statements_in("(R34 to R36), B5; SR1, R1x")) == {
        "R34",
        "R35",
        "R36",
        "B5",
    }


def test_dependencies_have_their_reasons() -> None:
    """The page on dependencies lists what pyproject.toml lists, in its order."""
    page = (ROOT / "docs/explanation/dependencies.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["html"] + extras["identity"]
    lines += extras["tracing"] + extras["cluster"]
    found = re.findall(r"^\| ([a-z][a-z0-9-]*) \|", page, re.MULTILINE)
    assert [name for name in found if name != "package"] == [
        re.split(r"[\[ ]", line)[0] for line in lines
    ]


def test_npm_packages_have_their_reasons() -> None:
    """So does each that the page for browsers is made of."""
    page = (ROOT / "docs/explanation/dependencies.md").read_text("utf-8")
    wanted = json.loads((ROOT / "trioresume/ui/package.json").read_text("utf-8"))
    found = re.findall(r"^\| `([@a-z/-]+)` \|", page, re.MULTILINE)
    assert sorted(found) == sorted(wanted["dependencies"])


def test_every_state_and_effect_is_in_the_diagram() -> None:
    """The drawing has a line for each row of the table it is made from."""
    diagram = generate.state_diagram()
    assert diagram.count("─►") == len(list(rows()))
    for state in OperationState:
        assert f"\n{state.value}\n" in diagram


def test_defaults_on_the_page_are_the_defaults() -> None:
    """Each timeout and lifetime is listed with the value it really has."""
    page = (ROOT / "docs/explanation/timeouts.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)`(?:, `\w+`)? \| ([^|,]+)", page, re.MULTILINE)
    described = {name: default.strip() for name, default in rows}
    settings = {field.name for field in fields(Config)}
    assert {n for n in settings if n.endswith(("_timeout", "_lifetime"))} <= set(
        described
    )
    for name, default in described.items():
        value = getattr(Config(), name)
        shown = None if default == "none" else Duration().convert(default, None, None)
        assert value == shown, name


def test_threats_name_settings_with_their_defaults_and_tests() -> None:
    """Attack, mitigation, setting, default, test: the last three are what is there."""
    page = (ROOT / "docs/threat-model.md").read_text("utf-8")
    rows = re.findall(
        r"^\|[^|]+\|[^|]+\| (?:`(\w+)` \| `([^`]+)` |\| )\| `([\w/.]+)::(\w+)` \|$",
        page,
        re.MULTILINE,
    )
    assert len(rows) == page.count("::test_")
    for setting, default, path, test in rows:
        if setting:
            assert repr(getattr(Config(), setting)) == default, setting
        source = (ROOT / "tests" / path).read_text("utf-8")
        assert f"def {test}(" in source, test
    named = {setting for setting, *_ in rows}
    limits = {name for _, name, *_ in LIMITS} - {"max_header_size"}
    assert limits <= named


@pytest.mark.parametrize(
    "module",
    [
        trioresume,
        trioresume.asgi,
        trioresume.bench,
        trioresume.bench.report,
        trioresume.testing,
    ],
)
def test_public_names_are_documented(module: ModuleType) -> None:
    """Whatever ``__all__`` names exists, and the API reference has it."""
    page = (ROOT / "docs/reference/api.md").read_text("utf-8")
    documented = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", page, re.MULTILINE)
    for name in module.__all__:
        assert hasattr(module, name)
        assert f"{module.__name__}.{name}" in documented


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_gives_as_proof_are_there(page: Path) -> None:
    """What says that it is tested says where."""
    for path in re.findall(r"\btests/[\w/]+\.py\b", page.read_text("utf-8")):
        assert (ROOT / path).is_file(), path
