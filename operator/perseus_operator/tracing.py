"""Traces of visits and of their requests, sent by OTLP where an endpoint is set; otherwise nothing is even imported.

The endpoint and everything else come from OpenTelemetry's own variables, first of all OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from perseus_operator.settings import SettingsError

ENV_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_start: Callable[..., AbstractContextManager[Any]] | None = None
_shut_down: Callable[[], None] | None = None


def set_up_traces() -> None:
    """Send traces if an endpoint is set.

    Raises:
        SettingsError: it is, but the libraries are not installed.
    """
    global _start, _shut_down
    if not os.environ.get(ENV_ENDPOINT):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"{ENV_ENDPOINT} is set, but {error.name} is missing: install perseus-operator[tracing]"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "perseus-operator"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _start = provider.get_tracer("perseus_operator").start_as_current_span
    _shut_down = provider.shutdown


def span(name: str, **attributes: str | int) -> AbstractContextManager[Any]:
    """Return a block that is traced, if traces are sent."""
    if _start is None:
        return nullcontext()
    return _start(name, attributes={f"perseus.{key}": value for key, value in attributes.items()})


def end_traces() -> None:
    """Send what is left."""
    if _shut_down is not None:
        _shut_down()
