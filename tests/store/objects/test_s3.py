"""Objects in a real server, and what becomes of its refusals."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.s3_servers import S3Server
from trioresume.errors import StorageError, StorageUnavailable
from trioresume.store.objects.address import parse_address
from trioresume.store.objects.s3 import S3Bucket

DATA = bytes(range(256)) * 40


def test_object_is_put_once_and_read_in_ranges(bucket: S3Bucket) -> None:
    """If-None-Match: the second put changes nothing, and says so."""
    assert bucket.put_absent("chunks/aa/x.1", memoryview(DATA))
    assert not bucket.put_absent("chunks/aa/x.1", b"other")
    assert bucket.get("chunks/aa/x.1", 0, len(DATA)) == DATA
    assert bucket.get("chunks/aa/x.1", 5, 10) == DATA[5:15]
    assert bucket.get("chunks/aa/x.1", len(DATA) - 3, 10) == DATA[-3:]
    assert bucket.get("chunks/aa/x.1", len(DATA), 10) == b""
    assert bucket.get("chunks/aa/x.1", 3, 0) == b""
    assert bucket.get("chunks/aa/y.1", 0, 10) is None


def test_empty_object_is_one(bucket: S3Bucket) -> None:
    """The last byte of a content may end a chunk."""
    bucket.put("tails/k/1-0", b"")
    assert bucket.get("tails/k/1-0", 0, 5) in (b"", None)
    assert [each.size for each in bucket.list("tails/", "", 10)] == [0]


def test_one_of_many_puts_at_once_wins(bucket: S3Bucket) -> None:
    """The others find the object, whether they got a 409 on their way or not."""
    won: list[bool] = []
    gate = threading.Barrier(8)

    def put() -> None:
        gate.wait(10)
        won.append(bucket.put_absent("chunks/aa/race.1", DATA))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(won) == [False] * 7 + [True]


def test_objects_are_listed_in_pages_and_deleted(bucket: S3Bucket) -> None:
    """In order, from a name on, and only below the service's prefix."""
    names = [f"chunks/{at:02x}/d.{at}" for at in range(9)]
    for name in names:
        bucket.put(name, b"x" * 3)
    bucket.put("tails/k/1-0", b"y")
    found: list[str] = []
    while page := bucket.list("chunks/", found[-1] if found else "", 4):
        assert len(page) <= 4
        found += [each.name for each in page]
        assert {each.size for each in page} == {3}
    assert found == names
    bucket.delete([*names[:5], "chunks/not-there"])
    bucket.delete([])
    assert [each.name for each in bucket.list("chunks/", "", 100)] == names[5:]


def test_signed_address_works_without_credentials(bucket: S3Bucket) -> None:
    """For so long, and for this object."""
    import urllib.request

    bucket.put("chunks/aa/x.1", DATA)
    with urllib.request.urlopen(
        bucket.sign("chunks/aa/x.1", 60.0), timeout=10
    ) as answer:
        assert answer.read() == DATA


def test_wrong_credentials_and_buckets_are_errors_at_once(
    s3: S3Server, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to look at; nothing is tried again."""
    if s3.kind == "weed":
        pytest.skip("SeaweedFS makes a bucket that is not there")
    slept: list[float] = []
    none = S3Bucket(
        parse_address(s3.url().replace("uploads", "none")), sleep=slept.append
    )
    with pytest.raises(StorageError, match="no bucket none"):
        none.put("x", b"")
    with pytest.raises(StorageError, match="no bucket none"):
        none.get("x", 0, 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = S3Bucket(parse_address(s3.url()), sleep=slept.append)
    with pytest.raises(StorageError, match="credentials"):
        refused.put_absent("x", b"")
    with pytest.raises(StorageError):
        refused.list("chunks/", "", 10)
    assert slept == []


def test_no_answer_is_waited_for_a_bounded_time(credentials: None) -> None:
    """Then it is an error that a client gets as a 503."""
    slept: list[float] = []
    address = parse_address("s3://uploads/?endpoint=http://127.0.0.1:9&region=x")
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        S3Bucket(address, patience=0.5, sleep=slept.append).put("x", b"")
    assert slept
    assert all(0.05 <= pause <= 5.0 for pause in slept)


class _Script(BaseHTTPRequestHandler):
    """Answers as it is told, one answer for each request, and the last one from then on."""

    answers: list[tuple[int, str]]
    seen: list[str]
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append(self.command)
        status, code = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
        body = b"" if status < 300 else body
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("etag", '"x"')
        self.end_headers()
        self.wfile.write(body)

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def scripted(
    *answers: tuple[int, str],
) -> Iterator[tuple[S3Bucket, list[str], list[float]]]:
    """A bucket whose store answers so, what it saw, and the pauses."""

    class Handler(_Script):
        pass

    Handler.answers, Handler.seen = list(answers), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    slept: list[float] = []
    address = parse_address(
        f"s3://uploads/?endpoint=http://127.0.0.1:{server.server_port}&region=x"
    )
    try:
        yield S3Bucket(address, patience=2.0, sleep=slept.append), Handler.seen, slept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _some_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")


@pytest.mark.parametrize(
    "refusal",
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (429, "TooManyRequests"),
        (409, "ConditionalRequestConflict"),
    ],
)
def test_busy_store_is_asked_again_after_growing_pauses(
    refusal: tuple[int, str],
) -> None:
    """With jitter: each pause is between half and all of its bound."""
    with scripted(refusal, refusal, refusal, (200, "")) as (bucket, seen, slept):
        assert bucket.put_absent("chunks/aa/x.1", DATA)
        assert seen == ["PUT"] * 4
        for pause, bound in zip(slept, (0.1, 0.2, 0.4), strict=True):
            assert bound / 2 <= pause <= bound


def test_conflict_that_ends_in_an_object_is_a_success() -> None:
    """409 while another put runs, 412 once it is done."""
    conflict, exists = (409, "ConditionalRequestConflict"), (412, "PreconditionFailed")
    with scripted(conflict, exists) as (bucket, seen, _):
        assert not bucket.put_absent("chunks/aa/x.1", DATA)
        assert len(seen) == 2


def test_store_that_stays_busy_is_unavailable() -> None:
    """After the patience is over; the message has the store's own word."""
    with (
        scripted((503, "SlowDown")) as (bucket, seen, _),
        pytest.raises(StorageUnavailable, match=r"503 \(SlowDown\)"),
    ):
        bucket._patience = 0.05
        bucket.put("x", DATA)
    assert len(seen) <= 2


def test_bytes_that_changed_on_their_way_are_sent_once_more() -> None:
    """A second refusal is an error: something changes them each time."""
    with scripted((400, "BadDigest"), (200, "")) as (bucket, seen, _):
        bucket.put("x", DATA)
        assert len(seen) == 2
    with (
        scripted((400, "BadDigest")) as (bucket, seen, _),
        pytest.raises(StorageError, match="BadDigest"),
    ):
        bucket.put("x", DATA)
    assert len(seen) == 2


def test_request_that_makes_no_sense_is_not_repeated() -> None:
    """A 400 says that the next one would fail as well."""
    with (
        scripted((400, "InvalidArgument")) as (bucket, seen, slept),
        pytest.raises(StorageError, match="InvalidArgument"),
    ):
        bucket.put("x", DATA)
    assert (seen, slept) == (["PUT"], [])
