"""The keeper removes, renames and gives away: alone, and by a running service."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import trioresume
from tests.server.keeper.test_control_socket import listening
from tests.store.helpers import do, file_record, put, record, store_content
from trioresume.protocol.heads import Fields
from trioresume.server.serving import UNTUNED, serve_tuned
from trioresume.store.disk_store import open_store
from trioresume.store.port import (
    CreateOperation,
    ForgetOperation,
    OperationId,
    OperationRecord,
    PublishFile,
    request_key,
)

DATA = bytes(range(256)) * 8
ID = "U" * 22


@asynccontextmanager
async def served(data_dir: Path) -> AsyncIterator[trioresume.Server]:
    config = trioresume.Config(
        bind=["127.0.0.1:0"],
        data_dir=data_dir,
        durability="process",
        authenticate=authenticate,
    )
    async with trio.open_nursery() as nursery:
        server: trioresume.Server = await nursery.start(
            serve_tuned, UNTUNED, trioresume.FileService(), config
        )
        await listening(data_dir)
        yield server
        server.shutdown()


async def authenticate(head: trioresume.RequestHead) -> trioresume.Principal:
    return trioresume.Principal(head.fields.get("x-name") or "")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Files of nobody and of alice, and an unfinished PUT of alice."""
    path = tmp_path / "data"
    store = open_store(path, chunk_size=1024, durability="process")
    content = store_content(store, DATA, "stored")
    titled = file_record("random", content, owner="alice")
    for file in (
        file_record("report.pdf", content, expires_at=9e9),
        file_record("report.pdf", content, owner="alice"),
        replace(titled, fields=Fields([("filename", "holiday.jpg")])),
    ):
        do(store, PublishFile(file))
    do(store, ForgetOperation(OperationId("stored")))
    do(
        store,
        CreateOperation(
            OperationRecord(
                id=OperationId(ID),
                method="PUT",
                target="/files/unfinished.txt",
                fields=Fields(),
                created_at=time.time(),
                expires_at=9e9,
                principal="alice",
                length=5000,
                reserved=5000,
            )
        ),
    )
    put(store, store.open_writer(request_key(OperationId(ID))), DATA[:1500])
    store.close()
    return path


@pytest.fixture(params=["alone", "served"])
async def keeper(
    request: pytest.FixtureRequest, data_dir: Path
) -> AsyncIterator[trioresume.Keeper]:
    async with AsyncExitStack() as stack:
        if request.param == "served":
            await stack.enter_async_context(served(data_dir))
        yield await stack.enter_async_context(trioresume.open_keeper(data_dir))


def found(data_dir: Path, what: str, **how: bool) -> list[str]:
    """What is called so: the name and owner of a file, the target and owner of an upload."""
    with trioresume.Inventory(data_dir) as inventory:
        return sorted(
            f"{each.name}:{each.owner}"
            if isinstance(each, trioresume.StoredFile)
            else f"{each.target}:{each.principal}:{each.state}"
            for each in inventory.search(what, **how)
        )


def one(data_dir: Path, what: str) -> trioresume.StoredFile | trioresume.StoredUpload:
    with trioresume.Inventory(data_dir) as inventory:
        return next(inventory.search(what))


async def test_files_are_removed_renamed_and_given(
    keeper: trioresume.Keeper, data_dir: Path
) -> None:
    """Each in one commit; what is in the way is replaced only by force."""
    file = one(data_dir, "report.pdf")
    assert isinstance(file, trioresume.StoredFile)
    with pytest.raises(trioresume.StorageError, match="this name already"):
        await keeper.give(file, "alice")
    await keeper.rename(file, "final.pdf")
    assert found(data_dir, "report.pdf") == ["report.pdf:alice"]
    moved = one(data_dir, "final.pdf")
    assert isinstance(moved, trioresume.StoredFile)
    assert (moved.digest, moved.modified_at) == (file.digest, file.modified_at)
    assert moved.expires_at == file.expires_at
    await keeper.give(moved, "bob")
    await keeper.give(one(data_dir, "final.pdf"), "bob")  # nothing to do
    assert found(data_dir, "final.pdf") == ["final.pdf:bob"]
    await keeper.rename(one(data_dir, "holiday.jpg"), "report.pdf", force=True)
    assert found(data_dir, "holiday.jpg") == ["report.pdf:alice"]
    await keeper.remove(one(data_dir, "final.pdf"))
    assert found(data_dir, "*", glob=True) == [
        "/files/unfinished.txt:alice:receiving",
        "report.pdf:alice",
    ]
    with pytest.raises(trioresume.StorageError, match="no such file"):
        await keeper.remove(moved)


