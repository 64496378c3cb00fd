"""Receivers of hooks for tests, which keep what they get."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import trio

from trioresume import HookEvent, HookKind, Hooks

ALL = frozenset(HookKind)

Answer = Mapping[str, Any] | None


class Receiver:
    """A hook function: it keeps each event, and answers as *answers* say, by kind."""

    def __init__(self, **answers: Answer | Callable[[HookEvent], Answer]) -> None:
        self.events: list[HookEvent] = []
        self.answers = {name.replace("_", "-"): each for name, each in answers.items()}
        self.failures: dict[str, int] = {}
        """How many calls of a kind still fail."""
        self.tried: list[HookEvent] = []
        self.gate: trio.Event | None = None
        """If set, no call goes on before it."""
        self._came = trio.Event()

    async def __call__(self, event: HookEvent) -> Answer:
        self.tried.append(event)
        self._came.set()
        if self.gate is not None:
            await self.gate.wait()
        left = self.failures.get(event.kind, 0)
        if left:
            self.failures[event.kind] = left - 1
            raise RuntimeError("the receiver is ill")
        self.events.append(event)
        self._came.set()
        answer = self.answers.get(event.kind)
        return answer(event) if callable(answer) else answer

    @property
    def kinds(self) -> list[str]:
        return [str(event.kind) for event in self.events]

    def of(self, kind: str) -> HookEvent:
        """The only event of this kind."""
        (found,) = (event for event in self.events if event.kind == kind)
        return found

    async def until(self, kind: str, count: int = 1) -> HookEvent:
        """Wait until *count* events of this kind have come; return the last one."""
        await self.until_true(lambda: self.kinds.count(kind) >= count)
        return [event for event in self.events if event.kind == kind][count - 1]

    async def until_true(self, is_so: Callable[[], bool]) -> None:
        """Wait until *is_so*, which is asked again at each call."""
        with trio.fail_after(30):
            while not is_so():
                self._came = trio.Event()
                await self._came.wait()


def hooks(receiver: Any, events: Collection[str] = ALL, **settings: Any) -> Hooks:
    """Hooks that call *receiver* with all events, and do not wait long."""
    return Hooks(receiver, events, **{"backoff": 0.5, "retries": 0, **settings})
