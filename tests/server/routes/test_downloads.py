"""Downloads over real sockets, from a store on disk: every byte compared.

Each of the three ways out is tried: the kernel sends from the file, a thread copies
what it cannot send, and a transport that sends no files at all is given what was read.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.server.harness import (
    RESUME,
    Recorder,
    Reply,
    SocketService,
    head,
    socket_service,
)
from trioresume import FileService, Response
from trioresume.server.http.transport import SocketTransport

CHUNK = 64 * 1024


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


@dataclass
class Way:
    """How files are sent in a test, and whether the kernel was asked to."""

    name: str
    calls: int = 0


@pytest.fixture(params=["sendfile", "copied", "read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    way = Way(request.param)

    def counted(out: int, descriptor: int, offset: int, size: int) -> int:
        way.calls += 1
        return os.sendfile(out, descriptor, offset, size)

    def refused(out: int, descriptor: int, offset: int, size: int) -> int:
        way.calls += 1
        raise OSError(errno.EINVAL, "Invalid argument")

    if way.name == "read":
        monkeypatch.setattr(SocketTransport, "files", None)
    sendfile = counted if way.name == "sendfile" else refused
    monkeypatch.setattr(SocketTransport, "sendfile", staticmethod(sendfile))
    return way


async def put(service: SocketService, name: str, body: bytes) -> None:
    async with service.connect() as client:
        reply = await client.request("PUT", f"/files/{name}", body=body)
        assert reply.status == 201


def open_chunks(data_dir: Path) -> int:
    """How many descriptors of chunk files this process has, which is the server."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the listing itself
            place = os.readlink(f"/proc/self/fd/{number}")
            found += place.startswith(str(data_dir / "chunks"))
    return found


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - no event tells of descriptors
            await trio.sleep(0.01)


