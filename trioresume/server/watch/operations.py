"""Operations that count what happens to them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

from trioresume.protocol.dialects import name_of_upload
from trioresume.protocol.operation import Event, OperationState
from trioresume.server.uploads.incoming_content import IncomingContent
from trioresume.server.uploads.operation import Change, Operation
from trioresume.store.port import CreateOperation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trioresume.server.uploads.loaded_operation import Surroundings
    from trioresume.server.watch.tally import Tally
    from trioresume.store.port import Mutation, OperationId

__all__ = ["CountedOperation", "count_created"]

_S = OperationState
_ENDED = (_S.GONE, _S.ABANDONED)

FAILED = 400
"""The least status of a response that says that the upload was not taken."""


def count_created(tally: Tally, mutations: Sequence[Mutation]) -> None:
    """Count the operations whose records were committed."""
    for mutation in mutations:
        if isinstance(mutation, CreateOperation):
            tally.created[name_of_upload(mutation.record.fields)] += 1


class CountedContent(IncomingContent):
    """Content that counts the requests which go on with it."""

    __slots__ = ()

    @asynccontextmanager
    async def writing(self, place: int) -> AsyncIterator[None]:
        async with super().writing(place):
            owner = self._owner
            if self.offset and isinstance(owner, CountedOperation):
                owner.count_resumption()
            yield


class CountedOperation(Operation):
    """An operation that counts the changes of its state."""

    __slots__ = ("_tally",)
    content_type: ClassVar[type[IncomingContent]] = CountedContent

    def __init__(
        self, tally: Tally, id: OperationId, surroundings: Surroundings
    ) -> None:
        super().__init__(id, surroundings)
        self._tally = tally

    @property
    def _dialect(self) -> str:
        return name_of_upload(self.record.fields)

    def count_resumption(self) -> None:
        """Count a request that adds to content which earlier requests have begun."""
        self._tally.resumptions[self._dialect] += 1

    async def _change(self, event: Event) -> Change:
        was = self.state
        change = await super()._change(event)
        if self.state in _ENDED and was not in _ENDED:
            if event is Event.CANCELLED:
                self._tally.terminated[self._dialect] += 1
            elif event is Event.EXPIRED:
                self._tally.expired[self._dialect] += 1
        return change

    def _enter(self, change: Change) -> None:
        was = self.state
        super()._enter(change)
        response = self.record.response
        is_new = self.state is _S.DONE and was is not _S.DONE
        if is_new and response is not None and response.status < FAILED:
            self._tally.finished[self._dialect] += 1
