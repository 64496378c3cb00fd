"""Hooks together with other parts that take the place of the server's own."""

from __future__ import annotations

from pathlib import Path

from tests.hooks.receivers import Receiver, hooks
from tests.server.harness import socket_service
from trioresume import FileService, WatchSettings


async def test_uploads_are_told_and_counted(tmp_path: Path) -> None:
    """Metrics count operations of which hooks are told."""
    receiver = Receiver()
    watch = WatchSettings(admin_bind=("127.0.0.1:0",))
    async with (
        socket_service(
            FileService(), tmp_path / "data", hooks=hooks(receiver), watch=watch
        ) as service,
        service.connect() as client,
    ):
        reply = await client.request("POST", "/files/", (), b"content")
        assert reply.status == 201
        await receiver.until("post-finish")
