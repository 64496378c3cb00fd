"""``upload``: one upload as a blocking call, for scripts and for threads of other programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import trio

from trioresume.client.client import Client
from trioresume.errors import CallerError
from trioresume.protocol.filenames import content_disposition_attachment
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    import ssl

    from trioresume.client.decisions.protocol_choice import ProtocolName
    from trioresume.client.decisions.retry import RetryPolicy
    from trioresume.client.http.requests import HeaderInput
    from trioresume.client.http.tls import ClientTls
    from trioresume.client.journal import Journal
    from trioresume.client.progress import Progress
    from trioresume.client.response import ClientResponse

__all__ = ["upload"]


def upload(
    content: str | os.PathLike[str] | bytes | BinaryIO,
    url: str,
    *,
    method: str = "POST",
    headers: HeaderInput = (),
    token: str | None = None,
    protocol: ProtocolName = "auto",
    journal: Journal | None = None,
    retry: RetryPolicy | None = None,
    tls: ClientTls | ssl.SSLContext | None = None,
    limit_rate: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> ClientResponse:
    """Upload *content* to *url*, and return the final response, whatever its status is.

    Blocks until then, over any number of broken connections. *content* is the path of a file,
    bytes, or a binary file. A path's name goes with it as ``Content-Disposition``, unless
    *headers* have that field. The other arguments are those of :class:`Client` and
    :meth:`Client.request`. With a *journal*, a call that was interrupted is continued by the
    next one for the same file and URL.

    It may be called in several threads at once. From a program that runs an event loop, call
    it in a thread, as with :func:`asyncio.to_thread`, or use :class:`Client`. An exception
    that *on_progress* raises ends the upload, and is raised here.

    Raises :class:`~trioresume.errors.CallerError` in a thread that runs an event loop, and
    what :meth:`Client.request` raises.
    """
    if _runs_a_loop():
        raise CallerError(
            "an event loop runs in this thread, which this call would block: use"
            " asyncio.to_thread(trioresume.upload, ...), or trioresume.Client with trio"
        )
    fields = Fields(headers)
    if isinstance(content, (str, os.PathLike)) and "content-disposition" not in fields:
        name = Path(content).name.encode("utf-8", "replace").decode()
        disposition = content_disposition_attachment(name)
        fields = fields.plus({"content-disposition": disposition})
    client = Client(
        token=token,
        protocol=protocol,
        journal=journal,
        retry=retry,
        tls=tls,
        limit_rate=limit_rate,
    )

    async def main() -> ClientResponse:
        async with client:
            return await client.request(
                method, url, body=content, headers=fields, on_progress=on_progress
            )

    return trio.run(main)


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return trio.lowlevel.in_trio_run()
    return True
