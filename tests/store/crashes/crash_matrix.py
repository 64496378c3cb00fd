"""What is found after a crash, by the last thing that was done before it.

Each row says so in words, which the documentation shows, and as conditions, which
``test_crash_matrix.py`` checks on what kills and power losses leave.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.store.crashes.recording import (
    Call,
    Create,
    Link,
    SyncDirectory,
    SyncFile,
    Unlink,
    Write,
)
from tests.store.crashes.scenarios import (
    DATA,
    Announced,
    Scenario,
    clear_away,
    discard,
    expire,
    finish_both,
    join_both,
    patch,
    receive,
    respond,
    take_over,
)
from tests.store.helpers import collect_all, read_content
from trioresume.protocol.operation import OperationState
from trioresume.store.disk.tail_files import PROOF
from trioresume.store.disk_store import DiskStore
from trioresume.store.port import OperationId, request_key

__all__ = ["ROWS", "Look", "Row", "kinds_of"]


@dataclass(frozen=True)
class Look:
    """A store that was opened on what was left, and what had been announced."""

    store: DiskStore
    data_dir: Path
    announced: Announced

    def state(self, name: str) -> OperationState:
        found = self.store.operation(OperationId(name))
        assert found is not None
        return found.state

    @property
    def received(self) -> int:
        """The bytes of all uploads that are not complete."""
        return sum(
            self.store.offset(request_key(OperationId(name)))
            for name in self.announced.durable
            if self.state(name) is OperationState.RECEIVING
        )

    def told(self, what: dict[str, int]) -> int:
        """The same bytes as somebody was told of them."""
        return sum(
            size
            for name, size in what.items()
            if self.state(name) is OperationState.RECEIVING
        )

    def is_whole_beside(self, other: str, name: str) -> bool:
        """Whether the complete upload *name* is whole once *other* has a writer again."""
        found = self.store.operation(OperationId(name))
        assert found is not None
        assert found.content is not None
        self.store.open_writer(request_key(OperationId(other))).close()
        return read_content(self.store, found.content) == DATA[name]

    def is_tidy(self) -> bool:
        """Whether collection leaves exactly the chunks that the catalog names."""
        collect_all(self.store)
        with closing(sqlite3.connect(self.data_dir / "catalog.sqlite3")) as catalog:
            named = catalog.execute("SELECT lower(hex(digest)) FROM chunks").fetchall()
        files = (self.data_dir / "chunks").rglob("*")
        return {p.name for p in files if p.is_file()} == {name for (name,) in named}


@dataclass(frozen=True)
class Found:
    """What is found: in words, and as a condition."""

    words: str
    holds: Callable[[Look], bool]


def _unanswered(look: Look) -> bool:
    return look.received > look.told(look.announced.accepted)


def _accepted(look: Look) -> bool:
    return look.received >= look.told(look.announced.accepted)


def _recorded(look: Look) -> bool:
    durable, accepted = look.announced.durable, look.announced.accepted
    return look.told(durable) <= look.received <= look.told(accepted)


def _proven(look: Look) -> bool:
    return look.received >= look.told(look.announced.durable)


def _sealed(look: Look) -> bool:
    return _accepted(look) and look.is_tidy()


EVERY_BYTE = Found("every byte that was accepted", _accepted)
RECORDED = Found(
    "the bytes whose sync was recorded, and those that are proven; others are cut off",
    _recorded,
)


@dataclass(frozen=True)
class Row:
    """*last* is the kind of the call that was made last, *then* of the one not made."""

    words: str
    scenario: Scenario
    last: str
    killed: Found
    unpowered: Found
    then: str = ""
    owed: Callable[[Announced], bool] = lambda announced: True
    """Of what is announced by the next call; tells one commit from another."""


def kinds_of(calls: Sequence[Call]) -> list[str]:
    """A word for each call: what was done to what."""
    paths = {call.file: call.path for call in calls if isinstance(call, Create)}
    return [_kind_of(call, paths) for call in calls]


def _kind_of(call: Call, paths: dict[int, str]) -> str:
    match call:
        case Write(file=file):
            return f"write {_place(paths.get(file, ''))}"
        case SyncFile(file=file):
            place = _place(paths.get(file, ""))
            return "commit" if place == "log" else f"sync {place}"
        case SyncDirectory(path=path):
            return f"sync names of {_place(path + '/')}"
        case Link(target=path):
            return f"link {_place(path)}"
        case Unlink(path=path):
            return f"unlink {_place(path)}"
        case Create(path=path):
            return f"create {_place(path)}"
        case _:
            return type(call).__name__


def _place(path: str) -> str:
    if path.endswith("-wal"):
        return "log"
    if path.endswith(PROOF):
        return "proof"
    below = path.split("/")[1] if "/" in path else ""
    return {"tails": "tail", "chunks": "chunk"}.get(below, "catalog")


_NAMED = "the chunk, which the catalog names; the tail is removed, if it is there"
_UNNAMED = "nothing that the catalog names; the files that were left are removed"

ROWS = (
    Row(
        "bytes written to a tail, not yet their proof",
        receive,
        "write tail",
        Found(
            "every byte that was accepted before; those bytes are cut off", _accepted
        ),
        Found(RECORDED.words, _proven),
    ),
    Row(
        "the proof of bytes in a tail, not yet answered",
        receive,
        "write proof",
        Found("those bytes, too: they are the client's, in their order", _unanswered),
        Found(RECORDED.words, _proven),
    ),
    Row("a tail synced, not yet recorded", receive, "sync tail", EVERY_BYTE, RECORDED),
    Row(
        "the names of tails synced, the offset not yet recorded",
        receive,
        "sync names of tail",
        EVERY_BYTE,
        RECORDED,
    ),
    Row(
        "a full tail linked under its chunk's name, that name not yet synced",
        receive,
        "link chunk",
        EVERY_BYTE,
        RECORDED,
    ),
    Row(
        "the chunk's name synced, not yet committed",
        receive,
        "sync names of chunk",
        EVERY_BYTE,
        RECORDED,
        then="write log",
    ),
    Row(
        "half of a commit in the catalog's log",
        receive,
        "write log",
        EVERY_BYTE,
        RECORDED,
        then="write log",
    ),
    Row(
        "the commit that names the chunk, its tail not yet removed",
        receive,
        "commit",
        Found(_NAMED, _sealed),
        Found(_NAMED, lambda look: _recorded(look) and look.is_tidy()),
        then="unlink tail",
    ),
    Row(
        "the tail removed, which is not synced",
        receive,
        "unlink tail",
        Found(_NAMED, _sealed),
        Found(_NAMED, lambda look: _recorded(look) and look.is_tidy()),
    ),
    Row(
        "the commit that completes the upload",
        finish_both,
        "commit",
        whole := Found(
            "the whole content, immutable",
            lambda look: (
                look.state("two") is OperationState.COMPLETE and look.is_tidy()
            ),
        ),
        whole,
        owed=lambda announced: "two" in announced.frozen,
    ),
    Row(
        "the log written for a file and the response, not yet synced",
        finish_both,
        "write log",
        Found(
            "both or neither",
            both_or_neither := lambda look: (
                (look.store.file(None, "one") is not None)
                == (look.state("one") is OperationState.DONE)
            ),
        ),
        Found("both or neither", both_or_neither),
        owed=lambda announced: "one" in announced.frozen,
    ),
    Row(
        "the commit of a file and its response",
        finish_both,
        "commit",
        published := Found(
            "both: the response can be fetched, the file be read",
            lambda look: (
                look.store.file(None, "one") is not None
                and look.state("one") is OperationState.DONE
            ),
        ),
        published,
        owed=lambda announced: "one" in announced.answered,
    ),
    Row(
        "a large response's bytes, before it is recorded",
        respond,
        "write tail",
        no_response := Found(
            "no response; what is there of it goes when the next one is begun",
            lambda look: (
                look.state("two") is OperationState.COMPLETE and look.is_tidy()
            ),
        ),
        no_response,
        owed=lambda announced: "two" in announced.frozen,
    ),
    Row(
        "the last, short chunk copied back to a tail, because the upload goes on",
        take_over,
        "sync tail",
        EVERY_BYTE,
        RECORDED,
        then="sync names of tail",
    ),
    Row(
        "a copy of a finished upload's short tail made, because the upload goes on and"
        " another one's chunk is the same file",
        discard,
        "sync tail",
        Found(
            "every byte that was accepted, of both",
            lambda look: _accepted(look) and look.is_whole_beside("two", "part"),
        ),
        Found(
            RECORDED.words,
            lambda look: _recorded(look) and look.is_whole_beside("two", "part"),
        ),
        then="Replace",
    ),
    Row(
        "bytes of a patch that applies as a whole",
        patch,
        "write tail",
        nothing := Found(
            "nothing of the patch", lambda look: look.received == 6 and look.is_tidy()
        ),
        nothing,
        owed=lambda announced: announced.durable.get("two") == 6,
    ),
    Row(
        "such a patch's chunks linked, the commit not yet made",
        patch,
        "sync names of chunk",
        cut_off := Found(
            "nothing of the patch; chunks that it shares with other uploads stay whole",
            lambda look: nothing.holds(look) and look.is_whole_beside("two", "one"),
        ),
        cut_off,
        owed=lambda announced: announced.durable.get("two") == 6,
        then="write log",
    ),
    Row(
        "the commit by which such a patch counts",
        patch,
        "commit",
        everything := Found(
            "all of the patch",
            lambda look: (
                look.received >= 27 or look.state("two") is OperationState.COMPLETE
            ),
        ),
        everything,
        owed=lambda announced: (
            announced.durable.get("two") == 27 and "two" not in announced.frozen
        ),
        then="unlink tail",
    ),
    Row(
        "the commit that ends an upload, its tails not yet removed",
        clear_away,
        "commit",
        gone := Found(
            "no upload, and 410; its bytes are removed",
            lambda look: look.state("one") is OperationState.GONE and look.is_tidy(),
        ),
        gone,
        owed=lambda announced: "one" in announced.ended,
    ),
    Row(
        "the commit by which collection lets go of chunks, their files not yet removed",
        clear_away,
        "commit",
        tidy := Found(_UNNAMED, Look.is_tidy),
        tidy,
        then="unlink chunk",
    ),
    Row(
        "a chunk's file removed by collection, which is not synced",
        clear_away,
        "unlink chunk",
        tidy,
        tidy,
    ),
    Row(
        "the commit that joins uploads to one",
        join_both,
        "commit",
        joined := Found(
            "the joined content, whatever becomes of its parts",
            lambda look: look.state("both") is OperationState.COMPLETE,
        ),
        joined,
        owed=lambda announced: "both" in announced.frozen - announced.ended,
    ),
    Row(
        "the commit by which a file expires",
        expire,
        "commit",
        expired := Found(
            "no file; its bytes are removed",
            lambda look: look.store.file(None, "one") is None and look.is_tidy(),
        ),
        expired,
        owed=lambda announced: bool(announced.answered) and not announced.files,
    ),
)
