"""Transfers for the tests of decisions, and what came of their actions."""

from __future__ import annotations

from dataclasses import dataclass

from trioresume.client.decisions.actions import (
    Action,
    Append,
    FetchResult,
    Outcome,
    Sent,
)
from trioresume.client.decisions.protocol_choice import ProtocolChoice, ProtocolName
from trioresume.client.decisions.redirects import Redirects
from trioresume.client.decisions.retry import RetryBudget, RetryPolicy
from trioresume.client.decisions.transfer import Transfer
from trioresume.protocol.dialects.client import Answer, Locations
from trioresume.protocol.dialects.seed.client import SEED
from trioresume.protocol.heads import Fields
from trioresume.protocol.ranges import ContentRange
from trioresume.protocol.urls import Url

BASE = Url.parse("http://peer.test/target")
CONTENT, MESSAGE, RESULT = (
    Url.parse(f"http://peer.test/op/{name}")
    for name in ("content", "message", "result")
)
OFFER = Locations(CONTENT, MESSAGE, RESULT)
CUT = ConnectionResetError("cut")
RECORDED = {"response-message-location": "/op/message"}


@dataclass
class Facts:
    """Content of *length* bytes whose bytes below *base* are lost.

    While the length is not known, *produced* bytes are there.
    """

    length: int | None = 100
    base: int = 0
    window: int | None = None
    produced: int = 0

    def can_start_at(self, offset: int) -> bool:
        return offset >= self.base

    def at_hand(self, offset: int) -> int:
        return (self.produced if self.length is None else self.length) - offset


def transfer(
    method: str = "POST",
    content: Facts | None = None,
    *,
    locations: Locations | None = None,
    attempts: int = 20,
    retry_unsafe: bool = False,
    known_to_resume: bool = False,
    all_sent: bool = False,
    protocol: ProtocolName = "seed",
    proven: int | None = None,
) -> Transfer:
    policy = RetryPolicy(attempts=attempts)
    content = content or Facts()
    known = SEED if known_to_resume else None
    return Transfer(
        method=method,
        content=content,
        budget=RetryBudget(policy, lambda: 0.5),
        choice=ProtocolChoice(protocol, method, content.length, known=known),
        redirects=Redirects(BASE),
        locations=locations,
        all_sent=all_sent,
        proven=proven,
        retry_unsafe=retry_unsafe,
        max_restarts=policy.restarts,
    )


def begun(action: Action, **settings: object) -> Transfer:
    """A transfer with an offer that is just performing *action*."""
    made = transfer(**{"locations": OFFER, **settings})  # type: ignore[arg-type]
    made._action = action
    if isinstance(action, FetchResult):
        made._answer = Answer(200, Fields({"content-length": "50"}))
    return made


def cut(
    sent: Sent = Sent.NOTHING, *, answer: Answer | None = None, received: int = 0
) -> Outcome:
    return Outcome(answer=answer, sent=sent, received=received, cause=CUT)


def answered(
    status: int,
    fields: dict[str, str] | None = None,
    *,
    sent: Sent = Sent.NOTHING,
    state: str | None = None,
    received: int = 0,
) -> Outcome:
    return Outcome(
        answer=Answer(status, Fields(fields or {})),
        whole=True,
        sent=sent,
        state=state,
        received=received,
    )


def append(first: int, total: int | None = 100) -> Append:
    last = None if total is None else total - 1
    return Append(CONTENT, ContentRange(first, last, total))
