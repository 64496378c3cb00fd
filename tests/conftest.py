"""What tests of every layer have in common; each folder adds its own fixtures.

The suite waits for disks, signals and timeouts more than half of its time, so a run of all
of it is shared out among more processes than there are processors (pytest-xdist). A run of
some of it is not: ``pytest tests/store`` is one process, which ``-s`` and debuggers work with.

What a test promises of the clock holds on a machine that has nothing else to do. A test
marked ``alone`` runs while no other test does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

if sys.platform != "win32":
    import fcntl

# Some environments forbid writing bytecode. The tests start the command hundreds of times:
# it would compile the whole package each time, which takes longer than all the rest of it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes is for whoever else uses the machine to say.
settings.register_profile(
    "trioresume", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("trioresume")

_LOCKS = pytest.StashKey[Path]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes ``-n auto`` means: 5 on two processors, 8 at most."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(8, 2 * (os.cpu_count() or 1) + 1)


def pytest_configure(config: pytest.Config) -> None:
    given: dict[str, Any] = getattr(config, "workerinput", {})
    if "locks" in given:
        config.stash[_LOCKS] = Path(given["locks"])
    else:
        locks = tempfile.TemporaryDirectory(prefix="trioresume-tests-")
        config.add_cleanup(locks.cleanup)
        config.stash[_LOCKS] = Path(locks.name)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["locks"] = str(node.config.stash[_LOCKS])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process has one left when the others are done.

    Those that share a fixture of their module stay together: it is made once. Those that
    run alone come last: before each of them all processes wait for the others' tests to end.
    """
    ranks: dict[pytest.Item, int] = {}
    for item in items:
        shares = isinstance(item, pytest.Function) and any(
            found[-1].scope == "module"
            for found in item._fixtureinfo.name2fixturedefs.values()
        )
        if shares:
            item.add_marker(pytest.mark.xdist_group(str(item.path.stem)))
        if item.get_closest_marker("alone") is not None:
            ranks[item] = 3
        elif item.get_closest_marker("slow") is not None:
            ranks[item] = 0
        else:
            ranks[item] = 1 if shares else 2
    items.sort(key=ranks.__getitem__)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with _turn(item.config.stash[_LOCKS], alone=alone):
        return (yield)


@contextmanager
def _turn(locks: Path, *, alone: bool) -> Iterator[None]:
    """Run beside others, or alone. Whoever waits to be alone keeps later ones waiting."""
    if sys.platform == "win32":
        yield
        return
    with (locks / "door").open("w") as door, (locks / "room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
