"""Log lines that say which job they are about, as text for people or as JSON for collectors.

A visit names its job once; every line that is written on its way carries namespace, name and generation, whichever
module wrote it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

FORMATS = ("text", "json")
_FIELDS = ("namespace", "job", "generation")
_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039 - never changed in place


@contextmanager
def about(namespace: str, job: str) -> Iterator[None]:
    """Let every log line of this task and block say which job it is about."""
    token = _about.set({"namespace": namespace, "job": job})
    try:
        yield
    finally:
        _about.reset(token)


def about_generation(generation: int) -> None:
    """Add the generation of the job that this task is about, once it is known."""
    _about.set({**_about.get(), "generation": generation})


def set_up_logs(style: str, stream: TextIO | None = None) -> None:
    """Write logs to a stream (the standard error), as text or as JSON, one object a line."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_say_what_about)
    if style == "json":
        from pythonjsonlogger.json import JsonFormatter

        handler.setFormatter(
            JsonFormatter(
                "%(message)s %(levelname)s %(name)s",
                rename_fields={"levelname": "level", "name": "logger"},
                timestamp="time",
            )
        )
    else:
        handler.setFormatter(_Text("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        generation = getattr(record, "generation", None)
        return text if generation is None else f"{text} [generation {generation}]"


def _say_what_about(record: logging.LogRecord) -> bool:
    for name, value in _about.get().items():
        if name in _FIELDS and not hasattr(record, name):
            setattr(record, name, value)
    return True
