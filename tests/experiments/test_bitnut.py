"""BitNut's own part of pre-training: a second text that begins at a row, and what the variants are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bitnet.data.stream import Batch
from bitnet.errors import ConfigError
from bitnet.experiments.bitnut import QUICK, TWO_PART, BitNutData, BitNutTask, PartsRows, parts_of
from bitnet.train.config import RunConfig
from conftest import Command
from corpora import stories, write_txt


class Numbered:
    """Rows whose only token is their number and a sign of whose they are."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        ids = torch.from_numpy(numbers * 10 + self.sign)[:, None]
        return Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool))

    def epochs(self, rows: int) -> float:
        return rows / 10

    def fingerprint(self) -> dict[str, Any]:
        return {"dataset_name": str(self.sign)}


def test_the_second_part_begins_at_its_row_and_counts_from_nought() -> None:
    rows = PartsRows(Numbered(1), Numbered(2), boundary=5)
    assert rows.rows(np.arange(3, 7)).input_ids.flatten().tolist() == [31, 41, 2, 12]
    assert rows.rows(np.arange(0, 2)).input_ids.flatten().tolist() == [1, 11]
    assert rows.rows(np.arange(8, 10)).input_ids.flatten().tolist() == [32, 42]
    assert rows.epochs(25) == 2.0
    assert rows.fingerprint()["second_part"] == {"dataset_name": "2"}


def small(folder: Path, **data: Any) -> RunConfig:
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "ffn_hidden_size": 48,
    }
    return dataclasses.replace(
        QUICK,
        model=dataclasses.replace(QUICK.model, **shape),  # type: ignore[arg-type]
        train=dataclasses.replace(QUICK.train, seq_len=32, batch_size=4, total_steps=10, warmup_steps=0),
        data=dataclasses.replace(
            QUICK.data, data=(str(folder / "a.txt"),), cache_dir=str(folder), held_out_one_in=10, **data
        ),  # type: ignore[arg-type]
    )


def test_two_texts_in_one_run(tmp_path: Path) -> None:
    """Updates up to the stage boundary read the first file, later ones the second, with the tokenizer of the
    first.
    """
    write_txt(tmp_path / "a.txt", stories(200))
    write_txt(tmp_path / "b.txt", [text.upper() for text in stories(200, first=500)])
    config = small(tmp_path, second_dataset="upper", second_data=(str(tmp_path / "b.txt"),))
    task = BitNutTask(config)
    first, second = (
        task.tokenizer.decode(task.source.rows(np.arange(n, n + 4)).input_ids.flatten().tolist())
        for n in (16, 20)
    )
    assert first != first.upper()
    assert second == second.upper()
    assert task.source.fingerprint()["second_part_from_row"] == 20
    one = BitNutTask(small(tmp_path))
    assert torch.equal(one.source.rows(np.arange(4)).input_ids, task.source.rows(np.arange(4)).input_ids)


@pytest.mark.slow
def test_quick_takes_a_text_too_small_for_its_vocabulary(bitnet: Command, tmp_path: Path) -> None:
    """400 kB were once refused: they support 3,969 entries, and the model has 4,096. These few stories
    support a few hundred.
    """
    file = write_txt(tmp_path / "a.txt", stories(200))
    small = [
        "--model.hidden-size",
        32,
        "--model.num-layers",
        1,
        "--model.num-heads",
        2,
        "--model.num-kv-heads",
        1,
        "--model.ffn-hidden-size",
        48,
        "--seq-len",
        32,
        "--batch-size",
        4,
        "--num-steps",
        2,
        "--train.sample-every",
        1,
    ]
    words = [
        "train",
        "bitnut",
        "--variant",
        "quick",
        "--device",
        "cpu",
        *small,
        "--data",
        file,
        "--cache-dir",
        tmp_path,
    ]
    result = bitnet(*words, "--run-id", "r", "--runs-dir", tmp_path, "--data.judged-prompts", 4, "--evaluate")
    assert result.code == 0, result.err
    entries = json.loads((tmp_path / "r" / "meta" / "dataset_fingerprint.json").read_text())[
        "tokenizer_vocab_size"
    ]
    config = json.loads((tmp_path / "r" / "meta" / "config.json").read_text())
    assert config["data"]["tokenizer_vocab_size"] == entries < config["model"]["vocab_size"] == 4_096
    assert f"supports {entries} entries, the model has 4,096; the others are never used" in result.out
    assert (
        bitnet(
            "complete", "r", "Once", "--runs-dir", tmp_path, "--temperature", 1, "--max-new-tokens", 5
        ).code
        == 0
    )


def test_the_plans_token_budgets() -> None:
    first, second = parts_of(TWO_PART)
    assert second is not None
    assert first.train.total_tokens == pytest.approx(10e9, rel=1e-3)
    assert second.train.total_tokens == pytest.approx(10e9, rel=1e-3)
    assert second.data.dataset == "HuggingFaceFW/fineweb-edu"
    assert QUICK.model.total_params < 6_000_000


def test_a_second_part_needs_a_name_and_room() -> None:
    with pytest.raises(ConfigError, match=r"data\.second_data is given without a second part"):
        BitNutData(dataset="x", second_data=("b.txt",))
    whole = dataclasses.replace(
        TWO_PART, train=dataclasses.replace(TWO_PART.train, stage1_end=TWO_PART.train.total_steps)
    )
    with pytest.raises(ConfigError, match="the second part would have no update"):
        parts_of(whole)
