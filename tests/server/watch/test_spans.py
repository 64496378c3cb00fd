"""One span for each request, in the trace that the request names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_current_span

from tests.server.harness import RESUME, SocketService, socket_service
from tests.server.rufh import path_of
from tests.server.tus import MARK
from tests.server.watch.test_requests import signed
from trioresume import Request, Response
from trioresume.server.api.watching import WatchSettings

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Handler:
    """Notes what a handler sees of the trace."""

    def __init__(self) -> None:
        self.told: list[str | None] = []
        self.current: list[str] = []
        self.status = 200

    async def __call__(self, request: Request) -> Response:
        self.told.append(request.head.fields.get("traceparent"))
        context = get_current_span().get_span_context()
        self.current.append(f"{context.span_id:016x}")
        return Response(self.status, {}, b"done")


@asynccontextmanager
async def traced(
    handler: Handler, tmp_path: Path, **settings: Any
) -> AsyncIterator[tuple[SocketService, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    watch = WatchSettings(tracing=provider)
    async with socket_service(handler, tmp_path, watch=watch, **settings) as service:
        yield service, exporter


def _ids(span: ReadableSpan) -> tuple[str, str, str | None]:
    """The trace's id, the span's, and its parent's."""
    assert span.context is not None
    parent = None if span.parent is None else f"{span.parent.span_id:016x}"
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


async def test_span_continues_the_trace_and_is_passed_on(tmp_path: Path) -> None:
    """The handler is told the span, and its own spans would be the span's children."""
    handler = Handler()
    async with traced(handler, tmp_path) as (service, exporter):
        async with service.connect() as client:
            fields = {**RESUME, "traceparent": PARENT, "tracestate": "a=1"}
            reply = await client.request("POST", "/x?sig=secret", fields, b"12345")
            assert reply.status == 200
    (span,) = exporter.get_finished_spans()
    trace, own, parent = _ids(span)
    assert (trace, parent) == (TRACE, "b7ad6b7169203331")
    assert handler.told == [f"00-{TRACE}-{own}-01"]
    assert handler.current == [own]
    attributes = dict(span.attributes or {})
    assert attributes.pop("client.address") == "127.0.0.1"
    assert attributes.pop("trioresume.operation") == reply.message.split("/")[2]
    assert attributes == {
        "http.request.method": "POST",
        "url.path": "/x",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "http.request.body.size": 5,
        "http.response.body.size": 4,
        "trioresume.dialect": "seed",
    }


@pytest.mark.parametrize("given", [None, "nonsense", f"00-{'0' * 32}-{'0' * 16}-01"])
async def test_request_without_a_trace_begins_one(
    tmp_path: Path, given: str | None
) -> None:
    """So does one whose field is malformed; the backend never sees that."""
    handler = Handler()
    fields = {} if given is None else {"traceparent": given}
    async with traced(handler, tmp_path) as (service, exporter):
        async with service.connect() as client:
            assert (await client.request("GET", "/", fields)).status == 200
    (span,) = exporter.get_finished_spans()
    trace, own, parent = _ids(span)
    assert parent is None
    assert [told and told[:52] for told in handler.told] == [f"00-{trace}-{own}"]


async def test_open_upload_cannot_be_used_from_its_spans(tmp_path: Path) -> None:
    """Its location needs no other credential, so the spans have only half of it."""
    authenticate, target = signed(tmp_path)
    data = tmp_path / "data"
    async with traced(Handler(), data, authenticate=authenticate) as (service, spans):
        async with service.connect() as client:
            begun = await client.request("POST", target, {**MARK, "Upload-Length": "9"})
            path = path_of(begun["location"])
            assert (await client.request("HEAD", path, MARK)).status == 200
    name = path.split("/")[2]
    creation, asked = (
        dict(each.attributes or {}) for each in spans.get_finished_spans()
    )
    told = f"{name[:10]}..."
    assert creation["trioresume.operation"] == asked["trioresume.operation"] == told
    assert asked["url.path"] == path.replace(name, told)


async def test_server_error_is_an_error_of_the_span(tmp_path: Path) -> None:
    """A client's error is not: OpenTelemetry's conventions for servers say so."""
    handler = Handler()
    async with traced(handler, tmp_path) as (service, exporter):
        async with service.connect() as client:
            for handler.status in (404, 503):
                await client.request("GET", "/")
            await client.request("GET", "/operations/none/content")
    spans = exporter.get_finished_spans()
    assert [span.status.status_code for span in spans] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert dict(spans[2].attributes or {})["error.type"] == "not-found"


def test_nothing_is_imported_unless_it_is_used() -> None:
    """A service that is not watched loads neither OpenTelemetry nor prometheus-client."""
    source = (
        "import sys, trioresume, trioresume.cli, trioresume.server.serving\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(', '.join(names & {'opentelemetry', 'prometheus_client'}) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
