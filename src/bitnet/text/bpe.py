"""Train a byte-level BPE (arXiv:1508.07909 over bytes, as GPT-2 does): every text has ids, and they give it
back exactly.

The 256 bytes are in the vocabulary from the start, nothing is normalised, and no unknown token is ever
needed. Merges stay inside the pieces that GPT-2's regular expression cuts; digits stand alone, so that 1923
is 1 9 2 3 (the scheme that the smollm family uses, under which name other programs know it). Ids: <pad> <s>
</s> <unk>, the bytes, the merges in the order in which they were found. Not here: using the result
(subword.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from bitnet.errors import ConfigError, DataError
from bitnet.text.subword import SubwordTokenizer
from bitnet.text.tokenizer import SPECIAL_TOKENS
from bitnet.text.tokenizer_json import tokenizers_package
from bitnet.text.word_cache import pieces

SMALLEST = len(SPECIAL_TOKENS) + 256
MIN_PAIRS = 2  # a pair seen once says nothing about the language
OWN = "own"
CONFIG = {
    "name_or_path": OWN,
    "tokenizer_class": "PreTrainedTokenizerFast",
    **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True)),
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": True,  # "</s>" in a text is text there too, so that ids agree
}


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, fewer: bool = False, show_progress: bool = False
) -> SubwordTokenizer:
    """A tokenizer of exactly vocab_size entries. Raises DataError where the texts hold too few repeated
    pairs.

    fewer: then take as many entries as there are. show_progress: let the library draw its bars on standard
    error.
    """
    if vocab_size < SMALLEST:
        raise ConfigError(
            f"a vocabulary of {vocab_size} entries is too small; it must have at least {SMALLEST}: 256 bytes "
            f"and {len(SPECIAL_TOKENS)} special tokens"
        )
    package = tokenizers_package()
    pre_tokenizers = package.pre_tokenizers
    library = package.Tokenizer(package.models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    library.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_PAIRS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    library.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    found = library.get_vocab_size()
    if found < vocab_size and not fewer:
        raise DataError(
            f"the data supports a vocabulary of {found:,} entries only ({found - SMALLEST:,} merges were "
            f"found), {vocab_size:,} are asked for; give more text, or ask for {found}"
        )
    return SubwordTokenizer(library.to_str(pretty=True), dict(CONFIG))
