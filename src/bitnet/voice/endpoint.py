"""A teacher behind an OpenAI-compatible endpoint: POST {base}/chat/completions, as llama.cpp, vLLM, Ollama
and others serve it.

Requests of a batch go out together. What may pass (429, 500, 502, 503, 504, no connection, no answer in time)
is tried again with growing pauses, or after what the server's Retry-After says; what will not pass ends the
command with the server's words. A key, where the server wants one, is read from the environment variable
BITNET_TEACHER_KEY and never written anywhere.
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
from bitnet.voice.teachers import Reply, Request, TeacherOptions

KEY = "BITNET_TEACHER_KEY"
PASSING = (408, 429, 500, 502, 503, 504)
TRIES = 5
FIRST_PAUSE_S = 1.0  # doubled after each try: 1, 2, 4, 8
LONGEST_ANSWER = 16 << 20  # bytes
LONGEST_PAUSE_S = 60.0  # a server that asks for more is waited for so long


class EndpointTeacher:
    """Replies over HTTP."""

    def __init__(
        self, base: str, options: TeacherOptions, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """base: the address, with or without /v1. pause: waits so many seconds. Raises ConfigError without a
        model's name.
        """
        if not options.model:
            raise ConfigError(f"the endpoint {base} needs the name of its model; add --model NAME")
        self.url, self.options, self._pause = address(base), options, pause

    @property
    def batch_size(self) -> int:
        """Requests under way at once."""
        return self.options.batch_size

    def describe(self) -> dict[str, Any]:
        """Model and host."""
        return {
            "kind": "endpoint",
            "name": self.options.model,
            "url": self.url,
            "temperature": self.options.temperature,
            "max_new_tokens": self.options.max_new_tokens,
        }

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """All at once, in order. Raises BitnetError with the server's words."""
        if not requests:
            return []
        with ThreadPoolExecutor(max_workers=len(requests)) as pool:
            return list(pool.map(self._one, requests))

    def _one(self, request: Request) -> Reply:
        body = {
            "model": self.options.model,
            "messages": [
                {"role": "system", "content": request.voice.style},
                {"role": "user", "content": request.text},
            ],
            "max_tokens": self.options.max_new_tokens
            * (4 if request.entries else 1),  # a list is longer than an answer
            "temperature": self.options.temperature,
            "seed": request.seed,
        }
        return self._read(self._post(json.dumps(body).encode()))

    def _post(self, body: bytes) -> bytes:
        """The server's answer, after as many tries as it takes."""
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
                if error.code not in PASSING:
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
            "correct --teacher, "
            "and repeat the command to continue"
        )

    def _read(self, content: bytes) -> Reply:
        """The text of the first choice."""
        try:
            choice = parse_json(content)["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DataError(
                f"the teacher at {self.url} answers nonsense: no chat completion but {_words(content)!r}; "
                "give the address of an "
                "OpenAI-compatible endpoint, as in http://localhost:8000/v1"
            ) from None
        return Reply(text if isinstance(text, str) else "", ended=reason != "length")


def _bounded(answer: IO[bytes], url: str) -> bytes:
    """All of an answer. Raises DataError for one that has no end."""
    content = answer.read(LONGEST_ANSWER + 1)
    if len(content) > LONGEST_ANSWER:
        raise DataError(
            f"the teacher at {url} answers with more than {LONGEST_ANSWER:,} bytes; check that it is a chat "
            "endpoint"
        )
    return content


def address(base: str) -> str:
    """Where chat completions are asked for. Raises ConfigError for what is no address."""
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
    """Seconds that the server asks to wait; it may also name a date, which is not read."""
    if value is None or not value.strip().isdecimal():
        return otherwise
    return min(float(value), LONGEST_PAUSE_S)


def _words(content: bytes) -> str:
    """A server's explanation on one line: the message of its error object, or the beginning of what it
    sent.
    """
    text = content.decode(errors="replace")
    try:
        error = parse_json(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        pass
    return " ".join(text.split())[:200]
