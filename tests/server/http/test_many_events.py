"""Work is bounded by events, not only by bytes: counted, so that no clock decides."""

from __future__ import annotations

import itertools
import time
from functools import partial

import pytest
import trio
import trio.testing

from tests.protocol.patch_writers import encode_binary_part, encode_varint
from tests.server.harness import Recorder, chunked, head, memory_service
from trioresume import Config
from trioresume.protocol.framing import MAX_MEMBERS
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.ranges import ContentRange
from trioresume.server.async_store.receive_memory import Piece, ReceiveMemory
from trioresume.server.async_store.threads import Job, Lane, Then, Threads
from trioresume.server.http.http1.body import Http1Body
from trioresume.server.http.paced_body import (
    LARGEST_SHARE,
    MUCH_WORK,
    SMALLEST_SHARE,
)
from trioresume.testing import MemoryTransport, memory_transport_pair

Clock = trio.testing.MockClock

BYTES = 4000
MOST_JOBS = 12
"""For a patch, beside those for each share of it: to flush, to finish, to spool."""
BINARY = {"Content-Type": "application/byteranges"}
MULTIPART = {"Content-Type": "multipart/byteranges; boundary=SEP"}


def _varint(value: int, width: int) -> bytes:
    """*value* in *width* bytes, however few would do."""
    exponent = width.bit_length() - 1
    return (exponent << (8 * width - 2) | value).to_bytes(width, "big")


def _binary_chunks(width: int, size: int = 1) -> bytes:
    start = encode_binary_part(ContentRange(0, None, BYTES), None)
    count = BYTES // size
    return start + (_varint(size, width) + b"x" * size) * count + b"\0"


def _binary_parts() -> bytes:
    parts = []
    for at in range(1000):
        range_ = ContentRange(4 * at, 4 * at + 3, BYTES)
        parts.append(encode_binary_part(range_, 4) + b"xxxx")
    return b"".join(parts)


def _multipart() -> bytes:
    parts = [
        b"\r\n--SEP\r\nContent-Range: bytes %d-%d/%d\r\n\r\nxxxx"
        % (4 * at, 4 * at + 3, BYTES)
        for at in range(1000)
    ]
    return b"".join(parts) + b"\r\n--SEP--\r\n"


CASES = {
    "one-byte lengths": (BINARY, _binary_chunks(1)),
    "two-byte lengths": (BINARY, _binary_chunks(2)),
    "four-byte lengths": (BINARY, _binary_chunks(4)),
    "eight-byte lengths": (BINARY, _binary_chunks(8)),
    "chunks of three bytes": (BINARY, _binary_chunks(2, 4)),
    "binary parts": (BINARY, _binary_parts()),
    "multipart": (MULTIPART, _multipart()),
}