async def test_name_that_no_file_can_have_is_refused(
    keeper: trioresume.Keeper, data_dir: Path
) -> None:
    for name in ("", ".", "..", "a/b", "a\\b", "a\nb", "x" * 256):
        for what in ("report.pdf", ID):
            with pytest.raises(
                trioresume.StorageError, match="cannot be a file's name"
            ):
                await keeper.rename(one(data_dir, what), name)
    assert found(data_dir, "unfinished.txt") == [
        "/files/unfinished.txt:alice:receiving"
    ]


async def test_uploads_are_given_renamed_and_ended(
    keeper: trioresume.Keeper, data_dir: Path
) -> None:
    """By id, or by the name that the file will have."""
    upload = one(data_dir, "unfinished.txt")
    assert upload == one(data_dir, ID)
    await keeper.give(upload, "bob")
    await keeper.rename(upload, "the end.txt")
    assert found(data_dir, "the end.txt") == ["/files/the%20end.txt:bob:receiving"]
    assert one(data_dir, ID).received == 1500  # type: ignore[union-attr]
    await keeper.remove(upload)
    assert found(data_dir, ID) == ["/files/the%20end.txt:bob:gone"]
    for change in (keeper.remove(upload), keeper.give(upload, "carol")):
        with pytest.raises(trioresume.StorageError, match="no such upload"):
            await change


async def test_upload_that_runs_goes_on_as_its_new_owners(data_dir: Path) -> None:
    """The old one no longer finds it; the file appears among those of the new one."""
    async with (
        served(data_dir) as server,
        trioresume.Client() as client,
        trioresume.open_keeper(data_dir) as keeper,
    ):
        root = trioresume.Config().operation_path
        place = f"{server.urls[0]}{root}{ID}/content"
        await keeper.rename(one(data_dir, ID), "renamed.txt")
        await keeper.give(one(data_dir, ID), "bob")
        patch = {
            "content-type": "message/byterange",
            "x-name": "alice",
        }
        whole = (DATA + DATA + DATA)[:5000]
        body = b"Content-Range: bytes 1500-4999/5000\r\n\r\n" + whole[1500:]
        refused = await client.request("PATCH", place, body=body, headers=patch)
        assert refused.status == 404
        patch["x-name"] = "bob"
        done = await client.request("PATCH", place, body=body, headers=patch)
        assert done.status in (201, 204), done
        assert found(data_dir, "renamed.txt")[0] == "renamed.txt:bob"


NONSENSE: list[dict[str, object]] = [
    {"act": "rm", "file": 5},
    {"act": "rm", "upload": None},
    {"act": "burn", "file": "report.pdf"},
    {"file": "report.pdf"},
    {"act": "chown", "file": "report.pdf", "owner": None, "to": ""},
    {"act": "chown", "file": "report.pdf", "owner": 7, "to": "alice"},
    {"act": "mv", "upload": ID},
    {},
]


async def test_nonsense_changes_nothing(data_dir: Path) -> None:
    """Each line is answered, and the next one is obeyed."""
    before = found(data_dir, "*", glob=True)
    async with served(data_dir):
        lines = [{"do": "change"}, *NONSENSE]
        stream = await trio.open_unix_socket(data_dir / "control")
        async with stream:
            await stream.send_all(
                b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            )
            heard = b""
            while heard.count(b"\n") < len(lines):
                heard += await stream.receive_some()
        ready, *answers = map(json.loads, heard.splitlines())
        assert ready == {"ready": True}
        assert all("error" in answer for answer in answers)
    assert found(data_dir, "*", glob=True) == before


async def test_holder_that_does_not_listen_is_reported(data_dir: Path) -> None:
    store = open_store(data_dir)
    with pytest.raises(trioresume.StoreLocked):
        async with trioresume.open_keeper(data_dir, patience=0.1):
            pass
    store.close()
    with pytest.raises(trioresume.StorageError, match="no data directory"):
        async with trioresume.open_keeper(data_dir / "none"):
            pass


async def test_request_that_was_answered_has_no_name_to_change(data_dir: Path) -> None:
    store = open_store(data_dir, durability="process")
    content = store_content(store, DATA, "done")
    do(store, CreateOperation(record("post", principal="bob", content=content)))
    store.close()
    async with trioresume.open_keeper(data_dir) as keeper:
        with pytest.raises(trioresume.StorageError, match="only an unfinished PUT"):
            await keeper.rename(one(data_dir, "post"), "name")
        with pytest.raises(trioresume.StorageError, match="being processed"):
            await keeper.give(one(data_dir, "done"), "bob")
