"""Reads each kind of response, and decides where its content goes.

Statement numbers such as R27 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from trioresume.client.content.response_content import ResponseContent
from trioresume.client.decisions.actions import (
    Append,
    AskOffset,
    Confirm,
    Contrast,
    Create,
    Discover,
    FetchMessage,
    FetchResult,
    Send,
    WireAction,
)
from trioresume.client.http.round_trip import RoundTrip
from trioresume.errors import PeerError, TransferFailed
from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.dialects.marks import is_page
from trioresume.protocol.fields import parse_media_type
from trioresume.protocol.message import MEDIA_TYPE, parse_response_head
from trioresume.protocol.ranges import parse_content_range

__all__ = ["IgnoringSink", "Reading", "Sink", "sink_for"]

_MAX_HEAD_BYTES = 64 * 1024
_MAX_DOCUMENT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response said. :class:`~trioresume.client.steps.Outcome` explains the members."""

    answer: Answer | None
    whole: bool
    cause: Exception | None
    state: str | None = None


class Sink(Protocol):
    """Takes a response as it arrives, and then returns what it said."""

    async def begin(self, answer: Answer) -> None: ...

    async def write(self, data: bytes | bytearray) -> None: ...

    def reading(self, exchange: RoundTrip) -> Reading:
        """Return what the finished *exchange* brought."""
        ...


def sink_for(action: WireAction, content: ResponseContent) -> Sink:
    """Return the sink for the response to *action*. *content* holds the final
    response's content.
    """
    match action:
        case Send() | Create() | Append():
            return FinalSink(content)
        case AskOffset() | Confirm() | Contrast() | Discover():
            return IgnoringSink()
        case FetchMessage():
            return MessageSink(content)
        case FetchResult():
            return ResultSink(content, action.start, action.final)


class IgnoringSink:
    """For responses with all information in the head."""

    async def begin(self, answer: Answer) -> None:
        """Do nothing."""

    async def write(self, data: bytes | bytearray) -> None:
        """Ignore the content. It may be a problem document, which a program does not need."""

    def reading(self, exchange: RoundTrip) -> Reading:
        return Reading(exchange.answer, exchange.whole, exchange.cause)


class FinalSink:
    """For the target's response, if it comes directly."""

    def __init__(self, content: ResponseContent) -> None:
        self._content = content

    async def begin(self, answer: Answer) -> None:
        await self._content.begin(answer.status)

    async def write(self, data: bytes | bytearray) -> None:
        await self._content.write(data)

    def reading(self, exchange: RoundTrip) -> Reading:
        return Reading(exchange.answer, exchange.whole, exchange.cause)


class MessageSink:
    """For ``message/http``, and for the document in its place before it exists (R27)."""

    def __init__(self, content: ResponseContent) -> None:
        self._content = content
        self._is_message = False
        self._buffer = bytearray()
        self._inner: Answer | None = None

    async def begin(self, answer: Answer) -> None:
        media_type = parse_media_type(answer.fields.get("content-type") or "")
        self._is_message = (
            answer.status == 200
            and media_type is not None
            and media_type.essence == MEDIA_TYPE
        )

    async def write(self, data: bytes | bytearray) -> None:
        if self._inner is not None:
            await self._content.write(data)
        elif self._is_message:
            self._buffer += data
            await self._read_head()
        elif len(self._buffer) < _MAX_DOCUMENT_BYTES:
            self._buffer += data

    async def _read_head(self) -> None:
        try:
            parsed = parse_response_head(bytes(self._buffer[:_MAX_HEAD_BYTES]))
        except PeerError as exc:
            raise TransferFailed("the recorded response cannot be read") from exc
        if parsed is None:
            return
        status, fields, start = parsed
        self._inner = Answer(status, fields)
        await self._content.begin(status)
        await self._content.write(self._buffer[start:])
        self._buffer.clear()

    def reading(self, exchange: RoundTrip) -> Reading:
        if self._is_message:
            if exchange.whole and self._inner is None:
                raise TransferFailed("the recorded response ends within its head")
            return Reading(self._inner, exchange.whole, exchange.cause, "message")
        return Reading(exchange.answer, exchange.whole, exchange.cause, self._state())

    def _state(self) -> str | None:
        try:
            state = json.loads(self._buffer)["state"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return state if isinstance(state, str) and state != "message" else None


class ResultSink:
    """For the rest of a final response's content (R28)."""

    def __init__(
        self, content: ResponseContent, start: int, final: Answer | None
    ) -> None:
        self._content = content
        self._start = start
        self._final = final
        self._usable = False
        self._end: int | None = None
        """The length of the whole content, if the server said it."""

    async def begin(self, answer: Answer) -> None:
        if answer.status == 200:
            # The server does not do ranges, or the validator did not match: it sends all again.
            self._usable = self._is_the_same(answer)
            if self._usable:
                await self._content.restart()
        elif answer.status == 206:
            try:
                range_ = parse_content_range(answer.fields.get("content-range") or "")
            except PeerError:
                return
            self._usable = range_.first == self._start
            self._end = range_.total

    def _is_the_same(self, answer: Answer) -> bool:
        """Whether *answer* has the final response's content, and not a portal's page."""
        if self._final is None:
            return True
        tag = self._final.strong_etag
        if tag is not None and answer.strong_etag == tag:
            return True
        if is_page(answer) and not is_page(self._final):
            return False
        length = self._final.fields.get("content-length")
        return length is None or length == answer.fields.get("content-length")

    async def write(self, data: bytes | bytearray) -> None:
        if self._usable:
            await self._content.write(data)

    def reading(self, exchange: RoundTrip) -> Reading:
        whole, cause = exchange.whole, exchange.cause
        if exchange.answer is not None and exchange.answer.status in (200, 206):
            if not self._usable:
                whole, cause = False, ValueError("the server sent other content")
            elif self._end is not None and self._content.received < self._end:
                whole = False  # a server may send less than was asked for
        return Reading(exchange.answer, whole, cause)
