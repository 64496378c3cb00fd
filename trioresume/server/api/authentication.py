"""Ask ``Config.authenticate`` who sent a request.

The numbered statements (R10, C16) are in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.server.api.config import Principal

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config

__all__ = ["ask_again", "authenticate"]

_PROBLEMS = {
    401: ProblemCode.UNAUTHORIZED,
    403: ProblemCode.FORBIDDEN,
    429: ProblemCode.TOO_MANY_REQUESTS,
    502: ProblemCode.BAD_GATEWAY,
    503: ProblemCode.SERVICE_UNAVAILABLE,
}


async def authenticate(config: Config, head: RequestHead) -> Principal:
    """Return the sender. Only for a service that has an authenticator.

    Raises :class:`PeerError` with the refusal, and 503 if it takes too long.
    """
    assert config.authenticate is not None
    with trio.move_on_after(config.header_timeout) as scope:
        verdict = await config.authenticate(head)
    if scope.cancelled_caught:
        raise PeerError(
            ProblemCode.SERVICE_UNAVAILABLE, "the authentication took too long"
        )
    if isinstance(verdict, Principal):
        return verdict
    raise PeerError(
        _PROBLEMS[verdict.status],
        verdict.detail,
        fields=tuple(verdict.headers),
        body=verdict.body,
    )


async def ask_again(
    config: Config, head: RequestHead, sender: Principal, principal: str | None
) -> None:
    """Ask about *sender* once more when all content is there, if that is wanted (C16).

    Content may take hours. Raises :class:`PeerError` with the refusal, or 403 if the sender is
    not *principal*, who began the upload, any more.
    """
    if not getattr(config.authenticate, "asks_again", False):
        return
    if not sender.is_asked_again:
        return
    if (await authenticate(config, head)).name != principal:
        raise PeerError(ProblemCode.FORBIDDEN, "the sender is not the same any more")
