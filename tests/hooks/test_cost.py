"""What the outbox costs an upload: statements of the catalog, and no commit."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.hooks.receivers import Receiver, hooks
from tests.server.harness import socket_service
from trioresume import FileService
from trioresume.store.disk_store import open_store


async def statements_of(
    data_dir: Path, fields: dict[str, str], *, told: bool
) -> list[str]:
    """The statements that an upload makes the catalog's writer execute."""
    receiver = Receiver()
    receiver.gate = (
        trio.Event()
    )  # what was delivered would be dropped by more statements
    store = open_store(data_dir, durability="process")
    executed: list[str] = []
    events = ["post-create", "post-finish", "post-terminate"]
    settings = {"hooks": hooks(receiver, events)} if told else {}
    async with (
        socket_service(FileService(), data_dir, store=store, **settings) as service,
        service.connect() as client,
    ):
        await client.request("PUT", "/files/first", (), b"opens the connection")
        store._catalog._writer.set_trace_callback(executed.append)
        reply = await client.request("PUT", "/files/second", fields, b"content")
        assert reply.status == 201
        store._catalog._writer.set_trace_callback(None)
    return executed


@pytest.mark.parametrize("fields", [{}, {"Prefer": "resume"}])
async def test_upload_has_two_statements_more_and_no_commit(
    fields: dict[str, str], tmp_path: Path
) -> None:
    """One for its beginning, and one for its end, in the commits that it has anyway."""
    plain = await statements_of(tmp_path / "plain", fields, told=False)
    told = await statements_of(tmp_path / "told", fields, told=True)
    assert sum("INTO events" in statement for statement in told) == 2
    assert not any("events" in statement for statement in plain)
    commits = [[s for s in each if s.startswith("COMMIT")] for each in (plain, told)]
    assert len(commits[1]) <= len(commits[0])
    assert len(told) - len(plain) <= 2
