"""An upload that resumes, on :mod:`tests.e2e.wire`: what the drafts ask of a client.

It believes nothing: whatever the server announces is remembered, and an offset that
falls, or that covers bytes which were never sent, is an assertion that fails (G9).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from tests.e2e.carriers import HTTP1, Carrier
from tests.e2e.wire import Answer, Cut, Refused, Wire, parse_message, request_head

__all__ = ["Pace", "Upload"]

TRY_AGAIN_SECONDS = 0.02
PATIENCE_SECONDS = 240.0
# A newer request for the same upload got there first: an earlier connection of ours,
# cut on our side, whose request the server read only now (R21).
_LOST_RACES = frozenset({409})


def _nothing_sent(size: int, is_last: bool) -> None:
    """The default of :attr:`Pace.on_sent`."""


@dataclass
class Pace:
    """How content is sent: in pieces of at most *piece* bytes, *pause* seconds apart.

    *on_sent* is called after each piece with its size and whether it was the last.
    """

    piece: int = 64 * 1024
    pause: float = 0.0
    on_sent: Callable[[int, bool], None] = _nothing_sent


@dataclass(eq=False)
class Upload:
    """One request with *content*, carried through whatever happens to it."""

    address: tuple[str, int]
    method: str
    target: str
    content: bytes
    draw: random.Random
    pace: Pace = field(default_factory=Pace)
    fields: tuple[tuple[str, str], ...] = ()
    acknowledge: bool = False
    chunked: bool = False
    """Whether the first request leaves the length unsaid (R18)."""
    whole_patches: bool = False
    """Whether each PATCH carries all that is left."""
    carrier: Carrier = HTTP1

    whole: tuple[int, int] = (0, 0)
    """Where the last patch began and was to end, if it applies as a whole (B8)."""
    patience: float = PATIENCE_SECONDS
    """After how many seconds without an end :meth:`run` fails."""

    content_at: str = ""
    message_at: str = ""
    announced: int = 0
    """The highest offset that the server has told us."""
    sent: int = 0
    """No byte at or beyond this offset was ever handed to a socket."""
    sent_loosely: int = 0
    """The same for requests whose content counts as far as it came."""
    is_deleted: bool = False
    """Whether what was made of it was deleted since."""
    digest: str = ""
    """SHA-256 of the content, for when that is no longer kept."""
    answer: Answer | None = None
    cuts: int = 0
    sent_bytes: int = 0
    """All content bytes handed to sockets, those sent again included."""

    async def run(self) -> Answer:
        """Try until the final response of the original request is here."""
        with trio.move_on_after(self.patience):
            while self.answer is None:
                try:
                    await self.attempt()
                except Cut as exc:
                    self.cuts += not isinstance(exc, Refused)
                    await trio.sleep(TRY_AGAIN_SECONDS)
        assert self.answer is not None, f"{self} does not get through"
        return self.answer

    async def attempt(self) -> None:
        """One connection's worth of trying. Raises :class:`Cut`."""
        with await Wire.connect(self.address, self.carrier) as wire:
            if not self.content_at:
                await self._start(wire)
            else:
                await self._resume(wire)

    # The first request.

    async def _start(self, wire: Wire) -> None:
        fields = [*self.fields, ("Expect", "100-continue"), *self._preferences()]
        length = ("Content-Length", str(len(self.content)))
        fields.append(("Transfer-Encoding", "chunked") if self.chunked else length)
        await wire.send(request_head(self.method, self.target, fields))
        head = await wire.next_head()
        assert head.status == 100, head
        self.content_at = head.fields["request-content-location"]
        self.message_at = head.fields["response-message-location"]
        assert head.fields["content-location"]
        if self.chunked:
            # One chunk around all of it is chunked enough for whoever has to undo it.
            before, after = f"{len(self.content):x}\r\n".encode(), b"\r\n0\r\n\r\n"
        else:
            before = after = b""
        self._finish(
            await self._exchange(wire, self.method, 0, len(self.content), before, after)
        )

    def _preferences(self) -> list[tuple[str, str]]:
        wanted = "resume, acknowledge" if self.acknowledge else "resume"
        return [("Prefer", wanted)]

    async def _exchange(
        self,
        wire: Wire,
        method: str,
        start: int,
        stop: int,
        before: bytes,
        after: bytes,
    ) -> Answer:
        """Send content while listening: the answer may come before the end (R10)."""
        answer = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, wire, start, stop, before, after)
            try:
                answer = await wire.answer(method, self._note_interim)
            except Cut:
                pass  # raised below, once the sender has ended too
            nursery.cancel_scope.cancel()
        if answer is None:
            raise Cut("cut while sending")
        return answer

    async def _send(
        self, wire: Wire, start: int, stop: int, before: bytes, after: bytes
    ) -> None:
        view = memoryview(self.content)
        try:
            if before:
                await wire.send(before)
            while start < stop:
                end = min(stop, start + self.draw.randint(1, self.pace.piece))
                self.sent = max(self.sent, end)
                if self.whole == (0, 0):
                    self.sent_loosely = max(self.sent_loosely, end)
                self.sent_bytes += end - start
                await wire.send(view[start:end])
                self.pace.on_sent(end - start, end == len(self.content))
                start = end
                await trio.sleep(self.pace.pause)
            if after:
                await wire.send(after)
        except Cut:
            pass  # the listening side says what there is to say

    def _note_interim(self, interim: Answer) -> None:
        if "acknowledge" in interim.fields:
            self._note_offset(int(interim.fields["acknowledge"]))

    def _note_offset(self, offset: int) -> None:
        assert offset >= self.announced, f"{self.announced} fell to {offset} (G9)"
        assert offset <= self.sent, f"{offset} bytes, but only {self.sent} were sent"
        self.announced = offset

    def _finish(self, answer: Answer) -> None:
        if answer.status in _LOST_RACES:
            raise Cut(str(answer))
        self.answer = answer

    # Going on.

    async def _resume(self, wire: Wire) -> None:
        head = await wire.ask("HEAD", self.content_at)
        assert head.status == 200, f"{head} for {self}"
        offset = int(head.fields["upload-offset"])
        assert head.fields["content-length"] == str(offset)  # R12
        self._note_offset(offset)
        begun, end = self.whole
        # A request of before may arrive late, after the last question: up to where it
        # reached its bytes may be there, whatever became of the patch.
        half = max(begun, self.sent_loosely) < offset < end
        assert not half, f"half of {self.whole} is there, {offset}: {self}"
        if self.draw.random() < 0.2:
            await self._check_prefix(wire, offset)
        if head.fields["upload-complete"] == "?1":
            self._finish(await self._fetch_answer(wire))
            return
        await self._patch(wire, offset)

    async def _check_prefix(self, wire: Wire, offset: int) -> None:
        """R13: every byte below the offset is the one that was sent."""
        answer = await wire.ask("GET", self.content_at)
        assert answer.status == 200, answer
        assert answer.body == self.content[:offset], f"{self} at {offset}"

    async def _fetch_answer(self, wire: Wire) -> Answer:
        """R26, R27: the recorded response, once there is one."""
        while True:
            answer = await wire.ask("GET", self.message_at, [("Prefer", "wait=5")])
            if answer.status == 200:
                assert answer.fields["content-type"] == "message/http"
                return parse_message(answer.body)
            assert answer.status == 202, answer

    async def _patch(self, wire: Wire, offset: int) -> None:
        total = len(self.content)
        stop = total
        if not self.whole_patches and self.draw.random() < 0.4:
            stop = self.draw.randint(offset, total)
        if offset == stop < total:
            return
        fields, before, after = self._framing(offset, stop)
        fields += self._preferences()
        await wire.send(request_head("PATCH", self.content_at, fields))
        answer = await self._exchange(wire, "PATCH", offset, stop, before, after)
        if answer.status == 204 and stop < total:  # R17
            assert answer.fields["upload-offset"] == str(stop)
            self._note_offset(stop)
        else:
            self._finish(answer)

    def _framing(
        self, offset: int, stop: int
    ) -> tuple[list[tuple[str, str]], bytes, bytes]:
        """Head fields, and what stands around the bytes in one of the media types."""
        total = len(self.content)
        # If all bytes are there, only their total was never said (B3).
        what = f"{offset}-{stop - 1}" if offset < stop else "*"
        range_line = f"Content-Range: bytes {what}/{total}\r\n\r\n".encode()
        # All or nothing (B8): only for little, or a bad link would never let it through.
        if 0 < stop - offset <= 64 * 1024 and self.draw.random() < 0.5:
            media_type = "multipart/byteranges; boundary=e2e"
            self.whole = (offset, stop)
            before, after = b"--e2e\r\n" + range_line, b"\r\n--e2e--\r\n"
        else:
            media_type = "message/byterange"
            self.whole = (0, 0)
            before, after = range_line, b""
        length = len(before) + stop - offset + len(after)
        fields = [("Content-Type", media_type), ("Content-Length", str(length))]
        return fields, before, after

    def __str__(self) -> str:
        return f"{self.method} {self.target} ({len(self.content)} bytes, {self.content_at})"
