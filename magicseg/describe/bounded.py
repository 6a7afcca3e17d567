"""An HTTP client whose requests end: within a time that counts from the first byte sent, and below a size."""

import asyncio
from typing import Any

import httpx2
import openai

MOST_BYTES = 4 << 20  # of an answer, uncompressed: a hundred times what the longest that can be asked for takes
_OF_TRANSFER = frozenset({"content-encoding", "content-length", "transfer-encoding"})


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """The client of the openai library, with a deadline for whole requests.

    The library's own timeout is that of each read: a server that sends a byte a second never exceeds it.
    """

    def __init__(self, seconds: float) -> None:
        """Args: seconds: from a request's start to the last byte of its answer."""
        super().__init__()
        self._seconds = seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Return the whole answer.

        Raises: ReadTimeout after the deadline; ReadError above `MOST_BYTES`; whatever else the library raises.
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
            raise httpx2.ReadTimeout("the whole answer did not come in time", request=request) from None
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _OF_TRANSFER]
        return httpx2.Response(response.status_code, headers=headers, content=body, request=response.request)


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MOST_BYTES:
            raise httpx2.ReadError(f"the answer is larger than {MOST_BYTES} bytes", request=response.request)
    return bytes(body)
