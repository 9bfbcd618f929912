"""A run whose parts do not fit each other, each of them whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bitnet
from bitnet.errors import DataError
from bitnet.text.characters import CharacterTokenizer


def test_a_tokenizer_with_ids_beyond_the_model_is_refused(runs: Path) -> None:
    """Its ids would be looked up beyond the end of the embedding."""
    run = runs / "tiny"
    (run / "meta" / "manifest.json").unlink()
    CharacterTokenizer("0123456789+-=abcdefg\n ", 4000).save(run / "tokenizer")
    config = json.loads((run / "meta" / "config.json").read_text())
    del config["data"]["tokenizer_sha256"]
    (run / "meta" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has 4,000 entries, the model"):
        bitnet.load("tiny", runs_dir=runs)
