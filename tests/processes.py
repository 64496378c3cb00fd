"""``python -m MODULE`` as a process of its own, forked from one that has imported the package.

The processor time of a short command is mostly Python's start and imports: 0.4 s, which
the tests would spend hundreds of times. Here a fork server of :mod:`multiprocessing`
imports the package once, and each command is a fork of it. The command is a process like
any other: it has an id, an environment and a directory of its own, and signals,
``kill -9`` and exit codes work as for any other process.

What the interpreter does before it runs ``__main__`` is not repeated. Tests that are about
this, about closed descriptors or about memory start the command with :mod:`subprocess`.
With ``TRIORESUME_E2E_EXEC=1`` nothing is forked, and every command is started so.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Protocol

import trioresume

__all__ = ["SOURCE", "Process", "environment_of", "run", "start"]

SOURCE = Path(trioresume.__file__).parent.parent
"""The folder that the package under test comes from; its processes take the same."""


def environment_of(state: Path | None = None) -> dict[str, str]:
    """This process's environment, without settings of the command and without proxies.

    With *state* the journal of ``trioresume upload`` is in that directory.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if "TRIORESUME" not in name and not name.lower().endswith("_proxy")
    }
    environment["PYTHONPATH"] = str(SOURCE)
    if state is not None:
        environment["XDG_STATE_HOME"] = str(state)
    return environment


class Process(Protocol):
    """What tests need of a process, whoever started it."""

    @property
    def pid(self) -> int: ...

    @property
    def stdout(self) -> IO[str] | None: ...

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal's; ``subprocess.TimeoutExpired`` if it runs."""
        ...


def start(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    stderr: Path,
    directory: Path | None = None,
    fresh: bool = False,
) -> Process:
    """Run ``python -m`` with *words*; its standard output is a pipe, its input is empty.

    Standard error is appended to the file *stderr*. The process runs in this process's
    directory, or in *directory*. A *fresh* process is no fork.
    """
    if fresh or os.environ.get("TRIORESUME_E2E_EXEC") == "1":
        with stderr.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=directory,
            )
    return _Fork(words, environment, directory, stderr)


def run(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` with *words* to its end, as ``subprocess.run`` does.

    Its output has to fit into a pipe, 64 KiB.
    """
    with tempfile.NamedTemporaryFile() as errors:
        log = Path(errors.name)
        process = start(words, environment=environment, stderr=log)
        assert process.stdout is not None
        with process.stdout:
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            output = process.stdout.read()
        return subprocess.CompletedProcess(words, code, output, log.read_text())


class _Fork:
    """A process of the fork server."""

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        directory: Path | None,
        stderr: Path,
    ) -> None:
        self._words = words
        stderr.touch()
        reader, writer = multiprocessing.Pipe(duplex=False)
        with reader, writer:
            self._process = _SERVER.Process(
                target=_main,
                args=(
                    list(words),
                    dict(environment),
                    directory or Path.cwd(),
                    writer,
                    stderr,
                ),
                daemon=True,  # killed if this process ends first
            )
            self._process.start()
            self.stdout: IO[str] | None = os.fdopen(os.dup(reader.fileno()))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(self._words, timeout or 0.0)
        return code


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["__main__", "trioresume.cli.serve", "trioresume.cli.upload", __name__]
)


def _main(
    words: list[str],
    environment: dict[str, str],
    directory: Path,
    stdout: Connection,
    stderr: Path,
) -> None:
    """Become the command. Runs in the fork."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    with stderr.open("a") as log:
        os.dup2(log.fileno(), 2)
    # As the interpreter opens them for a pipe and for a file.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    module, *arguments = words
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
