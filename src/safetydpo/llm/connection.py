"""The connection to a chat server: a try ends in time, and an answer has a size."""

import asyncio
import math
import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import httpx2
import openai

from safetydpo.config.server import ChatServer, url_fault
from safetydpo.errors import SafetyDPOError

LARGEST = 16 * 2**20  # bytes of an answer; a million tokens are less


class TooLargeError(openai.OpenAIError):
    """An answer that does not end; the same request is not tried again."""


class Connection(openai.DefaultAioHttpClient):
    """Its timeout is for a whole try, body included (the library's is for the next bytes), and a body has a limit."""

    @classmethod
    def in_this_environment(cls) -> "Connection":
        """A connection, by the environment's proxy where there is one."""
        try:
            return cls()
        except (ValueError, httpx2.InvalidURL):
            raise SafetyDPOError(
                "The environment's proxy (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY) is none that can be used, such as "
                "http://host:3128: correct or unset it."
            ) from None

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """The whole answer. Raises httpx2's errors, which the client of `openai` translates, and TooLargeError."""
        del stream
        seconds = request.extensions["timeout"]["read"]
        try:
            async with asyncio.timeout(seconds):
                response = await super().send(request, stream=True, **options)
                try:
                    body = await _body(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout(f"The answer was not whole after {seconds:g} seconds", request=request) from None
        except httpx2.TransportError as error:
            lost = error.__cause__
            if isinstance(lost, TimeoutError) or not isinstance(lost, aiohttp.ClientConnectionError):
                raise
            # which the library calls a timeout
            kind = httpx2.ConnectError if isinstance(lost, aiohttp.ClientConnectorError) else httpx2.ReadError
            raise kind(str(lost), request=request) from None
        except aiohttp.ClientError as error:  # those that the library does not translate: no HTTP, say
            raise httpx2.RemoteProtocolError(str(error), request=request) from None
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return httpx2.Response(
            response.status_code,
            headers=headers,
            content=body,
            request=response.request,
            extensions=response.extensions,
        )


async def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():  # unpacked, part by part
        body += part
        if len(body) > LARGEST:
            raise TooLargeError(f"an answer of more than {LARGEST // 2**20} MB")
    return bytes(body)


def address_of(config: ChatServer, section: str) -> tuple[str, str]:
    """What is asked, and what says so: base_url of the config's section, or else what OpenAI's client would ask."""
    url = os.environ.get("OPENAI_BASE_URL", "").strip()
    if config.base_url or not url:
        return config.base_url or "https://api.openai.com/v1", f"{section}.base_url"
    if fault := url_fault(url):
        raise SafetyDPOError(
            f"Environment variable OPENAI_BASE_URL {fault}: correct it, or set {section}.base_url, which goes before."
        )
    return url, "OPENAI_BASE_URL"


def key_of(config: ChatServer, section: str) -> str:
    """The key in the environment; "" where the server wants none."""
    name = config.api_key_env
    key = os.environ.get(name, "").strip() if name else ""
    if name and not key:
        raise SafetyDPOError(
            f"Environment variable {name} is not set: export {name}=..., or set {section}.api_key_env (null for a "
            "server without keys)."
        )
    if not all("!" <= character <= "~" for character in key):  # the errors of what sends it would show it
        raise SafetyDPOError(
            f"Environment variable {name} has what no key has, a space, a line break or a letter beyond ASCII: "
            f"export {name}=... again."
        )
    return key


def wait_of(headers: Mapping[str, str]) -> float:
    """Seconds that a server says to wait, as number or date; 0 where it does not."""
    said, milliseconds = headers.get("retry-after", ""), headers.get("retry-after-ms")
    try:
        wait = float(milliseconds) / 1000 if milliseconds else float(said)
    except ValueError:
        try:
            wait = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return 0
    return wait if math.isfinite(wait) else 0
