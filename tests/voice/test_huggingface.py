"""A teacher from a Hugging Face folder: a tiny untrained model that is saved to disk here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.errors import ConfigError, NotFoundError
from bitnet.voice.teachers import Request, TeacherOptions, open_teacher
from bitnet.voice.voices import built_in
from corpora import small_tokenizer

transformers = pytest.importorskip("transformers")
ASK = Request(built_in("plain"), "rain", "What is rain?", 7)
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand parameters with a 320-entry tokenizer."""
    import torch

    path = tmp_path_factory.mktemp("teacher")
    tokenizer = small_tokenizer()
    tokenizer.save(path)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"), eos_token="</s>", pad_token="<pad>"
    )
    wrapped.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=2,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.slow
def test_it_answers_a_batch_and_the_seed_repeats(folder: Path) -> None:
    teacher = open_teacher(str(folder), TeacherOptions(max_new_tokens=8))
    first = teacher.reply([ASK, ASK._replace(text="And a much longer question about rain and snow?")])
    assert len(first) == 2
    assert first == teacher.reply([ASK, ASK._replace(text="And a much longer question about rain and snow?")])
    assert first != teacher.reply([ASK._replace(seed=8), ASK])
    assert teacher.describe()["kind"] == "huggingface"


@pytest.mark.slow
def test_without_an_end_the_answer_was_cut_off(folder: Path) -> None:
    """Greedy, an untrained model goes on and on."""
    (reply,) = open_teacher(str(folder), TeacherOptions(max_new_tokens=3, temperature=0)).reply([ASK])
    assert not reply.ended


def test_a_chat_template_is_used_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    teacher = open_teacher(str(tmp_path), TeacherOptions(max_new_tokens=2))
    assert teacher._text(ASK).endswith("[user] What is rain?\n[assistant]")  # type: ignore[attr-defined]
    assert len(teacher.reply([ASK])) == 1


def test_the_original_bitnet_says_in_one_line_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers loads microsoft/bitnet-b1.58-2B-4T, the default teacher, only where accelerate is; that
    was in no extra.
    """
    monkeypatch.setattr("transformers.quantizers.quantizer_bitnet.is_accelerate_available", lambda: False)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "bitnet"}})
    )
    with pytest.raises(ConfigError, match=r"accelerate.*pip install 'bitnet\[teacher\]'"):
        open_teacher(str(tmp_path), TeacherOptions())


def test_no_model_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match=r"cannot be loaded .*or --teacher rules"):
        open_teacher(str(tmp_path), TeacherOptions())