@pytest.mark.parametrize("coding", ["known length", "chunks", "chunks of a byte"])
@pytest.mark.parametrize("transaction", ["persist", "atomic"])
@pytest.mark.parametrize("case", CASES)
async def test_pieces_are_joined_before_they_are_jobs(
    case: str,
    transaction: str,
    coding: str,
    autojump_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However a patch is cut, worker threads get few jobs for it, and all of it."""
    fields, body = CASES[case]
    jobs: list[Job] = []
    put = Lane.put

    def count(lane: Lane, job: Job, then: Then) -> None:
        jobs.append(job)
        put(lane, job, then)

    monkeypatch.setattr(Lane, "put", count)
    async with memory_service(handler := Recorder()) as service:
        interim = await service.connect().start(BYTES)
        location = interim.fields.get("request-content-location") or ""
        client = service.connect()
        wanted = {**fields, "Prefer": f"transaction={transaction}"}
        if coding == "known length":
            start, sent = head("PATCH", location, wanted, length=len(body)), body
        else:
            wanted["Transfer-Encoding"] = "chunked"
            start = head("PATCH", location, wanted)
            sent = chunked(body, 1 if coding == "chunks of a byte" else 1000)
        await client.send(start + sent)
        reply = await client.reply()
        assert reply.status == 200, reply
    assert handler.bodies == [b"x" * BYTES]
    assert len(jobs) <= MOST_JOBS + 2 * len(sent) // SMALLEST_SHARE


async def test_wrong_byte_keeps_what_was_gathered_before_it(
    autojump_clock: Clock,
) -> None:
    """B5: content before a fault counts, although it was not handed on yet."""
    async with memory_service(Recorder()) as service:
        interim = await service.connect().start(BYTES)
        location = interim.fields.get("request-content-location") or ""
        body = encode_binary_part(ContentRange(0, None, BYTES), None)
        body += (_varint(1, 2) + b"x") * 100 + b"\xff" * 8
        reply = await service.connect().request("PATCH", location, BINARY, body)
        assert (reply.status, reply.code) == (400, "bad-patch")
        shown = await service.connect().request("HEAD", location)
        assert shown["upload-offset"] == "100"


class Reading:
    """A sink for which each byte is work."""

    has_room = True
    plain: int | None = 0

    def __init__(self) -> None:
        self.offset = self.taken = self.work = 0
        self.turns: list[int] = []

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self.turns.append(len(data))
        self.taken += len(data)
        self.offset += len(data)
        self.work += len(data)

    async def room(self) -> None:
        raise AssertionError("there is room")

    def relax(self) -> None: ...


class Taking(Reading):
    """A sink that takes what comes as it is."""

    plain: int | None = None

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        super().append(data, piece)
        self.work = 0


def _receiver(
    memory: ReceiveMemory, data: bytes, length: int | None
) -> tuple[Http1Body, MemoryTransport]:
    ours, theirs = memory_transport_pair(capacity=len(data))
    theirs.send_nowait(data)
    head = RequestHead(
        method="POST", target="/", fields=Fields(), http_version="1.1", length=length
    )
    return Http1Body(head, ours, bytearray(), memory, Config()), theirs


@pytest.mark.parametrize("coding", ["known length", "chunks"])
@pytest.mark.parametrize("count", [1, 20])
async def test_much_work_gives_way_after_a_share(count: int, coding: str) -> None:
    """However many do much work, one of them goes on in each round of the event loop."""
    size = 300_000
    memory = ReceiveMemory(16 * 1024 * 1024)
    data, length = bytes(size), size if coding == "known length" else None
    if length is None:
        data = chunked(data, 50_000)
    receivers = [_receiver(memory, data, length) for _ in range(count)]
    sinks = [Reading() for _ in receivers]
    seen: list[int] = []

    async def note() -> None:
        """Somebody else, who has a turn in each round."""
        while True:
            seen.append(sum(sink.work for sink in sinks))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.busy.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(note)
        async with trio.open_nursery() as receiving:
            for (body, _), sink in zip(receivers, sinks, strict=True):
                receiving.start_soon(body.receive, sink)
        nursery.cancel_scope.cancel()
    assert all(sink.taken == size for sink in sinks)
    assert all(max(sink.turns) <= SMALLEST_SHARE for sink in sinks)
    # They all begin at once here, which in a service few do. Then they take turns.
    steps = [after - before for before, after in itertools.pairwise(seen)]
    large = [step for step in steps if step > 4 * SMALLEST_SHARE]
    assert sum(large) <= (count + 4) * SMALLEST_SHARE


async def test_plain_content_is_read_as_before() -> None:
    """Content that is taken as it is comes in large pieces, and waits for no turn."""
    memory = ReceiveMemory(16 * 1024 * 1024)
    body, _ = _receiver(memory, bytes(3_000_000), 3_000_000)
    sink = Taking()
    await body.receive(sink)  # its limit for each round does not run, so nothing waits
    assert max(sink.turns) > 1024 * 1024
    assert len(sink.turns) <= 4


async def test_little_work_needs_no_turn() -> None:
    """A patch of few parts goes on without waiting for those that are much work."""
    memory = ReceiveMemory(16 * 1024 * 1024)
    body, _ = _receiver(memory, bytes(500_000), 500_000)
    sink = Reading()
    sink.append = partial(_little, sink)  # type: ignore[method-assign]  # less work
    with trio.fail_after(5):
        await body.receive(sink)
    assert max(sink.turns) == LARGEST_SHARE


def _little(sink: Reading, data: memoryview, piece: Piece | None = None) -> None:
    sink.turns.append(len(data))
    sink.taken += len(data)
    sink.work += MUCH_WORK - 1


def test_lane_of_many_jobs_takes_no_longer_for_each() -> None:
    """No list is popped from its front: that moves all the others each time."""
    few, many = _seconds_for_each_job(10_000), _seconds_for_each_job(100_000)
    assert many < 4 * few


def _seconds_for_each_job(count: int) -> float:
    lane = Lane(Threads(1))  # not running: the jobs stay where they are
    done: list[int] = []
    for number in range(count):
        lane.put(partial(done.append, number), lambda result, error: None)
    began = time.thread_time()
    while (work := lane.next_job()) is not None:
        job, then = work
        then(job(), None)
    seconds = time.thread_time() - began
    assert done == list(range(count))
    assert lane.pending == 0
    return seconds / count


LISTS = {
    "Prefer": "a{n}",
    "Range": "{n}-",
    "If-Match": '"{n}"',
    "If-None-Match": '"{n}"',
    "Expect": "100-continue",
    "Connection": "a{n}",
    "Forwarded": "for=a{n}",
    "X-Forwarded-For": "10.0.0.1",
    "Upload-Metadata": "k{n}",
    "Trailer": "a{n}",
    "Content-Encoding": "a{n}",
    "Content-Disposition": "a{n}=b",
    "Access-Control-Request-Headers": "a{n}",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("lines", [1, 4])
async def test_list_with_too_many_members_is_refused(
    name: str, lines: int, autojump_clock: Clock
) -> None:
    """RFC 9110, section 5.4: a 4xx for a field that is larger than is read."""
    members = [LISTS[name].format(n=n) for n in range(MAX_MEMBERS + 1)]
    split = [members[at::lines] for at in range(lines)]
    fields = [(name, ",".join(part)) for part in split]
    config = Config(max_header_size=64 * 1024)
    async with memory_service(handler := Recorder(), config) as service:
        reply = await service.connect().request("POST", "/", fields, b"")
        assert (reply.status, reply.code) == (431, "header-too-large")
        assert name.lower() in reply.json["detail"]
    assert handler.bodies == []


async def test_list_with_many_members_is_read(autojump_clock: Clock) -> None:
    """As many as there may be, spaces or not."""
    members = ",".join([*(f"a{n}" for n in range(MAX_MEMBERS - 1)), "resume"])
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request("POST", "/", {"Prefer": members}, b"x")
        assert reply.status == 200
        assert reply.get("preference-applied") == "resume=save-incomplete"


async def test_references_of_a_concatenation_are_bounded(
    autojump_clock: Clock,
) -> None:
    """They are separated by spaces."""
    fields = {
        "Tus-Resumable": "1.0.0",
        "Upload-Concat": "final;" + " ".join(["a"] * (MAX_MEMBERS + 1)),
    }
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request("POST", "/", fields)
        assert reply.status == 431


def test_varints_are_what_the_format_has() -> None:
    """The helper above says the same as the encoder, where that has a choice at all."""
    assert _varint(1, 1) == encode_varint(1)
    assert _varint(100, 2) == encode_varint(100)
