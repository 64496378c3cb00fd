"""Who may download files, if it is not their owner alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import parse_qsl

from trioresume.errors import CallerError
from trioresume.server.api.config import Config, Principal, Rejection
from trioresume.server.api.handler import LastingTarget

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Authenticator

__all__ = ["Downloads"]

MOST_PARAMETERS = 16
"""The most parameters of a query in which an owner is looked for."""

_UNSIGNED = Rejection(403, detail="a download needs a signed address")

_Who = Literal["public", "signed"]


class Downloads:
    """An ``authenticate`` for :class:`~trioresume.Config`: says who may download files.

    If *who* is ``"public"``, everybody may download a file from the address that names its
    owner, ``/files/NAME?owner=OWNER``. If it is ``"signed"``, every download needs a
    :class:`signed address <trioresume.SignedAddresses>`, also that of the owner. All
    requests but these public downloads go to *authenticate*. *base* is the path of the file
    service.

    Raises :class:`~trioresume.CallerError` for a *base* that is no such path.
    """

    def __init__(
        self, who: _Who, authenticate: Authenticator, *, base: str = "/files/"
    ) -> None:
        if who not in get_args(_Who):
            raise CallerError("downloads are 'public' or 'signed'")
        if not (base.startswith("/") and base.endswith("/")):
            raise CallerError("the base path must start and end with '/'")
        self._is_public = who == "public"
        self._authenticate = authenticate
        self._base = base
        self._operation_path = Config().operation_path
        self.asks_again = bool(getattr(authenticate, "asks_again", False))

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        is_download = (
            head.method in ("GET", "HEAD")
            and head.path.startswith(self._base)
            and not head.path.startswith(self._operation_path)
        )
        if is_download and self._is_public:
            owner = _owner(head.query)
            if owner is not None:
                return Principal(owner, is_asked_again=False)
        verdict = await self._authenticate(head)
        if not is_download or self._is_public or isinstance(verdict, Rejection):
            return verdict
        return _UNSIGNED if verdict.grant is None else verdict

    def reload(self) -> None:
        """Have *authenticate* read its files again. Raises as it does."""
        reload = getattr(self._authenticate, "reload", None)
        if reload is not None:
            reload()

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Run what *authenticate* runs beside its calls."""
        self._operation_path = config.operation_path
        async with AsyncExitStack() as stack:
            inner: object = self._authenticate
            if isinstance(inner, LastingTarget):
                await stack.enter_async_context(inner.running(config))
            yield


def _owner(query: str) -> str | None:
    """Return the owner that *query* names, if it names one."""
    try:
        parameters = parse_qsl(query, errors="strict", max_num_fields=MOST_PARAMETERS)
    except ValueError:
        return None
    owners = [value for name, value in parameters if name == "owner"]
    return owners[0] if len(owners) == 1 else None
