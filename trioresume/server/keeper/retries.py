"""Requests that a target could not take: the server tries them again, or the administrator does.

R31 is in docs/supported-protocols.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from trioresume.errors import CallerError, StorageError
from trioresume.protocol.operation import OperationState
from trioresume.server.uploads.share import Wish
from trioresume.server.uploads.target_call import OUTCOME_UNKNOWN
from trioresume.store.port import OperationId, SetState

if TYPE_CHECKING:
    from trioresume.server.uploads.operation import Operation
    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import Mutation, StoredResponse

__all__ = ["Retries"]

logger = logging.getLogger("trioresume.operations")

AT_ONCE = 4
"""Requests that are tried at the same time."""
MOST_REFUSED = 16
"""After so many requests that cannot be taken either, the others wait for the next time."""

_CODES = frozenset(problem.code for problem in OUTCOME_UNKNOWN)


class Retries:
    """Calls targets again for the operations that wait.

    Every *interval* seconds it goes on with the operation after the last one that it tried,
    so that a target that stays away cannot keep the operations of another one waiting.
    """

    def __init__(self, operations: Registry, interval: float) -> None:
        self._operations = operations
        self._interval = interval
        # The last process may have left some: look once at the start.
        self._waiting = trio.Event()
        self._waiting.set()
        self._after: OperationId | None = None

    def observe(self, mutations: Sequence[Mutation]) -> None:
        """Wake the task if *mutations* made an operation wait."""
        for mutation in mutations:
            if (
                isinstance(mutation, SetState)
                and mutation.state is OperationState.WAITING
            ):
                self._waiting.set()

    async def run(self) -> None:
        """Run the task until cancelled. Without an interval it does nothing."""
        while self._interval:
            await self._waiting.wait()
            await trio.sleep(self._interval)
            self._waiting = trio.Event()
            try:
                await self._try_all()
            except StorageError as exc:
                logger.error("waiting requests are tried later: %s", exc)
                self._waiting.set()

    async def _try_all(self) -> None:
        """Try the operations that wait, each once, from the last one on; stop if many refuse."""
        refused, began, wrapped = 0, self._after, False
        while refused < MOST_REFUSED:
            found = await self._look(AT_ONCE)
            if not found and (wrapped or began is None):
                self._after = None
                break
            if not found:
                self._after, wrapped = None, True
                continue
            if wrapped and began is not None:
                found = [each for each in found if each <= began]
                if not found:
                    break
            refused += await self._try_together(found)
            self._after = found[-1]
        if refused:
            self._waiting.set()

    async def _look(self, limit: int) -> list[OperationId]:
        storage = self._operations.storage
        records = await storage.run(
            storage.store.operations_in,
            (OperationState.WAITING,),
            limit,
            self._after,
        )
        return [record.id for record in records]

    async def _try_together(self, ids: Sequence[OperationId]) -> int:
        """Try the operations called *ids*; return how many still wait."""
        refused = 0

        async def attempt(id: OperationId) -> None:
            nonlocal refused
            async with self._operations.use(id, Wish.SPARE) as operation:
                if operation is None or not operation.is_held:
                    return  # or another process is about to try it
                if operation.state is OperationState.WAITING:
                    operation.retry()
                while operation.is_working:
                    await operation.changed.wait()
                refused += operation.state is OperationState.WAITING

        async with trio.open_nursery() as nursery:
            for each in ids:
                nursery.start_soon(attempt, each)
        return refused

    async def retry(self, id: OperationId) -> int | None:
        """Have the request called *id* processed again, as the administrator demands.

        Returns the status of the response, or None if the target cannot take the request
        now either. Raises :class:`CallerError` if that makes no sense, and
        :class:`StorageError`.
        """
        async with self._operations.use(id) as operation:
            if operation is None:
                raise CallerError("there is no operation of this name")
            if not operation.is_working:
                _check(operation)
                operation.retry()
            while operation.is_working:
                await operation.changed.wait()
            response = operation.record.response
            if response is None and operation.state is not OperationState.WAITING:
                raise StorageError("the operation has ended meanwhile, or failed")
            return None if response is None else response.status


def _check(operation: Operation) -> None:
    """Raise :class:`CallerError` unless the request may be processed again."""
    record = operation.record
    if operation.state is OperationState.WAITING:
        return
    if operation.state is not OperationState.DONE:
        raise CallerError(f"it is {operation.state}, so there is nothing to try again")
    if record.response is None or not _is_unknown(record.response):
        raise CallerError("its response is known: it would be processed twice")
    if record.content is None:
        raise CallerError("its content was not kept")


def _is_unknown(response: StoredResponse) -> bool:
    """Whether a recorded response says that nobody knows what came of the request."""
    if response.fields.get("content-type") != "application/problem+json":
        return False
    try:
        document = json.loads(response.body.inline or b"")
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("code") in _CODES
