"""A directory becomes stored files: alone, and by a running service."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

import trioresume
from tests.server.keeper.test_changes import served
from tests.store.helpers import do, file_record, store_content
from trioresume.server.keeper import intake
from trioresume.server.keeper.imports import ImportSource
from trioresume.server.keeper.intake import FileToImport, UploadToImport, open_importer
from trioresume.store.disk_store import open_store
from trioresume.store.port import ForgetOperation, OperationId, PublishFile

DATE = 1_700_000_000.123457
LARGE = os.urandom(9_000_000)
"""More than two chunks."""


@pytest.fixture(params=["alone", "served"])
async def data_dir(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Path]:
    path = tmp_path / "data"
    async with AsyncExitStack() as stack:
        if request.param == "served":
            await stack.enter_async_context(served(path))
        yield path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    place = tmp_path / "files"
    (place / "@alice").mkdir(parents=True)
    (place / "large.bin").write_bytes(LARGE)
    (place / "empty.txt").write_bytes(b"")
    (place / "page.html").write_text("<p>")
    (place / "@alice" / "page.html").write_text("<p>alice")
    for path in place.rglob("*"):
        os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    return place


async def run(
    data_dir: Path, directory: Path, **options: Any
) -> dict[str, trioresume.Imported]:
    done: dict[str, trioresume.Imported] = {}

    def note(one: trioresume.Imported) -> None:
        done[str(Path(one.path).relative_to(directory))] = one

    await trioresume.import_directory(data_dir, directory, note, **options)
    return done


def stored(data_dir: Path) -> dict[tuple[str | None, str], trioresume.StoredFile]:
    with trioresume.Inventory(data_dir) as inventory:
        assert list(inventory.verify()) == []
        return {(file.owner, file.name): file for file in inventory.files()}


def exported(data_dir: Path, place: Path) -> None:
    with trioresume.Inventory(data_dir) as inventory:
        assert all(done.problem is None for done in inventory.export(place))


async def test_files_are_stored_once(
    data_dir: Path, files: Path, tmp_path: Path
) -> None:
    """With their dates, types and owners; a second time nothing is read."""
    done = await run(data_dir, files)
    assert {name: one.state.value for name, one in done.items()} == dict.fromkeys(
        ("large.bin", "empty.txt", "page.html", "@alice/page.html"), "stored"
    )
    found = stored(data_dir)
    assert found[None, "page.html"].fields.get("content-type") == "text/html"
    assert found["alice", "page.html"].length == 8
    assert found[None, "large.bin"].modified_at == DATE
    with trioresume.Inventory(data_dir) as inventory:
        assert list(inventory.uploads(ended=True)) == []
    exported(data_dir, tmp_path / "back")
    assert (tmp_path / "back" / "large.bin").read_bytes() == LARGE
    again = await run(data_dir, files)
    assert {one.state.value for one in again.values()} == {"present"}
    (files / "page.html").write_text("<p>changed")
    other = await run(data_dir, files, patterns=["page*"])
    assert other["page.html"].state.value == "refused"
    assert other["@alice/page.html"].state.value == "present"
    forced = await run(data_dir, files, patterns=["page*"], replace=True)
    assert forced["page.html"].state.value == "stored"


async def test_export_comes_back_as_it_was(data_dir: Path, tmp_path: Path) -> None:
    """Names that no disk takes, owners, types and dates: another directory has the same."""
    source = tmp_path / "source"
    store = open_store(source, chunk_size=1000)
    for number, (name, owner) in enumerate(
        [("@odd", None), ("100%41", "al/ice"), ("ä" * 127, "bob"), ("x", None)]
    ):
        content = store_content(store, os.urandom(5000), f"op-{number}")
        fields = trioresume.Fields([("content-type", "a/b"), ("filename", "n.txt")])
        file = file_record(name, content, owner=owner)
        do(store, PublishFile(replace(file, fields=fields, modified_at=DATE)))
        do(store, ForgetOperation(OperationId(f"op-{number}")))
    store.close()
    for metadata in (trioresume.Metadata.JSON, trioresume.Metadata.XATTR):
        place = tmp_path / metadata.value
        with trioresume.Inventory(source) as inventory:
            assert len(list(inventory.export(place, metadata=metadata))) == 4
        done = await run(data_dir, place)
        assert len(done) == 4
        assert {one.problem for one in done.values()} == {None}
        before, after = stored(source), stored(data_dir)
        assert before.keys() == after.keys()
        for key, kept in before.items():
            assert after[key].fields == kept.fields
            assert after[key].modified_at == kept.modified_at
        states = {one.state.value for one in done.values()}
        assert states == {"present" if metadata == "xattr" else "stored"}


async def test_what_cannot_be_stored_is_named(
    data_dir: Path, files: Path, tmp_path: Path
) -> None:
    """And keeps nothing else from being stored."""
    (files / "folder").mkdir()
    (files / "a\\b").write_text("a name that no file can have")
    os.mkfifo(files / "pipe")
    (files / os.fsdecode(b"\xff")).write_text("not UTF-8")
    (files / ".trioresume-0.part").write_text("half a file")
    done: list[trioresume.Imported] = []
    await trioresume.import_directory(data_dir, files, done.append)
    states = [one.state.value for one in done]
    assert sorted(states) == ["refused", *["skipped"] * 3, *["stored"] * 4]
    with pytest.raises(trioresume.StorageError, match="cannot be read"):
        await run(data_dir, tmp_path / "nowhere")


async def test_import_that_was_cut_goes_on(
    data_dir: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored of a large file is not read again."""
    read: list[int] = []
    real = intake._read

    def slow(descriptor: int, at: int, size: int) -> bytes:
        if not read:
            assert at == 0
        if at >= 6 * intake.BLOCK and not any(each < 0 for each in read):
            read.append(-1)
            raise OSError(5, "Input/output error")
        read.append(at)
        return real(descriptor, at, size)

    monkeypatch.setattr(intake, "_read", slow)
    cut = await run(data_dir, files, patterns=["large*"])
    assert "Input/output error" in str(cut["large.bin"].problem)
    del read[:-1]
    done = await run(data_dir, files, patterns=["large*"])
    assert done["large.bin"].state.value == "stored"
    assert min(each for each in read if each >= 0) == 6 * intake.BLOCK
    assert stored(data_dir)[None, "large.bin"].length == len(LARGE)


