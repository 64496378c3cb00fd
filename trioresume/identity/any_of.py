"""Several authenticators in a row."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields
from trioresume.server.api.config import Principal, Rejection
from trioresume.server.api.handler import LastingTarget

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Authenticator, Config

__all__ = ["AnyOf"]

_CHALLENGE = "www-authenticate"


class AnyOf:
    """An ``authenticate`` for :class:`~trioresume.Config` that asks several, in their order.

    The first one that knows the sender decides. After a 401 the next one is asked. Any other
    refusal is final: it comes from an authenticator that recognised the credentials, or that
    cannot work now. If nobody knows the sender, the answer is a 401 with the challenges of all.

    Raises :class:`~trioresume.CallerError` without authenticators.
    """

    def __init__(self, *authenticators: Authenticator) -> None:
        if not authenticators:
            raise CallerError("AnyOf needs at least one authenticator")
        self._authenticators = authenticators
        self.asks_again = any(map(_asks_again, authenticators))

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        refused = []
        for authenticator in self._authenticators:
            verdict = await authenticator(head)
            if isinstance(verdict, Principal):
                if self.asks_again and not _asks_again(authenticator):
                    return replace(verdict, is_asked_again=False)
                return verdict
            if verdict.status != 401:
                return verdict
            refused.append(verdict)
        return refused[0] if len(refused) == 1 else _combined(head, refused)

    def reload(self) -> None:
        """Have each authenticator read its files again, if it has any.

        Raises :class:`~trioresume.CallerError` with the faults of those that could not. They
        keep what they had.
        """
        faults = []
        for authenticator in self._authenticators:
            reload = getattr(authenticator, "reload", None)
            try:
                if reload is not None:
                    reload()
            except (CallerError, OSError) as exc:
                faults.append(str(exc))
        if faults:
            raise CallerError("; ".join(faults))

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Run what the authenticators run beside their calls."""
        async with AsyncExitStack() as stack:
            parts: tuple[object, ...] = self._authenticators
            for part in parts:
                if isinstance(part, LastingTarget):
                    await stack.enter_async_context(part.running(config))
            yield


def _asks_again(authenticator: Authenticator) -> bool:
    return bool(getattr(authenticator, "asks_again", False))


def _combined(head: RequestHead, refused: list[Rejection]) -> Rejection:
    """Return the refusal that fits the request best, with the challenges of all.

    There is one challenge for each scheme. One that names an error says more than one that
    only asks for credentials.
    """
    challenges: dict[str, str] = {}
    for refusal in refused:
        for challenge in refusal.headers.get_all(_CHALLENGE):
            scheme = _scheme(challenge)
            if scheme not in challenges or "error=" in challenge:
                challenges[scheme] = challenge
    best = _best(head, refused, challenges)
    others = best.headers.without(_CHALLENGE)
    lines = ((_CHALLENGE, challenge) for challenge in challenges.values())
    return replace(best, headers=Fields(lines).plus(others))


def _best(
    head: RequestHead, refused: list[Rejection], challenges: dict[str, str]
) -> Rejection:
    offered = challenges.get(_scheme(head.fields.get("authorization") or ""))
    if offered is not None:
        for refusal in refused:
            if offered in refusal.headers.get_all(_CHALLENGE):
                return refusal
    # Content for people, such as the page of a login, is better than a problem document.
    with_body = (refusal for refusal in refused if refusal.body is not None)
    if (best := next(with_body, None)) is not None:
        return best
    details = dict.fromkeys(refusal.detail for refusal in refused)
    return replace(refused[0], detail="; or ".join(filter(None, details)))


def _scheme(credentials: str) -> str:
    return credentials.partition(" ")[0].lower()
