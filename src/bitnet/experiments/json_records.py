"""JSON records: does a ternary model keep a format, and what it was given in it, to the last bracket?

Lines like `{"name": "Alice", "age": 25, "city": "Boston"}`, one record each, over characters: fifty names,
fifty cities, ages 18 to 99, the keys in any order, and two more keys, "job" and "member", that a record may
have or not. A line has many right continuations, so no answer is compared letter by letter. What counts is
what a program that reads the line would count: it parses, it meets the schema, and every field that the
prompt gave is still there, once.

One pair in thirty of (name, age), (name, city) and (age, city) is held out by a stable hash: no training
record, in whatever order, has both values of such a pair, and every evaluation prompt gives both.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bitnet.data.generated import Example, Layout, held_out
from bitnet.errors import ConfigError
from bitnet.evaluate.answers import shares
from bitnet.evaluate.continuations import Mode
from bitnet.experiments.generated_task import GeneratedTask
from bitnet.experiments.recipes import PLAN, QUICK_CHARACTERS
from bitnet.experiments.shapes import ARITHMETIC, SMALL
from bitnet.generate.decoder import Decoder
from bitnet.train.config import RunConfig
from bitnet.train.data_config import DataConfig
from bitnet.train.experiment import Criterion, Experiment, Variant

NAMES = """
    Adam Alice Amy Anna Ben Bob Carl Carol Chris Clara Dan David Diana Ella Emma Eric Eva Frank Fred Grace
    Hannah Harry Helen Henry Ian Ivan Jack James Jane Julia Karen Kate Laura Leo Lily Lucas Maria Mark Mia
    Nina Noah Oliver Olivia Paul Peter Rose Sam Sara Tom Zoe
""".split()
CITIES = """
    Athens Atlanta Austin Berlin Boston Cairo Chicago Dallas Delhi Denver Detroit Dublin Geneva Hanoi
    Helsinki Houston Istanbul Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Memphis Miami Milan Montreal
    Moscow Munich Nairobi Naples Orlando Osaka Oslo Paris Phoenix Porto Prague Quito Rome Seattle Seoul
    Sydney Tokyo Toronto Vienna Warsaw Zurich
""".split()
AGES = range(18, 100)
JOBS = ["actor", "baker", "clerk", "cook", "doctor", "driver", "lawyer", "nurse", "pilot", "teacher"]
REQUIRED = {"name", "age", "city"}
ALPHABET = string.ascii_letters + string.digits + '{}":, \n'
END = "\n"
# characters given to continue; few lengths, because prompts of one length are decoded together
CUTS = (32, 40, 48, 56, 64, 72)
CASES_PER_CUT = 400
LONGEST_REST = 64  # characters; no record is longer than the shortest cut and this
MODES: tuple[Mode, ...] = ("greedy", "typical")
PROMPTS = (
    '{"name": "Alice", "age": 25, "city": "',
    '{"city": "Boston", "name": "',
    '{"age": 30, ',
    '{"member": true, "name": "Carol", ',
    "{",
)

Record = dict[str, str | int | bool]


@dataclass(frozen=True, kw_only=True)
class RecordData(DataConfig):
    """How many records there are and how they are laid in rows."""

    dataset: str = "json_records"
    records: int = 20_000
    """Training records drawn at random."""
    layout: Layout = "packed"

    def __post_init__(self) -> None:
        if not 1 <= self.records <= 200_000:
            raise ConfigError(f"data.records is {self.records}; it must be between 1 and 200000")


class Beginning(NamedTuple):
    """A held-out record, cut: what is given, the rest of its line, and the fields that are given whole."""

    prompt: str
    rest: str
    given: Record


@functools.cache
def pair_is_held_out(first: object, second: object) -> bool:
    """Whether these two values may never stand in one training record."""
    return held_out(f"{first} {second}", one_in=30)


def held_back(record: Record) -> bool:
    """Whether a record has a held-out pair of values and so belongs to the evaluation."""
    values = [record[key] for key in ("name", "age", "city") if key in record]
    return any(pair_is_held_out(first, second) for first, second in itertools.combinations(values, 2))


def random_records(seed: str) -> Iterator[Record]:
    """Records without end, held-out ones among them. A record's order of keys is that of its line."""
    generator = random.Random(seed)
    while True:
        record: Record = {
            "name": generator.choice(NAMES),
            "age": generator.choice(AGES),
            "city": generator.choice(CITIES),
        }
        if generator.random() < 0.5:
            record["job"] = generator.choice(JOBS)
        if generator.random() < 0.5:
            record["member"] = generator.random() < 0.5
        keys = list(record)
        generator.shuffle(keys)
        yield {key: record[key] for key in keys}


def training_records(seed: int) -> Iterator[Record]:
    """Records that may be trained on, without end."""
    return (record for record in random_records(f"training {seed}") if not held_back(record))


