"""The way of a request through the code: the modules, classes and functions that it enters.

:mod:`bench.gate.counts` counts calls. This module counts the different things that are
called: a reader must know these to follow one request. It follows three requests, each on
a service that has served others before:

* ``post``: a ``POST`` of 5 MiB, from its first byte to the last byte of its answer;
* ``head``: the first ``HEAD`` for an upload that was cut;
* ``replay``: a ``GET`` of a recorded response.

It counts only functions of the package, in all threads of the service. It leaves out
comprehensions, because newer interpreters do not call them. A class counts if one of its
methods is entered.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType

import trio

import trioresume
from bench.gate.client import Client

__all__ = ["REQUESTS", "Way", "table", "trace"]

REQUESTS = ("post", "head", "replay")
WARM_UP = 3
PACKAGE = str(Path(trioresume.__file__).parent)
SETTLE = 1.3
"""Seconds: longer than the service puts off its work, such as commits and collection."""
_INLINED = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})


class Way:
    """The functions that a request entered."""

    def __init__(self, codes: set[CodeType]) -> None:
        self._codes = {code for code in codes if code.co_name not in _INLINED}

    @property
    def modules(self) -> Counter[str]:
        """The files, relative to the package, and how many functions each contributes."""
        return Counter(_file_of(code) for code in self._codes)

    @property
    def classes(self) -> list[str]:
        """The classes whose methods were entered, each as ``file:Class``."""
        return sorted(
            f"{_file_of(code)}:{owner}"
            for code in self._codes
            if (owner := code.co_qualname.partition(".<locals>")[0].rpartition(".")[0])
        )

    @property
    def functions(self) -> list[str]:
        """The functions and methods, each as ``file:qualified name``."""
        return sorted(f"{_file_of(code)}:{code.co_qualname}" for code in self._codes)

    def figures(self, request: str) -> dict[str, float]:
        """Return the three counts, by the names of their bounds."""
        return {
            f"modules of a {request}": len(self.modules),
            f"classes of a {request}": len(set(self.classes)),
            f"functions of a {request}": len(self.functions),
        }


def table(ways: Mapping[str, Way]) -> list[str]:
    """Return a line for each module of *ways*, with its number of functions in each way."""
    counts = {request: way.modules for request, way in ways.items()}
    files = sorted(set[str]().union(*counts.values()))
    lines = [f"{'functions in':40}" + "".join(f"{request:>8}" for request in counts)]
    for file in files:
        numbers = (each[file] or "" for each in counts.values())
        lines.append(f"{file:40}" + "".join(f"{number:>8}" for number in numbers))
    return lines


def _file_of(code: CodeType) -> str:
    return code.co_filename.removeprefix(PACKAGE + "/")


class _Tracer:
    """Records the package's functions that are entered while it is on."""

    def __init__(self) -> None:
        self._entered: set[CodeType] = set()
        self._is_on = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch this thread, and every thread that begins meanwhile."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def begin(self) -> None:
        self._entered = set()
        self._is_on = True

    def end(self) -> Way:
        self._is_on = False
        return Way(self._entered)

    def _profile(self, frame: FrameType, event: str, arg: object) -> None:
        if self._is_on and event == "call":
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                self._entered.add(code)


def trace(directory: Path) -> dict[str, Way]:
    """Return the way of each of :data:`REQUESTS`; data goes to *directory*."""
    tracer = _Tracer()
    ways: dict[str, Way] = {}
    with tracer.installed():
        trio.run(_run, directory / "ways", tracer, ways)
    return ways


async def _run(directory: Path, tracer: _Tracer, ways: dict[str, Way]) -> None:
    config = trioresume.Config(bind=["127.0.0.1:0"], data_dir=directory)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioresume.serve, trioresume.FileService(), config)
        host, _, port = server.urls[0].removeprefix("http://").rpartition(":")
        with Client((host, int(port))) as client:
            for request, prepare in zip(REQUESTS, (None, "cut", "post"), strict=True):
                for _ in range(WARM_UP):
                    await _do(client, prepare)
                    await _do(client, request)
                await _do(client, prepare)
                await trio.sleep(SETTLE)
                tracer.begin()
                await _do(client, request)
                ways[request] = tracer.end()
            nursery.cancel_scope.cancel()


async def _do(client: Client, verb: str | None) -> None:
    if verb is not None:
        await trio.to_thread.run_sync(client.do, verb, 1)
