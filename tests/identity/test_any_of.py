"""Several authenticators: one after the other, and a challenge of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import bcrypt
import pytest

from tests.identity.heads import basic, bearer, head
from tests.server.harness import Recorder, memory_service
from trioresume import (
    AnyOf,
    Authenticator,
    CallerError,
    Config,
    Fields,
    PasswordFile,
    Principal,
    Rejection,
    RequestHead,
    bearer_tokens,
    client_certificates,
    new_token,
)


def answering(verdict: Principal | Rejection) -> Authenticator:
    async def authenticate(_: RequestHead) -> Principal | Rejection:
        return verdict

    return authenticate


class Asked:
    """An authenticator with all parts: it counts what is done with it."""

    asks_again = True

    def __init__(self, verdict: Principal | Rejection) -> None:
        self.verdict = verdict
        self.calls = self.reloads = 0
        self.is_running = False

    async def __call__(self, _: RequestHead) -> Principal | Rejection:
        assert self.is_running
        self.calls += 1
        return self.verdict

    def reload(self) -> None:
        self.reloads += 1

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False


def challenge(text: str, detail: str = "", body: bytes | None = None) -> Rejection:
    return Rejection(
        401, Fields({"www-authenticate": text, "x-of": text}), detail, body
    )


async def test_first_that_knows_the_sender_decides() -> None:
    """And the later ones are not asked."""
    last = Asked(Principal("last"))
    known = AnyOf(answering(challenge("Bearer")), answering(Principal("second")), last)
    assert await known(head()) == Principal("second")
    assert last.calls == 0


@pytest.mark.parametrize("status", [403, 429, 502, 503])
async def test_refusal_other_than_401_is_final(status: int) -> None:
    """It recognised the credentials, or cannot work: another must not let them in."""
    refusal = Rejection(status, detail="no")  # type: ignore[arg-type]
    known = AnyOf(answering(refusal), answering(Principal("second")))
    assert await known(head()) == refusal


async def test_each_has_its_challenge(autojump_clock: object) -> None:
    """RFC 9110, section 11.6.1: a client chooses among them."""
    known = AnyOf(
        answering(challenge("Bearer realm=a", "a token is needed")),
        answering(challenge("Basic realm=b", "a password is needed")),
    )
    async with memory_service(Recorder(), Config(authenticate=known)) as service:
        reply = await service.connect().request("GET", "/")
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert reply["www-authenticate"] == "Bearer realm=a, Basic realm=b"
        assert reply.json["detail"] == "a token is needed; or a password is needed"


async def test_refusal_is_that_of_the_scheme_that_was_used() -> None:
    """A wrong password is called that, and not a missing token."""
    known = AnyOf(
        answering(challenge("Bearer realm=a", "a token is needed")),
        answering(challenge('Bearer realm=a, error="invalid_token"', "expired")),
        answering(challenge("Basic realm=b", "wrong password")),
    )
    verdict = await known(head(fields=basic("ann", "x")))
    assert isinstance(verdict, Rejection)
    assert verdict.detail == "wrong password"
    verdict = await known(head(fields=bearer("x")))
    assert isinstance(verdict, Rejection)
    assert verdict.detail == "expired"
    assert verdict.headers.get_all("www-authenticate") == [
        'Bearer realm=a, error="invalid_token"',
        "Basic realm=b",
    ]


async def test_page_for_people_is_kept() -> None:
    """A service that authenticates may answer with its login page."""
    known = AnyOf(
        answering(challenge("Bearer", "a token is needed")),
        answering(challenge("Basic", body=b"<p>log in")),
    )
    verdict = await known(head())
    assert isinstance(verdict, Rejection)
    assert verdict.body == b"<p>log in"
    assert verdict.headers.get("x-of") == "Basic"


@pytest.mark.parametrize("wrap", [False, True])
async def test_only_its_own_senders_are_asked_about_again(
    autojump_clock: object, wrap: bool
) -> None:
    """C16: a token may expire while an upload arrives that it has begun."""
    asked = Asked(challenge("Basic"))
    verdicts: list[Principal | Rejection] = [Principal("ann"), challenge("Bearer")]

    async def once(_: RequestHead) -> Principal | Rejection:
        return verdicts.pop(0)

    known: Authenticator = AnyOf(once, asked)
    if wrap:
        known = client_certificates("san", known)
    async with memory_service(Recorder(), Config(authenticate=known)) as service:
        reply = await service.connect().request("POST", "/", body=b"x")
        assert reply.status == 200
        assert asked.calls == 0
        verdicts = [challenge("Bearer"), challenge("Bearer")]
        asked.verdict = Principal("bob")
        reply = await service.connect().request("POST", "/", body=b"x")
        assert reply.status == 200
        assert asked.calls == 2
    assert not asked.is_running


def test_all_read_their_files_again(tmp_path: Path) -> None:
    """A fault of one keeps the others from nothing, and is told."""
    (tokens := tmp_path / "tokens").write_text(new_token("ann")[1])
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (users := tmp_path / "users").write_text(f"bob:{hashed}")
    last = Asked(Principal("last"))
    known = AnyOf(bearer_tokens(tokens), PasswordFile(users), last)
    known.reload()
    tokens.write_text("")
    users.unlink()
    with pytest.raises(CallerError, match=r"has no token; .*users"):
        known.reload()
    assert last.reloads == 2


def test_none_is_refused() -> None:
    """A mistake that would refuse everybody."""
    with pytest.raises(CallerError):
        AnyOf()
