"""All operations that several processes share: notices, claims, releases, renewals.

An operation is released when it leaves memory, after everything that was submitted for it has
been applied. So what another process owns is in use there.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Self, cast

import trio

from trioresume.errors import StorageError
from trioresume.server.shared.ownership import OwnShare
from trioresume.server.uploads.loaded_operation import lifetime_of
from trioresume.server.uploads.locations import concealed
from trioresume.server.uploads.share import Wish
from trioresume.store.port import (
    Abandoned,
    Changed,
    Claimed,
    Missed,
    Told,
    Wanted,
    changed_operations,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trioresume.server.uploads.operation import Operation
    from trioresume.server.uploads.quotas import Quotas
    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import Mutation, Notice, OperationId, Sharing

__all__ = ["ASK_TIMEOUT", "NoticeQueue", "SharedOperations"]

logger = logging.getLogger("trioresume.operations")

ASK_TIMEOUT = 1.0
"""Seconds that a request waits for the owner to tell its offset."""
MOST_CLAIMS = 64
"""Claims at a time. Each waits in a thread until the owner has answered."""
LONGEST_RENEWAL = 60.0
"""Seconds between two looks at the expiry of what is in use."""
RETRY_DELAY = 60.0
"""Seconds until an operation that could not be taken up is tried again."""


class NoticeQueue:
    """Takes the notices of a store from its thread into the event loop.

    They are dropped once the service has ended, although the loop may go on: it owns nothing
    any more then.
    """

    def __init__(self) -> None:
        self._take: Callable[[Notice], None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._take = None

    def listen(self, sharing: Sharing, take: Callable[[Notice], None]) -> None:
        """Have *take* called in the event loop with each notice from now on."""
        token = trio.lowlevel.current_trio_token()
        self._take = take

        def hand_over(notice: Notice) -> None:
            try:
                token.run_sync_soon(self._deliver, notice)
            except trio.RunFinishedError:
                pass

        sharing.listen(hand_over)

    def _deliver(self, notice: Notice) -> None:
        if self._take is not None:
            self._take(notice)


class SharedOperations:
    """How the operations of *registry* are shared by *sharing*."""

    def __init__(
        self,
        registry: Registry,
        sharing: Sharing,
        quotas: Quotas,
        background: trio.Nursery,
        *,
        ask_timeout: float = ASK_TIMEOUT,
        calls_targets: bool = True,
    ) -> None:
        self.registry = registry
        self.sharing = sharing
        self.ask_timeout = ask_timeout
        self.calls_targets = calls_targets
        """Whether this process may go on with a target's call. The keeper of workers must not."""
        self._quotas = quotas
        self._background = background
        self._claims = trio.CapacityLimiter(MOST_CLAIMS)
        self._leaving: dict[OperationId, None] = {}
        """Operations that have left memory, and are owned until their changes are applied."""
        self._is_releasing = False
        registry.shares = self
        registry.storage.on_refused = self.note_refused

    # Notices.

    def take(self, notice: Notice) -> None:
        """Take a notice, in the event loop."""
        match notice:
            case Claimed(id, ends):
                self._with(id, partial(OwnShare.give, ends=ends))
            case Wanted(id, ends):
                self._with(id, partial(OwnShare.answer, ends=ends))
            case Told(id, message):
                share = self._share(id)
                if share is not None:
                    share.hear(message)
            case Changed(id):
                self._look(id)
            case Abandoned(id):
                self._background.start_soon(self._take_up_at_last, id)
            case Missed():
                for each in list(self.registry.loaded):
                    self._background.start_soon(self._check, each)

    def _share(self, id: OperationId) -> OwnShare | None:
        operation = self.registry.loaded.get(id)
        if operation is None or not operation.is_loaded:
            return None
        return _own(operation)

    def _with(
        self, id: OperationId, act: Callable[[OwnShare], Awaitable[None]]
    ) -> None:
        """Have the share of an operation that this process owns answer a notice."""
        operation, share = self.registry.loaded.get(id), self._share(id)
        if operation is not None and share is not None:
            self.registry.start(operation, act, share)
        elif id not in self._leaving:
            self.sharing.release(id)  # it was created or claimed, and is not used

    def _look(self, id: OperationId) -> None:
        share = self._share(id)
        if share is not None and not share.is_owned:
            share.changes += 1
            if not share.is_looking:
                self.registry.start(self.registry.loaded[id], share.keep_looking)

    async def _check(self, id: OperationId) -> None:
        """Look whether the operation has another owner than this process believes."""
        share = self._share(id)
        if share is None or not share.is_owned:
            self._look(id)
            return
        try:
            storage = self.registry.storage
            record = await storage.run(storage.store.operation, id)
        except StorageError as exc:
            logger.error("%s cannot be looked at now: %s", concealed(id), exc)
            return
        if record is not None and record.is_elsewhere:
            share.lose()

    async def _take_up_at_last(self, id: OperationId) -> None:
        while True:
            try:
                await self.take_up(id)
            except StorageError as exc:
                logger.error("%s cannot be taken up now: %s", concealed(id), exc)
                await trio.sleep(RETRY_DELAY)
            else:
                return

    async def take_up(self, id: OperationId) -> None:
        async with self.registry.use(id):
            pass  # to claim it is enough: its owner goes on with it

    def note_refused(self, mutations: Sequence[Mutation]) -> None:
        for operation in changed_operations(mutations):
            share = self._share(operation)
            if share is not None:
                share.lose()

    # Owning.

    def add(self, operation: Operation, *, is_owned: bool = False) -> None:
        operation.share = OwnShare(self, operation, is_owned=is_owned)

    async def claim(self, id: OperationId, *, ends: bool) -> bool:
        """Claim the operation, in a thread. Raises :class:`StorageError`."""
        claim = partial(self.sharing.claim, id, ends=ends)
        return await trio.to_thread.run_sync(claim, limiter=self._claims)

    def forget_reservation(self, id: OperationId) -> None:
        """Give back what is reserved for an operation, and not on its way to the store."""
        self._quotas.forget(id)

    def let_go(self, operation: Operation) -> None:
        share = _own(operation)
        share.let_go()
        if not share.is_owned or operation.is_forgotten or operation.unoffered:
            return  # what is forgotten has no owner
        self._leaving[operation.id] = None
        if not self._is_releasing:
            self._is_releasing = True
            self._background.start_soon(self._release)

    async def _release(self) -> None:
        """Release what has left memory, once its changes are applied."""
        try:
            while self._leaving:
                leaving, self._leaving = self._leaving, {}
                await self.registry.storage.settle()
                for each in leaving:
                    known = self.registry.loaded.get(each)
                    share = None if known is None else _own(known)
                    if share is None or not (share.is_owned or share.is_claiming):
                        self.sharing.release(each)
        finally:
            self._is_releasing = False

    # Expiry.

    def renew(self, id: OperationId) -> None:
        """Claim the operation, if nobody owns it, and renew its expiry, in the background."""
        self._background.start_soon(self._renew, id)

    async def _renew(self, id: OperationId) -> None:
        try:
            async with self.registry.use(id, Wish.SPARE) as operation:
                if operation is not None and operation.is_held:
                    operation.renew()
        except StorageError as exc:
            logger.error("%s cannot be renewed now: %s", concealed(id), exc)

    async def run(self) -> None:
        """Renew the expiry of what is in use, until cancelled.

        In one process the expiry task does that when the time comes. Here another process may
        run that task, and leaves alone what is owned. But should this process die, what its
        clients were sending must not be overdue.
        """
        shortest = self.registry.config.incomplete_lifetime
        while True:
            await trio.sleep(min(LONGEST_RENEWAL, shortest / 8))
            now = self.registry.clock.now()
            for operation in list(self.registry.loaded.values()):
                if operation.is_loaded and operation.is_held and operation.users:
                    lifetime, _ = lifetime_of(operation.record, operation.around.config)
                    if operation.record.expires_at - now < lifetime / 2:
                        operation.renew()


def _own(operation: Operation) -> OwnShare:
    """Return how *operation* is shared, as this module has made it."""
    return cast("OwnShare", operation.share)
