"""The journal: atomic, private, bounded, and exclusive to one run at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from pathlib import Path

import msgpack
import platformdirs
import pytest
from hypothesis import given, settings, strategies as st

from trioresume.client import Journal
from trioresume.client.content.file_source import Identity, Proof
from trioresume.client.journal import DAY
from trioresume.errors import CallerError
from trioresume.protocol.dialects.client import Locations
from trioresume.protocol.dialects.rufh.client import RufhClient
from trioresume.protocol.dialects.rufh.versions import VERSIONS
from trioresume.protocol.dialects.seed.client import SEED
from trioresume.protocol.dialects.tus.client import TUS
from trioresume.protocol.urls import Url

URL = "http://peer.test/files/"
IDENTITY = Identity("/home/u/file", 100, 12345, 7, b"digest")
OFFER = Locations(
    *(Url.parse(f"http://peer.test/op/{name}") for name in ("content", "message"))
)


def changed(**members: object) -> Identity:
    values: dict[str, object] = {
        name: getattr(IDENTITY, name) for name in Identity.__slots__
    }
    return Identity(**{**values, **members})  # type: ignore[arg-type]


def remember(journal: Journal, identity: Identity = IDENTITY, url: str = URL) -> None:
    entry = journal.claim("POST", url, identity)
    entry.save(OFFER, all_sent=False)
    entry.close()


def recalled(
    journal: Journal,
    identity: Identity = IDENTITY,
    method: str = "POST",
    url: str = URL,
) -> Locations | None:
    entry = journal.claim(method, url, identity)
    entry.close()
    return entry.locations


def test_next_run_finds_what_this_one_left(tmp_path: Path) -> None:
    """Across processes, by method, URL and path."""
    journal = Journal(tmp_path / "deep" / "journal")
    assert recalled(journal) is None
    remember(journal)
    assert recalled(Journal(tmp_path / "deep" / "journal")) == OFFER
    assert recalled(journal, method="PUT") is None
    assert recalled(journal, url=URL + "x") is None
    assert recalled(journal, changed(path="/other")) is None


@pytest.mark.parametrize(
    "members",
    [
        {"size": 1},
        {"mtime_ns": 1},
        {"ctime_ns": 1},
        {"inode": 1},
        {"device": 1},
        {"head": b"x"},
    ],
)
def test_changed_file_starts_over(tmp_path: Path, members: dict[str, object]) -> None:
    """The rest of another version is not the rest of this one."""
    journal = Journal(tmp_path)
    remember(journal)
    entry = journal.claim("POST", URL, changed(**members))
    entry.close()
    # The client has the server drop it, as nothing proves that it may go on.
    assert entry.is_stale
    assert entry.locations == OFFER


def test_what_was_sent_can_prove_that_the_file_is_the_same(tmp_path: Path) -> None:
    """The digest of the bytes that were sent is kept, and asked for in case of doubt."""
    journal = Journal(tmp_path)
    entry = journal.claim("POST", URL, IDENTITY)
    entry.save(OFFER, all_sent=False, proof=Proof(50, b"sha"))
    entry.close()
    entry = journal.claim("POST", URL, changed(mtime_ns=1))
    entry.close()
    assert (entry.is_stale, entry.doubt) == (False, Proof(50, b"sha"))
    entry = journal.claim("POST", URL, IDENTITY)
    entry.close()
    assert entry.doubt is None


def test_all_sent_is_remembered(tmp_path: Path) -> None:
    """Then a forgotten upload must not simply be repeated (R31)."""
    journal = Journal(tmp_path)
    entry = journal.claim("POST", URL, IDENTITY)
    entry.save(OFFER, all_sent=True)
    entry.close()
    entry = journal.claim("POST", URL, IDENTITY)
    assert entry.all_sent
    entry.forget()
    entry.forget()
    entry.close()
    entry.close()
    assert list(tmp_path.iterdir()) == []


def test_entries_are_private(tmp_path: Path) -> None:
    """R34: they hold unguessable URLs."""
    journal = Journal(tmp_path / "journal")
    remember(journal)
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700
    (path,) = (tmp_path / "journal").glob("*.upload")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_runs_cannot_have_one_upload(tmp_path: Path) -> None:
    """R21: they would take it from each other for ever."""
    journal = Journal(tmp_path)
    entry = journal.claim("POST", URL, IDENTITY)
    with pytest.raises(CallerError, match="another run"):
        journal.claim("POST", URL, IDENTITY)
    journal.claim("POST", URL + "other", IDENTITY).close()
    entry.close()
    journal.claim("POST", URL, IDENTITY).close()


def test_lock_dies_with_its_process(tmp_path: Path) -> None:
    """kill -9 leaves a lock file, but no lock."""
    journal = Journal(tmp_path)
    remember(journal)
    child = os.fork()
    if child == 0:
        journal.claim("POST", URL, IDENTITY)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert list(tmp_path.glob("*.lock"))
    assert recalled(journal) == OFFER


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_failed_save_leaves_the_old_entry_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """There is the old one or the new one, and no litter."""
    journal = Journal(tmp_path)
    remember(journal)
    entry = journal.claim("POST", URL, IDENTITY)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen" if step == "write" else step, fail)
        with pytest.raises(OSError, match="No space"):
            entry.save(Locations(OFFER.content), all_sent=True)
    entry.close()
    assert recalled(journal) == OFFER
    assert len(list(tmp_path.iterdir())) == 1


def test_journal_knows_what_it_could_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the same entry can be written again."""
    journal = Journal(tmp_path)
    entry = journal.claim("POST", URL, IDENTITY)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            entry.save(OFFER, all_sent=False)
    assert len(journal.unsaved) == 1
    entry.save(OFFER, all_sent=False)
    assert journal.unsaved == set()
    entry.close()
    (tmp_path / "file").touch()
    unusable = Journal(tmp_path / "file" / "journal")
    with pytest.raises(NotADirectoryError):
        unusable.claim("POST", URL, IDENTITY)
    assert len(unusable.unsaved) == 1


