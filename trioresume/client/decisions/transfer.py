"""The client's decisions: what to do next, without any I/O.

A transfer brings one request to its final response. The asynchronous layer performs one
:class:`Action` at a time and reports its :class:`Outcome`. The transfer decides on the
next action and on the delay before it. During an action it notes offers and
acknowledgements as they arrive.

Theory
======

The server keeps the operation, the client keeps the content. To go on, the client must
know one fact: *how much has arrived*. Only the server knows it, because bytes in a
kernel's buffer have not arrived. So every cut after the offer leads to the same
question (``HEAD`` on the content, R12), and the answer decides how to go on.

This holds for every protocol. A :class:`~trioresume.protocol.dialects.client.ClientDialect` has the protocol's fields, and a
:class:`Choice` decides which protocol to speak. An *offer* says where the content goes:
the 100 of the seed, the 104 of RUFH, the answer to a creation in tus.

The other rule is what may safely be repeated:

* Before the offer nothing has happened at the server (R3), so the client begins again.
  This needs care. The client may have missed an offer, and a server that does not know
  the protocol acts on any content it gets. If content was sent without an offer, the
  request is repeated only if its method is idempotent (RFC 9110, section 9.2.2) or if
  the caller allows it.
* After the offer nothing reaches *the target* twice. If the server forgets the
  operation (404, 410) after all content was sent, the target may have processed it, and
  the same rule applies.

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
SEND APPEND      a proxy refuses to forward as content comes  the same, without asking
SEND             trouble (see below), offered                 ASK_OFFSET, later
SEND             stopped: another dialect was chosen          SEND or CREATE in it
SEND             stopped: offered, but can only go in parts   ASK_OFFSET
SEND             not understood, before its content           DISCOVER, or the same
SEND             413, and appends may be smaller              CREATE
SEND             it is a step (RUFH)                          APPEND the rest
SEND CREATE      307 308 to where it may go                   the same, there
SEND             redirected, or 511, not in TLS               SEND, later, if safe
SEND             success, unmarked, of a PUT                  CONFIRM
SEND             the same with a validator                    CONTRAST
SEND             success, unmarked, nothing shows it          SEND, later, if safe
SEND             final response                               finish
SEND             final response, its content cut              FETCH_RESULT
CONFIRM          content of this length is there              finish
CONFIRM          something is there                           CONTRAST
CONFIRM          it is not                                    SEND, later
CONFIRM          cut, trouble                                 CONFIRM, later
CONTRAST         success for a name that nothing has          SEND, later
CONTRAST         anything else                                finish
CONTRAST         cut, trouble, after a validator              finish
CONTRAST         cut, trouble                                 CONTRAST, later
DISCOVER         another dialect                              SEND or CREATE in it
DISCOVER         nothing new                                  finish as refused
CREATE           cut, trouble, foreign                        CREATE, later
CREATE           the upload's location                        APPEND, or *complete*
CREATE           not understood                               CREATE, older version
CREATE           taken for all there is                       SEND, plain
CREATE           any other refusal                            finish
ASK_OFFSET       offset below the end                         APPEND, perhaps GATHER
ASK_OFFSET       all is there                                 *complete*
ASK_OFFSET       404 410                                      SEND, if safe
ASK_OFFSET       cut, trouble, foreign                        ASK_OFFSET, later
GATHER           it is at hand                                APPEND
APPEND           cut, trouble, foreign                        ASK_OFFSET
APPEND           409 with an offset                           APPEND from there
APPEND           404 410                                      SEND, if safe
APPEND           it is a step                                 APPEND the rest
APPEND           final response                               finish
*complete*       the response has an address                  FETCH_MESSAGE
*complete*       an append can be repeated (RUFH)             APPEND of nothing
*complete*       neither (tus)                                finish with what is known
FETCH_MESSAGE    202 "receiving"                              ASK_OFFSET
FETCH_MESSAGE    202                                          FETCH_MESSAGE, later
FETCH_MESSAGE    the message                                  finish
FETCH_MESSAGE    the message, its content cut                 FETCH_RESULT
FETCH_MESSAGE    cut, trouble, foreign                        FETCH_MESSAGE, later
FETCH_MESSAGE    404 410                                      SEND, if safe
FETCH_RESULT     206 200, whole                               finish
FETCH_RESULT     cut, foreign                                 FETCH_RESULT
FETCH_RESULT     404 410 412, 416 short of the end            FETCH_MESSAGE
===============  ===========================================  ======================

*Trouble* is 408, 425, 429 or any 5xx that is not the target's own answer; tus adds 423
and 460. A *foreign* answer comes from the network and not from the server, such as a
captive portal's page; :mod:`~trioresume.client.marks` tells them apart. An *unmarked*
answer has no field of any protocol. The target's recorded answer is recognised by the
operation's locations (R5) or by its statement that the upload is complete (C11). So a
503 with these is final, and a bare 503 is passing trouble. Every "later", every cut and
every repetition costs retry budget. Progress refills the budget.

In tus and RUFH a complete upload has an answer even if the target's cannot be had: the
server's statement that it is complete, with the upload's own location.

Statement numbers such as R12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from trioresume.client.decisions.actions import (
    Action,
    Append,
    AskOffset,
    Confirm,
    Contrast,
    Create,
    Discover,
    FetchMessage,
    FetchResult,
    Finish,
    Gather,
    Next,
    Outcome,
    Send,
    Sent,
)
from trioresume.client.decisions.portals import (
    Verdict,
    confirms,
    contradicts,
    has_validator,
    is_diverted,
    plain_verdict,
    shows_length,
    stores_content,
)
from trioresume.client.decisions.resumption import (
    IDEMPOTENT_METHODS,
    ContentFacts,
    Resumption,
)
from trioresume.errors import TransferFailed
from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.dialects.discovery import Discovery
from trioresume.protocol.dialects.marks import is_marked, is_page
from trioresume.protocol.dialects.rufh.client import RufhClient

__all__ = ["IDEMPOTENT_METHODS", "ContentFacts", "Transfer"]

# These say "not now" rather than "no", before anything has begun.
_REFUSED_FOR_NOW = frozenset({408, 425, 429, 503})


@dataclass(eq=False, kw_only=True)
class Transfer(Resumption):
    """The state of one transfer. The module's docstring has its table.

    The decisions after the offer are in :class:`Resuming`.
    """

    _expect: bool = True
    _received: int = 0
    turned: bool = False
    """Whether the request was stopped before its content, to continue in another way."""
    _refusal: Answer | None = None
    _unconfirmed: Answer | None = None
    """The answer that a CONFIRM or CONTRAST has to confirm."""
    _action: Action = field(default_factory=Send)

    # What the client learns during an action.

    @property
    def wants_discovery(self) -> bool:
        """Whether to ask the server before content goes without an offer."""
        return self.locations is None and self.choice.asks

    def note_discovery(self, answer: Answer | None) -> None:
        """Take the answer to that question; None if there was none."""
        if self.locations is None:  # an offer may have come meanwhile
            self.turned = self._discover(answer)

    def note_ready(self) -> bool:
        """Return whether to send the content now. If False, this request is over."""
        if self.locations is not None:
            self.turned = self._goes_in_parts
        elif not self.turned:
            self.turned = self.choice.turn_unoffered()
        return not self.turned

    @property
    def _goes_in_parts(self) -> bool:
        """Whether the content could not be sent again after a cut.

        A part of it can be sent again, if it is not longer than the window.
        """
        return self.content.window is not None and not self.dialect.acknowledges

    def _discover(self, answer: Answer | None) -> bool:
        if answer is None or not answer.ok:
            return self.choice.discover(None)
        turned = self.choice.discover(Discovery.of(answer.fields))
        self.note_fields(answer.fields)
        return turned

    # The next action.

    def begin(self) -> Action:
        """Return the first action: all of the request, or the rest of an earlier run's."""
        if self.locations is not None:
            self._action = self._resume_action(self.locations)
        else:
            self._action = self._first
        return self._action

    @property
    def _first(self) -> Action:
        in_parts = self.choice.known_to_resume and self._goes_in_parts
        return Create() if self.dialect.careful or in_parts else Send(self._expect)

    def after(self, outcome: Outcome) -> Next:
        """Return the action that follows *outcome*.

        Raises :class:`TransferFailed` and :class:`UploadForgotten`.
        """
        following = self._after_buffering_proxy(outcome) or self._redirected(outcome)
        if following is not None:
            self._action = following.action
            return following
        if outcome.sent is Sent.ALL and self._was_handed_over(outcome.answer):
            self.all_sent = True
        if outcome.received > self._received:
            self._received = outcome.received
            self.budget.note_progress()
        if outcome.answer is not None:
            self.note_fields(outcome.answer.fields)
        following = self._decide(outcome)
        self._action = following.action
        if isinstance(self._action, Send | Create):
            # Whoever redirected the last attempt may have been the network.
            self.redirects.restart()
        return following

    def _after_buffering_proxy(self, outcome: Outcome) -> Next | None:
        """Repeat the request without ``Incremental``, if a proxy refused it for that.

        Returns None otherwise. The proxy has forwarded nothing of such a request, so
        only time is lost. This happens at most once.
        """
        answer = outcome.answer
        if answer is None or not answer.refuses_incremental or self.turned:
            return None
        if not self.choice.incremental or not isinstance(self._action, Send | Append):
            return None
        self.choice.incremental = False
        if self.locations is not None:
            return Next(self._resume_action(self.locations))
        self.all_sent = False
        return Next(self._first) if self.content.can_start_at(0) else None

    def _redirected(self, outcome: Outcome) -> Next | None:
        """Repeat the request elsewhere, if the server asks for that; else return None."""
        answer = outcome.answer
        if answer is None or self.locations is not None or self.turned:
            return None
        if not isinstance(self._action, Send | Create):
            return None
        if not self.redirects.follow(answer):
            return None
        if not self.content.can_start_at(0):
            raise TransferFailed(
                f"the server redirected the request to {self.redirects.url.shown} after content"
                " was sent that is no longer at hand"
            )
        return Next(self._first)

    def _was_handed_over(self, answer: Answer | None) -> bool:
        """Whether all of the content has gone to the server with this request."""
        if not isinstance(self._action, Append):
            # Content that the network took has not reached the server.
            return answer is None or not is_diverted(answer)
        # A patch to an upload that is gone: its bytes went nowhere.
        lost = answer is not None and answer.status in self.dialect.gone
        return self._action.completes and not (
            lost and answer is not None and not self.dialect.recorded(answer)
        )

    def _decide(self, outcome: Outcome) -> Next:
        match self._action:
            case Send():
                return self._after_send(outcome)
            case Create():
                return self._after_create(outcome)
            case Discover():
                return self._after_discover(outcome)
            case Confirm():
                return self._after_confirm(outcome)
            case Contrast():
                return self._after_contrast(outcome)
            case AskOffset():
                return self._after_ask(outcome, self._action)
            case Gather():
                return self._after_gather(self._action)
            case Append():
                return self._after_append(outcome, self._action)
            case FetchMessage():
                return self._after_message(outcome, self._action)
            case FetchResult():
                return self._after_result(outcome, self._action)
            case Finish():
                raise AssertionError("nothing follows the end")

    def _after_send(self, outcome: Outcome) -> Next:
        answer, locations = outcome.answer, self.locations
        if self.turned:
            self.turned = False
            goes_on = None if locations is None else self._resume_action(locations)
            return Next(goes_on or self._first)
        if answer is None or (self.dialect.troubled(answer) and locations is not None):
            if locations is None:
                return self._send_again(outcome)
            return self._later(self._resume_action(locations), outcome)
        if answer.status in _REFUSED_FOR_NOW and self.dialect.troubled(answer):
            return self._send_later_or_finish(outcome, answer)
        if self._is_diverted(outcome, answer) and self._stores:
            return self._send_later_or_finish(outcome, answer)
        if answer.ok and self._stores and not self._is_marked(outcome, answer):
            return self._after_unmarked(outcome, answer)
        if answer.status == 417 and self._expect and self._may_send_again(outcome.sent):
            # RFC 9110, section 10.1.1: repeat it without the expectation.
            self._expect = False
            return Next(self._first)
        otherwise = self._otherwise(outcome, answer)
        if otherwise is not None:
            return Next(otherwise)
        said = self.dialect.completeness(answer.fields)
        if self.dialect.explicit_completion and answer.ok and said is False:
            return self._after_incomplete(outcome, answer)
        return self._deliver(outcome, answer)

    def _otherwise(self, outcome: Outcome, answer: Answer) -> Action | None:
        """Return another way to begin after a refusal; None if there is none."""
        if self.locations is not None or answer.ok:
            return None
        if answer.status == 413 and self._fits_in_parts:
            self.choice.be_careful()
            return self._first
        if outcome.sent is not Sent.NOTHING and self.content.length != 0:
            return None
        self._refusal = answer
        turn = self.choice.refused(answer)
        if turn == "stands":
            return None
        return Discover() if turn == "ask" else self._first

    @property
    def _fits_in_parts(self) -> bool:
        """Whether content that is too large for one request may come in several (C13)."""
        length, limit = self.content.length, self.append_limit
        if (
            not isinstance(self.dialect, RufhClient)
            or self.dialect.careful
            or not limit
        ):
            return False
        return self.content.can_start_at(0) and (length is None or length > limit)

    # An answer of success without a mark.

    @property
    def _stores(self) -> bool:
        return stores_content(self.method, self.content.length)

    @staticmethod
    def _is_marked(outcome: Outcome, answer: Answer) -> bool:
        return outcome.vouched or is_marked(answer)

    def _is_diverted(self, outcome: Outcome, answer: Answer) -> bool:
        """Whether a network may have redirected the request. Within TLS it cannot."""
        secured = self.redirects.url.origin.scheme == "https"
        return is_diverted(answer) and not (outcome.vouched or secured)

    def _after_unmarked(self, outcome: Outcome, answer: Answer) -> Next:
        length = self.content.length
        verdict = plain_verdict(self.method, answer, outcome.sent, length)
        if verdict is Verdict.STORED:
            return self._deliver_plain(outcome, answer)
        if verdict is not Verdict.DOUBTFUL:
            self._unconfirmed = answer
            return Next(Confirm() if verdict is Verdict.ASK else Contrast())
        return self._disbelieve(outcome, answer)

    def _after_confirm(self, outcome: Outcome) -> Next:
        answer, unconfirmed = outcome.answer, self._unconfirmed
        assert unconfirmed is not None
        # First, before looking for trouble: a 501 only says that the server has no HEAD.
        length = self.content.length
        if answer is not None and confirms(answer, length):
            # A server that refuses HEAD here refuses it for the unused name as well.
            sure = is_marked(answer) or shows_length(answer, length)
            if sure or not answer.ok:
                return self._deliver_plain(outcome, unconfirmed)
            return Next(Contrast())
        if answer is None or self.dialect.troubled(answer):
            return self._later(Confirm(), outcome)
        return self._disbelieve(outcome, unconfirmed)

    def _after_contrast(self, outcome: Outcome) -> Next:
        answer, unconfirmed = outcome.answer, self._unconfirmed
        assert unconfirmed is not None
        not_known = answer is not None and answer.status == 501
        if answer is None or (self.dialect.troubled(answer) and not not_known):
            if has_validator(unconfirmed):
                return self._deliver_plain(replace(outcome, whole=True), unconfirmed)
            return self._later(Contrast(), outcome)
        if contradicts(answer):
            return self._disbelieve(outcome, unconfirmed)
        return self._deliver_plain(outcome, unconfirmed)

    def _deliver_plain(self, outcome: Outcome, answer: Answer) -> Next:
        """Deliver *answer*, which comes from a server that cannot resume."""
        if self.locations is None:
            self.choice.note_plain()
        return self._deliver(outcome, answer)

    def _disbelieve(self, outcome: Outcome, answer: Answer) -> Next:
        """Try again, if that is safe: nothing shows that *answer* is the server's."""
        if self.locations is not None:
            return self._later(self._resume_action(self.locations), outcome)
        self.all_sent = False
        self.choice.reconsider()
        asked = isinstance(self._action, Confirm | Contrast)
        sent = Sent.ALL if asked else outcome.sent
        if not self._may_send_again(sent):
            raise self._doubtful(answer)
        return self._later(self._first, outcome)

    def _after_discover(self, outcome: Outcome) -> Next:
        if self._discover(outcome.answer):
            return Next(self._first)
        assert self._refusal is not None
        return Next(Finish(self._refusal))

    def _after_create(self, outcome: Outcome) -> Next:
        answer = outcome.answer
        if answer is None:
            return self._send_again(outcome)
        if self.dialect.troubled(answer) or not outcome.whole:
            return self._send_later_or_finish(outcome, answer)
        if self._is_diverted(outcome, answer):
            return self._send_later_or_finish(outcome, answer)
        if answer.ok:
            if self.locations is None and self._took_it_for_all(answer):
                self.choice.give_up()
                return Next(self._first)
            created = answer.status == 201 and "location" in answer.fields
            marked = created or self._is_marked(outcome, answer)
            if self.locations is None and not marked:
                return self._disbelieve(outcome, answer)
            if self.locations is None:
                raise TransferFailed(
                    f"the server answered {answer.status} to the creation of an upload,"
                    " and does not say where it is on this server"
                )
            offset = self.dialect.offset(answer.fields) or 0
            return self._go_on_from(offset, answer, outcome)
        otherwise = self._otherwise(outcome, answer)
        return Next(Finish(answer) if otherwise is None else otherwise)

    def _took_it_for_all(self, answer: Answer) -> bool:
        """Whether the server took the empty request for the whole: it does not know RUFH."""
        if not isinstance(self.dialect, RufhClient) or is_page(answer):
            return False
        return not self.dialect.understood(answer.fields)

    def _send_again(self, outcome: Outcome) -> Next:
        if not self._may_send_again(outcome.sent):
            raise TransferFailed(
                f"the connection broke after content of the {self.method} was sent, and"
                " the server offers no way to resume; it may or may not have acted on it"
            ) from outcome.cause
        return self._later(self._first, outcome)

    def _may_send_again(self, sent: Sent) -> bool:
        if not self.content.can_start_at(0):
            return False
        if sent is Sent.SOME and self.choice.known_to_resume:
            return True
        return sent is Sent.NOTHING or self._repeatable

    def _send_later_or_finish(self, outcome: Outcome, answer: Answer) -> Next:
        """Send again later, or deliver the refusal if that is not possible."""
        if self._may_send_again(outcome.sent):
            delay = self.budget.delay(
                outcome.now, answer.retry_after(outcome.wall_time)
            )
            if delay is not None:
                return Next(self._first, delay)
        return self._deliver(outcome, answer)
