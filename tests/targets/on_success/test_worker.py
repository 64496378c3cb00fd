"""Actions on success in a running service: done once it is committed, and done again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.hooks.receivers import Receiver, hooks
from tests.server.harness import SocketService, socket_service
from trioresume import CallerError, FileService, Inventory, Rule

BODY = b"content " * 20_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


async def _put(service: SocketService, name: str, body: bytes = BODY) -> int:
    async with service.connect() as client:
        return (await client.request("PUT", f"/files/{name}", {}, body)).status


async def _get(service: SocketService, name: str) -> int:
    async with service.connect() as client:
        return (await client.request("GET", f"/files/{name}")).status


async def _until(fact: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not fact():  # noqa: ASYNC110 - another process's view, which has no event
            await trio.sleep(0.02)


async def _until_there(*paths: Path) -> None:
    await _until(lambda: all(path.exists() for path in paths))


def _pending(data_dir: Path) -> dict[str, str | None]:
    with Inventory(data_dir) as inventory:
        return {file.name: file.pending for file in inventory.files()}


async def _until_done(data_dir: Path) -> None:
    await _until(lambda: not any(_pending(data_dir).values()))


def _break(folder: Path) -> None:
    """Put a file into the directory's place."""
    folder.rmdir()
    folder.touch()


def _mend(folder: Path) -> None:
    folder.unlink()
    folder.mkdir()


def _move(old: Path, new: Path) -> None:
    old.rename(new)


@pytest.mark.parametrize("action", ["copy", "link", "move"])
async def test_stored_file_is_put_into_the_directory(
    action: str, tmp_path: Path, folder: Path
) -> None:
    """Under its name, which is a harmless one; with ``move`` it is no longer here."""
    data = tmp_path / "data"
    target = FileService(on_success=f"{action}:{folder}")
    async with socket_service(target, data) as service:
        assert await _put(service, "a%20b.txt") == 201
        assert await _put(service, ".htaccess", b"small") == 201
        await _until_there(folder / "a b.txt", folder / "_htaccess")
        await _until_done(data)
        assert (folder / "a b.txt").read_bytes() == BODY
        assert (folder / "_htaccess").read_bytes() == b"small"
        gone = 404 if action == "move" else 200
        assert await _get(service, "a%20b.txt") == gone
        if action == "move":
            assert await _put(service, "a%20b.txt", b"next") == 201
            await _until_there(folder / "a b-2.txt")


async def test_directory_that_fails_is_tried_again_and_shown(
    tmp_path: Path, folder: Path
) -> None:
    """Its uploads are answered all the same, a restart included; ``ls`` shows what waits."""
    data = tmp_path / "data"
    target = FileService(on_success=f"copy:{folder}")
    async with socket_service(target, data) as service:
        _break(folder)
        assert await _put(service, "a") == 201
        await _until(lambda: "waits" in (_pending(data)["a"] or ""))
        text = _pending(data)["a"]
        assert text is not None
        assert text.startswith(f"copy to {folder}, waits: Not a directory")
    _mend(folder)
    # The action belongs to the file, even if the next service has none.
    async with socket_service(FileService(), data) as service:
        await _until_there(folder / "a")
        await _until_done(data)
    assert (folder / "a").read_bytes() == BODY


