"""Tokenizers by the user's word: folders of other makes, names on the hub, and what is said when there is no
network.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.text.bpe import train_bpe
from bitnet.text.pretrained import FILES, find_tokenizer, why_not
from bitnet.text.subword import SubwordTokenizer


def llama_like(folder: Path) -> Path:
    """A small tokenizer in Llama-2's form: unk 0, bos 1, eos 2, spaces as ▁, bytes for the rest, and a mark
    put before texts.
    """
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": byte + 3 for byte in range(256)}}
    for token in ("\u2581", "a", "b", "c", "\u2581a", "\u2581ab", "ab"):
        vocab[token] = len(vocab)
    merges = [("\u2581", "a"), ("a", "b"), ("\u2581a", "b")]
    library = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


def test_llama_form_keeps_its_own_special_ids_and_adds_no_mark(tmp_path: Path) -> None:
    tokenizer = find_tokenizer(str(llama_like(tmp_path / "llama")))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.pad_id == tokenizer.eos_id, "it has no padding token"
    ids = tokenizer.encode("ab é c")
    assert 1 not in ids
    assert tokenizer.decode(ids) == "ab é c"
    assert tokenizer.byte_lengths()[ids].sum() == len(" ab é c".encode()), (
        "the space that the form puts before a text counts"
    )
    assert tokenizer.decode([1, *ids, 2]) == "ab é c"
    assert 2 not in tokenizer.encode("a</s>")


def test_gpt2_form_has_one_special_token_at_the_end(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(
        models.BPE({character: index for index, character in enumerate(alphabet)}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = find_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.pad_id == tokenizer.bos_id == tokenizer.eos_id == 256
    assert tokenizer.decode(tokenizer.encode("héllo <|endoftext|>")) == "héllo <|endoftext|>"
    assert tokenizer.byte_lengths().tolist() == [1] * 256 + [0]


def test_form_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="eos_token"):
        find_tokenizer(str(tmp_path))


def snapshot(monkeypatch: pytest.MonkeyPatch, outcome: Path | Exception) -> list[dict[str, object]]:
    """Stand in for the hub's download; returns the calls that were made."""
    import huggingface_hub

    calls: list[dict[str, object]] = []

    def download(name: str, **words: object) -> str:
        calls.append({"name": name, **words})
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_name_fetches_the_tokenizer_files_only_and_keeps_the_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = snapshot(monkeypatch, llama_like(tmp_path / "fetched"))
    tokenizer = find_tokenizer("meta-llama/Llama-2-7b-hf")
    assert calls == [{"name": "meta-llama/Llama-2-7b-hf", "allow_patterns": list(FILES)}]
    assert all(name.endswith(".json") for name in FILES)
    assert tokenizer.describe()["tokenizer"] == "meta-llama/Llama-2-7b-hf"
    tokenizer.save(tmp_path / "run")
    assert SubwordTokenizer.load(tmp_path / "run").describe() == tokenizer.describe()


def test_gated_absent_and_unreachable_say_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    answer = httpx2.Response(403, request=httpx2.Request("GET", "https://hub.invalid"))
    for error, words in (
        (GatedRepoError("gated", response=answer), "accept its terms"),
        (RepositoryNotFoundError("absent", response=answer), "check the name"),
        (
            LocalEntryNotFoundError("offline"),
            "cannot be reached.*accept its terms at huggingface.co/meta-llama/Llama-2-7b-hf.*hf auth login",
        ),
    ):
        snapshot(monkeypatch, error)
        with pytest.raises(NotFoundError, match=words) as caught:
            find_tokenizer("meta-llama/Llama-2-7b-hf")
        assert "--tokenizer own" in str(caught.value)


def test_words_that_stand_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no tokenizer folder"):
        find_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="made from data"):
        find_tokenizer("own")


def test_word_cutting_is_left_to_forms_it_is_right_for(tmp_path: Path) -> None:
    assert train_bpe(["ab ab"], 260)._cuts_like_gpt2
    assert not SubwordTokenizer.load(llama_like(tmp_path / "llama"))._cuts_like_gpt2


def test_a_gated_tokenizer_is_not_asked_for_without_a_login(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub would refuse, after as long as the network takes."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("bitnet.text.pretrained.fetch", lambda name: pytest.fail("it was asked"))
    assert "not logged in" in str(why_not("meta-llama/Llama-2-7b-hf"))


def test_with_a_login_the_hub_is_asked_and_its_answer_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> None:
        raise NotFoundError(f"{name} is gated: accept its terms; or make your own")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    monkeypatch.setattr("bitnet.text.pretrained.fetch", refused)
    assert why_not("meta-llama/x") == "meta-llama/x is gated: accept its terms"
    monkeypatch.setattr("bitnet.text.pretrained.fetch", lambda name: None)
    assert why_not("meta-llama/x") is None
