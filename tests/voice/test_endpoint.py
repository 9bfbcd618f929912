"""An OpenAI-compatible endpoint: a local server that speaks the protocol, with its errors, delays and
unusable answers.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.voice import endpoint
from bitnet.voice.endpoint import EndpointTeacher, address
from bitnet.voice.teachers import Reply, Request, TeacherOptions, open_teacher
from bitnet.voice.voices import built_in

ASK = Request(built_in("bitnut"), "rain", "What is rain?", 7)
Answer = Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]
"""What the server makes of a request's body, and of how many came before it: status, body, headers."""


def completion(text: str, reason: str = "stop") -> dict[str, Any]:
    """A chat completion as the protocol has it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": {"total_tokens": 3},
    }


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on this machine, and what it was sent."""
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                before = len(seen)
                seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, content, headers = answer(body, before)
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(raw)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client gave up waiting, as its test wants

        def log_message(self, *words: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", seen
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def teacher(url: str, waits: list[float] | None = None, **options: Any) -> EndpointTeacher:
    pause = (lambda seconds: None) if waits is None else waits.append
    return EndpointTeacher(url, TeacherOptions(model="m", **options), pause=pause)


def test_a_request_is_a_chat_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_TEACHER_KEY", "secret")
    with server(lambda body, before: (200, completion("Woof! Rain."), {})) as (url, seen):
        speaker = teacher(url)
        assert speaker.reply([ASK]) == [Reply("Woof! Rain.", ended=True)]
    (sent,) = seen
    assert sent["path"] == "/v1/chat/completions"
    assert sent["key"] == "Bearer secret"
    assert (sent["model"], sent["seed"], sent["max_tokens"]) == ("m", 7, 192)
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert sent["messages"][1]["content"] == "What is rain?"
    assert "secret" not in json.dumps(speaker.describe())


def test_a_batch_comes_back_in_order_although_the_first_is_the_slowest() -> None:
    def answer(body: dict[str, Any], before: int) -> tuple[int, Any, dict[str, str]]:
        text = body["messages"][1]["content"]
        time.sleep(0.1 if text == "0" else 0)
        return 200, completion(f"Woof {text}!"), {}

    with server(answer) as (url, _):
        replies = teacher(url).reply([ASK._replace(text=str(number)) for number in range(4)])
    assert [reply.text for reply in replies] == [f"Woof {number}!" for number in range(4)]


def test_a_reply_at_the_limit_of_length_has_not_ended() -> None:
    with server(lambda body, before: (200, completion("Woof and", "length"), {})) as (url, _):
        assert teacher(url).reply([ASK]) == [Reply("Woof and", ended=False)]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_with_growing_pauses(status: int) -> None:
    def answer(body: dict[str, Any], before: int) -> tuple[int, Any, dict[str, str]]:
        return (status, {"error": {"message": "busy"}}, {}) if before < 2 else (200, completion("Woof!"), {})

    waits: list[float] = []
    with server(answer) as (url, seen):
        assert teacher(url, waits).reply([ASK])[0].text == "Woof!"
    assert len(seen) == 3
    assert waits == [1.0, 2.0]


def test_the_server_says_how_long_to_wait() -> None:
    def answer(body: dict[str, Any], before: int) -> tuple[int, Any, dict[str, str]]:
        header = (
            {"Retry-After": ("7", "99999", "Wed, 21 Oct 2026 07:28:00 GMT")[before]} if before < 3 else {}
        )
        return (429, {}, header) if before < 3 else (200, completion("Woof!"), {})

    waits: list[float] = []
    with server(answer) as (url, _):
        teacher(url, waits).reply([ASK])
    assert waits == [7.0, 60.0, 4.0]


def test_what_will_not_pass_ends_at_once_with_the_servers_words() -> None:
    with server(lambda body, before: (404, {"error": {"message": "no model m"}}, {})) as (url, seen):
        with pytest.raises(DataError, match="404 Not Found: no model m"):
            teacher(url).reply([ASK])
        assert len(seen) == 1


def test_an_answer_that_does_not_come_in_time() -> None:
    def answer(body: dict[str, Any], before: int) -> tuple[int, Any, dict[str, str]]:
        time.sleep(0.3)
        return 200, completion("Woof!"), {}

    waits: list[float] = []
    with (
        server(answer) as (url, _),
        pytest.raises(
            NotFoundError, match=r"cannot be reached after 5 tries .no answer in time.*repeat the command"
        ),
    ):
        teacher(url, waits, timeout_s=0.05).reply([ASK])
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_nobody_there() -> None:
    with server(lambda body, before: (200, {}, {})) as (url, _):
        pass
    with pytest.raises(NotFoundError, match=r"cannot be reached after 5 tries .*refused"):
        teacher(url).reply([ASK])


@pytest.mark.parametrize(
    "content",
    [b"<html>hello</html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"null"],
)
def test_what_is_not_a_chat_completion_is_named(content: bytes) -> None:
    with (
        server(lambda body, before: (200, content, {})) as (url, _),
        pytest.raises(DataError, match="is not a chat completion"),
    ):
        teacher(url).reply([ASK])


def test_an_answer_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_ANSWER", 1000)
    with (
        server(lambda body, before: (200, b"a" * 100_000, {})) as (url, _),
        pytest.raises(DataError, match="more than 1,000 bytes"),
    ):
        EndpointTeacher(url, TeacherOptions(model="m")).reply([ASK])


def test_no_content_is_an_empty_answer_for_the_gates() -> None:
    with server(lambda body, before: (200, completion(None), {})) as (url, _):  # type: ignore[arg-type]
        assert teacher(url).reply([ASK]) == [Reply("", ended=True)]


def test_addresses() -> None:
    assert address("http://h:8000") == "http://h:8000/v1/chat/completions"
    assert address("http://h:8000/v1/") == "http://h:8000/v1/chat/completions"
    assert address("https://h/api/v1/chat/completions") == "https://h/api/v1/chat/completions"
    with pytest.raises(ConfigError, match="has no host"):
        address("http://")


def test_the_name_of_the_model_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="add --model NAME"):
        open_teacher("http://localhost:1/v1", TeacherOptions())


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"timeout_s": 0.0}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        TeacherOptions(**options)
