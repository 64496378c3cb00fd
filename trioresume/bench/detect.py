"""Finds out, with a few small requests, which protocol a server speaks.

Statement numbers such as R25 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from trioresume.bench.probe import Destination, Request, Response, Unhappy
from trioresume.bench.results import Ending
from trioresume.bench.settings import Protocol
from trioresume.bench.upload_run import Link
from trioresume.protocol.dialects.client import Locations
from trioresume.protocol.dialects.discovery import Discovery
from trioresume.protocol.dialects.seed.client import SEED
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url

__all__ = ["detect"]


async def detect(link: Link, destination: Destination) -> tuple[Protocol, str | None]:
    """Return the first of seed, rufh, tus that the server shows, else plain; and its name.

    For the seed, a request is sent up to its head, and the 100 shows the seed. The
    content is never sent, and the request asks the server to keep nothing. The others
    show in the answer to OPTIONS. Raises :class:`Unhappy` if no server answers.
    """
    name: str | None = None
    if await _offers_resumption(link, destination):
        found = Protocol.SEED
    else:
        found = Protocol.PLAIN
    answer = await _ask(link, Request("OPTIONS", destination.url))
    if answer is not None:
        name = answer.fields.get("server")
        spoken = Discovery.of(answer.fields)
        if found is Protocol.PLAIN and spoken.rufh:
            found = Protocol.RUFH
        elif found is Protocol.PLAIN and spoken.tus:
            found = Protocol.TUS
    return found, name


async def _offers_resumption(link: Link, destination: Destination) -> bool:
    offers: list[Locations] = []

    def interim(response: Response) -> None:
        found = SEED.offer(destination.url, response.status, response.fields)
        if found is not None:
            offers.append(found)
            raise Unhappy(Ending.STOPPED, "that is all")

    request = Request(
        destination.method,
        destination.url,
        Fields(
            {
                "content-type": "application/octet-stream",
                "prefer": "resume=ignore-incomplete",
            }
        ),
        prefix=b"?",
        has_content=True,
        expect=True,
    )
    connection = await link.open()
    try:
        await connection.ask(
            request, link.settings.headers, on_interim=interim, hold_content=True
        )
    except Unhappy as exc:
        _raise_if_hopeless(exc)  # else it is an offer, or an answer that is none
    finally:
        connection.reset()
    for offer in offers:
        if offer.content is not None:
            await _cancel(link, offer.content)
    return bool(offers)


async def _cancel(link: Link, url: Url) -> None:
    """Delete the upload (R25). A server that does not know DELETE lets it expire."""
    await _ask(link, Request("DELETE", url))


async def _ask(link: Link, request: Request) -> Response | None:
    connection = await link.open()
    try:
        return await connection.ask(request, link.settings.headers)
    except Unhappy as exc:
        _raise_if_hopeless(exc)
        return None
    finally:
        connection.close()


def _raise_if_hopeless(exc: Unhappy) -> None:
    """Raise *exc* again if the server refuses the connection itself."""
    if exc.ending is Ending.REFUSED and not exc.retry:
        raise exc
