"""Exporting stored files to a directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.helpers import (
    CHUNK,
    FaultyDisk,
    collect_all,
    do,
    file_record,
    record,
    set_part_chunks,
    store_content,
)
from trioresume.errors import StorageFull
from trioresume.protocol.heads import Fields
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.keeper import export as module
from trioresume.store.keeper.export import (
    DESCRIPTION,
    Exported,
    ExportState,
    Metadata,
    read_description,
)
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.port import (
    Content,
    CreateOperation,
    ForgetOperation,
    JoinContents,
    OperationId,
    PublishFile,
    RemoveFile,
)

DATA = b"chunk 0 chunk 1 chunk 2 end"
DATE = 1_700_000_000.123456


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[DiskStore]:
    store = open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk())
    yield store
    store.close()


def publish(
    store: DiskStore,
    name: str,
    data: bytes = DATA,
    owner: str | None = None,
    fields: Fields | None = None,
) -> None:
    content = store_content(store, data, "upload")
    file = file_record(name, content, owner=owner)
    file = replace(file, modified_at=DATE, fields=fields or file.fields)
    do(store, PublishFile(file), ForgetOperation(OperationId("upload")))


def export(
    data_dir: Path, place: Path, *patterns: str, metadata: Metadata = Metadata.XATTR
) -> list[Exported]:
    with Inventory(data_dir) as inventory:
        return list(inventory.export(place, patterns=patterns, metadata=metadata))


def states(done: list[Exported]) -> list[str]:
    return [each.state.value for each in done]


@pytest.mark.parametrize("part_chunks", [2, 1024])
@pytest.mark.parametrize("metadata", list(Metadata))
def test_files_have_their_names_dates_and_descriptions(
    store: DiskStore,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metadata: Metadata,
    part_chunks: int,
) -> None:
    """A second export writes nothing; a changed file is written again."""
    set_part_chunks(monkeypatch.setattr, part_chunks)
    kept = Fields([("content-type", "text/plain"), ("filename", "häh.txt")])
    publish(store, "one", fields=kept)
    publish(store, "one", b"", owner="alice/../b")
    inline = file_record("inline", Content(3, b"abc"))
    do(store, PublishFile(replace(inline, modified_at=DATE)))
    place = tmp_path / "files"
    assert states(export(data_dir, place, metadata=metadata)) == ["written"] * 3
    assert (place / "one").read_bytes() == DATA
    assert (place / "inline").read_bytes() == b"abc"
    assert (place / "@alice%2F..%2Fb" / "one").read_bytes() == b""
    assert (place / "one").stat().st_mtime_ns == 1_700_000_000_123_456_000
    described = read_description(str(place / "one"))
    if metadata is Metadata.NONE:
        assert described is None
    else:
        assert described is not None
        assert described["fields"] == [list(line) for line in kept]
    beside = place / f"one{DESCRIPTION}"
    assert beside.exists() == (metadata is Metadata.JSON)
    assert states(export(data_dir, place, metadata=metadata)) == ["present"] * 3
    publish(store, "one", DATA[::-1])
    # Without a description only the length and the date tell, and they are the same.
    changed = states(export(data_dir, place, metadata=metadata)).count("written")
    assert changed == (metadata is not Metadata.NONE)
    left = [path.name for path in place.rglob("*") if ".part" in path.name]
    assert left == []


def test_patterns_choose(store: DiskStore, data_dir: Path, tmp_path: Path) -> None:
    publish(store, "a.pdf")
    publish(store, "random", fields=Fields([("filename", "b.pdf")]))
    publish(store, "c.txt")
    done = export(data_dir, tmp_path / "files", "*.pdf")
    assert [each.name for each in done] == ["a.pdf", "random"]


NAMES = (
    *("..", ".", "@alice", "%40alice", "100%", "100%41", "100%2541"),
    *(".trioresume-00.part", f"x{DESCRIPTION}", f"x%2E{DESCRIPTION[1:]}"),
    *("ä" * 127, "ä" * 126 + "b", "a b", "-rf", ".profile"),
)


def test_names_cannot_leave_the_directory_nor_meet(
    store: DiskStore, data_dir: Path, tmp_path: Path
) -> None:
    """Whatever stands in the catalog: each name has a file of its own, in the directory."""
    for name in (*NAMES, "a/b", "../c", "a\\b", "/etc/passwd"):
        publish(store, name, name.encode())
        publish(store, name, name.encode() + b"!", owner=name)
    place = tmp_path / "deep" / "files"
    done = export(data_dir, place)
    assert set(states(done)) == {"written"}
    assert len({each.path for each in done}) == len(done)
    for each in done:
        path = Path(each.path)
        assert path.parent == place or path.parent.parent == place
        assert path.parent.name.startswith("@") or path.parent == place
        found = path.read_bytes()
        assert found == each.name.encode() + (b"!" if each.owner else b"")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["files"]
    assert (place / "-rf").exists()
    assert (place / "100%").exists()


def test_damaged_content_is_left_out_and_named(
    store: DiskStore, data_dir: Path, tmp_path: Path
) -> None:
    """What was exported before stays; the other files are exported."""
    publish(store, "good", b"another")
    publish(store, "bad")
    place = tmp_path / "files"
    export(data_dir, place)
    before = (place / "bad").read_bytes()
    os.utime(place / "bad")
    chunks = sorted((data_dir / "chunks").rglob("1e20*"))
    for chunk in chunks:
        if chunk.read_bytes() == b"chunk 1 ":
            chunk.write_bytes(b"chunk ? ")
    good, bad = export(data_dir, place)
    assert (good.state, bad.state) == (ExportState.PRESENT, ExportState.DAMAGED)
    assert "does not have the bytes" in str(bad.problem)
    assert (place / "bad").read_bytes() == before
    for chunk in chunks:
        chunk.unlink()
    assert "is missing" in str(export(data_dir, place)[1].problem)


def test_file_that_changes_meanwhile(
    store: DiskStore,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deleted: it is left out. Replaced: the new content is exported."""
    publish(store, "deleted")
    publish(store, "replaced", b"old content")
    real = module.Export._write
    place = tmp_path / "files"

    def slow(self: module.Export, record, path: str) -> None:  # type: ignore[no-untyped-def]
        monkeypatch.setattr(module.Export, "_write", real)
        do(store, RemoveFile(None, "deleted"))
        publish(store, "replaced", b"new content")
        collect_all(store)
        real(self, record, path)

    monkeypatch.setattr(module.Export, "_write", slow)
    done = export(data_dir, place)
    assert [(each.name, each.state.value) for each in done] == [("replaced", "written")]
    assert (place / "replaced").read_bytes() == b"new content"


