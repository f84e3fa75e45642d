"""The operator's HTTP pages: metrics for Prometheus, health and readiness for the kubelet."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from perseus_operator.health import Health
from perseus_operator.metrics import METRICS


async def serve_pages(port: int, health: Health) -> web.AppRunner:
    """Serve /metrics, /healthz and /readyz; return the runner, to be cleaned up."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(METRICS), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        troubles = health.troubles()
        return web.Response(text="\n".join(troubles or ["ok"]) + "\n", status=503 if troubles else 200)

    async def readyz(_: web.Request) -> web.Response:
        if not health.ready:
            return web.Response(text="not visiting jobs yet\n", status=503)
        return await healthz(_)

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
