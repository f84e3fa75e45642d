"""A proxy between the operator and the API server: it counts writes, kills at one of them, refuses, and cuts watches.

It stands outside both programs and speaks plain HTTP on loopback, so that what is tested is the operator as it is
shipped. A request is numbered when it arrives, in the order in which the operator makes its writes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp
from aiohttp import web

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length", "te", "trailer"}
_WRITES = {"POST", "PATCH", "PUT", "DELETE"}
_LARGEST_BODY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    """A request as it arrived.

    Attributes:
        number: of all requests, from 1.
        write: of the writes, from 1; 0 for a read.
        method: HTTP method.
        path: without query.
        is_watch: whether it asks for a stream of events.
    """

    number: int
    write: int
    method: str
    path: str
    is_watch: bool


@dataclass(frozen=True)
class Answer:
    """What the proxy answers in the API server's place."""

    status: int
    reason: str
    retry_after_seconds: int = 0


class Moment(StrEnum):
    """When something is done to a request."""

    BEFORE = "before"  # the API server has not seen it
    AFTER = "after"  # the API server has done it, the operator has not heard


Fault = Callable[[Request, Moment], Answer | None]


class Proxy:
    """Forwards to the API server.

    Attributes:
        url: where it listens.
        writes: requests that write, as they arrived.
        injected: how many answers were the proxy's own.
        cuts: how many watches it ended.
    """

    def __init__(self, target: str, certificate: Path, port: int = 0) -> None:
        """Forward to an API server whose certificate is its own authority; on a port, or on any that is free."""
        self.url = ""
        self.writes: list[Request] = []
        self.injected = 0
        self.cuts = 0
        self._target = target
        self._certificate = certificate
        self._port = port
        self._fault: Fault | None = None
        self._watch_seconds: float | None = None
        self._watch_gone = False
        self._requests = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        """Start listening."""
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the proxy does not start")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def clear(self) -> None:
        """Forget what was counted, and all faults."""
        self.writes = []
        self.injected = self.cuts = self._requests = 0
        self._fault = None
        self._watch_seconds, self._watch_gone = None, False

    def inject(self, fault: Fault | None) -> None:
        """Ask a function about each request, before it is forwarded and after it was answered."""
        self._fault = fault

    def cut_watches(self, after_seconds: float | None, gone: bool = False) -> None:
        """End each watch after a while; with `gone` the last event says that its version is too old (410)."""
        self._watch_seconds, self._watch_gone = after_seconds, gone

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _serve(self) -> None:
        context = ssl.create_default_context(cafile=str(self._certificate))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, connect=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                return await self._handle(request, session)

            runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", self._port)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest, session: aiohttp.ClientSession) -> web.StreamResponse:
        body = await request.content.read(_LARGEST_BODY_BYTES) if request.can_read_body else b""
        while request.can_read_body and not request.content.at_eof():
            body += await request.content.read(_LARGEST_BODY_BYTES)
        self._requests += 1
        is_write = request.method in _WRITES
        known = Request(
            self._requests,
            len(self.writes) + 1 if is_write else 0,
            request.method,
            request.path,
            request.query.get("watch") == "true",
        )
        if is_write:
            self.writes.append(known)
        answer = self._ask(known, Moment.BEFORE)
        if answer is not None:
            return _own(answer)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            async with session.request(
                request.method, self._target + request.raw_path, headers=headers, data=body or None
            ) as upstream:
                if known.is_watch and upstream.status == 200:
                    return await self._stream(request, upstream)
                data = await upstream.read()
                answer = self._ask(known, Moment.AFTER)
                if answer is not None:
                    return _own(answer)
                kept = {name: each for name, each in upstream.headers.items() if name.lower() not in _HOP_BY_HOP}
                return web.Response(status=upstream.status, headers=kept, body=data)
        except aiohttp.ClientError as error:
            # As a load balancer before a dead API server.
            return _own(Answer(502, f"BadGateway: {type(error).__name__}"))

    async def _stream(self, request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        kept = {name: each for name, each in upstream.headers.items() if name.lower() not in _HOP_BY_HOP}
        response = web.StreamResponse(status=200, headers=kept)
        await response.prepare(request)
        begin = self._loop.time()
        while True:
            reading = asyncio.ensure_future(upstream.content.readany())
            try:
                while not reading.done():
                    await asyncio.wait([reading], timeout=0.2)
                    if self._watch_seconds is not None and self._loop.time() - begin > self._watch_seconds:
                        self.cuts += 1
                        if self._watch_gone:
                            await response.write(_GONE_EVENT)
                        return response
                data = reading.result()
                if not data:
                    return response
                await response.write(data)
            except (aiohttp.ClientError, ConnectionError):
                # One of the two sides is gone: the other one's stream ends.
                return response
            finally:
                reading.cancel()

    def _ask(self, request: Request, moment: Moment) -> Answer | None:
        answer = self._fault(request, moment) if self._fault is not None else None
        if answer is not None:
            self.injected += 1
        return answer


def _own(answer: Answer) -> web.Response:
    headers = {"Retry-After": str(answer.retry_after_seconds)} if answer.retry_after_seconds else {}
    return web.json_response(_status(answer.status, answer.reason), status=answer.status, headers=headers)


def _status(code: int, reason: str) -> dict[str, object]:
    return {
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
        "message": f"{reason} (injected)",
    }  # fmt: skip


_GONE_EVENT = json.dumps({"type": "ERROR", "object": _status(410, "Expired")}).encode() + b"\n"
