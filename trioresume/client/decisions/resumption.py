"""The steps after the offer: ask, append, get the answer.

:mod:`~trioresume.client.transfer` has the rules.

Statement numbers such as B1 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from trioresume.client.decisions.actions import (
    Action,
    Append,
    AskOffset,
    FetchMessage,
    FetchResult,
    Finish,
    Gather,
    Next,
    Outcome,
)
from trioresume.client.decisions.portals import is_foreign
from trioresume.errors import TransferFailed, UploadForgotten
from trioresume.protocol.dialects.client import Answer, Locations
from trioresume.protocol.dialects.marks import is_marked, is_page
from trioresume.protocol.fields import maybe_integer
from trioresume.protocol.ranges import ContentRange

if TYPE_CHECKING:
    from trioresume.client.decisions.protocol_choice import ProtocolChoice
    from trioresume.client.decisions.redirects import Redirects
    from trioresume.client.decisions.retry import RetryBudget
    from trioresume.protocol.dialects.client import ClientDialect
    from trioresume.protocol.heads import Fields
    from trioresume.protocol.urls import Url

__all__ = ["IDEMPOTENT_METHODS", "ContentFacts", "Resumption"]

IDEMPOTENT_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
"""RFC 9110, section 9.2.2."""

# The answers of a server that does not understand where a part belongs (B1, B13).
_RANGE_REFUSED = frozenset({400, 422})
# How many HTML pages with 404 or 410 are doubted before one is believed. A portal may
# answer an upload's address with such a page.
_DOUBTED_PAGES = 3

# Seconds until the next question after a 202 without Retry-After.
_DEFAULT_RETRY_AFTER = 1.0
# Bounds for Retry-After of a 202. Such a question costs no budget. A date in the past must
# not make the client ask without a pause, and a wrong clock must not make it wait for ever.
_SHORTEST_POLL = 0.2
_LONGEST_POLL = 600.0


def _poll_delay(wish: float | None) -> float:
    if wish is None:
        return _DEFAULT_RETRY_AFTER
    return min(max(wish, _SHORTEST_POLL), _LONGEST_POLL)


class ContentFacts(Protocol):
    """The facts about the request's content that decisions need."""

    @property
    def length(self) -> int | None:
        """The length in bytes; None while it is not known, for content that is produced
        while it is sent.
        """
        ...

    @property
    def window(self) -> int | None:
        """The most bytes that can be sent again; None if all bytes can."""
        ...

    def can_start_at(self, offset: int) -> bool:
        """Whether the bytes from *offset* on can be sent (still, or again)."""
        ...

    def at_hand(self, offset: int) -> int:
        """Return how many bytes from *offset* on can be sent without waiting."""
        ...


