"""The one door to Prometheus: a question, a bounded answer, or a sentence that says why there is none.

A question is sent as it is, as a parameter of its own: nothing is ever pasted into another. Time, size and number of
samples of an answer are bounded, on the server's side too. Credentials are files, read again when they change (tokens
rotate), and never appear in a log or a message.
"""

from __future__ import annotations

import base64
import json
import math
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from perseus_operator.bodies import bounded_body

MAXIMUM_ANSWER_BYTES = 64 * 1024 * 1024
TIMEOUT_SECONDS = 5.0
Sample = tuple[dict[str, str], float]


class NoAnswer(Exception):
    """Prometheus is not there, or does not answer as it should."""


@dataclass(frozen=True)
class PrometheusAddress:
    """Where Prometheus is, and how to be let in.

    Attributes:
        url: without a slash at its end.
        ca_file: PEM certificates that its own must be signed by; empty: the system's.
        token_file: holds a bearer token; empty: none.
        user_file: holds a user's name for basic authentication; empty: none.
        password_file: holds that user's password.
    """

    url: str
    ca_file: str = ""
    token_file: str = ""
    user_file: str = ""
    password_file: str = ""


class Connection:
    """A Prometheus server."""

    def __init__(self, address: PrometheusAddress, session: aiohttp.ClientSession) -> None:
        """Ask the server at an address."""
        self._address = address
        self._session = session
        self._tls: tuple[float, ssl.SSLContext] | None = None

    async def ask(
        self,
        question: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
        maximum_bytes: int = MAXIMUM_ANSWER_BYTES,
    ) -> Any:
        """Return the data of an instant query, as JSON gives it.

        Raises:
            NoAnswer: there is none in time, it is too large, or it is none of Prometheus's.
        """
        return parsed(await self.body(question, timeout_seconds, maximum_bytes))

    async def body(
        self,
        question: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
        maximum_bytes: int = MAXIMUM_ANSWER_BYTES,
    ) -> bytes:
        """Return the answer to an instant query as it came.

        Raises:
            NoAnswer: there is none in time, or it is too large, or a refusal.
        """
        form = {"query": question, "timeout": f"{timeout_seconds:g}s"}
        try:
            async with self._session.post(
                f"{self._address.url}/api/v1/query",
                data=form,
                headers=self._headers(),
                ssl=self._context(),
                timeout=aiohttp.ClientTimeout(total=timeout_seconds + 0.5),
                allow_redirects=False,
            ) as response:
                found = await bounded_body(response, maximum_bytes)
                if len(found) > maximum_bytes:
                    raise NoAnswer(f"Prometheus's answer has more than {maximum_bytes} bytes")
                if response.status != 200:
                    raise NoAnswer(f"Prometheus answered {response.status}{_its_words(found)}")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise NoAnswer(f"Prometheus does not answer: {_words_of(error, timeout_seconds)}") from None
        return found

    def _headers(self) -> dict[str, str]:
        address = self._address
        if address.token_file:
            return {"Authorization": f"Bearer {_secret(address.token_file)}"}
        if address.user_file:
            pair = f"{_secret(address.user_file)}:{_secret(address.password_file)}"
            return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
        return {}

    def _context(self) -> ssl.SSLContext | bool:
        path = self._address.ca_file
        if not path:
            return True
        changed = Path(path).stat().st_mtime
        if self._tls is None or self._tls[0] != changed:
            self._tls = (changed, ssl.create_default_context(cafile=path))
        return self._tls[1]


def parsed(body: bytes) -> Any:
    """Return the data of an answer.

    Raises:
        NoAnswer: this is no answer of Prometheus.
    """
    try:
        answer = json.loads(body)
        if answer["status"] != "success":
            raise NoAnswer("Prometheus refused the query")
        return answer["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NoAnswer("this is no answer of Prometheus") from None


def samples(data: Any) -> list[Sample]:
    """Return labels and value of each sample of an instant vector; what is no finite number is left out.

    Raises:
        NoAnswer: this is no instant vector.
    """
    try:
        if data["resultType"] != "vector":
            raise NoAnswer("Prometheus's answer is not an instant vector")
        found = []
        for sample in data["result"]:
            value = float(sample["value"][1])
            labels = sample["metric"]
            if math.isfinite(value) and all(isinstance(each, str) for each in labels.values()):
                found.append((labels, value))
        return found
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise NoAnswer("this is no answer of Prometheus") from None


def _its_words(body: bytes) -> str:
    """Prometheus's own sentence about a refused query; it may quote the query, and nothing of ours besides."""
    try:
        words = json.loads(body[:100_000])["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f": {words[:300]}" if isinstance(words, str) else ""


def _words_of(error: Exception, timeout_seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {timeout_seconds:g} s"
    if isinstance(error, OSError) and error.filename:
        return f"cannot read {error.filename}: {error.strerror}"
    # A ValueError (a token that is no header, say) may carry what it complains of.
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return type(error).__name__
    return f"{type(error).__name__} {error}"[:300]


def _secret(path: str) -> str:
    text = Path(path).read_text().strip()
    if not text or not text.isprintable():
        raise ValueError(path)
    return text