def parts_of(reply: Reply) -> list[tuple[int, bytes]]:
    """What a ``multipart/byteranges`` answer has: where each part begins, and its bytes."""
    boundary = reply["content-type"].partition("boundary=")[2].encode()
    pieces = reply.body.split(b"\r\n--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        fields, _, body = piece.partition(b"\r\n\r\n")
        said = fields.partition(b"bytes ")[2].split(b"/")[0].split(b"-")
        assert int(said[1]) - int(said[0]) + 1 == len(body)
        found.append((int(said[0]), body))
    return found


async def test_any_range_of_any_size_arrives_byte_for_byte(
    way: Way, tmp_path: Path
) -> None:
    """Whole, one range, several, and ends anywhere in a chunk; on one connection."""
    dice = random.Random(3)
    sizes = [0, 1, 4096, 4097, CHUNK, CHUNK + 1, 5 * CHUNK, 7 * CHUNK + 1234]
    async with socket_service(FileService(), tmp_path) as service:
        for size in sizes:
            await put(service, f"f{size}", content(size))
        async with service.connect() as client:
            for size in sizes:
                body, target = content(size), f"/files/f{size}"
                whole = await client.request("GET", target)
                assert (whole.status, whole.body) == (200, body)
                shown = await client.request("HEAD", target)
                assert shown["content-length"] == str(size)
                for _ in range(8 if size else 0):
                    first, last = sorted(dice.choices(range(size), k=2))
                    asked = {"Range": f"bytes={first}-{last}"}
                    part = await client.request("GET", target, asked)
                    assert (part.status, part.body) == (206, body[first : last + 1])
            size = sizes[-1]
            for count in (2, 5, 16):
                ends = sorted(dice.sample(range(size), 2 * count))
                ranges = [(ends[i], ends[i + 1] - 1) for i in range(0, 2 * count, 2)]
                spec = ",".join(f"{first}-{last}" for first, last in ranges)
                reply = await client.request(
                    "GET", f"/files/f{size}", {"Range": f"bytes={spec}"}
                )
                expected = [
                    (first, content(size)[first : last + 1]) for first, last in ranges
                ]
                assert parts_of(reply) == expected
    assert (way.calls > 0) == (way.name != "read")


async def test_hundred_downloads_at_once_get_each_their_own_bytes(
    way: Way, tmp_path: Path
) -> None:
    """Different files and ranges, read at different speeds; some are cut in the middle."""
    files = {f"f{seed}": content(9 * CHUNK + seed, seed) for seed in range(5)}
    finished = 0

    async def download(service: SocketService, number: int) -> None:
        nonlocal finished
        dice = random.Random(number)
        name, body = dice.choice(list(files.items()))
        first = dice.randrange(len(body))
        last = dice.randrange(first, len(body))
        async with service.connect() as client:
            await client.send(
                head("GET", f"/files/{name}", {"Range": f"bytes={first}-{last}"})
            )
            if number % 4 == 0:
                await client.stream.receive_some(100)
                return  # the connection is closed with most of it unread
            if number % 4 == 1:
                await trio.sleep(0.2)
            reply = await client.reply()
            assert (reply.status, reply.body) == (206, body[first : last + 1])
            finished += 1

    async with socket_service(FileService(), tmp_path) as service:
        for name, body in files.items():
            await put(service, name, body)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(download, service, number)
        await until(lambda: not open_chunks(tmp_path))  # it noticed who has gone
    assert finished == 75


async def test_prefix_of_an_upload_is_sent_from_files_and_tail(
    way: Way, tmp_path: Path
) -> None:
    """R13: chunks that are sealed, the tail behind them, and ranges over both."""
    body = content(5 * CHUNK + 777)
    async with socket_service(Recorder(), tmp_path) as service:
        async with service.connect() as client:
            interim = await client.start(len(body) + 1, body)
            location = interim.fields.get("request-content-location")
            assert location is not None
        async with service.connect() as client:
            with trio.fail_after(20):
                shown = await client.request("HEAD", location)
                while shown["upload-offset"] != str(len(body)):
                    await trio.sleep(0.01)
                    shown = await client.request("HEAD", location)
            reply = await client.request("GET", location)
            assert reply.body == body
            asked = {"Range": f"bytes={4 * CHUNK + 5}-"}
            part = await client.request("GET", location, asked)
            assert part.body == body[4 * CHUNK + 5 :]


async def test_stored_response_is_replayed_from_its_files(
    way: Way, tmp_path: Path
) -> None:
    """R26: the first answer, the message and the result, with what stands before."""
    body = content(6 * CHUNK + 99)
    handler = Recorder(response=lambda _: Response(200, body=body))
    async with (
        socket_service(handler, tmp_path) as service,
        service.connect() as client,
    ):
        reply = await client.request("POST", "/", RESUME, b"go")
        assert reply.body == body
        result = await client.request("GET", reply.result)
        assert result.body == body
        message = await client.request("GET", reply.message)
        assert message.body.endswith(b"\r\n\r\n" + body)
        asked = {"Range": f"bytes=10-{CHUNK}"}
        part = await client.request("GET", reply.message, asked)
        assert part.body == message.body[10 : CHUNK + 1]


def truncate(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize("damage", [Path.unlink, truncate])
async def test_damaged_chunk_cuts_the_download_before_it(
    damage: Callable[[Path], None],
    way: Way,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Never a byte that is not the file's; its name is logged; others are served on."""
    size = 6 * CHUNK
    body = content(size)
    async with socket_service(FileService(), tmp_path) as service:
        await put(service, "whole", content(size, 1))
        await put(service, "hurt", body)
        (path,) = _chunk_files(tmp_path, body[3 * CHUNK : 4 * CHUNK])
        damage(path)
        async with service.connect() as client:
            await client.send(head("GET", "/files/hurt"))
            received = await client.rest()
            assert received.partition(b"\r\n\r\n")[2] == body[: 3 * CHUNK]
        assert path.name in caplog.text
        async with service.connect() as client:
            begin = {"Range": f"bytes={3 * CHUNK}-"}
            refused = await client.request("GET", "/files/hurt", begin)
            assert (refused.status, refused.code) == (500, "internal-error")
        async with service.connect() as client:
            after = {"Range": f"bytes={4 * CHUNK}-"}
            reply = await client.request("GET", "/files/hurt", after)
            assert reply.body == body[4 * CHUNK :]
            reply = await client.request("GET", "/files/whole")
            assert reply.body == content(size, 1)


def _chunk_files(data_dir: Path, chunk: bytes) -> list[Path]:
    files = (data_dir / "chunks").rglob("*")
    return [path for path in files if path.is_file() and path.read_bytes() == chunk]


async def test_disk_error_in_the_middle_cuts_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EIO of the file is logged as the store's; what was sent before is right."""
    body = content(6 * CHUNK)
    sent = 0

    def fails(out: int, descriptor: int, offset: int, size: int) -> int:
        nonlocal sent
        if sent >= 3 * CHUNK:
            raise OSError(errno.EIO, "Input/output error")
        done = os.sendfile(out, descriptor, offset, size)
        sent += done
        return done

    async with socket_service(FileService(), tmp_path) as service:
        await put(service, "hurt", body)
        monkeypatch.setattr(SocketTransport, "sendfile", staticmethod(fails))
        async with service.connect() as client:
            await client.send(head("GET", "/files/hurt"))
            received = (await client.rest()).partition(b"\r\n\r\n")[2]
        assert sent >= 3 * CHUNK
        assert received == body[: len(received)]
        assert len(received) < len(body)
    assert [r.levelno for r in caplog.records if "could not be sent" in r.message] == [
        logging.ERROR
    ]


async def test_reader_that_stops_is_dropped_and_holds_nothing(
    tmp_path: Path,
) -> None:
    """After send_timeout, and its descriptors with it."""
    body = content(24 * 1024 * 1024)  # more than two sockets' buffers
    async with socket_service(
        FileService(), tmp_path, send_timeout=0.3, chunk_size=4 * 1024 * 1024
    ) as service:
        await put(service, "big", body)
        async with service.connect() as client:
            await client.send(head("GET", "/files/big"))
            await until(lambda: open_chunks(tmp_path) == 1)
            await until(lambda: not open_chunks(tmp_path))
            received = (await client.rest()).partition(b"\r\n\r\n")[2]
            assert len(received) < len(body)
            assert received == body[: len(received)]


async def test_next_request_is_answered_after_a_download(
    way: Way, tmp_path: Path
) -> None:
    """R33: pipelined requests get their answers one after the other, none within one."""
    body = content(3 * CHUNK + 1)
    async with socket_service(FileService(), tmp_path) as service:
        await put(service, "a", body)
        async with service.connect() as client:
            await client.send(head("GET", "/files/a") * 3 + head("GET", "/files/none"))
            for _ in range(3):
                assert (await client.reply()).body == body
            assert (await client.reply()).status == 404
