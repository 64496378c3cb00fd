"""Operations that count what happens to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trioresume.protocol.dialects import name_of_upload
from trioresume.protocol.operation import Event, OperationState
from trioresume.server.uploads.incoming_content import IncomingContent
from trioresume.server.uploads.operation import Change, Operation
from trioresume.server.uploads.turns import Turn
from trioresume.store.port import CreateOperation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from trioresume.server.uploads.loaded_operation import Surroundings
    from trioresume.server.watch.tally import Tally
    from trioresume.store.port import Mutation, OperationId

__all__ = ["CountedOperation", "count_created"]

_S = OperationState
_ENDED = (_S.GONE, _S.ABANDONED)
_ENDING = (Event.CANCELLED, Event.EXPIRED)

FAILED = 400
"""The least status of a response that says that the upload was not taken."""


def count_created(tally: Tally, mutations: Sequence[Mutation]) -> None:
    """Count the operations whose records were committed."""
    for mutation in mutations:
        if isinstance(mutation, CreateOperation):
            tally.created[name_of_upload(mutation.record.fields)] += 1


class CountedTurn(Turn):
    """A turn that is counted if earlier requests have begun the content."""

    __slots__ = ()

    async def __aenter__(self) -> None:
        await super().__aenter__()
        content = self._content
        if isinstance(content, CountedContent) and content.offset:
            content.count_resumption()


class CountedContent(IncomingContent):
    """Content that counts the requests which go on with it."""

    __slots__ = ()

    def writing(self, place: int) -> AbstractAsyncContextManager[None]:
        return CountedTurn(self, place)

    def count_resumption(self) -> None:
        """Count a request that adds to the content of earlier ones."""
        if isinstance(self._owner, CountedOperation):
            self._owner.count_resumption()


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
        was = self.record.state
        change = await super()._change(event)
        if event in _ENDING and self.record.state in _ENDED and was not in _ENDED:
            cancelled = event is Event.CANCELLED
            counts = self._tally.terminated if cancelled else self._tally.expired
            counts[self._dialect] += 1
        return change

    def _enter(self, change: Change) -> None:
        was = self.record.state
        super()._enter(change)
        response = self.record.response
        is_new = was is not _S.DONE and self.record.state is _S.DONE
        if is_new and response is not None and response.status < FAILED:
            self._tally.finished[self._dialect] += 1
