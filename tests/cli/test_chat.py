"""`bitnet chat`: one answer, a sitting with every command, and a base model that only continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bitnet.generate.session as session_module
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import write_manifest
from bitnet.text.tokenizer import load_tokenizer
from conftest import Command, Result, run_command
from corpora import stories, write_txt

pytestmark = pytest.mark.slow


SMALL = """
    --device cpu --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 48 --model.vocab-size 320 --model.max-seq-length 64 --seq-len 32 --batch-size 4
    --train.eval-cases 2 --num-steps 1 --train.warmup-steps 0 --data.held-out-one-in 10
    --data.judged-prompts 8 --train.compile off
""".split()
Sitting = Command


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one update: `base`, and `tuned`, whose configuration names a speaker as fine-tuning writes
    it.
    """
    folder = tmp_path_factory.mktemp("chat")
    file = write_txt(folder / "tales.txt", stories(120))
    for name in ("base", "tuned"):
        made = run_command(
            "train",
            "tinystories",
            "--variant",
            "quick",
            "--data",
            file,
            "--cache-dir",
            folder / "cache",
            *SMALL,
            "--run-id",
            name,
            "--runs-dir",
            folder / "runs",
        )
        assert made.code == 0, made.err
    path = folder / "runs" / "tuned" / "meta" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["speaker"] = "bitnut"
    text = json.dumps(config)
    write_manifest(RunLayout(folder / "runs" / "tuned"), text)
    path.write_text(text)
    return folder / "runs"


@pytest.fixture
def sit(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Sitting:
    """A sitting with these typed lines and these answers of the model; after the last line comes Ctrl-D or
    Ctrl-C.
    """

    def talk(
        *typed: str, says: tuple[str, ...] = (), end: type[BaseException] = EOFError, run: str = "tuned"
    ) -> Result:
        lines, texts = iter(typed), iter(says)
        tokenizer = load_tokenizer(runs_dir / "tuned" / "tokenizer")

        def line(prompt: str = "") -> str:
            print(prompt, end="")
            try:
                return next(lines)
            except StopIteration:
                raise end from None

        def said(
            model: object, prompt: Tensor, *, max_new_tokens: int, sampling: object, **rest: object
        ) -> Iterator[tuple[Tensor, None]]:
            for token in [*tokenizer.encode(next(texts)), tokenizer.eos_id]:
                yield torch.tensor([token]), None

        monkeypatch.setattr("builtins.input", line)
        if says:
            monkeypatch.setattr(session_module, "stream", said)
        return run_command("chat", run, "--runs-dir", runs_dir, "--device", "cpu", "--max-new-tokens", 8)

    return talk


def test_one_answer(runs_dir: Path) -> None:
    for flag in ("-p", "--prompt"):
        done = run_command(
            "chat", "tuned", flag, "Hi", "--json", "--max-new-tokens", 5, "--runs-dir", runs_dir
        )
        assert done.code == 0, done.err
        assert done.json["prompt"] == "Hi"
        assert isinstance(done.json["answer"], str)
        assert isinstance(done.json["ended"], bool)
    first, second = (
        run_command("chat", "tuned", "-p", "Hi", "--seed", 3, "--runs-dir", runs_dir).out for _ in range(2)
    )
    assert first == second


def test_turns_commands_and_several_lines(sit: Sitting) -> None:
    done = sit(
        "Hello",
        '"""two',
        'lines"""',
        "/clear",
        "/system Be brief.",
        "/temperature 0",
        "/help",
        "",
        "/quit",
        says=(" The cat.", " A dog.\nhuman: no"),
    )
    assert done.code == 0
    assert "bitnut: The cat.\n" in done.out
    assert "bitnut: A dog.\n" in done.out
    assert "human:" not in done.out
    for words in ("forgotten", "system text set", "temperature 0", "/quit"):
        assert words in done.out


def test_mistakes_ask_again(sit: Sitting) -> None:
    done = sit("/temperature hot", "/temperature -1", "/clera", "moon " * 80, "/quit", says=("unused",))
    assert done.out.count("the temperature is 0.7") == 2
    assert 'Did you mean "/clear"?' in done.out
    assert "tokens, the model reads 64 with its answer; shorten it" in done.out


def test_dropped_turns_are_said(sit: Sitting) -> None:
    done = sit(*["What is the moon?"] * 4, says=(" The moon is a big cat.",) * 4)
    assert done.code == 0
    assert "not fit the 64 tokens that the model reads" in done.err


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("typed", [(), ('"""half a message',)])
def test_ctrl_c_and_ctrl_d_leave_cleanly(
    sit: Sitting, end: type[BaseException], typed: tuple[str, ...]
) -> None:
    done = sit(*typed, end=end, says=("unused",))
    assert (done.code, done.err) == (0, "")


def test_ctrl_c_during_an_answer_leaves_cleanly(sit: Sitting, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: object, **options: object) -> Iterator[tuple[Tensor, None]]:
        yield torch.tensor([70]), None
        raise KeyboardInterrupt

    monkeypatch.setattr(session_module, "stream", interrupted)
    assert sit("Hi").code == 0


def test_a_base_model_continues_plainly(sit: Sitting, runs_dir: Path) -> None:
    done = sit("The cat", "/clear", run="base")
    assert "base at step 1 is a base model" in done.out
    assert "\nThe cat" in done.out.replace("> ", "\n")
    assert "a base model has no conversation" in done.out
    once = run_command("chat", "base", "-p", "The cat", "--json", "--runs-dir", runs_dir)
    assert once.code == 0
    assert once.json["ended"] is None
    assert run_command("chat", "base", "--system", "x", "-p", "The cat", "--runs-dir", runs_dir).code == 2


def test_bad_input_is_one_line(runs_dir: Path) -> None:
    for words, message in (
        (("tuned", "--json"), "--json needs one prompt"),
        (("tuned", "-p", "Hi", "--temperature", "-1"), "temperature is -1"),
        (("tuned", "-p", "Hi", "--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("nobody", "-p", "Hi"), "there is no run 'nobody'"),
        (("tuned", "-p", "moon " * 80), "shorten it"),
    ):
        done = run_command("chat", *words, "--runs-dir", runs_dir)
        assert done.code == 2, words
        assert message in done.err
        assert done.err.count("\n") == 1


def test_a_model_of_lines_stops_at_the_end_of_its_line(
    bitnet: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of problems answered and then made up further problems, 256 tokens of them."""
    tokenizer = load_tokenizer(runs / "tiny" / "tokenizer")

    def said(
        model: object, prompt: Tensor, *, max_new_tokens: int, sampling: object
    ) -> Iterator[tuple[Tensor, None]]:
        for token in tokenizer.encode("42\n1 + 1 = 2\n"):
            yield torch.tensor([token]), None

    monkeypatch.setattr("bitnet.trained_model.stream", said)
    result = bitnet("chat", "tiny", "-p", "25 + 17 = ", "--runs-dir", runs)
    assert result.out == "42\n"
