"""What to do next: the client's decisions, without any I/O.

A transfer is one request to be brought to its final response. The asynchronous layer
performs one :class:`Action` at a time and reports its :class:`Outcome`; the transfer
decides on the next action and how long to wait before it. Between the two, the 100's
offer and acknowledgements are noted as they arrive.

Theory
======

The server keeps the operation, this side keeps the content. All that must be known
to go on is *how much has arrived*, and only the server knows it: bytes handed to a
kernel have not arrived. So every cut after the offer leads to the same question
(``HEAD`` on the content, R12), and every path leads back to its answer.

What is safe to repeat decides the rest:

* Before the offer nothing has happened at the server (R3): begin again. This needs
  care, since "no 100 seen" is not "no 100 sent", and a server that does not know the
  preference acts on whatever it gets. If content was sent without an offer, the
  request is repeated only when its method is idempotent (RFC 9110, section 9.2.2) or
  the caller said so.
* After the offer nothing is ever sent twice *to the target*; if the operation is
  forgotten (404, 410) after all content was handed over, it may have been processed,
  and the same rule applies.

Decisions
=========

===============  ===========================================  ======================
while            outcome                                      next
===============  ===========================================  ======================
SEND             cut, nothing offered, safe to repeat         SEND
SEND             cut, nothing offered, not safe               fail
SEND             cut, offered                                 ASK_OFFSET
SEND             408 425 429 503, nothing offered, safe       SEND, later
SEND             417                                          SEND without Expect
SEND             trouble (see below), offered                 ASK_OFFSET, later
SEND             final response                               finish
SEND             final response, its content cut              FETCH_RESULT
ASK_OFFSET       offset below the end                         APPEND
ASK_OFFSET       all is there                                 FETCH_MESSAGE
ASK_OFFSET       404 410                                      SEND, if safe
ASK_OFFSET       cut, trouble                                 ASK_OFFSET, later
APPEND           cut, trouble                                 ASK_OFFSET
APPEND           409 with an offset                           APPEND from there
APPEND           404 410                                      SEND, if safe
APPEND           incomplete (204)                             APPEND the rest
APPEND           final response                               finish
FETCH_MESSAGE    202 "receiving"                              ASK_OFFSET
FETCH_MESSAGE    202                                          FETCH_MESSAGE, later
FETCH_MESSAGE    the message                                  finish
FETCH_MESSAGE    the message, its content cut                 FETCH_RESULT
FETCH_MESSAGE    404 410                                      SEND, if safe
FETCH_RESULT     206 200, whole                               finish
FETCH_RESULT     cut                                          FETCH_RESULT
FETCH_RESULT     404 410 412, 416 short of the end            FETCH_MESSAGE
===============  ===========================================  ======================

*Trouble* is 408, 425, 429 or any 5xx that is not the target's own answer. The
target's recorded answer carries the operation's locations again (R5), so a 503 with
``Response-Message-Location`` is final and a bare one is a server in passing trouble.
Every "later", every cut and every repetition is charged to the retry budget, which
progress refills.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trioresume.client.locations import Locations
from trioresume.client.steps import (
    Action,
    Answer,
    Append,
    AskOffset,
    FetchMessage,
    FetchResult,
    Finish,
    Next,
    Outcome,
    Send,
    Sent,
    count_of,
)
from trioresume.errors import ClientError, TransferFailed, UploadForgotten
from trioresume.protocol.fields import ContentRange

if TYPE_CHECKING:
    from trioresume.client.retry import RetryBudget

__all__ = ["IDEMPOTENT_METHODS", "ContentFacts", "Transfer"]

IDEMPOTENT_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
"""RFC 9110, section 9.2.2."""

# What says "not now" rather than "no" before anything was begun.
_REFUSED_FOR_NOW = frozenset({408, 425, 429, 503})
_GONE = frozenset({404, 410})

# Seconds until a server is asked again that answers 202 and does not say when.
_DEFAULT_RETRY_AFTER = 1.0


class ContentFacts(Protocol):
    """What decisions need to know of the request's content, at the time."""

    @property
    def length(self) -> int | None:
        """None while it is not known, for content that is produced as it goes."""
        ...

    def can_start_at(self, offset: int) -> bool:
        """Whether the bytes from *offset* on can (still) be sent."""
        ...


