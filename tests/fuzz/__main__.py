"""Coverage-guided fuzzing of one target, with atheris (``pip install .[fuzz]``)::

    python -m tests.fuzz head --seconds 120

What is interesting is added to a copy of the committed corpus, in a directory of its
own unless ``--corpus`` names one. An input that fails is written to the current
directory as ``crash-…`` and the exit code is not 0.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # The names are given here again, as the targets are not to be imported yet.
    parser.add_argument("target", choices=sorted(p.name for p in CORPUS.iterdir()))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()
    with atheris.instrument_imports(include=["trioresume"]):
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="trioresume-fuzz-"))
    corpus.mkdir(exist_ok=True)
    for path in (CORPUS / options.target).iterdir():
        shutil.copy(path, corpus)
    arguments = [f"-max_total_time={options.seconds}", "-max_len=512", "-timeout=10"]
    arguments += ["-print_final_stats=1", "-rss_limit_mb=1024", "-close_fd_mask=1"]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], targets[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    _main()
