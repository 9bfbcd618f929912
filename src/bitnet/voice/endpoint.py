"""A teacher behind an OpenAI-compatible endpoint: POST {base}/chat/completions, which llama.cpp, vLLM, Ollama
and others serve.

The requests of a batch are sent together. A failure that may be temporary (408, 429, 500, 502, 503, 504, no
connection, no answer in time) is retried after growing pauses, or after the server's Retry-After. Another
failure ends the command with the server's message. A key, where the server needs one, is read from the
environment variable BITNET_TEACHER_KEY and never written anywhere.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any
from urllib.parse import urlsplit

from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.files import parse_json
from bitnet.voice.teachers import Reply, Request, TeacherOptions, messages

KEY = "BITNET_TEACHER_KEY"
TEMPORARY = (408, 429, 500, 502, 503, 504)
TRIES = 5
FIRST_PAUSE_S = 1.0  # doubled after each try: 1, 2, 4, 8
LONGEST_ANSWER = 16 << 20  # bytes
LONGEST_PAUSE_S = 60.0  # also where a server asks for more


class EndpointTeacher:
    """A model behind HTTP."""

    def __init__(
        self, base: str, options: TeacherOptions, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """base: the address, with or without /v1. pause: waits for that many seconds. Raises ConfigError."""
        if not options.model:
            raise ConfigError(f"the endpoint {base} needs the name of its model; add --model NAME")
        self.url, self.options, self._pause = address(base), options, pause

    @property
    def batch_size(self) -> int:
        """Requests that are sent together."""
        return self.options.batch_size

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "endpoint",
            "name": self.options.model,
            "url": self.url,
            "temperature": self.options.temperature,
            "max_new_tokens": self.options.max_new_tokens,
        }

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """All at once. Raises BitnetError with the server's message."""
        if not requests:
            return []
        with ThreadPoolExecutor(max_workers=len(requests)) as pool:
            return list(pool.map(self._one, requests))

    def _one(self, request: Request) -> Reply:
        body = {
            "model": self.options.model,
            "messages": messages(request),
            "max_tokens": self.options.max_tokens(entries=request.entries is not None),
            "temperature": self.options.temperature,
            "seed": request.seed,
        }
        return self._read(self._post(json.dumps(body).encode()))

    def _post(self, body: bytes) -> bytes:
        """The server's answer, after at most TRIES attempts."""
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        problem = ""
        for attempt in range(TRIES):
            wait = FIRST_PAUSE_S * 2**attempt
            try:
                sent = urllib.request.Request(self.url, data=body, headers=headers)
                with urllib.request.urlopen(sent, timeout=self.options.timeout_s) as answer:
                    return _bounded(answer, self.url)
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}: {_words(error.read(LONGEST_ANSWER))}"
                if error.code not in TEMPORARY:
                    raise DataError(
                        f"the teacher at {self.url} refused the request ({problem}); check --model and {KEY}"
                    ) from None
                wait = _retry_after(error.headers.get("Retry-After"), wait)
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                problem = "no answer in time" if isinstance(reason, TimeoutError) else str(reason)
            if attempt + 1 < TRIES:
                self._pause(wait)
        raise NotFoundError(
            f"the teacher at {self.url} cannot be reached after {TRIES} tries ({problem}); start it or "
            "correct --teacher, and repeat the command to continue"
        )

    def _read(self, content: bytes) -> Reply:
        """The text of the first choice."""
        try:
            choice = parse_json(content)["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DataError(
                f"the answer of the teacher at {self.url} is not a chat completion but {_words(content)!r}; "
                "give the address of an OpenAI-compatible endpoint, as in http://localhost:8000/v1"
            ) from None
        return Reply(text if isinstance(text, str) else "", ended=reason != "length")


def _bounded(answer: IO[bytes], url: str) -> bytes:
    """The whole answer. Raises DataError if it is too long."""
    content = answer.read(LONGEST_ANSWER + 1)
    if len(content) > LONGEST_ANSWER:
        raise DataError(
            f"the teacher at {url} answers with more than {LONGEST_ANSWER:,} bytes; check that it is a chat "
            "endpoint"
        )
    return content


def address(base: str) -> str:
    """The URL of chat completions. Raises ConfigError for what is not an address."""
    parts = urlsplit(base)
    if not parts.hostname:
        raise ConfigError(
            f"--teacher is {base!r}, which has no host; write it as in http://localhost:8000/v1"
        )
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return parts._replace(path=path, fragment="").geturl()


def _retry_after(value: str | None, otherwise: float) -> float:
    """Seconds that the server asks to wait. A date, which the header may also hold, is ignored."""
    if value is None or not value.strip().isdecimal():
        return otherwise
    return min(float(value), LONGEST_PAUSE_S)


def _words(content: bytes) -> str:
    """A server's explanation on one line: the message of its error object, or the beginning of its answer."""
    text = content.decode(errors="replace")
    try:
        error = parse_json(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        pass
    return " ".join(text.split())[:200]