def test_joined_content_and_what_is_in_the_way(
    store: DiskStore, data_dir: Path, tmp_path: Path
) -> None:
    """A link is replaced, not followed. A directory is an error that says so."""
    parts = (store_content(store, DATA, "a"), store_content(store, b"more", "b"))
    do(store, CreateOperation(record("joined")))
    join = JoinContents(OperationId("joined"), parts)
    do(store, join, PublishFile(file_record("joined", join.content)))
    place = tmp_path / "files"
    place.mkdir()
    (tmp_path / "precious").write_text("stays")
    (place / "joined").symlink_to(tmp_path / "precious")
    export(data_dir, place)
    assert (place / "joined").read_bytes() == DATA + b"more"
    assert (tmp_path / "precious").read_text() == "stays"


def test_full_disk_is_called_that(
    store: DiskStore,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(store, "file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFull, match="No space left"):
        export(data_dir, tmp_path / "files")
    assert list((tmp_path / "files").iterdir()) == []


def test_descriptions_go_beside_where_there_are_no_attributes(
    store: DiskStore,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it is said once."""
    publish(store, "one")
    publish(store, "two")

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.setxattr", unsupported)
    told: list[str] = []
    with Inventory(data_dir) as inventory:
        run = inventory.export(tmp_path / "files")
        run.on_trouble = told.append
        assert states(list(run)) == ["written"] * 2
    assert len(told) == 1
    described = json.loads((tmp_path / "files" / f"two{DESCRIPTION}").read_text())
    assert described["name"] == "two"
    assert states(export(data_dir, tmp_path / "files")) == ["present"] * 2
