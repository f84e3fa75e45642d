"""What a network answers, read to its end and no further. A single read would end with what has arrived so far."""

from __future__ import annotations

import aiohttp


async def bounded_body(response: aiohttp.ClientResponse, maximum_bytes: int) -> bytes:
    """Return the whole body; of a longer one a little more than the maximum, so that the caller can tell."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > maximum_bytes:
            response.close()
            break
    return bytes(body)
