"""The fuzz targets: on their corpora, with Hypothesis, and for a moment with atheris.

G2, G3, G6, B1 to B8: no input raises what it must not, or depends on its split.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.fuzz.targets import TARGETS
from tests.platforms import needs_atheris

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parent.parent.parent

# What the grammars are made of, so that random inputs get somewhere.
_PIECES = st.sampled_from(
    [
        b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b";", b",", b"=", b'"', b"\\", b"\0",
        b"0", b"1", b"9", b"a", b"f", b"ffffffffffffffff", b"1000000000000000", b"-", b"/",
        b"*", b"bytes ", b"Content-Range: bytes ", b"Content-Length: ", b"Host: x\r\n",
        b"Content-Offset: ", b";complete-length=", b";unit=bytes",
        b"Transfer-Encoding: chunked\r\n", b" HTTP/1.1\r\n", b"GET /", b"--aB", b"\x08",
        b"\x0a", b"\x40\x05", b"\xc0", b"\xff", b"resume", b"wait=", b"?1",
    ]
)  # fmt: skip
INPUTS = st.lists(_PIECES | st.binary(max_size=4), max_size=24).map(b"".join)


def test_every_target_has_a_corpus() -> None:
    """And no corpus is without its target."""
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_corpus_passes(name: str) -> None:
    """What was interesting once: seeds, and inputs that failed."""
    for path in sorted((CORPUS / name).iterdir()):
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(data=INPUTS)
def test_target_holds_for_inputs_made_of_the_grammars_pieces(
    name: str, data: bytes
) -> None:
    """Hypothesis shrinks what it finds, which atheris does not."""
    TARGETS[name](data)


@needs_atheris
@pytest.mark.parametrize("name", ["head", "chunks"])
def test_fuzzer_runs(name: str, tmp_path: Path) -> None:
    """The documented command, for two seconds."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--seconds", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stat::number_of_executed_units" in done.stderr
    assert list(tmp_path.iterdir()) == []
