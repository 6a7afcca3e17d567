"""An HTTP client that limits the time and the size of whole requests."""

import asyncio
from typing import Any

import httpx2
import openai

MOST_BYTES = 4 << 20  # of a response, uncompressed: about a hundred times the longest response that can be requested
_TRANSFER_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding"})


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """The client of the openai library, with a deadline for whole requests.

    The library's own timeout applies to each read, so a server that sends one byte per second never exceeds it.
    """

    def __init__(self, seconds: float) -> None:
        """Args: seconds: time limit from the start of a request to the last byte of its response."""
        super().__init__()
        self._seconds = seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Return the whole response.

        Raises: ReadTimeout after the deadline; ReadError above `MOST_BYTES`; other exceptions of the library.
        """
        stream = {**options, "stream": True}
        try:
            async with asyncio.timeout(self._seconds):
                response = await super().send(request, **stream)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout("the response was not complete in time", request=request) from None
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _TRANSFER_HEADERS]
        return httpx2.Response(response.status_code, headers=headers, content=body, request=response.request)


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MOST_BYTES:
            raise httpx2.ReadError(f"the response is larger than {MOST_BYTES} bytes", request=response.request)
    return bytes(body)
