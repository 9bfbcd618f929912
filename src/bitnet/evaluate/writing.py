"""Is it English? Numbers about texts that a model wrote, without a reader.

None of them measures quality. Together they distinguish writing from the two broken patterns of the plan: one
word again and again (`the the the the`), and letter soup (`xkjq mlp zzz`). A sample ends where its length is
reached, so an unfinished last sentence does not count as an error.

    sentences_ended         share of sentences with . ! or ? (a closing quote may follow) at their end; the
                            cut one is left out
    sentences_capitalised   share of sentences that begin with a capital, a digit or an opening quote
    repeated_4grams         share of four-word sequences that occurred before in the same sample (0 is best)
    distinct_words          distinct words over all words, within a sample
    known_words             share of words that occur in the training text
    repeating, soup         share of samples with a broken pattern

`looping` is for greedy decoding, which fails by repeating its last words.

Not here: drawing the samples, and the loss (loss.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")
CLOSING = "\"'”’)"
OPENING = "\"'“‘("
SAME_WORD_IN_A_ROW = 3
"""The plan's first broken pattern is the same word this many times in a row. "very, very" is fine."""
LOOP_TURNS = 3
LONGEST_LOOP = 16
SOUP_SHARE = 0.3
"""A sample in which more than this share of the words was never seen in training is soup. Ours, without a
source."""


def words(text: str) -> list[str]:
    """Words in lower case, with the apostrophes inside them."""
    return [word.lower() for word in WORD.findall(text)]


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """All words of the training text."""
    return frozenset(word for text in texts for word in words(text))


def sentences(text: str) -> list[str]:
    """Pieces that end with a mark or with their paragraph."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        start = 0
        for end in SENTENCE_END.finditer(paragraph):
            found.append(paragraph[start : end.end()].strip())
            start = end.end()
        found.append(paragraph[start:].strip())
    return [sentence for sentence in found if sentence]


def is_ended(sentence: str) -> bool:
    """Whether it ends as a sentence does."""
    return sentence.rstrip(CLOSING)[-1:] in (".", "!", "?")


def is_capitalised(sentence: str) -> bool:
    """Whether it begins as a sentence does, with a capital or a digit."""
    first = sentence.lstrip(OPENING)[:1]
    return first.isupper() or first.isdigit()


def repeats_a_word(text: str) -> bool:
    """The plan's first broken pattern: one word several times in a row."""
    said = words(text)
    return any(
        len(set(said[i : i + SAME_WORD_IN_A_ROW])) == 1 for i in range(len(said) - SAME_WORD_IN_A_ROW + 1)
    )


def repeated_4grams(text: str) -> float:
    """Share of the four-word sequences that occurred before in the text; 0 for fewer than four words."""
    said = words(text)
    grams = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def looping(text: str) -> bool:
    """Whether the text ends in a loop: up to LONGEST_LOOP words, LOOP_TURNS times in a row."""
    said = words(text)
    return any(
        said[-period * LOOP_TURNS :] == said[-period:] * LOOP_TURNS
        for period in range(1, min(LONGEST_LOOP, len(said) // LOOP_TURNS) + 1)
    )


def is_soup(text: str, known: Collection[str]) -> bool:
    """The plan's second broken pattern: letters that make no words, or no words at all."""
    said = words(text)
    return not said or sum(word not in known for word in said) > SOUP_SHARE * len(said)


def writing_metrics(
    samples: Sequence[str], known: Collection[str], *, prompts: Sequence[str] | None = None
) -> dict[str, float]:
    """The figures above over continuations, each share with its number of cases.

    samples: what the model wrote. prompts: the beginnings, if given: sentences are then those of prompt and
    continuation, since the first one began in the prompt; words are counted in the continuations only. Raises
    ValueError without samples.
    """
    if not samples:
        raise ValueError("there are no samples to judge; draw at least one")
    begun = [""] * len(samples) if prompts is None else list(prompts)
    whole = [sentences(prompt + sample) for prompt, sample in zip(begun, samples, strict=True)]

    # The last sentence of a sample counts only if it ended: otherwise the sample was cut by its length.
    ended = [is_ended(sentence) for found in whole for sentence in found[:-1]]
    ended += [True for found in whole if found and is_ended(found[-1])]
    capital = [
        is_capitalised(sentence) or _continues_speech(found, i)
        for found in whole
        for i, sentence in enumerate(found)
    ]
    said = [word for sample in samples for word in words(sample)]
    shares = {
        "sentences_ended": ended,
        "sentences_capitalised": capital,
        "known_words": [word in known for word in said],
        "repeating": [repeats_a_word(sample) for sample in samples],
        "soup": [is_soup(sample, known) for sample in samples],
    }

    metrics: dict[str, float] = {}
    for name, hits in shares.items():
        metrics |= {name: sum(hits) / len(hits) if hits else 0.0, f"{name}_cases": float(len(hits))}
    distinct = [len(set(w)) / len(w) for w in map(words, samples) if w]
    metrics["distinct_words"] = sum(distinct) / len(distinct) if distinct else 0.0
    metrics["repeated_4grams"] = sum(map(repeated_4grams, samples)) / len(samples)
    return {
        **metrics,
        "distinct_words_cases": float(len(distinct)),
        "repeated_4grams_cases": float(len(samples)),
    }


def _continues_speech(found: Sequence[str], index: int) -> bool:
    """Whether this piece goes on after direct speech, as `said Tim.` does after `"Hello!"`."""
    return index > 0 and found[index - 1][-1:] in "\"'”’" and found[index][:1].islower()
