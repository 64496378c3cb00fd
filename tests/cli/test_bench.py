"""``trioresume bench``: what its options become, and what its exit code says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner

import trioresume
from tests.bench_command.faulty_server import Flaw, faulty_server
from trioresume.bench import Ending, SizeKind, Sizes, from_json
from trioresume.cli import main
from trioresume.cli.bench import InteropVersion, SizesType
from trioresume.cli.request_options import HeaderLines

SOURCE = str(Path(trioresume.__file__).parent.parent)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1MiB", Sizes(minimum=MIB, maximum=MIB)),
        ("0", Sizes(minimum=0, maximum=0)),
        ("1-2k", Sizes(kind=SizeKind.UNIFORM, minimum=1, maximum=2000)),
        (
            "lognormal:8MiB,1.5",
            Sizes(
                kind=SizeKind.LOGNORMAL,
                minimum=1,
                maximum=1 << 40,
                median=8 * MIB,
                sigma=1.5,
            ),
        ),
        (
            "lognormal:8k,0,1k-9k",
            Sizes(
                kind=SizeKind.LOGNORMAL,
                minimum=1000,
                maximum=9000,
                median=8000,
                sigma=0.0,
            ),
        ),
    ],
)
def test_sizes(text: str, sizes: Sizes) -> None:
    assert SizesType().convert(text, None, None) == sizes


@pytest.mark.parametrize(
    "text", ["", "big", "2-1", "1-", "lognormal:1", "lognormal:1,1.1.1", "1-2-3"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SizesType().convert(text, None, None)


def test_headers_and_versions() -> None:
    assert HeaderLines().convert("X-A:  b: c ", None, None) == (("x-a", "b: c"),)
    for text in ("no colon", "a b: c", ": x", "a: b\nc: d"):
        with pytest.raises(click.BadParameter):
            HeaderLines().convert(text, None, None)
    assert InteropVersion().convert("none", None, None) is None
    assert InteropVersion().convert("6", None, None) == 6
    for text in ("2", "11", "6.0", ""):
        with pytest.raises(click.BadParameter):
            InteropVersion().convert(text, None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://127.0.0.1/"],
        ["nowhere"],
        ["http://127.0.0.1/", "--kill-command", "true"],
        ["http://127.0.0.1/", "--server-pid", "4194304999"],
        ["http://127.0.0.1/", "--cut-in", "feet"],
    ],
)
def test_options_that_cannot_be_meant_are_usage_errors(arguments: list[str]) -> None:
    """Nothing was tried."""
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2, result.output


async def bench(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        [sys.executable, "-m", "trioresume", "bench", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )


async def test_the_exit_code_tells_wrong_content_from_failure() -> None:
    """0, 65 and 1; the JSON on standard output can be read again."""
    options = ("--size", "64KiB", "--total", "2", "--retries", "0", "--json", "-")
    for flaw, code in ((None, 0), (Flaw.CORRUPTS, 65), (Flaw.REFUSES, 1)):
        async with faulty_server(*(() if flaw is None else (flaw,))) as server:
            done = await bench(server.url, *options)
        assert done.returncode == code, done.stderr
        results = from_json(done.stdout)
        assert results.ok is (code == 0)
        if flaw is Flaw.REFUSES:
            assert results.failures == {Ending.REJECTED: 2}
        assert replace(results.settings, headers=()) == results.settings


async def test_nobody_there_is_one_line() -> None:
    async with faulty_server() as server:
        url = server.url
    done = await bench(url)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("Error: ")
    assert b"Traceback" not in done.stderr
