"""A user's own experiment, in a file outside the package, can do all that ours can: it takes --data, begins
from another run with --from, tells what it makes ready, writes its data, and is chatted and played with.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.cli import train
from conftest import Command

pytestmark = pytest.mark.slow


OWN = '''
import dataclasses
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bitnet.data.generated import Example, ExampleTable, TableRows
from bitnet.evaluate.answers import Case, answer_all, exact_match
from bitnet.nn.config import BitNetConfig
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.tokenizer import load_tokenizer
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.data_config import DataConfig, ShortFlag
from bitnet.train.experiment import Criterion, Experiment, Shown, Variant

ALPHABET = string.ascii_lowercase + "012: \\n"


@dataclass(frozen=True, kw_only=True)
class WordData(DataConfig):
    """Words to repeat, one a line."""

    words: str = ""
    speaker: str = "echo"
    tokenizer: str = ""
    text: str = ""
    upside_down: bool = False

    outside: ClassVar = ("words", "tokenizer", "text")
    short_flags: ClassVar = (
        ShortFlag("data", "words", "A file of words."),
        ShortFlag("upside-down", "upside_down", "Last word first."),
    )

    def begun_from(self, origin):
        return dataclasses.replace(self, tokenizer=origin.tokenizer, text=origin.text())


class WordTask:
    end_mark = "\\n"

    def __init__(self, config: RunConfig) -> None:
        self.config, self.data = config, config.data
        own = CharacterTokenizer(ALPHABET, config.model.vocab_size)
        self.tokenizer = load_tokenizer(Path(self.data.tokenizer)) if self.data.tokenizer else own
        self.examples = [Example(f"{word}: ", f"{word}\\n") for word in words_of(self.data)]
        self.cases = [Case("word", *example) for example in self.examples[:4]]
        self.prompts = [case.prompt for case in self.cases[:1]]
        table = ExampleTable.of(self.examples, self.tokenizer)
        self.source = TableRows(table, seed=config.train.seed, seq_len=config.train.seq_len, layout="single",
                                loss_on="answers", name="words")

    def frozen_evaluation(self):
        return [ExampleTable.of(self.examples[:4], self.tokenizer).batch("answers")]

    def judge(self, model, limit=None):
        return exact_match(model, self.tokenizer, self.cases[:limit])

    def show(self, model, count):
        answers = answer_all(model, self.tokenizer, self.cases[:count])
        return [Shown(case.prompt, answer, case.answer) for case, answer in zip(self.cases, answers)]


def words_of(data: WordData) -> list[str]:
    words = Path(data.words).read_text().split()
    return words[::-1] if data.upside_down else words


def ready(config, watch) -> str:
    if watch is not None:
        watch.say(f"{len(words_of(config.data))} words are ready")
    return str(Path(config.data.words).resolve().parent)


def text(config: RunConfig, count: int) -> Iterator[str]:
    return (f"word {number}\\n" for number in range(count))


class Pick:
    """Three cells; who takes the last one wins."""

    name = "pick"
    cells = 3

    def question(self, moves):
        return "pick" + "".join(map(str, moves)) + ": "

    def text(self, moves):
        return self.question(moves)

    def legal(self, moves):
        return [] if 2 in moves else [cell for cell in range(3) if cell not in moves]

    def winner(self, moves):
        return (len(moves) - 1) % 2 if 2 in moves else None

    def board(self, moves, words):
        return " ".join("taken" if cell in moves else words[cell] for cell in range(3))


CONFIG = RunConfig(
    model=BitNetConfig(vocab_size=48, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1,
                       ffn_hidden_size=48, max_seq_length=64),
    train=TrainConfig(seq_len=24, batch_size=4, total_steps=2, eval_cases=4),
    data=WordData(dataset="words"),
)
experiment = Experiment(
    name="words",
    about="words to repeat",
    variants={"quick": Variant(CONFIG, (Criterion("exact_match", at_least=0.0),), "two updates")},
    open=WordTask,
    ready=ready,
    training_text=text,
    game=Pick(),
)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, with words beside it, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("one two three four five\n")
    Path("own.py").write_text(OWN)
    return Path("own.py")


def config_of(run: str) -> dict[str, object]:
    data: dict[str, object] = json.loads(Path("runs", run, "meta", "config.json").read_text())["data"]
    return data


def test_it_takes_data_begins_from_a_run_and_is_chatted_with(bitnet: Command, own: Path) -> None:
    words = ("train", own, "--device", "cpu", "--data", "words.txt")
    base = bitnet(*words, "--run-id", "base", "--check")
    assert base.code == 0, base.err
    assert "5 words are ready" in base.out
    assert config_of("base")["words"] == "words.txt"

    begun = bitnet(*words, "--from", "base", "--upside-down", "--run-id", "begun")
    assert begun.code == 0, begun.err
    data = config_of("begun")
    assert data["upside_down"] is True
    assert data["tokenizer"] == str(Path("runs/base/tokenizer").resolve())
    assert data["text"] == str(Path.cwd()), "the folder that `ready` of the base run's experiment returned"

    answer = bitnet("chat", "begun", "-p", "one", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["ended"] in (True, False), "it converses: a base model has no turns that end"


def test_it_is_played_with(bitnet: Command, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bitnet("train", own, "--device", "cpu", "--data", "words.txt", "--run-id", "base").code == 0
    typed = iter(["7", "2", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    assert "--experiment own.py" in bitnet("play", "base", "--side", "X").err
    played = bitnet("play", "base", "--side", "X", "--experiment", own, "--json")
    assert played.code == 0, played.err
    assert "Pick against base at step 2.\n0-2 play a cell" in played.out
    assert "You win." in played.out
    assert (played.json["you"], played.json["model"]) == (1, 0)


def test_its_short_flags_stand_in_the_help_and_others_are_refused(
    bitnet: Command, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main([str(own), "--help"])
    page = capsys.readouterr().out
    assert "A file of words." in page
    assert "--upside-down" in page
    assert "--cache-dir" not in page
    refused = bitnet("train", own, "--cache-dir", "x")
    assert refused.code == 2
    assert "--cache-dir" in refused.err


def test_it_writes_its_data_as_text(bitnet: Command, own: Path) -> None:
    done = bitnet("prepare", own, "--variant", "quick", "--count", 3, "--out", "data.txt")
    assert done.code == 0, done.err
    assert Path("data.txt").read_text() == "word 0\nword 1\nword 2\n"


def test_another_experiment_begins_from_its_run_where_its_file_is_named(bitnet: Command, own: Path) -> None:
    """What the base run read is known only to its file, which is not executed because a run names it."""
    assert bitnet("train", own, "--device", "cpu", "--data", "words.txt", "--run-id", "base").code == 0
    words = ("train", "bitnut_sft", "--from", "base", "--device", "cpu", "--dry-run", "--json")
    assert "--experiment own.py" in bitnet(*words).err
    begun = bitnet(*words, "--experiment", own)
    assert begun.code == 0, begun.err
    assert begun.json["data"]["other"] == str(Path.cwd())
