"""What the backend reads is what this server read: nobody can play them off against each other.

The backend keeps every byte, and reads with a reader of its own (:mod:`.backend`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.harness import head
from tests.server.http.test_hostile import MALFORMED, SMUGGLED
from tests.targets.upstream.backend import backend
from tests.targets.upstream.test_once import front

BAD_CHUNKS = [
    b"x\r\n",
    b"-1\r\nx\r\n0\r\n\r\n",
    b"0x1\r\nx\r\n0\r\n\r\n",
    b"1\r\nxx\r\n0\r\n\r\n",
    b"f" * 20 + b"\r\nx",
    b"1 \r\nx\r\n0\r\n\r\n",
    b"1\nx\n0\n\n",
    b"1;a\nb\r\nx\r\n0\r\n\r\n",
    b"1\r\nx\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
]


async def test_malformed_head_sends_no_byte_to_the_backend(tmp_path: Path) -> None:
    """The whole table of G1 to G6: refused here, and what follows it is not read."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        for case, (data, status) in MALFORMED.items():
            async with service.connect() as client:
                await client.send(data + SMUGGLED)
                assert (await client.reply()).status == status, case
                assert await client.rest() == b"", case
            assert bytes(behind.received) == b"", case


@pytest.mark.parametrize("prefer", ["resume", "return=minimal"])
async def test_malformed_chunks_send_no_byte_to_the_backend(
    prefer: str, tmp_path: Path
) -> None:
    """Content is forwarded when all of it has been read."""
    fields = {"Transfer-Encoding": "chunked", "Prefer": prefer}
    async with backend() as behind, front(tmp_path, behind.url) as service:
        for chunks in BAD_CHUNKS:
            async with service.connect() as client:
                await client.send(head("POST", "/", fields) + b"3\r\nabc\r\n" + chunks)
                assert (await client.reply()).status == 400, chunks
            assert bytes(behind.received) == b"", chunks


@pytest.mark.parametrize("prefer", ["resume", "return=minimal"])
@pytest.mark.parametrize(
    "start",
    [
        head("POST", "/", {"Prefer": "{}"}, length=len(SMUGGLED)) + SMUGGLED,
        head("GET", "/", {"Prefer": "{}"}, length=len(SMUGGLED)) + SMUGGLED,
        head("PUT", "/", {"Prefer": "{}", "Transfer-Encoding": "chunked"})
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        head("PUT", "/", {"Prefer": "{}", "Transfer-Encoding": "chunked"})
        + b"0;%b\r\nX: y\r\n\r\n" % (b"a" * 40),
        head("POST", "/", {"Prefer": "{}", "Connection": "Content-Length"}, length=3)
        + b"abc",
        head("POST", "/", {"Prefer": "{}", "Content_Length": "0"}, length=3) + b"abc",
    ],
    ids=["length", "GET", "chunk", "trailers", "Connection", "underscore"],
)
async def test_content_is_never_read_as_a_request(
    start: bytes, prefer: str, tmp_path: Path
) -> None:
    """Two requests come out, whatever the content of the first looks like."""
    data = start.replace(b"{}", prefer.encode())
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.send(data + head("POST", "/next", length=1) + b"x")
            assert (await client.reply()).status == 200
            assert (await client.reply()).status == 200
        assert [seen.target for seen in behind.seen] == ["/", "/next"]
        assert behind.seen[1].body == b"x"


async def test_absolute_target_names_the_host(tmp_path: Path) -> None:
    """RFC 9112, section 3.2.2: it wins over ``Host``, and the backend sees one of them."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.send(
                b"GET http://public.example/x?y=http://z/ HTTP/1.1\r\n"
                b"Host: public.example\r\n\r\n"
            )
            assert (await client.reply()).status == 200
        (seen,) = behind.seen
        assert seen.line == "GET /x?y=http://z/ HTTP/1.1"
        assert seen.get("host") == "public.example"


async def test_target_goes_on_as_it_was_sent(tmp_path: Path) -> None:
    """Nothing is decoded or normalised: two readers of one path would be one too many."""
    target = "/a%2fb/../%2e%2e/c;d=%0d%0aX:%20y?q=%00&r=a+b"
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            assert (await client.request("GET", target)).status == 200
        assert behind.seen[0].target == target
