"""Who may download files: their owner, everybody, or who has a signed address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from tests.identity.heads import bearer
from tests.identity.test_any_of import Asked
from tests.server.harness import Client, Reply, memory_service
from tests.server.tus import MARK, create
from trioresume import (
    AnyOf,
    CallerError,
    Config,
    Downloads,
    FileService,
    Principal,
    SignedAddresses,
    SigningKey,
    bearer_tokens,
    new_token,
    sign_download,
)

KEY = SigningKey.new("k")
NAMES = ("ann", "b\u00f6b & co?")


class Service:
    """A client, and the tokens of two senders."""

    def __init__(self, client: Client, tokens: dict[str, str]) -> None:
        self.client = client
        self.tokens = tokens

    async def ask(
        self, method: str, target: str, name: str | None = None, body: bytes = b""
    ) -> Reply:
        fields = {} if name is None else bearer(self.tokens[name])
        return await self.client.request(method, target, fields, body or None)


@asynccontextmanager
async def serving(
    tmp_path: Path, who: Literal["public", "signed"], base: str = "/files/"
) -> AsyncIterator[Service]:
    made = {name: new_token(name.replace(" ", "_")) for name in NAMES}
    (tokens := tmp_path / "tokens").write_text(
        "".join(f"{line}\n" for _, line in made.values())
    )
    (keys := tmp_path / "keys").write_text(KEY.line)
    known = Downloads(
        who, AnyOf(SignedAddresses(keys), bearer_tokens(tokens)), base=base
    )
    target = FileService(base, names_owner=who == "public")
    async with memory_service(target, Config(authenticate=known)) as service:
        yield Service(service.connect(), {name: made[name][0] for name in NAMES})


@pytest.mark.parametrize("name", NAMES)
async def test_public_file_is_found_at_its_location(
    name: str, tmp_path: Path, autojump_clock: object
) -> None:
    """Which names its owner, so that nobody can put another file into its place."""
    async with serving(tmp_path, "public") as service:
        for method, target in (("PUT", "/files/a.txt"), ("POST", "/files/")):
            reply = await service.ask(method, target, name, b"mine")
            assert reply.status == 201
            place = reply["location"]
            assert reply.json["location"] == place
            other = next(each for each in NAMES if each != name)
            await service.ask("PUT", "/files/a.txt", other, b"other's")
            for sender in (None, other, name):
                reply = await service.ask("GET", place, sender)
                assert (reply.status, reply.body) == (200, b"mine")
            assert (await service.ask("HEAD", place)).status == 200
            bare = place.partition("?")[0]
            assert (await service.ask("GET", bare)).status == 401
            assert (await service.ask("GET", bare, name)).body == b"mine"


async def test_only_downloads_are_public(
    tmp_path: Path, autojump_clock: object
) -> None:
    """Nothing else that names the owner in its query counts as the owner's."""
    async with serving(tmp_path, "public", base="/") as service:
        await service.ask("PUT", "/a.txt", "ann", b"mine")
        upload = await create(
            service.client, 9, bearer(service.tokens["ann"]), target="/"
        )
        for method, target, status in (
            ("GET", "/a.txt?owner=ann", 200),
            ("GET", "/b.txt?owner=ann", 404),
            ("GET", "/a.txt?owner=bob", 404),
            ("GET", "/a.txt?owner=", 401),
            ("GET", "/a.txt?owner=ann&owner=ann", 401),
            ("GET", "/a.txt?" + "x=y&" * 99 + "owner=ann", 401),
            ("GET", "/a.txt?owner=%ff", 401),
            ("DELETE", "/a.txt?owner=ann", 401),
            ("PUT", "/a.txt?owner=ann", 401),
            ("POST", "/?owner=ann", 401),
            ("GET", f"{upload}?owner=ann", 401),
            ("HEAD", f"{upload}?owner=ann", 401),
            ("DELETE", f"{upload}?owner=ann", 401),
        ):
            fields = MARK if target.startswith("/operations") else {}
            reply = await service.client.request(method, target, fields)
            assert reply.status == status, (method, target)


async def test_nobody_downloads_without_a_signature(
    tmp_path: Path, autojump_clock: object
) -> None:
    """The owner neither; uploads and deletions are as before."""
    async with serving(tmp_path, "signed") as service:
        reply = await service.ask("PUT", "/files/a", "ann", b"mine")
        assert (reply.status, reply["location"]) == (201, "/files/a")
        for method in ("GET", "HEAD"):
            assert (await service.ask(method, "/files/a")).status == 401
            assert (await service.ask(method, "/files/a", "ann")).status == 403
            assert (await service.ask(method, "/files/a?owner=ann")).status == 401
        url = sign_download("http://h/files/a", KEY, principal="ann")
        reply = await service.ask("GET", url.removeprefix("http://h"))
        assert (reply.status, reply.body) == (200, b"mine")
        assert (await service.ask("DELETE", "/files/a", "ann")).status == 204


async def test_inner_authenticator_keeps_its_parts(autojump_clock: object) -> None:
    """It runs beside the service, is asked again, and reads its files again."""
    asked = Asked(Principal("ann"))
    known = Downloads("public", asked)
    known.reload()
    assert asked.reloads == 1
    async with memory_service(FileService(), Config(authenticate=known)) as service:
        reply = await service.connect().request("POST", "/files/", {}, b"x")
        assert reply.status == 201
    assert asked.calls == 2
    assert not asked.is_running


def test_settings_that_make_no_sense_are_refused() -> None:
    """At the start."""
    inner = Asked(Principal("ann"))
    with pytest.raises(CallerError):
        Downloads("owner", inner)  # type: ignore[arg-type]
    with pytest.raises(CallerError):
        Downloads("public", inner, base="/files")