async def test_directory_that_fails_is_tried_for_all_of_its_files_at_once(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Eighty files cost a few attempts, and do not keep other files from theirs."""
    data = tmp_path / "data"
    other = folder.with_name("other")
    other.mkdir()
    rules = [Rule(path="/files/o-*", on_success=f"copy:{other}")]
    target = FileService(on_success=f"copy:{folder}")
    async with socket_service(target, data, rules=rules) as service:
        _break(folder)
        async with service.connect() as client:
            for number in range(80):
                path = f"/files/{number}"
                assert (await client.request("PUT", path, {}, b"x")).status == 201
            assert (await client.request("PUT", "/files/o-1", {}, b"y")).status == 201
        await _until_there(other / "o-1")
        waiting = [name for name, text in _pending(data).items() if text]
        assert len(waiting) == 80
        failed = [r for r in caplog.records if "is not in" in r.getMessage()]
        assert 1 <= len(failed) <= 20
        _mend(folder)
        await _until_done(data)
    assert len(os.listdir(folder)) == 80


async def test_file_that_is_gone_or_replaced_needs_nothing(
    tmp_path: Path, folder: Path
) -> None:
    """A file that replaced it has a task of its own."""
    data = tmp_path / "data"
    moved = folder.with_name("moved")
    target = FileService(on_success=f"copy:{folder}")
    async with socket_service(target, data) as service:
        _move(folder, moved)
        for body in (b"first", b"second"):
            assert await _put(service, "a", body) in (201, 204)
        assert await _put(service, "b") == 201
        await _until(lambda: "waits" in (_pending(data)["b"] or ""))
        async with service.connect() as client:
            assert (await client.request("DELETE", "/files/b")).status == 204
        _move(moved, folder)
        await _until_there(folder / "a")
        await _until_done(data)
        assert (folder / "a").read_bytes() == b"second"
        assert os.listdir(folder) == ["a"]


async def test_rule_has_an_action_of_its_own(tmp_path: Path, folder: Path) -> None:
    """Of the file's own path first; the template's folders are made."""
    rules = [
        Rule(path="/files/x/", on_success=f"copy:{folder}"),
        Rule(path="/files/", methods="POST", name_template="x/{name}"),
    ]
    async with socket_service(FileService(), tmp_path / "data", rules=rules) as service:
        assert await _put(service, "y") == 201
        async with service.connect() as client:
            fields = {"Content-Disposition": "attachment; filename=z"}
            reply = await client.request("POST", "/files/", fields, BODY)
            assert reply["location"] == "/files/x/z"
        await _until_there(folder / "x/z")
        assert os.listdir(folder) == ["x"]


async def test_hooks_are_told_of_the_file_and_not_of_the_task(
    tmp_path: Path, folder: Path
) -> None:
    """Both are rows of one outbox; a directory that fails does not hold back an event."""
    receiver = Receiver()
    data = tmp_path / "data"
    target = FileService(on_success=f"copy:{folder}")
    async with socket_service(target, data, hooks=hooks(receiver)) as service:
        _break(folder)
        assert await _put(service, "a") == 201
        await receiver.until("post-finish")
        await _until(lambda: "waits" in (_pending(data)["a"] or ""))
        _mend(folder)
        await _until_there(folder / "a")
        await _until_done(data)
    assert not [kind for kind in receiver.kinds if kind.startswith("task")]


async def test_hook_that_renames_cannot_avoid_a_rule(tmp_path: Path) -> None:
    """The rule for the new path is asked, too."""
    change = {"ChangeFileInfo": {"ID": "secret"}}
    receiver = Receiver(pre_create=change)
    rules = [Rule(path="/files/secret", access="read-only")]
    async with socket_service(
        FileService(), tmp_path / "data", rules=rules, hooks=hooks(receiver)
    ) as service:
        async with service.connect() as client:
            reply = await client.request("POST", "/files/", {}, BODY)
            assert reply.status == 405


def _make(folder: Path, file: Path) -> None:
    folder.mkdir(parents=True)
    file.touch()


@pytest.mark.parametrize("wrong", ["missing", "file", "inside", "outside", "data"])
async def test_directory_that_cannot_be_is_refused_at_the_start(
    wrong: str, tmp_path: Path
) -> None:
    """Rather than at the first upload."""
    data = tmp_path / "a/data"
    _make(data / "sub", tmp_path / "file")
    paths = {"inside": data / "sub", "outside": tmp_path / "a", "data": data}
    path = paths.get(wrong, tmp_path / wrong)
    with pytest.RaisesGroup(CallerError, allow_unwrapped=True, flatten_subgroups=True):
        async with socket_service(FileService(on_success=f"copy:{path}"), data):
            raise AssertionError("it has started")


@pytest.mark.parametrize("text", ["copy", "copy:", "rename:/tmp", "", ":/tmp"])
def test_action_that_is_none_is_refused(text: str) -> None:
    """For the service and for a rule."""
    with pytest.raises(CallerError, match=r"^on_success: .* is not like copy:DIR"):
        FileService(on_success=text)
    with pytest.raises(CallerError, match=r"^on_success: .* is not like copy:DIR"):
        Rule(on_success=text)