@dataclass(eq=False, kw_only=True)
class Transfer:
    """The state of one transfer; see the module's table.

    *known_to_resume* says that this origin made an offer before: then a request whose
    content was cut before the offer is known to be incomplete there, too (R3).
    """

    method: str
    content: ContentFacts
    budget: RetryBudget
    locations: Locations | None = None
    """The offer; given at the start to go on with what an earlier run began."""
    all_sent: bool = False
    """Whether everything was handed over once, so that it may have been processed."""
    retry_unsafe: bool = False
    known_to_resume: bool = False
    declared_length: bool = True
    """Whether the first request told the length, so that the offset shows the end."""
    max_restarts: int = 3
    acknowledged: int = 0
    """The most that the server ever said it has."""
    _expect: bool = True
    _restarts: int = 0
    _received: int = 0
    _answer: Answer | None = None
    _action: Action = field(default_factory=Send)

    # What arrives in the middle of an action.

    def note_offer(self, locations: Locations) -> None:
        """The 100 came, with *locations* (R1)."""
        self.locations = locations
        self.known_to_resume = True
        self.budget.note_progress()

    def note_offset(self, offset: int) -> None:
        """The server says that it has *offset* bytes."""
        if offset > self.acknowledged:
            self.acknowledged = offset
            self.budget.note_progress()

    # What is done next.

    def begin(self) -> Action:
        """The first action: all of it, or what an earlier run left over."""
        if self.locations is not None:
            self._action = self._resume_action(self.locations)
        return self._action

    def after(self, outcome: Outcome) -> Next:
        """The action that follows *outcome*.

        Raises :class:`TransferFailed` and :class:`UploadForgotten`.
        """
        if outcome.sent is Sent.ALL and not self._refused_as_gone(outcome.answer):
            self.all_sent = True
        if outcome.received > self._received:
            self._received = outcome.received
            self.budget.note_progress()
        following = self._decide(outcome)
        self._action = following.action
        return following

    def _refused_as_gone(self, answer: Answer | None) -> bool:
        """Whether a patch met nothing to append to, so that its bytes went nowhere."""
        return (
            isinstance(self._action, Append)
            and answer is not None
            and answer.status in _GONE
            and not answer.recorded
        )

    def _decide(self, outcome: Outcome) -> Next:
        match self._action:
            case Send():
                return self._after_send(outcome)
            case AskOffset():
                return self._after_ask(outcome)
            case Append(range=range_):
                return self._after_append(outcome, range_)
            case FetchMessage():
                return self._after_message(outcome)
            case FetchResult():
                return self._after_result(outcome)
            case Finish():
                raise AssertionError("nothing follows the end")

    def _after_send(self, outcome: Outcome) -> Next:
        answer, locations = outcome.answer, self.locations
        if answer is None or (answer.troubled and locations is not None):
            if locations is None:
                return self._send_again(outcome)
            return self._later(self._resume_action(locations), outcome)
        if answer.status in _REFUSED_FOR_NOW and answer.troubled:
            return self._send_later_or_finish(outcome, answer)
        if answer.status == 417 and self._expect and self._may_send_again(outcome.sent):
            # RFC 9110, section 10.1.1: repeat it without the expectation.
            self._expect = False
            return Next(self._whole)
        return self._deliver(outcome, answer)

    @property
    def _whole(self) -> Send:
        return Send(self._expect)

    def _send_again(self, outcome: Outcome) -> Next:
        if not self._may_send_again(outcome.sent):
            raise TransferFailed(
                f"the connection broke after content of the {self.method} was sent, and"
                " the server offers no way to resume; it may or may not have acted on it"
            ) from outcome.cause
        return self._later(self._whole, outcome)

    def _may_send_again(self, sent: Sent) -> bool:
        if not self.content.can_start_at(0):
            return False
        if sent is Sent.SOME and self.known_to_resume:
            return True
        return sent is Sent.NOTHING or self._repeatable

    @property
    def _repeatable(self) -> bool:
        return self.retry_unsafe or self.method in IDEMPOTENT_METHODS

    def _send_later_or_finish(self, outcome: Outcome, answer: Answer) -> Next:
        """A refusal for now is still an answer, when there is no other to be had."""
        if self._may_send_again(outcome.sent):
            delay = self.budget.delay(
                outcome.now, answer.retry_after(outcome.wall_time)
            )
            if delay is not None:
                return Next(self._whole, delay)
        return self._deliver(outcome, answer)

    def _after_ask(self, outcome: Outcome) -> Next:
        answer = outcome.answer
        if answer is None or answer.troubled:
            return self._later(self._action, outcome)
        if answer.status in _GONE:
            return self._start_over(outcome)
        offset = answer.offset
        if offset is None and answer.status == 200:
            offset = count_of(answer.fields.get("content-length"))
        if offset is None or not 200 <= answer.status <= 299:
            raise self._unexpected(answer)
        return self._go_on_from(offset, answer.complete, outcome)

    def _go_on_from(
        self, offset: int, complete: bool | None, outcome: Outcome, delay: float = 0.0
    ) -> Next:
        assert self.locations is not None
        self.note_offset(offset)
        length = self.content.length
        if length is not None and offset > length:
            raise TransferFailed(
                f"the server has {offset} bytes of content that is {length} bytes long"
            ) from outcome.cause
        self.all_sent = self.all_sent and offset == length
        if complete is None:
            complete = offset == length and self.declared_length
        if complete:
            self.all_sent = True
            return self._fetch_message(outcome, delay)
        url = self.locations.content
        if url is None:
            raise TransferFailed("the server does not say where the content goes")
        if not self.content.can_start_at(offset):
            raise UploadForgotten(
                f"the server has {offset} bytes, and what follows is no longer buffered"
            ) from outcome.cause
        return Next(Append(url, self._range_from(offset)), delay)

    def _range_from(self, offset: int) -> ContentRange:
        length = self.content.length
        if length is None:
            return ContentRange(offset, None, None)
        if offset == length:
            # Nothing is left to send; only the end is left to tell (B3, R18).
            return ContentRange(None, None, length)
        return ContentRange(offset, length - 1, length)

    def _after_append(self, outcome: Outcome, range_: ContentRange) -> Next:
        assert self.locations is not None
        answer = outcome.answer
        if answer is None or answer.troubled:
            return self._later(self._resume_action(self.locations), outcome)
        if answer.recorded:
            return self._deliver(outcome, answer)
        if answer.status in _GONE:
            return self._start_over(outcome)
        if answer.status == 409:
            following = self._later(self._resume_action(self.locations), outcome)
            if answer.offset is None:
                return following
            return self._go_on_from(
                answer.offset, answer.complete, outcome, following.delay
            )
        open_ended = range_.total is None and answer.complete is None
        if 200 <= answer.status <= 299 and (answer.complete is False or open_ended):
            return self._after_incomplete(outcome, answer)
        return self._deliver(outcome, answer)

    def _after_incomplete(self, outcome: Outcome, answer: Answer) -> Next:
        """What was sent has arrived, but the server does not take it for all (R17)."""
        assert self.locations is not None
        before = self.acknowledged
        offset = answer.offset
        if offset is None:
            return self._later(self._resume_action(self.locations), outcome)
        # A server that answers so again and again, and never completes, costs budget.
        delay = 0.0
        if offset <= before:
            delay = self._later(self._action, outcome).delay
        return self._go_on_from(offset, answer.complete, outcome, delay)

    def _after_message(self, outcome: Outcome) -> Next:
        assert self.locations is not None
        answer = outcome.answer
        if answer is None or (answer.troubled and outcome.state != "message"):
            return self._later(self._action, outcome)
        if outcome.state == "message":
            return self._deliver(outcome, answer)
        if answer.status == 202:
            if outcome.state == "receiving":
                return self._later(self._resume_action(self.locations), outcome)
            # A server that processes is alive: patience for it is not for failures.
            self.budget.note_progress()
            delay = answer.retry_after(outcome.wall_time)
            return Next(self._action, _DEFAULT_RETRY_AFTER if delay is None else delay)
        if answer.status in _GONE:
            return self._start_over(outcome)
        raise self._unexpected(answer)

    def _after_result(self, outcome: Outcome) -> Next:
        final, answer = self._answer, outcome.answer
        assert final is not None
        if answer is None or answer.troubled or answer.status in (200, 206):
            return self._deliver(outcome, final)
        length = count_of(final.fields.get("content-length"))
        if answer.status == 416 and outcome.received == length:
            return Next(Finish(final))
        if answer.status in (404, 410, 412, 416):
            self._later(self._action, outcome)  # charged: we could be sent in circles
            return self._fetch_message(outcome)
        raise self._unexpected(answer)

    # Where several rows meet.

    def _deliver(self, outcome: Outcome, answer: Answer) -> Next:
        """*answer* is the final response; fetch what its content lacks (R28)."""
        self._answer = answer
        if outcome.whole:
            return Next(Finish(answer))
        action: Action | None = self._result_action(outcome)
        if action is None and self.locations is not None and self.locations.message:
            action = FetchMessage(self.locations.message)
        if action is None:
            if not (self._repeatable and self.content.can_start_at(0)):
                raise TransferFailed(
                    f"the content of the {answer.status} was cut after"
                    f" {outcome.received} bytes and cannot be had again"
                ) from outcome.cause
            action = self._whole
        return self._later(action, outcome)

    def _result_action(self, outcome: Outcome) -> FetchResult | None:
        if self.locations is None or self.locations.result is None:
            return None
        assert self._answer is not None
        tag = self._answer.strong_etag
        return FetchResult(self.locations.result, outcome.received, tag)

    def _resume_action(self, locations: Locations) -> Action:
        """After a cut: ask how much arrived, or for the answer if nothing was to."""
        if locations.message is not None and self.content.length == 0:
            return FetchMessage(locations.message)
        if locations.content is None:
            raise TransferFailed("the server does not say where the content goes")
        return AskOffset(locations.content)

    def _fetch_message(self, outcome: Outcome, delay: float = 0.0) -> Next:
        assert self.locations is not None
        if self.locations.message is None:
            raise TransferFailed(
                "the request is complete, but the server does not say where its"
                " response can be had again"
            ) from outcome.cause
        return Next(FetchMessage(self.locations.message), delay)

    def _start_over(self, outcome: Outcome) -> Next:
        """The server forgot the operation: send everything again, if that is safe."""
        if self.all_sent and not self._repeatable:
            raise UploadForgotten(
                "the server no longer knows the upload, and may have acted on it"
            ) from outcome.cause
        if not self.content.can_start_at(0):
            raise UploadForgotten(
                "the server no longer knows the upload, and its content is no longer"
                " at hand"
            ) from outcome.cause
        if self._restarts >= self.max_restarts:
            raise UploadForgotten(
                f"the server forgot the upload {self._restarts + 1} times"
            ) from outcome.cause
        self._restarts += 1
        self.locations = None
        self.all_sent = False
        self.acknowledged = 0
        return self._later(self._whole, outcome)

    def _later(self, action: Action, outcome: Outcome) -> Next:
        """*action* after a delay; raises :class:`TransferFailed` when there is none left."""
        answer = outcome.answer
        wish = None if answer is None else answer.retry_after(outcome.wall_time)
        delay = self.budget.delay(outcome.now, wish)
        if delay is None:
            reason = outcome.cause or f"the server answered {answer and answer.status}"
            raise TransferFailed(
                f"retries are used up: {reason}", resumable=True
            ) from outcome.cause
        return Next(action, delay)

    def _unexpected(self, answer: Answer) -> ClientError:
        asked = {
            AskOffset: "how much of the content arrived",
            FetchMessage: "for the response",
            FetchResult: "for the rest of the response",
        }[type(self._action)]
        return TransferFailed(f"asked {asked}, the server answered {answer.status}")
