"""The checks of a proxy: what a resumable upload needs from whatever is in front of a server.

Each check makes an unfinished upload of its own, and deletes it at the end, so nothing is
stored. Most use tus, because it needs no interim response: what they find holds for the
other protocols, too.

The page docs/behind-a-proxy.md has the settings that the cures name.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from trioresume.bench.proxy_check.findings import Finding, Verdict
from trioresume.bench.proxy_check.wire import Answer, Broken, Wire, ask, wire_to
from trioresume.errors import CallerError
from trioresume.protocol.dialects.discovery import Discovery
from trioresume.protocol.fields import maybe_integer
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url

__all__ = ["ProxyChecks", "check_proxy"]

MIB = 1 << 20
SENT = 512 * 1024
"""Bytes that a check sends before it looks: more than a proxy's first buffer."""

LENGTH = 960 * 1024
"""Bytes of a request: below nginx's first limit, so that each check finds one thing."""

LOOKS = (0.5, 2.0, 5.0)
"""Seconds until the server should have what was sent: first for a near one, at last for a far one."""

SIZES = (2 * MIB, 128 * MIB, 1 << 30)
"""Sizes of requests that are announced, one after the other: limits of proxies lie between."""

REFUSAL_SECONDS = 1.5
"""How long a refusal of the announced size may take."""

INTERIMS = 7
"""Interim responses in one request: Caddy before 2.7 breaks off after five."""

INTERIM_SECONDS = 15.0

_TUS = Fields({"tus-resumable": "1.0.0"})
_APPEND = _TUS.plus({"content-type": "application/offset+octet-stream"})
_RUFH_VERSION = "8"


