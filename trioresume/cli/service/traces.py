"""Where ``--tracing`` sends its spans: to a collector, by OTLP over HTTP.

OpenTelemetry's own variables say where and how: ``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME`` and so on. Spans wait in a bounded queue, and a
thread sends them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["exporting"]

LAST_SECONDS = 1.0
"""How long the ending command waits for a collector that does not take the last spans."""


@contextmanager
def exporting() -> Iterator[None]:
    """Send the spans of this process while the block runs, and the last ones after it.

    Raises :class:`click.UsageError` if OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import set_tracer_provider
    except ImportError as exc:
        raise click.UsageError(
            "--tracing needs OpenTelemetry: pip install 'trioresume[tracing]'"
        ) from exc
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "trioresume"}
    # Its own end would wait for half a minute.
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    set_tracer_provider(provider)
    try:
        yield
    finally:
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_SECONDS)
