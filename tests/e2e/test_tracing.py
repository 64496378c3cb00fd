"""``serve --tracing``: spans reach a collector, and a backend continues the trace."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)

from tests.e2e.command import Service

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SECONDS = 30.0


@contextmanager
def _server(take: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """A server that gives each POST to *take* and answers 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            take(self, self.rfile.read(size))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _post(service: Service) -> None:
    request = urllib.request.Request(
        f"{service.root}/a?sig=secret",
        data=b"12345",
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        assert response.status == 200


def test_collector_gets_the_span_that_the_backend_was_told(tmp_path: Path) -> None:
    """Client, service, backend: one trace, each the parent of the next."""
    exported: Queue[ExportTraceServiceRequest] = Queue()
    told: Queue[str | None] = Queue()

    def collect(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        assert handler.path == "/v1/traces"
        exported.put(ExportTraceServiceRequest.FromString(body))

    def serve(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        told.put(handler.headers["traceparent"])

    with _server(collect) as collector, _server(serve) as backend:
        service = Service(
            tmp_path / "data",
            ("serve", "--tracing", "--upstream", backend),
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
                "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            },
        )
        service.start()
        try:
            _post(service)
            service.stop()  # it sends the last spans
        finally:
            service.close()
        batch = exported.get(timeout=SECONDS)
    resource = batch.resource_spans[0]
    names = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert names["service.name"] == "trioresume"
    span = resource.scope_spans[0].spans[0]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert told.get(timeout=SECONDS) == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert "secret" not in str(batch)


def test_collector_that_is_away_makes_nobody_wait(tmp_path: Path) -> None:
    """Neither a request nor the end of the service."""
    service = Service(
        tmp_path / "data",
        ("serve", "--tracing"),
        environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    )
    service.start()
    try:
        url = f"{service.root}/files/x"
        request = urllib.request.Request(url, data=b"1", method="PUT")
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            assert response.status == 201
        service.stop()
    finally:
        service.close()