class _Stop(Exception):
    """The check cannot go on; *finding* says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.seen)
        self.finding = finding


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyChecks:
    """What is checked, and how.

    *url* is where uploads begin, as clients know it. *headers* are fields for every request,
    such as credentials. *silence* is the number of seconds that an upload pauses.
    """

    url: str
    headers: Fields = field(default_factory=Fields)
    tls: ssl.SSLContext | None = None
    silence: float = 10.0

    def __post_init__(self) -> None:
        url = Url.parse(self.url)
        if url.origin.scheme == "https" and self.tls is None:
            raise CallerError("an https:// URL needs the settings for TLS")
        if self.silence <= 0:
            raise CallerError("the pause must be longer than nothing")


async def check_proxy(checks: ProxyChecks) -> list[Finding]:
    """Perform all checks at once, and return what they found, in a fixed order.

    Raises :class:`~trioresume.errors.CallerError` if the URL cannot be used. If cancelled,
    the server keeps unfinished uploads until they expire.
    """
    run = _Checks(checks)
    first = await run.reached()
    if first.verdict is Verdict.FAILED:
        return [first]
    names: dict[str, Callable[[str], Awaitable[Finding]]] = {
        "address": run.address,
        "streaming": run.streaming,
        "unknown length": run.unknown_length,
        "cut": run.cut,
        "size": run.size,
        "pause": run.pause,
        "interim responses": run.interim_responses,
        "many interim responses": run.many_interim_responses,
        "deletion": run.deletion,
    }
    found: dict[str, Finding] = {}

    async def one(name: str, check: Callable[[str], Awaitable[Finding]]) -> None:
        try:
            found[name] = await check(name)
        except _Stop as exc:
            found[name] = exc.finding
        except Broken as exc:
            found[name] = Finding(
                name=name,
                verdict=Verdict.FAILED,
                seen=f"{exc}.",
                cure="Look into the proxy's log.",
            )

    async with trio.open_nursery() as nursery:
        for name, check in names.items():
            nursery.start_soon(one, name, check)
    return [first, *(found[name] for name in names)]


class _Checks:
    """The checks, of one URL."""

    def __init__(self, checks: ProxyChecks) -> None:
        self._url = Url.parse(checks.url)
        self._headers = checks.headers
        self._tls = checks.tls if self._url.origin.scheme == "https" else None
        self._silence = checks.silence

    # Requests.

    async def _ask(self, method: str, url: Url, fields: Fields) -> Answer:
        return await ask(method, url, self._headers.plus(fields), self._tls)

    async def _create(self, name: str, length: int) -> tuple[Url, str]:
        """Make an upload of *length* bytes with tus. Return its URL, and what was told."""
        answer = await self._ask(
            "POST", self._url, _TUS.plus({"upload-length": str(length)})
        )
        location = answer.fields.get("location")
        if answer.status != 201 or location is None:
            raise _Stop(
                Finding(
                    name=name,
                    verdict=Verdict.SKIPPED,
                    seen=f"No upload of {_mib(length)} could be made: {_told(answer)}.",
                )
            )
        told = self._url.join(location)
        if told is None:
            raise _Stop(
                Finding(
                    name=name,
                    verdict=Verdict.FAILED,
                    seen=f"The location of an upload is no URL: {location!r}.",
                    cure="Give the server its --public-url.",
                )
            )
        # A wrong scheme or host is the finding of one check. The others go on here.
        return Url(self._url.origin, told.target), str(told)

    @asynccontextmanager
    async def _upload(self, name: str, length: int) -> AsyncIterator[Url]:
        """An unfinished upload, which is deleted at the end."""
        url, _ = await self._create(name, length)
        try:
            yield url
        finally:
            with trio.move_on_after(5, shield=True):
                try:
                    await self._ask("DELETE", url, _TUS)
                except Broken:
                    pass  # it expires

    async def _offset(self, url: Url) -> int:
        """Return how much the server has. Raises :class:`Broken` if it does not tell."""
        answer = await self._ask("HEAD", url, _TUS)
        offset = maybe_integer(answer.fields.get("upload-offset"))
        if answer.status not in (200, 204) or offset is None:
            raise Broken(f"HEAD does not tell the offset: {_told(answer)}")
        return offset

    @asynccontextmanager
    async def _appending(
        self, url: Url, offset: int, length: int | None
    ) -> AsyncIterator[Wire]:
        """A PATCH of *length* bytes whose head was sent; None: of unknown length."""
        framing = (
            {"transfer-encoding": "chunked"}
            if length is None
            else {"content-length": str(length)}
        )
        fields = self._headers.plus(_APPEND).plus({"upload-offset": str(offset)})
        async with wire_to(url.origin, self._tls) as wire:
            await wire.send_head("PATCH", url, fields.plus(framing))
            yield wire

    # The checks.

    async def reached(self) -> Finding:
        """A server that speaks tus answers; without one nothing else can be checked."""
        try:
            answer = await self._ask("OPTIONS", self._url, Fields())
        except Broken as exc:
            return Finding(
                name="reached",
                verdict=Verdict.FAILED,
                seen=f"{exc}.",
                cure="Is the URL right, and does the proxy run?",
            )
        spoken = Discovery.of(answer.fields)
        if not spoken.takes_tus(1):
            return Finding(
                name="reached",
                verdict=Verdict.FAILED,
                seen=f"OPTIONS shows no server that speaks tus: {_told(answer)}.",
                cure="Let the proxy pass OPTIONS, PATCH, HEAD and DELETE on for this path, "
                "and check the credentials.",
            )
        also = " and Resumable Uploads for HTTP" if spoken.rufh else ""
        return Finding(
            name="reached",
            verdict=Verdict.PASSED,
            seen=f"The server answers. It speaks tus{also}.",
        )

    async def address(self, name: str) -> Finding:
        """The address of an upload leads back to the server, through the proxy."""
        url, told = await self._create(name, MIB)
        answer = await self._ask("HEAD", url, _TUS)
        await self._ask("DELETE", url, _TUS)
        if answer.status not in (200, 204):
            return Finding(
                name=name,
                verdict=Verdict.FAILED,
                seen=f"The address of an upload, {_short(told)}, leads nowhere: "
                f"{_told(answer)}.",
                cure="If the proxy removes a part of the path, tell the server with "
                "--root-path, and let the proxy pass on every path below it.",
            )
        if not told.startswith(f"{self._url.origin.scheme}://") or str(url) != told:
            origin = told.partition("://")
            wrong = f"{origin[0]}://{origin[2].partition('/')[0]}"
            return Finding(
                name=name,
                verdict=Verdict.FAILED,
                seen=f"The server believes that it is at {wrong}, not at "
                f"{self._url.origin.scheme}://{self._url.origin.authority}.",
                cure="Let the proxy send X-Forwarded-Host and X-Forwarded-Proto, and tell the "
                "server its address with --trusted-proxy; or give it its --public-url.",
            )
        return Finding(
            name=name,
            verdict=Verdict.PASSED,
            seen="The address of an upload leads back to it.",
        )

    async def streaming(self, name: str) -> Finding:
        """Content reaches the server while it is sent."""
        if await self._arrives(name, LENGTH):
            return Finding(
                name=name,
                verdict=Verdict.PASSED,
                seen="Content reaches the server while it is sent.",
            )
        return Finding(
            name=name,
            verdict=Verdict.FAILED,
            seen="Content is held back until the request is complete. A cut loses all of it.",
            cure="Switch the buffering of requests off: in nginx 'proxy_request_buffering off'.",
        )

    async def unknown_length(self, name: str) -> Finding:
        """Content whose length is not known before reaches the server, too."""
        try:
            arrives = await self._arrives(name, None)
        except Broken as exc:
            return Finding(
                name=name,
                verdict=Verdict.LIMITED,
                seen=f"Content without a length is refused: {exc}.",
                cure="Pipes ('trioresume upload -') and some clients need it: let the proxy "
                "pass on Transfer-Encoding: chunked.",
            )
        if arrives:
            return Finding(
                name=name,
                verdict=Verdict.PASSED,
                seen="Content without a length reaches it while it is sent, too.",
            )
        return Finding(
            name=name,
            verdict=Verdict.LIMITED,
            seen="Content without a length is held back. A cut loses all of it.",
            cure="In nginx: 'proxy_http_version 1.1' and 'proxy_request_buffering off'.",
        )

    async def _arrives(self, name: str, length: int | None) -> bool:
        """Whether the server has something of a PATCH that is not complete."""
        async with self._upload(name, MIB) as url:
            for wait in LOOKS:
                async with self._appending(url, 0, length) as wire:
                    await wire.send(bytes(SENT))
                    early = await wire.final_within(wait)
                    if early is not None:
                        raise Broken(f"PATCH was answered early: {_told(early)}")
                    if await self._offset(url) > 0:
                        return True
            return False

    async def cut(self, name: str) -> Finding:
        """What has arrived when the sender goes away is kept."""
        async with self._upload(name, MIB) as url:
            for wait in LOOKS:
                async with self._appending(url, 0, LENGTH) as wire:
                    await wire.send(bytes(SENT))
                    await trio.sleep(wait)
                    wire.cut()
                await trio.sleep(wait / 2)
                offset = await self._offset(url)
                if offset > 0:
                    return Finding(
                        name=name,
                        verdict=Verdict.PASSED,
                        seen=f"After a cut the server has {offset} of {SENT} bytes.",
                    )
        return Finding(
            name=name,
            verdict=Verdict.FAILED,
            seen="After a cut the server has nothing of what was sent.",
            cure="Switch the buffering of requests off: in nginx 'proxy_request_buffering off'.",
        )

    async def size(self, name: str) -> Finding:
        """Requests with much content pass. Their heads are sent, and no content."""
        passed = 0
        for size in SIZES:
            try:
                async with self._upload(name, size) as url:
                    async with self._appending(url, 0, size) as wire:
                        answer = await wire.final_within(REFUSAL_SECONDS)
            except _Stop as exc:
                if not passed:
                    raise
                seen = f"A request may have {_mib(passed)}. {exc.finding.seen}"
                return Finding(name=name, verdict=Verdict.PASSED, seen=seen)
            if answer is None:
                passed = size
            else:
                return Finding(
                    name=name,
                    verdict=Verdict.FAILED if size == SIZES[0] else Verdict.LIMITED,
                    seen=f"A request with {_mib(size)} is refused: "
                    f"{_told(answer)}."
                    + (f" One with {_mib(passed)} passes." if passed else ""),
                    cure="Raise the proxy's limit (nginx: 'client_max_body_size 0'), or tell "
                    "it to the server with --max-append-size.",
                )
        seen = f"A request may have {_mib(passed)}, and perhaps more."
        return Finding(name=name, verdict=Verdict.PASSED, seen=seen)

    async def pause(self, name: str) -> Finding:
        """A sender may be silent for a while, as on a bad link."""
        shown = f"{self._silence:g} s"
        async with self._upload(name, MIB) as url:
            async with self._appending(url, 0, LENGTH) as wire:
                await wire.send(bytes(SENT))
                problem = ""
                try:
                    early = await wire.final_within(self._silence)
                    if early is None:
                        await wire.send(bytes(1024))
                        early = await wire.final_within(LOOKS[0])
                    if early is not None:
                        problem = _told(early)
                except Broken as exc:
                    problem = str(exc)
            if problem:
                return Finding(
                    name=name,
                    verdict=Verdict.FAILED,
                    seen=f"After a pause of at most {shown} an upload was ended: {problem}.",
                    cure="Raise the proxy's time limits for clients and servers above the "
                    "server's --idle-timeout.",
                )
        return Finding(
            name=name,
            verdict=Verdict.PASSED,
            seen=f"An upload may pause for {shown}.",
        )

    async def interim_responses(self, name: str) -> Finding:
        """Interim responses arrive with their fields: they tell the address of an upload."""
        fields = Fields(
            {
                "upload-complete": "?0",
                "upload-draft-interop-version": _RUFH_VERSION,
                "upload-length": str(MIB),
                "content-length": "0",
            }
        )
        try:
            async with wire_to(self._url.origin, self._tls) as wire:
                await wire.send_head("POST", self._url, self._headers.plus(fields))
                await wire.end()
                answer = await wire.final()
        except Broken as exc:
            return Finding(
                name=name,
                verdict=Verdict.FAILED,
                seen=f"A request with interim responses fails: {exc}.",
                cure="Start the server with --interim-responses none.",
            )
        location = answer.fields.get("location")
        url = None if location is None else self._url.join(location)
        if url is not None:
            await self._ask("DELETE", Url(self._url.origin, url.target), Fields())
        if answer.status != 201:
            return Finding(
                name=name,
                verdict=Verdict.SKIPPED,
                seen=f"No upload could be made: {_told(answer)}.",
            )
        if any("connection" in i.fields for i in wire.interims):
            # It ended the interim response as if it were final: what follows is content to it.
            return Finding(
                name=name,
                verdict=Verdict.FAILED,
                seen="The proxy takes an interim response for the final one. Clients may take "
                "it so, too, or wait for ever.",
                cure="Start the server with --interim-responses none.",
            )
        if any(i.fields.get("location") for i in wire.interims):
            return Finding(
                name=name,
                verdict=Verdict.PASSED,
                seen="Interim responses arrive with their fields.",
            )
        return Finding(
            name=name,
            verdict=Verdict.LIMITED,
            seen="Interim responses do not arrive. Clients that send everything in the first "
            "request (curl, Apple's URLSession) can upload, but not resume. tus, and uploads "
            "that begin with an empty request, do resume.",
            cure="nginx cannot pass them on: keep --interim-responses none, or use a proxy that "
            "can, such as Caddy or HAProxy.",
        )

    async def many_interim_responses(self, name: str) -> Finding:
        """A long upload with many interim responses is not broken off."""
        fields = {
            "prefer": "resume=ignore-incomplete, acknowledge",
            "expect": "100-continue",
            "content-type": "application/octet-stream",
            "content-length": str(64 * MIB),
        }
        method = "POST" if self._url.target.partition("?")[0].endswith("/") else "PUT"
        location: str | None = None
        problem = ""
        async with wire_to(self._url.origin, self._tls) as wire:
            with trio.move_on_after(INTERIM_SECONDS):
                try:
                    await wire.send_head(method, self._url, self._headers.plus(fields))
                    while len(wire.interims) < INTERIMS:
                        answer = await wire.final_within(0.25)
                        if answer is not None:
                            problem = _told(answer)
                            break
                        if wire.interims:
                            await wire.send(bytes(1024))
                except Broken as exc:
                    problem = str(exc)
        offers = (i.fields.get("request-content-location") for i in wire.interims)
        location = next((offer for offer in offers if offer), None)
        if location is None:
            return Finding(
                name=name,
                verdict=Verdict.SKIPPED,
                seen="No interim response with the address of the upload came, so there are "
                "not many.",
            )
        url = self._url.join(location)
        if url is not None:
            await self._ask("DELETE", Url(self._url.origin, url.target), Fields())
        if problem:
            return Finding(
                name=name,
                verdict=Verdict.FAILED,
                seen=f"After {len(wire.interims)} interim responses the request was broken "
                f"off: {problem}.",
                cure="Start the server with --interim-responses locations.",
            )
        return Finding(
            name=name,
            verdict=Verdict.PASSED,
            seen=f"{len(wire.interims)} interim responses to one request do no harm.",
        )

    async def deletion(self, name: str) -> Finding:
        """A client can give up an upload."""
        url, _ = await self._create(name, MIB)
        answer = await self._ask("DELETE", url, _TUS)
        if answer.status in (200, 204):
            return Finding(
                name=name, verdict=Verdict.PASSED, seen="An upload can be deleted."
            )
        return Finding(
            name=name,
            verdict=Verdict.LIMITED,
            seen=f"An upload cannot be deleted: {_told(answer)}.",
            cure="Let the proxy pass DELETE on. Until then uploads that are given up take "
            "space until they expire.",
        )


def _told(answer: Answer) -> str:
    """Return the status, and the first words of what is no document of the server."""
    words = f"the answer was {answer.status}"
    server = answer.fields.get("server")
    return words if server is None else f"{words}, by {server[:40]!r}"


def _short(url: str) -> str:
    """Return *url* without the secret at its end."""
    return f"{url[:40]}…" if len(url) > 41 else url


def _mib(size: int) -> str:
    return f"{size // MIB} MiB" if size < 1 << 30 else f"{size >> 30} GiB"