@dataclass(eq=False, kw_only=True)
class Resumption(ABC):
    """The state of a transfer, and its decisions after the offer."""

    method: str
    content: ContentFacts
    budget: RetryBudget
    choice: ProtocolChoice
    redirects: Redirects
    locations: Locations | None = None
    """The offer. It is given at the start to continue an earlier run's upload."""
    proven: int | None = None
    """How many bytes of an earlier run are known to be this file's; None means all."""
    all_sent: bool = False
    """Whether all content was sent once, so that the target may have processed it."""
    retry_unsafe: bool = False
    declared_length: bool = True
    """Whether the server knows the length, so that the offset shows the end."""
    max_restarts: int = 3
    acknowledged: int = 0
    """The highest offset that the server ever stated."""
    append_limit: int | None = None
    """The most bytes that the server takes in one append, if it has a limit."""
    _restarts: int = 0
    _bare: int = 0
    """The highest offset in answers without a mark."""
    _pages: int = 0
    """How many HTML pages in a row said that the upload is gone."""
    _answer: Answer | None = None
    _settled: Answer | None = None
    """The answer that says that the upload is complete."""
    _claimed: Outcome | None = None
    """The outcome of an append whose answer copies the request's "complete"."""

    @property
    def dialect(self) -> ClientDialect:
        """The dialect of the next request."""
        return self.choice.dialect

    @property
    def protocol(self) -> str:
        """The upload's protocol; ``plain`` while there is no way to resume it."""
        return "plain" if self.locations is None else self.dialect.protocol

    @property
    @abstractmethod
    def _first(self) -> Action:
        """The first action."""

    # What the client learns during an action.

    def note_offer(self, locations: Locations) -> None:
        """Note that the upload is at *locations* (R1, C2, D6)."""
        self.locations = locations
        if locations.content is not None:
            self.choice.settle()
        self.budget.note_progress()

    def note_offset(self, offset: int) -> None:
        """Note that the server says that it has *offset* bytes."""
        if offset > self.acknowledged:
            self.acknowledged = offset
            self.budget.note_progress()

    def note_fields(self, fields: Fields) -> None:
        """Note the limits that any response may state (C13)."""
        self.append_limit = self.dialect.append_limit(fields) or self.append_limit

    # Asking.

    def _after_ask(self, outcome: Outcome, action: AskOffset) -> Next:
        answer = outcome.answer
        if answer is None or self.dialect.troubled(answer):
            return self._later(action, outcome)
        gone = answer.status in self.dialect.gone_when_asked
        offset = self.dialect.held(answer)
        if self._is_foreign(outcome, answer, gone=gone) and not self._is_bare_offset(
            answer, offset
        ):
            return self._later(action, outcome)
        if gone:
            return self._start_over(outcome)
        if offset is None or not answer.ok:
            raise self._unexpected("how much of the content arrived", answer)
        self._check_length(answer)
        return self._go_on_from(offset, answer, outcome)

    def _is_foreign(self, outcome: Outcome, answer: Answer, *, gone: bool) -> bool:
        """Whether *answer*, about the upload, comes from the network and not the server.

        A page that says that the upload is *gone* is doubted a few times and then
        believed, because some servers say so with a page.
        """
        if not is_foreign(answer, vouched=outcome.vouched):
            self._pages = 0
            return False
        if gone:
            self._pages += 1
        return not gone or self._pages <= _DOUBTED_PAGES

    def _is_bare_offset(self, answer: Answer, offset: int | None) -> bool:
        """Whether *answer* has the offset in ``Content-Length`` and no mark, as in R12.

        It is believed as long as it contradicts nothing. The next answer shows whether
        it was true.
        """
        if offset is None or is_page(answer) or not answer.ok:
            return False
        length = self.content.length
        return offset >= self.acknowledged and (length is None or offset <= length)

    def _check_length(self, answer: Answer) -> None:
        """Check the length of the whole that the server states."""
        stated = maybe_integer(answer.fields.get("upload-length"))
        if stated is not None:
            self.declared_length = True
        elif "upload-defer-length" in answer.fields:
            self.declared_length = False
        length = self.content.length
        if None not in (stated, length) and stated != length:
            raise TransferFailed(
                f"the server waits for {stated} bytes of content that is {length} bytes"
                " long"
            )

    def _go_on_from(
        self, offset: int, answer: Answer, outcome: Outcome, delay: float = 0.0
    ) -> Next:
        """Decide what follows if the server has *offset* bytes, as *answer* says."""
        assert self.locations is not None
        if offset < self.acknowledged:
            # C7: an offset never falls. This is no progress, so it costs budget.
            again = self._resume_action(self.locations)
            delay = max(delay, self._later(again, outcome).delay)
        if is_marked(answer):
            self.note_offset(offset)
        elif offset > self._bare:
            # This is enough to be patient, but not to drop bytes.
            self._bare = offset
            self.budget.note_progress()
        if self.proven is not None and offset > self.proven:
            # The bytes after the compared ones may be of another version of the file.
            return self._start_over(outcome)
        self.proven = None
        length = self.content.length
        if length is not None and offset > length:
            raise TransferFailed(
                f"the server has {offset} bytes of content that is {length} bytes long"
            ) from outcome.cause
        self.all_sent = self.all_sent and offset == length
        if self._is_complete(offset, answer):
            self.all_sent = True
            return self._after_all(offset, answer, outcome, delay)
        url = self.locations.content
        if url is None:
            raise TransferFailed("the server does not say where the content goes")
        if not self.content.can_start_at(offset):
            raise UploadForgotten(
                f"the server has {offset} bytes, and what follows is no longer buffered"
            ) from outcome.cause
        return Next(self._action_from(url, offset), delay)

    def _is_complete(self, offset: int, answer: Answer) -> bool:
        said = self.dialect.completeness(answer.fields)
        if said is not None:
            return said
        reached = offset == self.content.length and self.declared_length
        return reached and not self.dialect.explicit_completion

    # Appending.

    def _action_from(self, url: Url, offset: int) -> Action:
        length, window = self.content.length, self.content.window
        if length is None and self.dialect.acknowledges:
            return Append(url, ContentRange(offset, None, None))
        if length is None and window is not None:
            # Without acknowledgements the bytes of a request stay in the window until
            # its end. So one half is sent while the other is produced.
            return Gather(url, offset, self._limited(max(1, window // 2)))
        return self._append(url, offset, self._limited(self.content.at_hand(offset)))

    def _limited(self, size: int) -> int:
        return min(size, self.append_limit or size)

    def _append(self, url: Url, offset: int, size: int) -> Append:
        """Return the append of *size* bytes from *offset* on, which are at hand."""
        length = self.content.length
        declares = not self.declared_length
        if size == 0:
            # No content is left; the append only states the end (B3, R18).
            return Append(url, ContentRange(None, None, length), declares=declares)
        stop = offset + size
        range_ = ContentRange(offset, stop - 1, length)
        return Append(url, range_, completes=stop == length, declares=declares)

    def _after_gather(self, action: Gather) -> Next:
        size = min(action.size, self.content.at_hand(action.offset))
        return Next(self._append(action.url, action.offset, size))

    def _after_append(self, outcome: Outcome, action: Append) -> Next:
        assert self.locations is not None
        answer = outcome.answer
        self._claimed = None
        if answer is not None and self._repeats_the_end(outcome, answer):
            # The offset shows whether the server says so, or a network copies fields.
            self._claimed = outcome
            return self._later(self._resume_action(self.locations), outcome)
        if answer is None or self.dialect.troubled(answer):
            return self._later(self._resume_action(self.locations), outcome)
        if self.dialect.recorded(answer):
            return self._deliver(outcome, answer)
        gone = answer.status in self.dialect.gone
        if self._is_foreign(outcome, answer, gone=gone):
            # If the answer came from the server after all, it knows the length now. The
            # offset will show it.
            told_length = answer.ok and action.range.total is not None
            self.declared_length = self.declared_length or told_length
            return self._later(self._resume_action(self.locations), outcome)
        if self._settled is not None and not answer.ok:
            # The append was only a repetition, for a response that the server does not repeat.
            return Next(Finish(self._settled, bare=True))
        if gone:
            return self._start_over(outcome)
        open_ended = action.range.first is not None and action.range.last is None
        if (
            open_ended
            and answer.status in _RANGE_REFUSED
            and self.choice.say_ranges_only()
        ):
            return Next(self._resume_action(self.locations))
        if answer.status == 409:
            following = self._later(self._resume_action(self.locations), outcome)
            offset = self.dialect.offset(answer.fields)
            if offset is None:
                return following
            return self._go_on_from(offset, answer, outcome, following.delay)
        if answer.ok:
            open_ended = action.range.total is None
            self.declared_length = self.declared_length or not open_ended
            if self.dialect.is_step(
                answer.fields, completes=action.completes, open_ended=open_ended
            ):
                return self._after_incomplete(outcome, answer)
        return self._deliver(outcome, answer)

    def _repeats_the_end(self, outcome: Outcome, answer: Answer) -> bool:
        """Whether only a copy of the request's own field says that this is the end."""
        if self._settled is not None or outcome.vouched or is_marked(answer):
            return False
        return self.dialect.explicit_completion and self.dialect.recorded(answer)

    def _after_incomplete(self, outcome: Outcome, answer: Answer) -> Next:
        """Decide what follows if the content arrived and the upload is incomplete (R17)."""
        assert self.locations is not None
        before = self.acknowledged
        offset = self.dialect.offset(answer.fields)
        if offset is None:
            return self._later(self._resume_action(self.locations), outcome)
        # A server that answers so again and again, without progress, costs budget.
        delay = 0.0
        if offset <= before and not self._is_complete(offset, answer):
            delay = self._later(self._resume_action(self.locations), outcome).delay
        return self._go_on_from(offset, answer, outcome, delay)

    # The final response.

    def _after_all(
        self, offset: int, answer: Answer, outcome: Outcome, delay: float
    ) -> Next:
        """Get the final response of an upload that is complete, as *answer* says."""
        assert self.locations is not None
        if self.dialect.settles:
            self._settled = self._located(answer)
        claimed, self._claimed = self._claimed, None
        if claimed is not None and claimed.answer is not None and claimed.whole:
            return self._deliver(claimed, claimed.answer)
        if self.locations.message is not None:
            return Next(FetchMessage(self.locations.message), delay)
        if self.dialect.replays and self.locations.content is not None:
            whole = ContentRange(None, None, offset)
            return Next(Append(self.locations.content, whole), delay)
        if self._settled is not None:
            return Next(Finish(self._settled, bare=True))
        raise TransferFailed(
            "the request is complete, but the server does not say where its"
            " response can be had again"
        ) from outcome.cause

    def _located(self, answer: Answer) -> Answer:
        """Return *answer*, with the upload's own location if it has none."""
        assert self.locations is not None
        if "location" in answer.fields or self.locations.content is None:
            return answer
        location = {"location": str(self.locations.content)}
        return replace(answer, fields=answer.fields.plus(location))

    def _after_message(self, outcome: Outcome, action: FetchMessage) -> Next:
        assert self.locations is not None
        answer = outcome.answer
        is_message = outcome.state == "message"
        if answer is None or (self.dialect.troubled(answer) and not is_message):
            return self._later(action, outcome)
        if is_message:
            return self._deliver(outcome, answer)
        gone = answer.status in self.dialect.gone
        says_state = answer.status == 202 and outcome.state is not None
        if not says_state and self._is_foreign(outcome, answer, gone=gone):
            return self._later(action, outcome)
        if answer.status == 202:
            if outcome.state == "receiving":
                self.declared_length = False
                return self._later(self._resume_action(self.locations), outcome)
            # A server that processes is alive, so waiting for it costs no budget.
            self.budget.note_progress()
            delay = answer.retry_after(outcome.wall_time)
            return Next(action, _poll_delay(delay))
        if self._settled is not None:
            return Next(Finish(self._settled, bare=True))
        if gone:
            return self._start_over(outcome)
        raise self._unexpected("for the response", answer)

    def _after_result(self, outcome: Outcome, action: FetchResult) -> Next:
        final, answer = self._answer, outcome.answer
        assert final is not None
        assert self.locations is not None
        partial = answer is not None and answer.status in (200, 206)
        if answer is None or self.dialect.troubled(answer) or partial:
            return self._deliver(outcome, final)
        gone = answer.status in self.dialect.gone
        if self._is_foreign(outcome, answer, gone=gone):
            return self._later(self._completing(outcome, final), outcome)
        length = maybe_integer(final.fields.get("content-length"))
        if answer.status == 416 and outcome.received == length:
            return Next(Finish(final))
        if answer.status in (404, 410, 412, 416):
            # This costs budget, because the server could send the client in circles.
            self._later(action, outcome)
            return self._fetch_message(self.locations.message, outcome)
        raise self._unexpected("for the rest of the response", answer)

    def _fetch_message(self, url: Url | None, outcome: Outcome) -> Next:
        if url is None:
            raise TransferFailed(
                "the response was cut, and the server does not say where it can be had"
                " again"
            ) from outcome.cause
        return Next(FetchMessage(url))

    def _deliver(self, outcome: Outcome, answer: Answer) -> Next:
        """Finish with the final response *answer*; fetch the rest of its content (R28)."""
        if self.dialect.settles and self.locations is not None and answer.ok:
            # This answer is not the target's, so it can also say where the upload is.
            own = outcome.state != "message" and not self.dialect.recorded(answer)
            answer = self._located(answer) if own else answer
        if self.locations is not None and self.locations.content is not None:
            answer = self.dialect.of_target(answer, self.locations.content)
        self._answer = answer
        if outcome.whole:
            return Next(Finish(answer))
        return self._later(self._completing(outcome, answer), outcome)

    def _completing(self, outcome: Outcome, answer: Answer) -> Action:
        """Return the action that gets the rest of a response whose content was cut."""
        if self.locations is not None:
            if self.locations.result is not None:
                tag = answer.strong_etag
                result = self.locations.result
                return FetchResult(result, outcome.received, tag, answer)
            may_have_message = self.all_sent or not self.dialect.settles
            if self.locations.message is not None and may_have_message:
                return FetchMessage(self.locations.message)
            if self.dialect.settles:
                return self._resume_action(self.locations)
        if not (self._repeatable and self.content.can_start_at(0)):
            raise TransferFailed(
                f"the content of the {answer.status} was cut after"
                f" {outcome.received} bytes and cannot be had again"
            ) from outcome.cause
        return self._first

    # Steps that several rows of the table share.

    @property
    def _repeatable(self) -> bool:
        return self.retry_unsafe or self.method in IDEMPOTENT_METHODS

    def _resume_action(self, locations: Locations) -> Action:
        """Return the action after a cut: ask how much arrived; without content, get the answer."""
        if locations.message is not None and self.content.length == 0:
            return FetchMessage(locations.message)
        if locations.content is None:
            raise TransferFailed("the server does not say where the content goes")
        return AskOffset(locations.content)

    def _start_over(self, outcome: Outcome) -> Next:
        """Send everything again, if that is safe: the server forgot the operation."""
        if outcome.answer is not None and is_page(outcome.answer) and self.all_sent:
            raise self._doubtful(outcome.answer)
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
        self._settled = self._claimed = None
        self._pages = 0
        self.proven = None
        self.choice.forget()
        return self._later(self._first, outcome)

    def _later(self, action: Action, outcome: Outcome) -> Next:
        """Return *action* after a delay. Raises :class:`TransferFailed` without budget."""
        answer = outcome.answer
        wish = None if answer is None else answer.retry_after(outcome.wall_time)
        delay = self.budget.delay(outcome.now, wish)
        if delay is None:
            if answer is not None and is_foreign(answer, vouched=outcome.vouched):
                raise self._doubtful(answer) from outcome.cause
            reason = outcome.cause or f"the server answered {answer}"
            raise TransferFailed(
                f"retries are used up: {reason}", resumable=True
            ) from outcome.cause
        return Next(action, delay)

    def _doubtful(self, answer: Answer) -> TransferFailed:
        """Return the error for an answer that may come from a portal."""
        return TransferFailed(
            f"the answer {answer} does not show that the server has stored the content;"
            " it may be the page of a network that wants a login",
            resumable=True,
        )

    def _unexpected(self, asked: str, answer: Answer) -> TransferFailed:
        return TransferFailed(f"asked {asked}, the server answered {answer.status}")
