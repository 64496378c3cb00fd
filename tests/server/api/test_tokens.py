"""Bearer tokens from a file of hashes (R34 to R36)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio

from tests.server.harness import Recorder, memory_service
from trioresume import (
    CallerError,
    Config,
    Fields,
    Principal,
    Rejection,
    RequestHead,
    bearer_tokens,
    new_token,
)


def _head(authorization: str | None) -> RequestHead:
    fields = {} if authorization is None else {"Authorization": authorization}
    return RequestHead(
        method="GET", target="/", fields=Fields(fields), http_version="1.1"
    )


async def test_token_is_known_by_its_hash(tmp_path: Path) -> None:
    """A name may have several; comments and empty lines are ignored; any case of Bearer."""
    first, line1 = new_token("ann")
    second, line2 = new_token("ann")
    third, line3 = new_token("bob")
    path = tmp_path / "tokens"
    path.write_text(f"# people\n\n  {line1}\n{line2}\n{line3}\n")
    for token in (first, second, third):
        assert token not in path.read_text()
    authenticate = bearer_tokens(path)
    assert await authenticate(_head(f"Bearer {first}")) == Principal("ann")
    assert await authenticate(_head(f"bearer  {second}")) == Principal("ann")
    assert await authenticate(_head(f"BEARER {third}")) == Principal("bob")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic dXNlcjpwYXNz",
        "Bearer {token}x",
        "Bearer {token} x",
        "Bearer {hash}",
        "{token}",
        "Bearer {token}, Bearer {token}",
        "Bearer " + "a" * 5000,
    ],
)
async def test_anything_else_is_refused_with_a_challenge(
    authorization: str | None, tmp_path: Path
) -> None:
    """401 with WWW-Authenticate; the hash itself is no token."""
    token, line = new_token("ann")
    path = tmp_path / "tokens"
    path.write_text(line + "\n")
    if authorization is not None:
        hashed = hashlib.sha256(token.encode()).hexdigest()
        authorization = authorization.format(token=token, hash=hashed)
    verdict = await bearer_tokens(path)(_head(authorization))
    assert isinstance(verdict, Rejection)
    assert verdict.status == 401
    assert (verdict.headers.get("www-authenticate") or "").startswith("Bearer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no token"),
        ("# nothing\n", "no token"),
        ("ann\n", "line 1"),
        ("\nann 123\n", "line 2"),
        ("ann " + "g" * 64, "line 1"),
        ("ann bob " + "a" * 64, "line 1"),
        ("a" * 64, "line 1"),
    ],
)
def test_malformed_file_is_a_plain_error(
    text: str, message: str, tmp_path: Path
) -> None:
    """It names the file and the line, and repeats nothing of it."""
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(CallerError, match=message):
        bearer_tokens(path)


def test_missing_file_is_an_oserror(tmp_path: Path) -> None:
    """So that the caller can tell it from a malformed one."""
    with pytest.raises(FileNotFoundError):
        bearer_tokens(tmp_path / "none")


async def test_challenge_reaches_the_client(
    autojump_clock: object, tmp_path: Path
) -> None:
    """RFC 9110, section 11.6.1: a 401 has a WWW-Authenticate."""
    token, line = new_token("ann")
    path = tmp_path / "tokens"
    path.write_text(line)
    config = Config(authenticate=bearer_tokens(path))
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        reply = await client.request("GET", "/")
        assert (reply.status, reply["www-authenticate"]) == (
            401,
            'Bearer realm="trioresume"',
        )
        reply = await client.request("GET", "/", {"Authorization": f"Bearer {token}"})
        assert reply.status == 200


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "forbidden"), (429, "too-many-requests"), (503, "service-unavailable")],
)
async def test_other_refusals_have_their_codes(
    status: int, code: str, autojump_clock: object
) -> None:
    """What an ``authenticate`` may answer, with fields of its own."""

    async def refuse(head: RequestHead) -> Rejection:
        return Rejection(status, Fields({"retry-after": "7"}), "because")  # type: ignore[arg-type]

    async with memory_service(Recorder(), Config(authenticate=refuse)) as service:
        reply = await service.connect().request("GET", "/operations/x")
        assert (reply.status, reply.code) == (status, code)
        assert reply["retry-after"] == "7"
        assert reply.json["detail"] == "because"


async def test_bug_in_authenticate_is_a_500_and_lets_nobody_in(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors: and nothing of the request was looked at."""

    async def broken(head: RequestHead) -> Principal:
        raise ZeroDivisionError

    async with memory_service(handler := Recorder(), Config(authenticate=broken)) as s:
        reply = await s.connect().request("POST", "/", {"Prefer": "resume"}, b"x")
        assert (reply.status, reply.interims) == (500, [])
    assert handler.started == 0
    assert "Traceback" in caplog.text


async def test_slow_authenticate_is_a_503(autojump_clock: object) -> None:
    """It has as long as a head may take."""

    async def slow(head: RequestHead) -> Principal:
        await trio.sleep_forever()
        raise AssertionError

    config = Config(authenticate=slow, header_timeout=15)
    async with memory_service(Recorder(), config) as service:
        started = trio.current_time()
        reply = await service.connect().request("GET", "/")
        assert (reply.status, reply.code) == (503, "service-unavailable")
        assert trio.current_time() - started == 15


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_tokens_are_read_as_editors_save_them(
    tmp_path: Path, encoding: str, end: str
) -> None:
    """Notepad puts a mark before UTF-8, PowerShell writes UTF-16: the names stay the same."""
    first, line1 = new_token("ann")
    second, line2 = new_token("\u00f6zg\u00fcr")
    text = end.join(
        ["# people", line1, "", line2.replace(line2[-64:], line2[-64:].upper())]
    )
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = tmp_path / "tokens"
    path.write_bytes((mark + text + end).encode(encoding))
    authenticate = bearer_tokens(path)
    assert await authenticate(_head(f"Bearer {first}")) == Principal("ann")
    assert await authenticate(_head(f"Bearer {second}")) == Principal("\u00f6zg\u00fcr")


async def test_mark_within_joined_files_is_no_part_of_a_name(tmp_path: Path) -> None:
    """``cat a b``: the second file's first name would be another principal's."""
    first, line1 = new_token("ann")
    second, line2 = new_token("bob")
    path = tmp_path / "tokens"
    path.write_bytes(f"{line1}\n".encode("utf-8-sig") + line2.encode("utf-8-sig"))
    authenticate = bearer_tokens(path)
    assert await authenticate(_head(f"Bearer {first}")) == Principal("ann")
    assert await authenticate(_head(f"Bearer {second}")) == Principal("bob")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("ann x".encode("utf-16-le"), "UTF-16"),
        (b"ann " + b"0" * 64 + b"\nm\xfcller " + b"0" * 64, "line 2 is not UTF-8"),
        (b"\xff\xfea", "line 1 is not UTF-16"),
        (b"\x89PNG\0", "NUL"),
        (b"\xef\xbb\xbf", "has no token"),
    ],
)
def test_file_that_is_no_text_is_refused_with_the_reason(
    tmp_path: Path, data: bytes, complaint: str
) -> None:
    """Not with a traceback of the decoder."""
    path = tmp_path / "tokens"
    path.write_bytes(data)
    with pytest.raises(CallerError, match=complaint):
        bearer_tokens(path)