async def test_file_that_changes_while_it_is_read_is_refused(
    data_dir: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = intake._read

    def grow(descriptor: int, at: int, size: int) -> bytes:
        if at == 0 and size > 1:
            with (files / "large.bin").open("ab") as file:
                file.write(b"more")
        return real(descriptor, at, size)

    monkeypatch.setattr(intake, "_read", grow)
    done = await run(data_dir, files, patterns=["large*"])
    assert "changed while it was read" in str(done["large.bin"].problem)
    assert stored(data_dir) == {}


TUSD_ID = "0123456789abcdef0123456789abcdef"


def tusd_upload(place: Path, id: str, data: bytes, **info: object) -> None:
    """An upload as tusd's file store keeps it."""
    place.mkdir(exist_ok=True)
    (place / id).write_bytes(data)
    described = {
        "ID": id,
        "Size": len(data),
        "SizeIsDeferred": False,
        "Offset": 0,
        "MetaData": {"filename": f"of {id[:4]}.txt", "filetype": "text/plain"},
        "IsPartial": False,
        "IsFinal": False,
        "PartialUploads": None,
        "Storage": {"Path": str(place / id), "Type": "filestore"},
    }
    (place / f"{id}.info").write_text(json.dumps(described | info))


async def test_uploads_of_tusd_come_with_their_state(
    data_dir: Path, tmp_path: Path
) -> None:
    """Finished ones are files; unfinished ones go on at their offset; parts are left out."""
    place = tmp_path / "tusd"
    tusd_upload(place, "f" * 32, b"finished")
    tusd_upload(place, TUSD_ID, LARGE[:5_000_000], Size=len(LARGE))
    tusd_upload(place, "d" * 32, b"half", SizeIsDeferred=True, Size=0)
    tusd_upload(place, "a" * 32, b"part", IsPartial=True)
    tusd_upload(place, "b" * 32, b"joi", IsFinal=True, Size=9)
    tusd_upload(place, "short", b"half", Size=9)
    tusd_upload(place, "e" * 32, b"odd", MetaData={"k\n y": "v"})
    (place / "broken.info").write_text("{")
    (place / "gone.info").write_text(json.dumps({"ID": "gone", "Size": 5}))
    done = await run(data_dir, place, source=ImportSource.TUSD)
    states = {name: one.state.value for name, one in done.items()}
    assert states == {
        "f" * 32: "stored",
        TUSD_ID: "stored",
        "d" * 32: "stored",
        "a" * 32: "skipped",
        "b" * 32: "skipped",
        "short": "skipped",
        "e" * 32 + ".info": "skipped",
        "broken.info": "skipped",
        "gone.info": "skipped",
    }
    [file] = stored(data_dir).values()
    assert (file.name, file.filename) == ("f" * 32, "of ffff.txt")
    assert file.fields.get("content-type") == "text/plain"
    with trioresume.Inventory(data_dir) as inventory:
        uploads = {upload.id: upload for upload in inventory.uploads()}
    upload = uploads[TUSD_ID[:22]]
    assert (upload.received, upload.length) == (5_000_000, len(LARGE))
    assert upload.name == "of 0123.txt"
    assert uploads["d" * 22].length is None
    again = await run(data_dir, place, source=ImportSource.TUSD)
    kept = {one.state.value for one in again.values()}
    assert kept == {"present", "skipped"}
    named = await run(
        data_dir,
        place,
        source=ImportSource.TUSD,
        named_by_client=True,
        owner="carol",
        patterns=["f*"],
    )
    assert named["f" * 32].name == "of ffff.txt"
    assert ("carol", "of ffff.txt") in stored(data_dir)


async def test_nonsense_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """Of the command's words; and a line without a file."""
    data_dir = tmp_path / "data"
    path = tmp_path / "file"
    path.write_text("text")
    wrong: list[FileToImport | UploadToImport] = [
        FileToImport(name="a/b"),
        FileToImport(name="a", owner=""),
        FileToImport(name="a", fields=trioresume.Fields([("a", "b\nc")])),
        UploadToImport(id="../etc", length=9),
        UploadToImport(id="i" * 22, target="x", length=9),
        UploadToImport(id="i" * 22, length=4),
        UploadToImport(id="i" * 22, length=-1),
    ]
    async with served(data_dir):
        async with open_importer(data_dir) as importer:
            for what in wrong:
                with pytest.raises(trioresume.StorageError):
                    await importer.add(path, what)
            with pytest.raises(OSError, match="No such file"):
                await importer.add(tmp_path / "none", FileToImport(name="a"))
            assert await importer.add(path, FileToImport(name="a"))
        async with await trio.open_unix_socket(data_dir / "control") as stream:
            await stream.send_all(b'{"do": "import"}\n{"name": "b"}\n')
            heard = b""
            while heard.count(b"\n") < 2:
                heard += await stream.receive_some()
        assert "no file came with it" in heard.decode()
    assert list(stored(data_dir)) == [(None, "a")]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give away"
)
async def test_what_root_makes_belongs_to_the_owner_of_the_directory(
    files: Path, tmp_path: Path
) -> None:
    """The service may run as another user: it can read what a command of root's left."""
    data_dir, backups, restored = (tmp_path / n for n in ("data", "backups", "back"))
    other = 12345

    def strangers(place: Path) -> list[Path]:
        made = [place, *place.rglob("*")]
        return [path for path in made if path.lstat().st_uid != other]

    for place in (data_dir, backups, restored):
        place.mkdir(mode=0o700)
        os.chown(place, other, other)
    open_store(data_dir).close()
    for path in (data_dir / "lock", data_dir / "catalog.sqlite3"):
        os.chown(path, other, other)
    await run(data_dir, files)
    (files / "more.txt").write_text("more")
    await run(data_dir, files)
    async with trioresume.open_keeper(data_dir) as keeper:
        with trioresume.Inventory(data_dir) as inventory:
            [file] = inventory.files_called("more.txt")
        await keeper.remove(file)
    assert strangers(data_dir) == []
    await trioresume.backup(data_dir, backups, links=False)
    await trioresume.restore(backups, restored)
    assert strangers(restored) == []
    assert strangers(backups) == []
