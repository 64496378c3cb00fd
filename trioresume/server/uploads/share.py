"""What an operation in memory asks of the store's sharing, if several processes share it.

With a store of one process there is no :class:`Share`, and none of this costs anything. See
:mod:`trioresume.store.port.sharing` for ownership, and
:mod:`trioresume.server.shared` for what implements this.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields
    from trioresume.server.uploads.operation import Operation
    from trioresume.store.port import Mutation, OperationId

__all__ = ["Share", "Shares", "Wish"]


class Wish(Enum):
    """What somebody wants of an operation that another process may own."""

    LOOK = "look"
    """To see its state. The owner is asked for what has arrived."""
    OFFSET = "offset"
    """The same, and the client will go on at the offset: the owner ends its writer."""
    WRITE = "write"
    """To write or cancel it. It is claimed, unless it has ended."""
    CHANGE = "change"
    """To change it, whatever its state. It is claimed."""
    SPARE = "spare"
    """To change it, unless another process owns it."""


class Share(Protocol):
    """How one operation is shared."""

    @property
    def is_owned(self) -> bool:
        """Whether this process owns the operation. If not, it changes nothing of it."""
        ...

    async def admit(self, wish: Wish, *, is_new: bool) -> bool:
        """Make the operation ready for *wish*; return whether it still exists.

        *is_new* says that its record was read just now.
        Afterwards this process owns it, or knows what its owner has told, or it has ended.
        Raises :class:`StorageError` if the store cannot be reached.
        """
        ...

    async def bring(self, *, ends: bool = False) -> bool:
        """Claim the operation and load it anew; return False if its owner processes it.

        With *ends* the owner is asked to cancel what it processes. Raises
        :class:`StorageError`.
        """
        ...

    async def look(self) -> None:
        """Take over the catalog's record, unless this process owns the operation."""
        ...

    def lose(self) -> None:
        """Note that another process owns the operation now: end its requests here."""
        ...

    def note_state(self) -> None:
        """Tell other processes of a new state of the operation, which this process owns."""
        ...

    def note_progress(self) -> None:
        """Tell other processes of the target's progress."""
        ...

    def note_interim(self, status: int, fields: Fields) -> None:
        """Tell other processes of an interim response."""
        ...

    def renew_later(self) -> None:
        """Claim the operation, which nobody owns, and renew its expiry in the background."""
        ...


class Shares(Protocol):
    """How all operations of a registry are shared."""

    def add(self, operation: Operation, *, is_owned: bool = False) -> None:
        """Give *operation*, which comes into memory, its :class:`Share`."""
        ...

    def let_go(self, operation: Operation) -> None:
        """Note that *operation* leaves memory: release it when its changes are applied."""
        ...

    async def take_up(self, id: OperationId) -> None:
        """Go on with an operation whose target a process was calling when it died.

        Raises :class:`StorageError`.
        """
        ...

    def note_refused(self, mutations: Sequence[Mutation]) -> None:
        """Note that the store has refused *mutations*, because another process owns them."""
        ...
