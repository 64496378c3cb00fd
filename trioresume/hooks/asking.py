"""One question to a receiver, or one attempt to deliver, within its limits of time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.hooks.answers import HookAnswer, HookFailed, parse_answer

if TYPE_CHECKING:
    from trioresume.hooks.events import HookEvent
    from trioresume.hooks.settings import Hooks
    from trioresume.hooks.transports.transport import HookTransport
    from trioresume.protocol.clock import ServiceClock

__all__ = ["Asking"]

logger = logging.getLogger("trioresume.hooks")

RETRY_AFTER = 2
"""Seconds after which a client may come back if a receiver cannot be reached."""


class Asking:
    """Calls the receivers. Only so many calls run at a time; the time in line counts."""

    def __init__(
        self, hooks: Hooks, transport: HookTransport, clock: ServiceClock
    ) -> None:
        self._hooks = hooks
        self._transport = transport
        self._clock = clock
        # Questions and deliveries do not wait for each other.
        self._questions = trio.CapacityLimiter(hooks.concurrency)
        self._deliveries = trio.CapacityLimiter(hooks.concurrency)

    async def deliver(self, event: HookEvent) -> HookAnswer:
        """Make one attempt. Raises :class:`HookFailed`."""
        async with self._deliveries:
            return await self._attempt(event)

    async def ask(self, event: HookEvent) -> HookAnswer:
        """Ask while a client waits. Raises :class:`PeerError`: 503, or 500 for a wrong answer."""
        try:
            return await self._ask(event)
        except HookFailed as exc:
            logger.error("the receiver of %s failed: %s", event.kind, exc)
            if exc.may_pass:
                raise PeerError(
                    ProblemCode.SERVICE_UNAVAILABLE,
                    "a hook of this service cannot be reached",
                    fields=(("retry-after", str(RETRY_AFTER)),),
                    close=True,
                ) from exc
            raise PeerError(ProblemCode.HOOK_FAILED, close=True) from exc

    async def _ask(self, event: HookEvent) -> HookAnswer:
        tries = self._hooks.retries
        while True:
            try:
                with trio.fail_after(self._hooks.timeout):
                    await self._questions.acquire()
                try:
                    return await self._attempt(event)
                finally:
                    self._questions.release()
            except trio.TooSlowError:
                raise HookFailed("too many questions wait", may_pass=True) from None
            except HookFailed as exc:
                if not exc.may_pass or not tries:
                    raise
                logger.warning("%s is asked again: %s", event.kind, exc)
            tries -= 1
            await trio.sleep(self._hooks.backoff)

    async def _attempt(self, event: HookEvent) -> HookAnswer:
        with trio.move_on_after(self._hooks.timeout):
            answer = await self._transport.call(event, self._clock.date())
            return parse_answer(answer)
        raise HookFailed(f"no answer in {self._hooks.timeout:g} s", may_pass=True)