def test_entry_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss leaves the old entry or the new one, and never an empty file."""
    steps: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(fd: int) -> None:
        found = os.fstat(fd)
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "file"
        steps.append((kind, found.st_size if kind == "file" else 0))
        fsync(fd)

    def note_name(source: str, target: Path) -> None:
        steps.append(("name", os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_name)
    remember(Journal(tmp_path))
    (entry,) = tmp_path.glob("*[!k]")
    size = entry.stat().st_size
    assert steps == [("file", size), ("name", size), ("folder", 0)]


def test_old_and_surplus_entries_are_pruned(tmp_path: Path) -> None:
    """The directory does not grow for ever."""
    now = os.stat(tmp_path).st_mtime
    journal = Journal(tmp_path, wall_clock=lambda: now)
    for number in range(5):
        remember(journal, changed(path=f"/{number}"))
        for path in tmp_path.glob("*.upload"):
            os.utime(path, (now - 10, path.stat().st_mtime - 1))
    assert Journal(tmp_path, max_entries=3, wall_clock=lambda: now).prune() == 2
    assert recalled(journal, changed(path="/4")) == OFFER
    assert recalled(journal, changed(path="/0")) is None
    later = Journal(tmp_path, wall_clock=lambda: now + 15 * DAY)
    assert later.prune() == 3


def test_two_runs_may_prune_at_once(tmp_path: Path) -> None:
    """An entry that another run removes between two steps is no failure."""

    def late_clock() -> float:
        for path in tmp_path.glob("*.upload"):
            path.unlink()
        return time.time() + 1e9

    remember(Journal(tmp_path))
    assert Journal(tmp_path, wall_clock=late_clock).prune() == 1


def test_expired_entry_is_not_used(tmp_path: Path) -> None:
    """Its own time counts, should the file's have been touched."""
    journal = Journal(tmp_path, wall_clock=lambda: 1_000_000.0)
    remember(journal)
    later = Journal(tmp_path, wall_clock=lambda: 1_000_000.0 + 15 * DAY)
    assert recalled(later) is None


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200)
    | st.dictionaries(st.text(), st.booleans()).map(msgpack.packb)
)
def test_damaged_entry_counts_as_none(damage: bytes) -> None:
    """It costs an upload from the start, no more."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(directory)
        remember(journal)
        (path,) = Path(directory).glob("*.upload")
        path.write_bytes(damage)
        assert recalled(journal) is None
        remember(journal)
        assert recalled(journal) == OFFER


def test_dialect_is_remembered(tmp_path: Path) -> None:
    """An upload goes on in the one it was begun in, version included."""
    journal = Journal(tmp_path)
    for dialect in (TUS, RufhClient(VERSIONS[6])):
        entry = journal.claim("POST", URL, IDENTITY)
        entry.save(OFFER, all_sent=True, dialect=dialect)
        entry.close()
        entry = journal.claim("POST", URL, IDENTITY)
        assert entry.dialect is not None
        assert entry.dialect.name == dialect.name
        entry.forget()
        entry.close()
    assert recalled(journal) is None


@pytest.mark.parametrize("name", ["rufh-11", "", None, 7, ["tus"]])
def test_unknown_dialect_is_not_guessed_at(tmp_path: Path, name: object) -> None:
    """It was written by a later version of the program."""
    journal = Journal(tmp_path)
    remember(journal)
    (path,) = tmp_path.glob("*.upload")
    record = msgpack.unpackb(path.read_bytes())
    path.write_bytes(msgpack.packb({**record, "dialect": name}))
    assert recalled(journal) is None


def test_first_format_version_is_read_as_the_seed_s(tmp_path: Path) -> None:
    """It had no dialect, because there was only one."""
    journal = Journal(tmp_path)
    remember(journal)
    (path,) = tmp_path.glob("*.upload")
    record = msgpack.unpackb(path.read_bytes())
    del record["dialect"]
    path.write_bytes(msgpack.packb({**record, "v": 1}))
    entry = journal.claim("POST", URL, IDENTITY)
    assert (entry.locations, entry.dialect) == (OFFER, SEED)
    entry.close()
    path.write_bytes(msgpack.packb(record))
    assert recalled(journal) is None


@pytest.mark.parametrize("version", [0, 4, "1"])
def test_other_format_versions_are_not_guessed_at(
    tmp_path: Path, version: object
) -> None:
    """A later version may mean something else by the same names."""
    journal = Journal(tmp_path)
    remember(journal)
    (path,) = tmp_path.glob("*.upload")
    record = msgpack.unpackb(path.read_bytes())
    path.write_bytes(msgpack.packb({**record, "v": version}))
    assert recalled(journal) is None


def test_locations_of_another_origin_are_not_believed(tmp_path: Path) -> None:
    """Not even out of our own file."""
    journal = Journal(tmp_path)
    remember(journal)
    (path,) = tmp_path.glob("*.upload")
    record = msgpack.unpackb(path.read_bytes())
    path.write_bytes(msgpack.packb({**record, "content": "http://evil.test/"}))
    assert recalled(journal) == Locations(None, OFFER.message)
    evil = {"content": "http://evil.test/", "message": "//evil.test/"}
    path.write_bytes(msgpack.packb({**record, **evil}))
    assert recalled(journal) is None


def test_any_path_has_an_entry(tmp_path: Path) -> None:
    """Names that are not UTF-8 too."""
    journal = Journal(tmp_path)
    identity = changed(path=os.fsdecode(b"/caf\xe9\n"))
    remember(journal, identity)
    assert recalled(journal, identity) == OFFER


def test_default_place_is_the_users_state_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """XDG_STATE_HOME on this kind of system."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Journal().directory == tmp_path / "trioresume" / "uploads"


def test_lock_on_an_unlinked_file_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last owner unlinked it between our open and our lock: a third would find another."""
    journal = Journal(tmp_path)
    first = journal.claim("POST", URL, IDENTITY)
    real_lock = fcntl.flock

    def lock_late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real_lock)
        first.close()
        real_lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    second = journal.claim("POST", URL, IDENTITY)
    with pytest.raises(CallerError, match="another run"):
        journal.claim("POST", URL, IDENTITY)
    second.close()


def test_no_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made in the working directory instead."""
    monkeypatch.setattr(
        platformdirs, "user_state_path", lambda _: Path("~/.local/state")
    )
    with pytest.raises(CallerError, match="no home directory"):
        Journal()


def test_empty_home_is_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It must not make the root directory the user's; a state directory still counts."""
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with pytest.raises(CallerError, match="no home directory"):
        Journal()
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    with pytest.raises(CallerError, match="no home directory"):
        Journal()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Journal().directory == tmp_path / "trioresume" / "uploads"
