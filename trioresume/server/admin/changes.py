"""The changes that the admin page may make, if ``WatchSettings.admin_page`` is ``"change"``.

They are those of the keeper's commands, and made by the same code::

    {"act": "cancel", "number": 17, "seal": "9f0c…"}        an upload
    {"act": "retry", "number": 17, "seal": "9f0c…"}         its request, again to the target
    {"act": "delete", "name": "report.pdf", "owner": null}  a file
    {"act": "send", "events": [3, 4]}                       events of hooks, again
    {"act": "drop", "events": [3, 4]}                       events, never
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from trioresume.errors import CallerError
from trioresume.server.keeper.changes import change_served
from trioresume.server.keeper.outbox import AT_ONCE, event_changes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from trioresume.server.admin.rows import Rows
    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import OperationId

__all__ = ["Changes"]

logger = logging.getLogger("trioresume.control")

PATIENCE = 5.0
"""Seconds to wait for the outcome of a retry; it goes on after that."""


class Changes:
    """Makes changes in the service that has *operations*."""

    def __init__(
        self,
        operations: Registry,
        retry: Callable[[OperationId], Awaitable[int | None]],
        rows: Rows,
    ) -> None:
        self._operations = operations
        self._retry_upload = retry
        self._rows = rows

    async def make(self, wish: Mapping[str, Any]) -> str:
        """Make the change *wish*; return what was done, for a person.

        Raises :class:`CallerError` with the reason why it makes no sense, and
        :class:`~trioresume.StorageError`.
        """
        act = wish.get("act")
        if act == "cancel":
            upload = await self._upload(wish)
            await change_served(self._operations, {"act": "rm", "upload": upload})
            logger.info("the admin page has cancelled an upload")
            return "The upload is cancelled."
        if act == "delete":
            name, owner = wish.get("name"), wish.get("owner")
            await change_served(
                self._operations, {"act": "rm", "file": name, "owner": owner}
            )
            logger.info("the admin page has deleted the file %r", name)
            return "The file is deleted."
        if act == "retry":
            return await self._retry(await self._upload(wish))
        if act in ("send", "drop"):
            return await self._change_events(wish, drop=act == "drop")
        raise CallerError("what is asked for is not known")

    async def _upload(self, wish: Mapping[str, Any]) -> OperationId:
        number, seal = wish.get("number"), wish.get("seal")
        if type(number) is not int or not isinstance(seal, str) or not seal.isascii():
            raise CallerError("number or seal is missing")
        if not 0 <= number < 2**63:
            raise CallerError("there is no such upload any more")
        upload = await trio.to_thread.run_sync(self._rows.upload_id, number, seal)
        if upload is None:
            raise CallerError("there is no such upload any more")
        return upload

    async def _retry(self, upload: OperationId) -> str:
        with trio.move_on_after(PATIENCE):
            status = await self._retry_upload(upload)
            if status is None:
                return "Its target cannot take it now either."
            return f"It was answered {status}."
        return "It is being processed."

    async def _change_events(self, wish: Mapping[str, Any], *, drop: bool) -> str:
        seqs = wish.get("events")
        if not isinstance(seqs, list) or not 0 < len(seqs) <= AT_ONCE:
            raise CallerError(f"events needs a list of 1 to {AT_ONCE} numbers")
        if not all(type(seq) is int and 0 <= seq < 2**63 for seq in seqs):
            raise CallerError("events needs a list of numbers")
        mutations = event_changes(
            "drop" if drop else "retry", seqs, self._operations.clock.now()
        )
        await self._operations.storage.commit(*mutations)
        done = "dropped" if drop else "sent again"
        logger.info("the admin page has %s %d events of hooks", done, len(seqs))
        return "The events are dropped." if drop else "The events are sent again."
