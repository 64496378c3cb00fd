"""tuspy and aiotus, Python's clients of tus, against the real command."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import aiotus
import pytest
import yarl
from aiotus import core, creation
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed
from tusclient.fingerprint import fingerprint
from tusclient.storage import filestorage

from tests.e2e.command import Service
from tests.e2e.tus_uploads import MARK, Source, check_stored, offset_of, request

CONTENT = os.urandom(2_500_000)

# Theirs, not ours: aiotus gives aiohttp more bytes at a time than aiohttp likes.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.fixture
def client(shared_service: Service) -> TusClient:
    """A tuspy client of the service."""
    return TusClient(f"{shared_service.root}/files/")


# tuspy.


def uploader_of(client: TusClient, **settings: Any) -> Any:
    """An uploader of the content; its methods are without annotations."""
    return client.uploader(file_stream=Source(CONTENT), **settings)


@pytest.mark.parametrize("chunk_size", [10**9, 1_000_000, 333_333])
def test_tuspy_whole_and_in_pieces(
    client: TusClient, shared_service: Service, chunk_size: int
) -> None:
    """D5, D6: without metadata it sends an empty field."""
    uploader = uploader_of(client, chunk_size=chunk_size)
    uploader.upload()
    assert uploader.offset == len(CONTENT)
    check_stored(shared_service, uploader.url, CONTENT)


def test_tuspy_metadata_names_the_file(
    client: TusClient, shared_service: Service
) -> None:
    """D6, G14."""
    metadata = {"filename": "Käse.txt", "filetype": "text/plain"}
    uploader = uploader_of(client, metadata=metadata)
    uploader.upload()
    fields = check_stored(shared_service, uploader.url, CONTENT)
    assert fields["content-type"] == "text/plain"
    assert "K%C3%A4se.txt" in fields["content-disposition"]


def test_tuspy_checksums(client: TusClient, shared_service: Service) -> None:
    """D7: sha1 with every piece."""
    uploader = uploader_of(client, chunk_size=1_000_000, upload_checksum=True)
    uploader.upload()
    check_stored(shared_service, uploader.url, CONTENT)


def test_tuspy_wrong_checksum_does_not_count(client: TusClient) -> None:
    """D7: 460; the offset is as before."""
    uploader = uploader_of(client, chunk_size=1_000_000, upload_checksum=True)
    uploader.upload_chunk()
    # A disk that gives other bytes than those that were hashed, or a bad cable.
    fields = {
        **MARK,
        "Content-Type": "application/offset+octet-stream",
        "Upload-Offset": "1000000",
        "Upload-Checksum": "sha1 " + "A" * 27 + "=",
    }
    answer, _ = request("PATCH", uploader.url, fields, b"x" * 1000)
    assert answer.status == 460
    assert offset_of(uploader.url) == 1_000_000


def test_tuspy_resumes_what_another_process_began(
    client: TusClient, shared_service: Service, tmp_path: Path
) -> None:
    """D4: the address is kept, the offset is asked for."""
    memory: Any = filestorage.FileStorage
    storage = memory(str(tmp_path / "urls.json"))
    settings = {
        "chunk_size": 700_000,
        "store_url": True,
        "url_storage": storage,
        "fingerprinter": fingerprint.Fingerprint(),
    }
    first = uploader_of(client, **settings)
    first.upload(stop_at=1_400_000)
    second = uploader_of(client, **settings)
    assert (second.url, second.offset) == (first.url, 1_400_000)
    second.upload()
    storage.close()
    check_stored(shared_service, second.url, CONTENT)


def test_tuspy_goes_on_after_the_service_was_killed(
    make_service: Callable[..., Service],
) -> None:
    """D4, G9: kill -9 between two pieces."""
    service = make_service()
    service.start()
    uploader = uploader_of(TusClient(f"{service.root}/files/"), chunk_size=600_000)
    uploader.upload(stop_at=1_200_000)
    service.kill()
    with pytest.raises((TusUploadFailed, TusCommunicationError)):
        uploader.upload_chunk()
    service.start()
    again = uploader_of(
        TusClient(f"{service.root}/files/"), chunk_size=600_000, url=uploader.url
    )
    assert again.offset == 1_200_000
    again.upload()
    check_stored(service, again.url, CONTENT)


def test_tuspy_comes_back_while_its_old_connection_is_silent(
    client: TusClient, shared_service: Service
) -> None:
    """D5, R21: as after a cut that nobody was told of; never a 423, and no waiting."""
    silent: list[socket.socket] = []
    first = uploader_of(client)
    first.set_url(first.create_url())
    try:
        for at in range(0, 500_000, 100_000):
            began = time.monotonic()
            uploader = uploader_of(client, url=first.url)
            assert uploader.offset == at
            head = (
                f"PATCH {urlsplit(first.url).path} HTTP/1.1\r\nHost: x\r\n"
                "Tus-Resumable: 1.0.0\r\nContent-Length: 2000000\r\n"
                "Content-Type: application/offset+octet-stream\r\n"
                f"Upload-Offset: {at}\r\nExpect: 100-continue\r\n\r\n"
            )
            silent.append(socket.create_connection(shared_service.address, 10))
            silent[-1].sendall(head.encode())
            assert silent[-1].recv(4096).startswith(b"HTTP/1.1 100")
            silent[-1].sendall(CONTENT[at : at + 100_000])
            assert time.monotonic() - began < 20
        began = time.monotonic()
        last = uploader_of(client, url=first.url)
        assert last.offset == 500_000
        last.upload()
        assert time.monotonic() - began < 20
    finally:
        for connection in silent:
            connection.close()
    check_stored(shared_service, first.url, CONTENT)


def test_tuspy_upload_is_terminated(client: TusClient) -> None:
    """D7: tuspy itself cannot; whoever has the address can."""
    uploader = uploader_of(client, chunk_size=1_000_000)
    uploader.upload_chunk()
    response, _ = request("DELETE", uploader.url, MARK)
    assert response.status == 204
    with pytest.raises(TusUploadFailed) as caught:
        uploader.upload_chunk()
    assert caught.value.status_code == 410


# aiotus.


@pytest.mark.parametrize("chunk_size", [10**7, 600_000])
def test_aiotus_whole_and_in_pieces(shared_service: Service, chunk_size: int) -> None:
    """D4, D5, D6: it asks for the offset first, and reads its metadata back."""

    async def run() -> tuple[yarl.URL | None, aiotus.Metadata | None]:
        endpoint = f"{shared_service.root}/files/"
        said = {"filename": b"a.bin", "flag": None}
        url = await aiotus.upload(
            endpoint, io.BytesIO(CONTENT), said, chunksize=chunk_size
        )
        assert url is not None
        return url, await aiotus.metadata(url)

    url, metadata = asyncio.run(run())
    assert metadata is not None
    assert metadata["filename"] == b"a.bin"
    check_stored(shared_service, str(url), CONTENT)


def test_aiotus_concatenation(shared_service: Service) -> None:
    """D7: parts of unequal length, three at a time; the order is theirs."""
    cuts = [0, 1_000_001, 1_000_001, 1_700_000, 2_499_999, len(CONTENT)]
    parts = [CONTENT[a:b] for a, b in pairwise(cuts)]
    url = asyncio.run(
        aiotus.upload_multiple(
            f"{shared_service.root}/files/",
            [io.BytesIO(part) for part in parts],
            {"filename": b"whole.bin"},
        )
    )
    fields = check_stored(shared_service, str(url), CONTENT)
    assert 'filename="whole.bin"' in fields["content-disposition"]


def test_aiotus_resumes_what_was_begun(shared_service: Service) -> None:
    """D4, D5: the rest of an upload whose client was lost."""

    async def run() -> str:
        async with aiohttp.ClientSession() as session:
            url = await creation.create(
                session,
                yarl.URL(f"{shared_service.root}/files/"),
                io.BytesIO(CONTENT),
                {},
            )
            fields = {
                **MARK,
                "Content-Type": "application/offset+octet-stream",
                "Upload-Offset": "0",
            }
            begun = await session.patch(url, data=CONTENT[:777_777], headers=fields)
            assert begun.status == 204
            assert await core.offset(session, url) == 777_777
            await core.upload_buffer(session, url, io.BytesIO(CONTENT))
            known = await core.configuration(session, url)
            assert "creation-with-upload" in known.protocol_extensions
            return str(url)

    check_stored(shared_service, asyncio.run(run()), CONTENT)


def test_aiotus_deferred_length(shared_service: Service) -> None:
    """D7: an upload without a file has no length; a PATCH states it later."""

    async def run() -> str:
        async with aiohttp.ClientSession() as session:
            url = await creation.create(
                session,
                yarl.URL(f"{shared_service.root}/files/"),
                None,
                {},
                headers={"Upload-Defer-Length": "1"},
            )
            length = {"Upload-Length": str(len(CONTENT))}
            await core.upload_buffer(
                session, url, io.BytesIO(CONTENT), chunksize=10**6, headers=length
            )
            return str(url)

    check_stored(shared_service, asyncio.run(run()), CONTENT)
