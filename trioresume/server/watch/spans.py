"""A span of OpenTelemetry for each request. Needs the extra ``tracing``.

The span continues the trace that the request names (W3C Trace Context), and takes the place
of its parent in the request's fields: whoever gets the request later, a backend or a handler,
continues from the span. No query, and no field but ``User-Agent``, is in a span.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import (
    SpanKind,
    StatusCode,
    TracerProvider,
    get_tracer_provider,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from trioresume.server.watch.tally import known_method

if TYPE_CHECKING:
    from trioresume.server.watch.requests import Observed

__all__ = ["Spans"]

_CONTEXT = TraceContextTextMapPropagator()
_NAMES = ("traceparent", "tracestate")
_SERVER_ERROR = 500


class Spans:
    """Makes the spans. *provider* None is the one of the program."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        provider = provider or get_tracer_provider()
        self._tracer = provider.get_tracer("trioresume", version("trioresume"))

    @contextmanager
    def around(self, observed: Observed) -> Iterator[None]:
        """Have a span while the block answers the request of *observed*."""
        exchange = observed.exchange
        head = exchange.head
        told = {name: head.fields.get(name) for name in _NAMES}
        given = {name: value for name, value in told.items() if value is not None}
        # A context without anything of this program's: the request comes from outside.
        parent = _CONTEXT.extract(given, Context())
        method = known_method(head.method)
        span = self._tracer.start_span(
            method, parent, SpanKind.SERVER, observed.attributes()
        )
        passed_on: dict[str, str] = {}
        _CONTEXT.inject(passed_on, set_span_in_context(span, parent))
        fields = head.fields.without(*_NAMES).plus(passed_on)
        exchange.head = replace(head, fields=fields)
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        finally:
            for name, value in observed.outcome().items():
                span.set_attribute(name, value)
            if observed.status >= _SERVER_ERROR:
                span.set_status(StatusCode.ERROR)
            span.end()
