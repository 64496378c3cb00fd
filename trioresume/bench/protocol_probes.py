"""The protocols: the seed, tus 1.0.0, Resumable Uploads for HTTP, and none.

The fields of a request come from the client's side of the dialects
(:mod:`trioresume.protocol.dialects`). This module decides on the next request, in the
simplest way. The client gets the best out of a server. The benchmark finds out what the
server does.

Statement numbers such as R27 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from trioresume.bench.probe import (
    Destination,
    Probe,
    Request,
    Response,
    Unhappy,
    integer_field,
)
from trioresume.bench.results import Ending
from trioresume.bench.settings import Protocol
from trioresume.errors import PeerError
from trioresume.protocol.dialects.rufh.client import RufhClient
from trioresume.protocol.dialects.rufh.versions import UNVERSIONED, VERSIONS
from trioresume.protocol.dialects.seed.client import SEED
from trioresume.protocol.dialects.tus.client import TUS
from trioresume.protocol.filenames import content_disposition_attachment
from trioresume.protocol.heads import UPLOAD_RESUMPTION_SUPPORTED, Fields
from trioresume.protocol.message import parse_response_head
from trioresume.protocol.urls import Url

__all__ = ["PlainProbe", "RufhProbe", "SeedProbe", "TusProbe", "make_probe"]

_ABOUT = Fields({"content-type": "application/octet-stream"})
"""The fields of every upload. tuspyserver does not tell the offset of an upload without them."""

MESSAGE_WAIT = 5
"""For how many seconds the server may hold back an answer that is not ready (R27)."""


def make_probe(protocol: Protocol, destination: Destination, size: int) -> Probe:
    """Make a new upload in *protocol*, which is not AUTO."""
    probes: dict[Protocol, type[PlainProbe | RufhProbe | SeedProbe | TusProbe]] = {
        Protocol.SEED: SeedProbe,
        Protocol.RUFH: RufhProbe,
        Protocol.TUS: TusProbe,
        Protocol.PLAIN: PlainProbe,
    }
    return probes[protocol](destination, size)


class PlainProbe(Probe):
    """One request with the whole content. After a cut it begins again."""

    resumes = False

    def next(self) -> Request | None:
        if self.complete:
            return None
        return Request(
            self.destination.method,
            self.destination.url,
            _ABOUT,
            stop=self.size,
            has_content=True,
        )

    def final(self, request: Request, response: Response) -> None:
        if not response.ok:
            raise self._refused(request, response)
        self.complete = True
        self.result = self._location(response)
        if self.result is None and self.destination.method == "PUT":
            self.result = self.destination.url


class SeedProbe(Probe):
    """``Prefer: resume``: HEAD for the offset, PATCH with ``message/byterange``."""

    def __init__(self, destination: Destination, size: int) -> None:
        super().__init__(destination, size)
        self._message: Url | None = None

    def next(self) -> Request | None:
        if self.complete:
            return None
        if self.url is None and self._message is None:
            return Request(
                self.destination.method,
                self.destination.url,
                SEED.begin(_ABOUT, self.size, whole=True),
                stop=self.size,
                has_content=True,
                expect=self.size > 0,
            )
        if self._must_ask and self.url is not None:
            return Request("HEAD", self.url, asks_offset=True)
        if self.url is None or self.offset == self.size:
            if self._message is None:
                raise Unhappy(
                    Ending.NOT_UNDERSTOOD,
                    "no Response-Message-Location for the lost response",
                )
            wish = {"accept": "message/http", "prefer": f"wait={MESSAGE_WAIT}"}
            return Request("GET", self._message, Fields(wish))
        return self._append(SEED, self.url, self.size)

    def interim(self, response: Response) -> None:
        status, fields = response.status, response.fields
        offered = SEED.offer(self.destination.url, status, fields)
        if offered is not None and self.url is None:
            self.url = offered.content
            self._message = offered.message

    def final(self, request: Request, response: Response) -> None:
        if not response.ok:
            raise self._refused(request, response)
        if request.asks_offset:
            name = "upload-offset"
            if name not in response.fields:
                name = "content-length"
            self._go_on_from(integer_field(response, name))
        elif request.method == "GET":
            self._read_message(response)
        elif request.method == "PATCH" and "upload-offset" in response.fields:
            # Either the upload goes on (R17), or this is the completed upload's own answer.
            self._go_on_from(integer_field(response, "upload-offset"))
            if self.offset == self.size:
                self._completed(response)
        else:
            self._completed(response)

    def _completed(self, response: Response) -> None:
        self.complete = True
        self.result = self._location(response)
        if self.result is None and self.destination.method == "PUT":
            self.result = self.destination.url

    def _read_message(self, response: Response) -> None:
        """Read the lost final response from ``message/http`` (R26, R27)."""
        if response.status == 202:
            raise Unhappy(Ending.TIMEOUT, "the response is not ready", retry=True)
        try:
            parsed = parse_response_head(response.body)
        except PeerError:
            parsed = None
        if parsed is None:
            raise Unhappy(Ending.NOT_UNDERSTOOD, "the response message is none")
        status, fields, _ = parsed
        replayed = Response(status, fields)
        if not replayed.ok:
            raise Unhappy(Ending.REJECTED, f"the lost response is a {status}")
        self._completed(replayed)


class TusProbe(Probe):
    """tus 1.0.0: POST creates, PATCH appends, HEAD asks."""

    def next(self) -> Request | None:
        if self.complete:
            return None
        if self.url is None:
            name = content_disposition_attachment(self.destination.name)
            about = _ABOUT.plus({"content-disposition": name})
            return Request(
                "POST",
                self.destination.url,
                TUS.begin(about, self.size, whole=False),
                has_content=True,
            )
        if self._must_ask:
            return Request("HEAD", self.url, TUS.query(), asks_offset=True)
        return self._append(TUS, self.url, self._stop())

    def final(self, request: Request, response: Response) -> None:
        if not response.ok:
            raise self._refused(request, response)
        if request.method == "POST":
            self.url = self.result = self._own_url(response)
        else:
            self._go_on_from(integer_field(response, "upload-offset"))
            if request.asks_offset and "upload-length" in response.fields:
                length = integer_field(response, "upload-length")
                if length != self.size:
                    raise Unhappy(
                        Ending.NOT_UNDERSTOOD,
                        f"Upload-Length is {length}, not {self.size}",
                    )
        self.complete = self.offset == self.size

    def read_fields(self) -> Fields:
        return TUS.query()

    def stored_length(self, response: Response) -> int | None:
        if "upload-offset" in response.fields:
            return integer_field(response, "upload-offset")
        return None


class RufhProbe(Probe):
    """Resumable Uploads for HTTP, with an interop version or without.

    With a version the server announces the upload's resource in a 104 while the content
    is sent. Without a version there are no 104s. So an empty request creates the upload
    first ("careful creation"). Otherwise nothing could be resumed.
    """

    def __init__(self, destination: Destination, size: int) -> None:
        super().__init__(destination, size)
        number = destination.interop_version
        version = UNVERSIONED if number is None else VERSIONS[number]
        self._words = RufhClient(version, careful=number is None)

    def next(self) -> Request | None:
        if self.complete:
            return None
        if self.url is None:
            careful = self._words.careful
            stop = 0 if careful else self._stop()
            whole = stop == self.size and not careful
            return Request(
                self.destination.method,
                self.destination.url,
                self._words.begin(_ABOUT, self.size, whole=whole),
                stop=stop,
                has_content=True,
            )
        if self._must_ask:
            return Request("HEAD", self.url, self._words.query(), asks_offset=True)
        return self._append(self._words, self.url, self._stop())

    def interim(self, response: Response) -> None:
        if response.status != UPLOAD_RESUMPTION_SUPPORTED:
            return
        if self.url is None:
            self.url = self._location(response)
        if "upload-offset" in response.fields:
            self._announce(integer_field(response, "upload-offset"))

    def final(self, request: Request, response: Response) -> None:
        if not response.ok:
            raise self._refused(request, response)
        if request.asks_offset:
            self._go_on_from(integer_field(response, "upload-offset"))
            if self._words.completeness(response.fields):
                self._completed(response)
            return
        first = self.url is None
        whole = request.stop == self.size
        if request.url == self.destination.url:  # the creation
            whole = whole and not self._words.careful
        if whole:
            self._completed(response)
        elif first:
            self.url = self._own_url(response)
            self._go_on_from(request.stop)
        else:
            self._go_on_from(request.stop)

    def _completed(self, response: Response) -> None:
        """Take a final ``?1``: its ``Location`` is the new resource's or the upload's (C4, C19)."""
        self.complete = True
        self.result = self._location(response) or self.url

    def read_fields(self) -> Fields:
        return self._words.query()

    def stored_length(self, response: Response) -> int | None:
        if "upload-offset" in response.fields:
            return integer_field(response, "upload-offset")
        return super().stored_length(response)
