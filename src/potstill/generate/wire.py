"""One request to an endpoint of the OpenAI protocol, by its own client, which retries nothing here."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from potstill.errors import MachineError
from potstill.generate.deadlines import Deadlines
from potstill.generate.faults import RESET, TIMEOUT, UNREACHABLE, Fault
from potstill.generate.served import Clock

MOST_BYTES = 64 * 2**20
CONNECT_SECONDS = 15.0
LEAST_SECRET = 8  # characters


@dataclass(frozen=True)
class Reply:
    """What came back: a status with its bytes, or a fault of the network."""

    body: bytes = b""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def request_id(self) -> str:
        """How the server calls the request, for whoever asks its support."""
        return self.headers.get("x-request-id") or self.headers.get("request-id") or ""


class _Refused(Exception):
    """Takes a reply that is no success past the client."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class Wire:
    """An endpoint with its key. Any thread may send; the key stands in no reply, fault or message.

    Args:
        secrets: the key first, "" for none, and everything else that must not be written down.
        seconds: the longest a whole request may take, however slowly its reply drips in.
    """

    def __init__(
        self,
        endpoint: str,
        api: Literal["chat", "completions"],
        secrets: tuple[str, ...],
        headers: Mapping[str, str],
        seconds: float,
        clock: Clock,
    ) -> None:
        openai = _client()
        # Shorter ones, such as EMPTY for a server without keys, are words that answers hold too. A server may
        # write a key into JSON, where a slash can be escaped.
        hidden = [text for text in secrets if len(text) >= LEAST_SECRET]
        written = {form for text in hidden for form in (text, text.replace("/", "\\/"))}
        self._secrets = tuple(sorted(written, key=len, reverse=True))
        self._seconds, self._clock = seconds, clock
        self._api = api
        self._here = (
            threading.local()
        )  # until when this thread's request may take, and how large its reply may be
        self._deadlines = Deadlines()
        # Given with each request, so that they win over all that the client adds. Those of the environment are for
        # another provider, and a server without keys is sent none.
        authorization = f"Bearer {secrets[0]}" if secrets[0] else openai.Omit()
        self._headers: dict[str, Any] = {
            **{name: openai.Omit() for name in _foreign_headers()},
            "Authorization": authorization,
            **headers,
        }
        self._openai = openai.OpenAI(
            api_key=secrets[0] or "none",
            base_url=endpoint,
            # Those of the environment belong to another provider.
            organization="",
            project="",
            max_retries=0,
            http_client=_http_client(openai, endpoint, self._take_refusal),
            timeout=openai.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
            default_headers={
                "OpenAI-Organization": openai.Omit(),
                "OpenAI-Project": openai.Omit(),
            },
        )

    def close(self) -> None:
        """Close its connections."""
        self._openai.close()
        self._deadlines.close()

    def send(self, body: Mapping[str, Any], key: str) -> Reply:
        """Send a request once. `key` names it, so that a server that knows the header does it once only."""
        path = "/chat/completions" if self._api == "chat" else "/completions"
        return self._once(partial(self._post, path, body, key), key)

    @contextmanager
    def _post(
        self, path: str, body: Mapping[str, Any], key: str, extra_headers: Mapping[str, Any]
    ) -> Iterator[Any]:
        """Send a body as it is. The client's methods would look through all turns for what they can convert."""
        import httpx2

        options = {"headers": extra_headers, "idempotency_key": key}
        response = self._openai.post(path, cast_to=httpx2.Response, body=body, options=options, stream=True)
        with closing(response):
            yield response

    def call(self, resource: str, method: str, key: str = "", most: int = MOST_BYTES, **fields: Any) -> Reply:
        """Call another method of the protocol once, such as `files.create`; the reply may have `most` bytes."""
        place = getattr(self._openai, resource).with_streaming_response
        return self._once(partial(getattr(place, method), **fields), key, most)

    def _once(
        self, ask: Callable[..., AbstractContextManager[Any]], key: str, most: int = MOST_BYTES
    ) -> Reply:
        import httpx2
        import openai

        self._here.most, self._here.ends = most, time.monotonic() + self._seconds
        self._here.until = self._clock.now() + self._seconds
        named = {"Idempotency-Key": key} if key else {}
        try:
            with ask(extra_headers={**self._headers, **named}) as response:
                content = self._read(getattr(response, "http_response", response))
                if content is None:
                    return Reply(fault=TIMEOUT)
                return self._reply(content, response)
        except _Refused as refused:
            return refused.reply
        except openai.APIConnectionError as error:
            return Reply(fault=_fault(error.__cause__, httpx2))
        except httpx2.RequestError as error:  # its body too: an encoding that cannot be undone
            return Reply(fault=_fault(error, httpx2))
        except Exception as error:  # of whatever library: the request was sent, and may have been billed
            return Reply(fault=replace(RESET, said=type(error).__name__))

    def _take_refusal(self, response: Any) -> None:
        """Read a reply that is no success within the same limits as an answer: the client would read it without.

        Raises:
            _Refused: always where it is no success; holds the reply.
        """
        if not response.is_success:
            content = self._read(response)
            raise _Refused(Reply(fault=TIMEOUT) if content is None else self._reply(content, response))

    def _reply(self, body: bytes, response: Any) -> Reply:
        headers = {name: self._clean(value.encode()).decode() for name, value in response.headers.items()}
        return Reply(body, response.status_code, headers)

    def _read(self, response: Any) -> bytes | None:
        """All of a body; None where it takes too long or is too large to be an answer."""
        content = bytearray()
        with self._deadlines.watching(response, self._here.ends) as watch:
            try:
                for chunk in response.iter_bytes():
                    content += chunk
                    if self._clock.now() > self._here.until or len(content) > self._here.most:
                        return None
            except Exception:
                if watch.ended:
                    return None
                raise
        return self._clean(bytes(content))

    def _clean(self, body: bytes) -> bytes:
        """The bytes without a key that the server repeats."""
        for secret in self._secrets:
            body = body.replace(secret.encode(), b"[key]")
        return body


def _client() -> Any:
    require_client()
    import openai

    return openai


def require_client() -> None:
    """Raises MachineError: the protocol's client is not installed."""
    if importlib.util.find_spec("openai") is None:
        raise MachineError(
            "the package openai is not installed, and a served teacher is asked through it.",
            fix="Install it: pip install 'potstill[api]'.",
        )


def _foreign_headers() -> list[str]:
    """The names of headers that the client would take from the environment."""
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
    return [name for line in lines if (name := line.partition(":")[0].strip())]


def _http_client(openai: Any, endpoint: str, hook: Callable[[Any], None]) -> Any:
    """A client that follows no redirect: headers of a gateway would be sent wherever it leads.

    Raises:
        MachineError: the environment names a proxy that cannot be used.
    """
    try:
        return openai.DefaultHttpxClient(
            follow_redirects=False, trust_env=not _is_loopback(endpoint), event_hooks={"response": [hook]}
        )
    except (ImportError, ValueError) as error:
        raise MachineError(
            f"the proxy that the environment names cannot be used: {error}",
            fix="Unset HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, name the host in NO_PROXY, or install socksio for a SOCKS proxy.",
        ) from error


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _fault(cause: BaseException | None, httpx2: Any) -> Fault:
    """What a failed connection means: whether the server may have begun to work."""
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
        return UNREACHABLE
    return TIMEOUT if isinstance(cause, httpx2.TimeoutException) else RESET