def given_fields(line: str, cut: int) -> Record:
    """Fields of a line that its first `cut` characters give whole: up to the last separator among them."""
    text = line[:cut].rpartition(", ")[0] if "}" not in line[:cut] else line[: cut - 1]
    given: Record = json.loads(f"{text}}}") if text else {}
    return given


def beginnings() -> list[Beginning]:
    """The evaluation set: distinct prompts, equally many of each length, each with a held-out pair of values
    in it.
    """
    found: dict[int, dict[str, Beginning]] = {cut: {} for cut in CUTS}
    for record in filter(held_back, random_records("evaluation")):
        line = json.dumps(record) + END
        for cut in CUTS:
            if (
                len(line) > cut + 1
                and len(found[cut]) < CASES_PER_CUT
                and held_back(given := given_fields(line, cut))
            ):
                found[cut].setdefault(line[:cut], Beginning(line[:cut], line[cut:], given))
        if all(len(group) == CASES_PER_CUT for group in found.values()):
            break
    return [case for group in found.values() for case in group.values()]


def parse(line: str) -> Record | None:
    """The record of a whole line; None where it is cut short, not JSON, not an object, or has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> Record:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    if not line.endswith(END):
        return None
    try:
        record = json.loads(line, object_pairs_hook=unique)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def meets_schema(record: Record) -> bool:
    """Whether all required keys are there, no unknown one is, and each value is one of its field's."""
    legal = {
        "name": record.get("name") in NAMES,
        "age": type(record.get("age")) is int and record["age"] in AGES,
        "city": record.get("city") in CITIES,
        "job": record.get("job") in JOBS,
        "member": isinstance(record.get("member"), bool),
    }
    return REQUIRED <= record.keys() <= legal.keys() and all(legal[key] for key in record)


def keeps(record: Record, given: Record) -> bool:
    """Whether every given field is in the record with its value."""
    return all(record.get(key) == value for key, value in given.items())


class JsonTask(GeneratedTask[Beginning]):
    """The records of one configuration, split, with their judge."""

    alphabet = ALPHABET
    prompts = PROMPTS
    longest_answer = LONGEST_REST

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, RecordData)
        # every character is scored: which key comes next is as much the task as how it ends
        super().__init__(config, layout=config.data.layout, loss_on="all")
        self.data = config.data

    def training_examples(self) -> Iterator[Example]:
        """So many random records, each a line without a prompt."""
        lines = training_lines(self.config, self.data.records)
        return (Example("", line) for line in lines)

    def evaluation_cases(self) -> list[Beginning]:
        """Beginnings of held-out records."""
        return beginnings()

    def example_of(self, case: Beginning) -> Example:
        """A case as text."""
        return Example(case.prompt, case.rest)

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """The shares that are valid, greedy and sampled, and the share that keeps what was given both
        ways.
        """
        cases = self.held_out_cases[:limit]
        kept = [True] * len(cases)
        hits: dict[str, list[bool]] = {}
        for mode in MODES:
            records = self._records(cases, self.answers(model, cases, mode))
            hits[f"{mode}_valid"] = [record is not None and meets_schema(record) for record in records]
            kept = [
                before and record is not None and keeps(record, case.given)
                for before, record, case in zip(kept, records, cases, strict=True)
            ]
        return shares({**hits, "fields_kept": kept})

    def are_right(self, cases: Sequence[Beginning], answers: Sequence[str]) -> list[bool]:
        """Any valid record that keeps the given fields is right."""
        return [
            record is not None and meets_schema(record) and keeps(record, case.given)
            for case, record in zip(cases, self._records(cases, answers), strict=True)
        ]

    def _records(self, cases: Sequence[Beginning], answers: Sequence[str]) -> list[Record | None]:
        return [parse(case.prompt + answer) for case, answer in zip(cases, answers, strict=True)]


def training_lines(config: RunConfig, count: int) -> Iterator[str]:
    """`count` training records as text, one a line."""
    return (
        json.dumps(record) + END for record in itertools.islice(training_records(config.train.seed), count)
    )


CRITERIA = (
    Criterion("greedy_valid", at_least=0.999),
    Criterion("typical_valid", at_least=0.99),
    Criterion("fields_kept", at_least=0.99),
)
REFERENCE = RunConfig(
    model=dataclasses.replace(ARITHMETIC, vocab_size=80, max_seq_length=128),
    train=dataclasses.replace(PLAN, seq_len=128),
    data=RecordData(records=50_000),
)
QUICK = RunConfig(
    model=dataclasses.replace(SMALL, vocab_size=80, max_seq_length=128),
    train=dataclasses.replace(
        QUICK_CHARACTERS, seq_len=128, batch_size=40, eval_every=200, eval_cases=60, sample_every=200
    ),
    data=RecordData(),
)

experiment = Experiment(
    name="json_records",
    about="records as JSON: does it keep a format and the fields it was given?",
    variants={
        "quick": Variant(QUICK, CRITERIA, "minutes on two CPU cores"),
        "reference": Variant(REFERENCE, CRITERIA, "as the plan trains: AdamW, two stages"),
    },
    open=JsonTask,
    training_text=training_lines,
)
